// Compiled without contraction into fused multiply-adds: every point and cell is computed as PyTorch computes it, one rounding
// an operation, so that the result equals the reference's bit for bit.
#include <atomic>

#include "native.h"
#include "pool.h"

namespace {

inline int cell_of(float p, float half_cells, int cells) {
  const float c = (p + 1.0f) * half_cells;
  if (!(c > 0.0f)) return 0;  // NaN too
  return c < static_cast<float>(cells - 1) ? static_cast<int>(c) : cells - 1;
}

}  // namespace

bool occupied_steps(const float* rays_o, const float* rays_d, const float* t_near, const float* t_far, int64_t n, const uint8_t* occupied, int cells,
                    float step, int64_t most, int threads, float* t_out, int64_t* count) {
  constexpr int64_t RAYS = 64;
  const float half_cells = static_cast<float>(cells) / 2.0f;
  std::atomic<bool> bounded{true};
  parallel(threads, (n + RAYS - 1) / RAYS, 0, [=, &bounded](int64_t task, float*) {
    for (int64_t ray = task * RAYS; ray < n && ray < (task + 1) * RAYS; ray++) {
      const float *o = rays_o + 3 * ray, *d = rays_d + 3 * ray, near = t_near[ray], far = t_far[ray], span = far - near;
      float* t_ray = t_out + ray * most;
      int64_t found = 0;
      if (span > 0.0f && span < __builtin_inff()) {
        if (span / step > 16777216.0f) {
          bounded.store(false);
          continue;
        }
        for (int32_t k = 0; found < most; k++) {
          const float t = near + static_cast<float>(k) * step;
          if (!(t < far)) break;
          const int x = cell_of(o[0] + t * d[0], half_cells, cells), y = cell_of(o[1] + t * d[1], half_cells, cells),
                    z = cell_of(o[2] + t * d[2], half_cells, cells);
          if (occupied[(static_cast<int64_t>(x) * cells + y) * cells + z]) t_ray[found++] = t;
        }
      }
      count[ray] = found;
      for (int64_t i = found; i < most; i++) t_ray[i] = far;
    }
  });
  return bounded.load();
}
