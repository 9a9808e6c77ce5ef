// The level that is searched: the field's value and the prior, at points of the scene.
#pragma once
#include "field.h"

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

}  // namespace
