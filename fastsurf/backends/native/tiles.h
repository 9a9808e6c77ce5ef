// How points are cut into tiles, and tiles into segments.
#pragma once
#include "pool.h"
#include "simd.h"

namespace {

constexpr int TILE = 96;      // points whose activations stay in the L2 cache; 48 and 192 are as good
constexpr int SEGMENTS = 32;  // of points, each with its own sum of weight gradients

INLINE int64_t segments_of(int64_t tiles) { return tiles < SEGMENTS ? tiles : SEGMENTS; }
INLINE int padded(int width) { return (width + 7) & ~7; }
INLINE int64_t tiles_of(int64_t n) { return (n + TILE - 1) / TILE; }
INLINE int points_in(int64_t n, int64_t start) { return int(n - start < TILE ? n - start : TILE); }
INLINE int blocks_of(int points) { return (points + LANES - 1) / LANES; }
INLINE int lanes_in(int64_t points, int64_t block) { return points - LANES * block < LANES ? int(points - LANES * block) : LANES; }

void fill_zero(float* p, size_t n) {
  for (size_t i = 0; i < n; i++) p[i] = 0.0f;
}

// The segments' sums (rows, row) in order into `to` (rows, columns).
void sum_segments(const float* sums, int64_t segments, size_t stride, int rows, int columns, int row, float* to) {
  for (int r = 0; r < rows; r++, to += columns) {
    fill_zero(to, size_t(columns));
    for (int64_t s = 0; s < segments; s++) {
      const float* from = sums + s * stride + size_t(r) * row;
      for (int c = 0; c < columns; c++) to[c] += from[c];
    }
  }
}

}  // namespace
