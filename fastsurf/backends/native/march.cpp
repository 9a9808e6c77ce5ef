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

bool occupied_steps(const float* rays_o, const float* rays_d, const float* t_near, const float* t_far, int64_t n, const uint8_t* occupied, int cells,
                    float step, int64_t most, int threads, float* t_out, int64_t* count) {
  constexpr int64_t RAYS = 64;
  const float half_cells = static_cast<float>(cells) / 2.0f, last = static_cast<float>(cells - 1);
  std::atomic<bool> bounded{true};
  parallel(threads, (n + RAYS - 1) / RAYS, 0, [=, &bounded](int64_t task, float*) {
    for (int64_t ray = task * RAYS; ray < n && ray < (task + 1) * RAYS; ray++) {
      const float near = t_near[ray], far = t_far[ray], span = far - near;
      const float ox = rays_o[3 * ray], oy = rays_o[3 * ray + 1], oz = rays_o[3 * ray + 2];
      const float dx = rays_d[3 * ray], dy = rays_d[3 * ray + 1], dz = rays_d[3 * ray + 2];
      float* t_ray = t_out + ray * most;
      int64_t found = 0;
      if (span > 0.0f && span < __builtin_inff()) {
        if (span / step > 16777216.0f) {
          bounded.store(false);
          continue;
        }
        bool before_far = true;
        for (int32_t k = 0; before_far && found < most; k += RUN) {
          float t[RUN];
          int32_t x[RUN], y[RUN], z[RUN];
          for (int i = 0; i < RUN; i++) {
            t[i] = near + static_cast<float>(k + i) * step;
            x[i] = cell_of(ox + t[i] * dx, half_cells, last);
            y[i] = cell_of(oy + t[i] * dy, half_cells, last);
            z[i] = cell_of(oz + t[i] * dz, half_cells, last);
          }
          for (int i = 0; i < RUN && before_far && found < most; i++) {
            before_far = t[i] < far;
            t_ray[found] = t[i];
            found += before_far & occupied[(static_cast<int64_t>(x[i]) * cells + y[i]) * cells + z[i]];
          }
        }
      }
      count[ray] = found;
      for (int64_t i = found; i < most; i++) t_ray[i] = far;
    }
  });
  return bounded.load();
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
