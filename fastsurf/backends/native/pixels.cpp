// Rays and colours of pixels, as scene.py and pixels.py define them.
#include "native.h"
#include "pool.h"

namespace {

constexpr int NODES = 4;              // along each axis, of a cubic
constexpr float LEAST_SLOPE = 1e-9f;  // directions along an axis have at least this component

// How many of a[0 .. n - 1], ascending, are at most x.
int64_t count_up_to(const int64_t* a, int64_t n, int64_t x) {
  int64_t low = 0;
  while (low < n) {
    const int64_t middle = (low + n) / 2;
    if (a[middle] <= x)
      low = middle + 1;
    else
      n = middle;
  }
  return low;
}

struct Cubic {  // Lagrange's, through four nodes from `first` on
  int64_t first;
  float weights[NODES];
};

Cubic cubic(float at, int64_t count) {
  int64_t first = static_cast<int64_t>(at) - 1;
  first = first > 0 ? first : 0;
  first = first < count - NODES ? first : count - NODES;
  const float t = at - static_cast<float>(first), a = t - 1.0f, b = t - 2.0f, c = t - 3.0f;
  return {first, {a * b * c / -6.0f, t * b * c / 2.0f, t * a * c / -2.0f, t * a * b / 6.0f}};
}

}  // namespace

bool see(const Photographs& p, const int64_t* drawn, int64_t n, int64_t n_object, int threads, const Seen& seen) {
  constexpr int64_t PIXELS = 256;
  for (int64_t i = 0; i < n; i++)
    if (drawn[i] < 0 || drawn[i] >= (i < n_object ? p.object : p.rest).size) return false;
  parallel(threads, (n + PIXELS - 1) / PIXELS, 0, [=, &p, &seen](int64_t task, float*) {
    for (int64_t i = task * PIXELS; i < n && i < (task + 1) * PIXELS; i++) {
      const Runs& runs = i < n_object ? p.object : p.rest;
      const int64_t pixel = drawn[i] + runs.shifts[count_up_to(runs.ends, runs.n, drawn[i])];
      const int64_t view = count_up_to(p.offsets, p.n_views, pixel) - 1, local = pixel - p.offsets[view], width = p.widths[view];
      const Cubic u = cubic(static_cast<float>(local % width) * p.per_pixel[2 * view], p.counts[2 * view]);
      const Cubic v = cubic(static_cast<float>(local / width) * p.per_pixel[2 * view + 1], p.counts[2 * view + 1]);
      float plane[3] = {0.0f, 0.0f, 1.0f};
      for (int row = 0; row < NODES; row++) {
        const float* nodes = p.nodes + 2 * (p.first[view] + (v.first + row) * p.counts[2 * view] + u.first);
        for (int k = 0; k < NODES; k++)
          for (int axis = 0; axis < 2; axis++) plane[axis] += v.weights[row] * (u.weights[k] * nodes[2 * k + axis]);
      }
      const bool blind = !(plane[0] == plane[0] && plane[1] == plane[1]);
      if (blind) plane[0] = plane[1] = 0.0f;
      const float *rotation = p.rotations + 9 * view, *origin = p.origins + 3 * view;
      float *o = seen.origins + 3 * i, *d = seen.directions + 3 * i, squares = 0.0f;
      for (int axis = 0; axis < 3; axis++) {
        o[axis] = origin[axis];
        d[axis] = rotation[3 * axis] * plane[0] + rotation[3 * axis + 1] * plane[1] + rotation[3 * axis + 2] * plane[2];
        squares += d[axis] * d[axis];
      }
      float near = 0.0f, far = __builtin_inff();
      for (int axis = 0; axis < 3; axis++) {
        d[axis] /= __builtin_sqrtf(squares);
        const float slope = __builtin_fabsf(d[axis]) < LEAST_SLOPE ? __builtin_copysignf(LEAST_SLOPE, d[axis]) : d[axis];
        const float a = (-1.0f - o[axis]) * (1.0f / slope), b = (1.0f - o[axis]) * (1.0f / slope);
        near = (a < b ? a : b) > near ? (a < b ? a : b) : near;
        far = (a < b ? b : a) < far ? (a < b ? b : a) : far;
      }
      seen.t_near[i] = near;
      seen.t_far[i] = blind || far < near ? near : far;
      seen.view[i] = view, seen.pixel[i] = pixel;
      for (int k = 0; k < 3; k++) seen.rgb[3 * i + k] = static_cast<float>(p.colors[3 * pixel + k]) / 255.0f;
      if (p.coverage) seen.mask[i] = static_cast<float>(p.coverage[pixel]) / 255.0f;
    }
  });
  return true;
}
