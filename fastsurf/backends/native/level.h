// The level that is searched: the field's value and the prior, at points of the scene.
#pragma once
#include "field.h"
#include "search.h"

namespace {

// The level of a tile's points p (points, 3), scene units.
void level_tile(const Grid& grid, const FieldWeights& w, const FieldTile& t, float prior_radius, const float* p, int points, float* level) {
  float x[3 * TILE] = {};
  for (int i = 0; i < 3 * points; i++) {
    const float a = p[i] * 0.5f + 0.5f;
    x[i] = a < 0.0f ? 0.0f : a > 1.0f ? 1.0f : a;
  }
  value_tile(grid, w, t, x, points, level);
  for (int i = 0; i < points; i++, p += 3) level[i] += prior_radius - __builtin_sqrtf(p[0] * p[0] + p[1] * p[1] + p[2] * p[2]);
}

void first_crossing(const Grid& grid, const Net& net, float prior_radius, const Rays& rays, const Lattice& lattice, int secant_steps, int threads,
                    float* t_crossing, uint8_t* hit) {
  constexpr int RAYS = 64;  // searched together
  const Packed packed = pack(grid, net);
  const FieldWeights w = packed.weights;
  parallel(threads, (rays.n + RAYS - 1) / RAYS, packed.tile_floats, [=, &grid, &rays, &lattice](int64_t task, float* scratch) {
    Arena own{scratch};
    const FieldTile t(own, w);
    const int64_t start = task * RAYS, end = start + RAYS < rays.n ? start + RAYS : rays.n;
    search<TILE>(rays, lattice, secant_steps, start, end, t_crossing, hit,
                 [&](const float* p, int points, float* level) { level_tile(grid, w, t, prior_radius, p, points, level); });
  });
}

}  // namespace
