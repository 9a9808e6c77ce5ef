// The kernels, for the instruction set this file is compiled for. Notation: native.h.
#include "native.h"
#include "occupancy.h"
#include "place.h"
#include "step.h"

namespace {

void adam(float* p, const float* grad, float* m, float* v, int64_t n, int threads, float rate, float beta1, float beta2, float eps, float root) {
  constexpr int64_t CHUNK = 1 << 14;
  parallel(threads, (n + CHUNK - 1) / CHUNK, 0, [=](int64_t chunk, float*) {
    const int64_t start = chunk * CHUNK, count = n - start < CHUNK ? n - start : CHUNK;
    float *__restrict ps = p + start, *__restrict ms = m + start, *__restrict vs = v + start;
    const float* __restrict gs = grad + start;
    for (int64_t i = 0; i < count; i++) {
      const float g = gs[i];
      ms[i] = beta1 * ms[i] + (1.0f - beta1) * g;
      vs[i] = beta2 * vs[i] + (1.0f - beta2) * (g * g);
      ps[i] -= rate * ms[i] / (__builtin_sqrtf(vs[i]) * root + eps);
    }
  });
}

}  // namespace

extern const Kernels KERNELS = {encode, encode_jacobian, scatter, field, field_backward, field_value, first_crossing, place, update_grid, mlp, mlp_backward, train_step, adam};
