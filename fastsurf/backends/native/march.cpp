// Compiled without contraction into fused multiply-adds: every point and cell is computed as PyTorch computes it, one rounding
// an operation, so that the result equals the reference's bit for bit.
#include <atomic>

#include "native.h"
#include "pool.h"

namespace {

constexpr int RUN = 16;  // lattice points whose cells are found together

// p in cells, clamped to the grid; NaN becomes 0
inline int32_t cell_of(float p, float half_cells, float last) {
  const float c = (p + 1.0f) * half_cells;
  const float low = c > 0.0f ? c : 0.0f;
  return static_cast<int32_t>(low < last ? low : last);
}

}  // namespace

void occupied_blocks(const uint8_t* occupied, int cells, int threads, uint8_t* blocks) {
  const int64_t n = blocks_along(cells);
  parallel(threads, n, 0, [=](int64_t i, float*) {
    for (int64_t j = 0; j < n; j++) {
      uint8_t* to = blocks + (i * n + j) * n;
      for (int64_t k = 0; k < n; k++) to[k] = 0;
      for (int64_t x = i << BLOCK_SHIFT; x < cells && x >> BLOCK_SHIFT == i; x++)
        for (int64_t y = j << BLOCK_SHIFT; y < cells && y >> BLOCK_SHIFT == j; y++) {
          const uint8_t* row = occupied + (x * cells + y) * cells;
          const int64_t whole = cells >> BLOCK_SHIFT;
          for (int64_t k = 0; k < whole; k++) {
            uint64_t eight;
            __builtin_memcpy(&eight, row + (k << BLOCK_SHIFT), 8);
            to[k] |= eight != 0;
          }
          for (int64_t z = whole << BLOCK_SHIFT; z < cells; z++) to[whole] |= row[z];
        }
    }
  });
}

int64_t occupied_steps_of(const Cells& grid, const float* o, const float* d, float near, float far, float step, int64_t most, float* t_out) {
  const float span = far - near;
  if (!(span > 0.0f && span < __builtin_inff())) return 0;
  if (span / step > 16777216.0f) return -1;
  const int64_t cells = grid.cells, blocks = blocks_along(grid.cells);
  const float half_cells = static_cast<float>(cells) / 2.0f, last = static_cast<float>(cells - 1);
  const float side = static_cast<float>(1 << BLOCK_SHIFT) / half_cells;
  float inverse[3];  // lattice points per unit of each axis
  for (int axis = 0; axis < 3; axis++) inverse[axis] = 1.0f / (d[axis] * step);
  const auto block_at = [&](int32_t k) {
    const float t = near + static_cast<float>(k) * step;
    int64_t at = 0;
    for (int axis = 0; axis < 3; axis++) at = at * blocks + (cell_of(o[axis] + t * d[axis], half_cells, last) >> BLOCK_SHIFT);
    return at;
  };
  int64_t found = 0;
  for (int32_t k = 0; found < most;) {
    const float start = near + static_cast<float>(k) * step;
    if (!(start < far)) break;
    const int64_t block = block_at(k);
    if (!grid.blocks[block]) {
      // Points and their cells follow each other along every axis, so that between two points in one block all are in it: the
      // last one that may be there is a guess, and tried.
      float leap = 64.0f;
      for (int axis = 0; axis < 3; axis++) {
        if (d[axis] == 0.0f) continue;
        const float p = o[axis] + start * d[axis], place = (p + 1.0f) / side;
        const float wall = (static_cast<float>(static_cast<int32_t>(place > 0.0f ? place < 1e4f ? place : 1e4f : 0.0f)) + (d[axis] > 0.0f ? 1.0f : 0.0f)) * side - 1.0f;
        const float points = (wall - p) * inverse[axis];
        leap = points < leap ? points : leap;
      }
      int32_t ahead = leap > 1.0f ? static_cast<int32_t>(leap) : 0;
      if (ahead && block_at(k + ahead) != block) ahead = ahead > 1 && block_at(k + ahead - 1) == block ? ahead - 1 : 0;
      k += ahead + 1;
      continue;
    }
    float t[RUN];
    int32_t x[RUN], y[RUN], z[RUN];
    for (int i = 0; i < RUN; i++) {
      t[i] = near + static_cast<float>(k + i) * step;
      x[i] = cell_of(o[0] + t[i] * d[0], half_cells, last);
      y[i] = cell_of(o[1] + t[i] * d[1], half_cells, last);
      z[i] = cell_of(o[2] + t[i] * d[2], half_cells, last);
    }
    for (int i = 0; i < RUN && found < most; i++) {
      t_out[found] = t[i];
      found += (t[i] < far) & grid.occupied[(x[i] * cells + y[i]) * cells + z[i]];
    }
    k += RUN;
  }
  return found;
}

