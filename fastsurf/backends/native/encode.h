// The encoding of a tile's points, its derivatives, and the scatter into the table's gradient.
#pragma once
#include "grid.h"
#include "gemm.h"
#include "tiles.h"

namespace {

struct Columns {  // of rows or of blocks of points
  const float* base;
  int64_t block, column, lane;  // steps
  void prefetch(int64_t b, int c) const {
    if (base && lane == 1) __builtin_prefetch(base + b * block + c * column);
  }
  vf at(int64_t b, int c, int lanes) const {
    const float* p = base + b * block + c * column;
    return lane == 1 ? load(p) : load_lanes(p, lane, lanes);
  }
  void points(int64_t b, int lanes, vf p[3]) const {
    UNROLL for (int d = 0; d < 3; d++) p[d] = at(b, d, lanes);
  }
};
INLINE Columns in_rows(const float* base, int64_t width) { return {base, LANES * width, 1, width}; }
INLINE Columns in_blocks(const float* base, int64_t width) { return {base, LANES * width, LANES, 1}; }

// Encodes up to TILE points: blocks (.., ep, LANES) and, with JACOBIAN, blocks (.., 2L, 3, LANES). Cells are found AHEAD groups early.
template <bool JACOBIAN>
void encode_tile(const Grid& grid, const float* x, int points, float* blocks, int ep, float* jacobian) {
  const int n_blocks = blocks_of(points), n_groups = n_blocks * grid.n_levels, j_block = grid.n_levels * 6 * LANES;
  Cell ring[4];
  vf at[TILE / LANES][3];
  for (int b = 0; b < n_blocks; b++) load_points(x + 3 * LANES * b, lanes_in(points, b), at[b]);
  int early_level = 0, early_block = 0, level = 0, block = 0;
  for (int group = 0; group < n_groups + AHEAD; group++) {
    if (group < n_groups) {
      find_cell(grid.levels[early_level], at[early_block], ring[group & 3]);
      prefetch(grid.table, ring[group & 3]);
      if (++early_block == n_blocks) early_block = 0, early_level++;
    }
    if (group < AHEAD) continue;
    vf h[2], j[6];
    blend<JACOBIAN ? 1 : 0>(grid.levels[level], grid.table, ring[(group - AHEAD) & 3], h, j, nullptr);
    UNROLL for (int f = 0; f < 2; f++) store(blocks + (block * ep + 2 * level + f) * LANES, h[f]);
    if (JACOBIAN) UNROLL for (int k = 0; k < 6; k++) store(jacobian + block * j_block + (6 * level + k) * LANES, j[k]);
    if (++block == n_blocks) block = 0, level++;
  }
}

// Encodes n points at level l alone: its columns of blocks (.., ep, LANES) and, with JACOBIAN, of blocks (.., 2L, 3, LANES). Over many points
// a level's entries then stay in the L2 cache.
template <bool JACOBIAN>
void encode_level(const Grid& grid, int l, const Columns& x, int64_t n, float* blocks, int ep, float* jacobian) {
  const int64_t n_blocks = (n + LANES - 1) / LANES;
  Cell ring[4];
  for (int64_t b = 0; b < n_blocks + AHEAD; b++) {
    if (b < n_blocks) {
      vf at[3];
      x.points(b, lanes_in(n, b), at);
      find_cell(grid.levels[l], at, ring[b & 3]);
      prefetch(grid.table, ring[b & 3]);
    }
    if (b < AHEAD) continue;
    const int64_t now = b - AHEAD;
    vf h[2], j[6];
    blend<JACOBIAN ? 1 : 0>(grid.levels[l], grid.table, ring[now & 3], h, j, nullptr);
    UNROLL for (int f = 0; f < 2; f++) store(blocks + (now * ep + 2 * l + f) * LANES, h[f]);
    if (JACOBIAN) UNROLL for (int k = 0; k < 6; k++) store(jacobian + (now * grid.n_levels + l) * 6 * LANES + k * LANES, j[k]);
  }
}

void encode(const Grid& grid, const float* x, int64_t n, int threads, float* h) {
  const int width = 2 * grid.n_levels, ep = padded(width);
  parallel(threads, tiles_of(n), 2 * TILE * ep, [=, &grid](int64_t tile, float* scratch) {
    const int64_t start = tile * TILE;
    const int points = points_in(n, start);
    float *blocks = scratch, *rows = scratch + TILE * ep;
    encode_tile<false>(grid, x + 3 * start, points, blocks, ep, nullptr);
    for (int b = 0; b < blocks_of(points); b++) block_to_rows(blocks + b * LANES * ep, ep, rows + b * LANES * ep);
    copy(rows, points, width, ep, h + start * width, width);
  });
}

template <int DERIVATIVES>
void encode_jacobian_of(const Grid& grid, const float* x, int64_t n, int threads, const float* u, const float* q, float* dx, float* du, float* dxx) {
  const int width = 2 * grid.n_levels;
  parallel(threads, tiles_of(n), 0, [=, &grid](int64_t tile, float*) {
    for (int64_t i = tile * TILE; i < n && i < (tile + 1) * TILE; i += LANES) {
      const int lanes = int(n - i < LANES ? n - i : LANES);
      vf at[3], along[3] = {}, slope[3] = {}, bend[3] = {};
      load_points(x + 3 * i, lanes, at);
      if (q) load_points(q + 3 * i, lanes, along);
      for (int l = 0; l < grid.n_levels; l++) {
        Cell cell;
        vf h[2], j[6], m[6];
        find_cell(grid.levels[l], at, cell);
        blend<DERIVATIVES>(grid.levels[l], grid.table, cell, h, j, m);
        UNROLL for (int f = 0; f < 2; f++) {
          const int64_t column = i * width + 2 * l + f;
          if (du) store_lanes(du + column, width, lanes, along[0] * j[3 * f] + along[1] * j[3 * f + 1] + along[2] * j[3 * f + 2]);
          if (!u) continue;
          const vf w = load_lanes(u + column, width, lanes);
          UNROLL for (int d = 0; d < 3; d++) slope[d] += w * j[3 * f + d];
          if (DERIVATIVES == 2) {
            bend[0] += w * (m[3 * f] * along[1] + m[3 * f + 1] * along[2]);
            bend[1] += w * (m[3 * f] * along[0] + m[3 * f + 2] * along[2]);
            bend[2] += w * (m[3 * f + 1] * along[0] + m[3 * f + 2] * along[1]);
          }
        }
      }
      for (int d = 0; d < 3; d++) {
        if (dx) store_lanes(dx + 3 * i + d, 3, lanes, slope[d]);
        if (dxx) store_lanes(dxx + 3 * i + d, 3, lanes, bend[d]);
      }
    }
  });
}

void encode_jacobian(const Grid& grid, const float* x, int64_t n, int threads, const float* u, const float* q, float* dx, float* du, float* dxx) {
  if (dxx)
    encode_jacobian_of<2>(grid, x, n, threads, u, q, dx, du, dxx);
  else
    encode_jacobian_of<1>(grid, x, n, threads, u, q, dx, du, nullptr);
}

template <bool SECOND>
void scatter_level(const Level& level, int l, const Columns& x, int64_t n, const Columns& g, const Columns& u, const Columns& q, float* d_table) {
  const int64_t n_blocks = (n + LANES - 1) / LANES;
  Cell ring[4];
  for (int64_t b = 0; b < n_blocks + AHEAD; b++) {
    if (b < n_blocks) {
      vf at[3];
      x.points(b, lanes_in(n, b), at);
      find_cell(level, at, ring[b & 3]);
      prefetch(d_table, ring[b & 3]);
      g.prefetch(b, 2 * l);
      if (SECOND) u.prefetch(b, 2 * l);
    }
    if (b < AHEAD) continue;
    const int64_t now = b - AHEAD;
    const int lanes = lanes_in(n, now);
    vf first[2] = {}, second[2] = {}, along[3] = {};
    if (g.base) UNROLL for (int f = 0; f < 2; f++) first[f] = g.at(now, 2 * l + f, lanes);
    if (SECOND) {
      UNROLL for (int f = 0; f < 2; f++) second[f] = u.at(now, 2 * l + f, lanes);
      q.points(now, lanes, along);
      const vf none = all(0.0f);
      if (!any(vi(along[0] != none) | vi(along[1] != none) | vi(along[2] != none))) {
        if (g.base) scatter_cell<false>(level, d_table, ring[now & 3], first, second, along, lanes);
        continue;
      }
    }
    scatter_cell<SECOND>(level, d_table, ring[now & 3], first, second, along, lanes);
  }
}

// Zeroes d_table and calls `one(level)` for each level: one thread a level, right after its entries were zeroed and are in its cache.
template <class F>
void scatter_levels(const Grid& grid, int threads, float* d_table, F one) {
  bool side_by_side = true;  // the levels fill the table
  int64_t next = 0;
  for (int l = 0; l < grid.n_levels; next += grid.levels[l++].size) side_by_side &= grid.levels[l].offset == next;
  if (!side_by_side || next != grid.entries) fill_zero(d_table, 2 * size_t(grid.entries)), side_by_side = false;
  parallel(threads, grid.n_levels, 0, [=, &grid, &one](int64_t task, float*) {
    const int l = grid.n_levels - 1 - int(task);  // the finest are the slowest
    if (side_by_side) fill_zero(d_table + 2 * size_t(grid.levels[l].offset), 2 * size_t(grid.levels[l].size));
    one(l);
  });
}

void scatter_columns(const Grid& grid, const float* x, int64_t n, int threads, const Columns& g, const Columns& u, const float* q, float* d_table) {
  scatter_levels(grid, threads, d_table, [=, &grid](int l) {
    if (q)
      scatter_level<true>(grid.levels[l], l, in_rows(x, 3), n, g, u, in_rows(q, 3), d_table);
    else
      scatter_level<false>(grid.levels[l], l, in_rows(x, 3), n, g, u, in_rows(nullptr, 3), d_table);
  });
}

void scatter(const Grid& grid, const float* x, int64_t n, int threads, const float* g, const float* u, const float* q, float* d_table) {
  const int64_t width = 2 * grid.n_levels;
  scatter_columns(grid, x, n, threads, in_rows(g, width), in_rows(u, width), q, d_table);
}

}  // namespace