bool occupied_steps(const float* rays_o, const float* rays_d, const float* t_near, const float* t_far, int64_t n, const uint8_t* occupied, int cells,
                    float step, int64_t most, int threads, float* t_out, int64_t* count) {
  constexpr int64_t RAYS = 64;
  const int64_t along = blocks_along(cells);
  auto* blocks = reinterpret_cast<uint8_t*>(shared_scratch(static_cast<size_t>(along * along * along + 3) / 4));
  occupied_blocks(occupied, cells, threads, blocks);
  std::atomic<bool> bounded{true};
  parallel(threads, (n + RAYS - 1) / RAYS, 0, [=, &bounded](int64_t task, float*) {
    for (int64_t ray = task * RAYS; ray < n && ray < (task + 1) * RAYS; ray++) {
      float* t = t_out + ray * most;
      const int64_t found = occupied_steps_of({occupied, blocks, cells}, rays_o + 3 * ray, rays_d + 3 * ray, t_near[ray], t_far[ray], step, most, t);
      if (found < 0) bounded.store(false);
      count[ray] = found > 0 ? found : 0;
      for (int64_t i = count[ray]; i < most; i++) t[i] = t_far[ray];
    }
  });
  return bounded.load();
}

void place_ray(const Aim& aim, int64_t ray, float surface, bool hit, const float* lattice, int64_t count, float* t) {
  const float near = aim.rays.near[ray], far = aim.rays.far[ray];
  const int samples = aim.front + aim.interval;
  const float* jitter = aim.jitter + ray * samples;
  if (hit) {
    const float low = surface - aim.width > near ? surface - aim.width : near, high = surface + aim.width < far ? surface + aim.width : far;
    for (int i = 0; i < aim.front; i++) t[i] = near + (low - near) * ((static_cast<float>(i) + jitter[i]) / static_cast<float>(aim.front));
    for (int i = 0; i < aim.interval; i++)
      t[aim.front + i] = low + (high - low) * ((static_cast<float>(i) + jitter[aim.front + i]) / static_cast<float>(aim.interval));
    return;
  }
  for (int i = 0; i < samples; i++) {
    const float u = (static_cast<float>(i) + jitter[i]) / static_cast<float>(samples);
    float at = near + (far - near) * u;
    if (count > 0) {
      const float position = u * static_cast<float>(count);
      const int64_t index = static_cast<int64_t>(position) < count ? static_cast<int64_t>(position) : count - 1;
      at = lattice[index] + (position - static_cast<float>(index) - 0.5f) * aim.step;
    }
    at = at > near ? at : near;
    t[i] = at < far ? at : far;
  }
}

void points_on_surface(const Aim& aim, const Placed& placed) {
  int64_t n = 0;
  for (int64_t ray = 0; ray < aim.rays.n; ray++) {
    for (int axis = 0; axis < 3; axis++) placed.on[3 * n + axis] = aim.rays.o[3 * ray + axis] + placed.surface[ray] * aim.rays.d[3 * ray + axis];
    n += placed.hit[ray];  // a ray without a crossing is overwritten; there is room for one more
  }
  *placed.hits = n;
}

void samples_in_use(const Step& step, int threads, float* points, int32_t* count) {
  constexpr int64_t RAYS = 64;
  const float half_cells = static_cast<float>(step.cells) / 2.0f, last = static_cast<float>(step.cells - 1);
  parallel(threads, (step.n + RAYS - 1) / RAYS, 0, [=, &step](int64_t task, float*) {
    for (int64_t ray = task * RAYS; ray < step.n && ray < (task + 1) * RAYS; ray++) {
      const float *o = step.rays_o + 3 * ray, *d = step.rays_d + 3 * ray, *t = step.t + ray * step.samples;
      const int samples = step.t_far[ray] > step.t_near[ray] ? step.samples : 0;
      float* to = points + ray * step.samples * 3;
      int32_t found = 0;
      for (int k = 0; k < samples; k += RUN) {
        const int run = samples - k < RUN ? samples - k : RUN;
        float p[3][RUN];
        int32_t cell[3][RUN];
        for (int axis = 0; axis < 3; axis++)
          for (int i = 0; i < run; i++) {
            p[axis][i] = o[axis] + t[k + i] * d[axis];
            cell[axis][i] = cell_of(p[axis][i], half_cells, last);
          }
        for (int i = 0; i < run; i++) {
          for (int axis = 0; axis < 3; axis++) to[3 * found + axis] = p[axis][i];
          found += step.occupied[(static_cast<int64_t>(cell[0][i]) * step.cells + cell[1][i]) * step.cells + cell[2][i]];
        }
      }
      count[ray] = found;
    }
  });
}
