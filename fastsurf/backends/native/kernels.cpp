// The kernels, for the instruction set this file is compiled for. Notation: native.h.
#include "gemm.h"
#include "grid.h"
#include "native.h"
#include "pool.h"
#include "search.h"
#include "simd.h"

namespace {

constexpr int TILE = 96;      // points whose activations stay in the L2 cache; 48 and 192 are as good
constexpr int SEGMENTS = 32;  // of points, each with its own sum of weight gradients

INLINE int padded(int width) { return (width + 7) & ~7; }
INLINE int64_t tiles_of(int64_t n) { return (n + TILE - 1) / TILE; }
INLINE int points_in(int64_t n, int64_t start) { return int(n - start < TILE ? n - start : TILE); }
INLINE int blocks_of(int points) { return (points + LANES - 1) / LANES; }
INLINE int lanes_in(int64_t points, int64_t block) { return points - LANES * block < LANES ? int(points - LANES * block) : LANES; }

void fill_zero(float* p, size_t n) {
  for (size_t i = 0; i < n; i++) p[i] = 0.0f;
}

// ---- encoding

// Encodes a tile: blocks (.., ep, LANES) and, with JACOBIAN, blocks (.., 2L, 3, LANES). Cells are found AHEAD groups early.
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

// ---- scatter

struct Columns {  // of rows or of blocks
  const float* base;
  int64_t block, column, lane;  // steps
  vf at(int64_t b, int c, int lanes) const {
    const float* p = base + b * block + c * column;
    return lane == 1 ? load(p) : load_lanes(p, lane, lanes);
  }
};

template <bool SECOND>
void scatter_level(const Level& level, int l, const float* x, int64_t n, const Columns& g, const Columns& u, const float* q, float* d_table) {
  const int64_t n_blocks = (n + LANES - 1) / LANES;
  Cell ring[4];
  for (int64_t b = 0; b < n_blocks + AHEAD; b++) {
    if (b < n_blocks) {
      vf at[3];
      load_points(x + 3 * LANES * b, lanes_in(n, b), at);
      find_cell(level, at, ring[b & 3]);
      prefetch(d_table, ring[b & 3]);
    }
    if (b < AHEAD) continue;
    const int64_t now = b - AHEAD;
    const int lanes = lanes_in(n, now);
    vf first[2] = {}, second[2] = {}, along[3] = {};
    if (g.base) UNROLL for (int f = 0; f < 2; f++) first[f] = g.at(now, 2 * l + f, lanes);
    if (SECOND) {
      UNROLL for (int f = 0; f < 2; f++) second[f] = u.at(now, 2 * l + f, lanes);
      load_points(q + 3 * LANES * now, lanes, along);
    }
    scatter_cell<SECOND>(level, d_table, ring[now & 3], first, second, along, lanes);
  }
}

void scatter_columns(const Grid& grid, const float* x, int64_t n, int threads, const Columns& g, const Columns& u, const float* q, float* d_table) {
  constexpr int64_t CHUNK = 1 << 16;
  const int64_t size = 2 * grid.entries;
  parallel(threads, (size + CHUNK - 1) / CHUNK, 0, [=](int64_t chunk, float*) {
    const int64_t start = chunk * CHUNK;
    fill_zero(d_table + start, size_t(size - start < CHUNK ? size - start : CHUNK));
  });
  parallel(threads, grid.n_levels, 0, [=, &grid](int64_t task, float*) {
    const int l = grid.n_levels - 1 - int(task);  // the finest are the slowest
    if (q)
      scatter_level<true>(grid.levels[l], l, x, n, g, u, q, d_table);
    else
      scatter_level<false>(grid.levels[l], l, x, n, g, u, q, d_table);
  });
}

void scatter(const Grid& grid, const float* x, int64_t n, int threads, const float* g, const float* u, const float* q, float* d_table) {
  const int64_t width = 2 * grid.n_levels;
  scatter_columns(grid, x, n, threads, {g, LANES * width, 1, width}, {u, LANES * width, 1, width}, q, d_table);
}

// ---- field

struct FieldWeights {  // padded, both ways round
  int width, ep, hp, op;
  float *w1, *w1t, *w2, *w2t;  // (hidden, ep), (2L, hp), (outputs, hp), (hidden, op)

  FieldWeights(Arena& arena, const Grid& grid, const Net& net)
      : width(2 * grid.n_levels), ep(padded(width)), hp(padded(net.hidden)), op(padded(net.outputs)), w1(arena.take(size_t(net.hidden) * ep)),
        w1t(arena.take(size_t(width) * hp)), w2(arena.take(size_t(net.outputs) * hp)), w2t(arena.take(size_t(net.hidden) * op)) {}

  void fill(const Net& net) {
    fill_zero(w1, size_t(w2t - w1) + size_t(net.hidden) * op);
    copy(net.w1, net.hidden, width, width, w1, ep);
    copy_transposed(net.w1, net.hidden, width, w1t, hp);
    copy(net.w2, net.outputs, net.hidden, net.hidden, w2, hp);
    copy_transposed(net.w2, net.outputs, net.hidden, w2t, op);
  }
};

struct FieldTile {  // one thread's activations
  float *blocks, *rows, *jacobian, *z, *s, *g_z, *u, *out;

  FieldTile(Arena& arena, const FieldWeights& w)
      : blocks(arena.take(TILE * w.ep)), rows(arena.take(TILE * w.ep)), jacobian(arena.take(TILE * 3 * w.width)), z(arena.take(TILE * w.hp)),
        s(arena.take(TILE * w.hp)), g_z(arena.take(TILE * w.hp)), u(arena.take(TILE * w.ep)), out(arena.take(TILE * w.op)) {}
};

// z = relu(W1 h) and s = m v, rows of hp
INLINE void hidden_layer(const FieldWeights& w, const float* h, int points, float* z, float* s) {
  gemm<RELU>(points, w.hp, w.width, h, w.ep, 1, w.w1t, w.hp, z, w.hp);
  if (!s) return;
  for (int p = 0; p < points; p++)
    for (int k = 0; k < w.hp; k += LANES) store(s + p * w.hp + k, keep_if(vi(load(z + p * w.hp + k) > all(0.0f)), load(w.w2 + k)));
}

void field(const Grid& grid, const Net& net, const float* x, int64_t n, int threads, float* out, float* gradient, const Saved& saved) {
  Arena sizes{nullptr}, tile_sizes{nullptr};
  const FieldTile counted(tile_sizes, FieldWeights(sizes, grid, net));
  const size_t tile_floats = tile_sizes.used;
  Arena arena{shared_scratch(sizes.used)};
  FieldWeights w(arena, grid, net);
  w.fill(net);
  parallel(threads, tiles_of(n), tile_floats, [=, &grid, &net, &saved](int64_t tile, float* scratch) {
    Arena own{scratch};
    const FieldTile t(own, w);
    const int64_t start = tile * TILE;
    const int points = points_in(n, start), n_blocks = blocks_of(points);
    float* h = saved.h ? saved.h + start * w.ep : t.rows;
    float* jacobian = saved.h ? saved.jacobian + start * 3 * w.width : t.jacobian;
    float* blocks = saved.h ? saved.u + start * w.ep : t.blocks;  // holds h first, then u
    encode_tile<true>(grid, x + 3 * start, points, blocks, w.ep, jacobian);
    for (int b = 0; b < n_blocks; b++) {
      for (int k = w.width; k < w.ep; k++) store(blocks + (b * w.ep + k) * LANES, all(0.0f));
      block_to_rows(blocks + b * LANES * w.ep, w.ep, h + b * LANES * w.ep);
    }
    hidden_layer(w, h, LANES * n_blocks, t.z, t.s);
    if (net.outputs == w.op) {
      gemm<PLAIN>(points, w.op, net.hidden, t.z, w.hp, 1, w.w2t, w.op, out + start * w.op, w.op);
    } else {
      gemm<PLAIN>(points, w.op, net.hidden, t.z, w.hp, 1, w.w2t, w.op, t.out, w.op);
      copy(t.out, points, net.outputs, w.op, out + start * net.outputs, net.outputs);
    }
    gemm<PLAIN>(LANES * n_blocks, w.ep, net.hidden, t.s, w.hp, 1, w.w1, w.ep, t.u, w.ep);
    for (int b = 0; b < n_blocks; b++) {
      float* u = blocks + b * LANES * w.ep;
      rows_to_block(t.u + b * LANES * w.ep, w.ep, u);
      const float* j = jacobian + b * 3 * LANES * w.width;
      vf g[3] = {};
      for (int k = 0; k < w.width; k++) {
        const vf u_k = load(u + LANES * k);
        UNROLL for (int d = 0; d < 3; d++) g[d] += u_k * load(j + (3 * k + d) * LANES);
      }
      for (int d = 0; d < 3; d++) store_lanes(gradient + (start + LANES * b) * 3 + d, 3, lanes_in(points, b), g[d]);
    }
  });
}

// out[0] of a tile's points
void value_tile(const Grid& grid, const FieldWeights& w, const FieldTile& t, const float* x, int points, float* value) {
  encode_tile<false>(grid, x, points, t.blocks, w.ep, nullptr);
  for (int b = 0; b < blocks_of(points); b++) block_to_rows(t.blocks + b * LANES * w.ep, w.ep, t.rows + b * LANES * w.ep);
  hidden_layer(w, t.rows, points, t.z, nullptr);
  for (int p = 0; p < points; p++) {
    vf sum = {};
    for (int k = 0; k < w.hp; k += LANES) sum += load(t.z + p * w.hp + k) * load(w.w2 + k);
    value[p] = sum_lanes(sum);
  }
}

void field_value(const Grid& grid, const Net& net, const float* x, int64_t n, int threads, float* value) {
  Arena sizes{nullptr}, tile_sizes{nullptr};
  const FieldTile counted(tile_sizes, FieldWeights(sizes, grid, net));
  const size_t tile_floats = tile_sizes.used;
  Arena arena{shared_scratch(sizes.used)};
  FieldWeights w(arena, grid, net);
  w.fill(net);
  parallel(threads, tiles_of(n), tile_floats, [=, &grid](int64_t tile, float* scratch) {
    Arena own{scratch};
    const FieldTile t(own, w);
    const int64_t start = tile * TILE;
    const int points = points_in(n, start);
    value_tile(grid, w, t, x + 3 * start, points, value + start);
  });
}

void first_crossing(const Grid& grid, const Net& net, float prior_radius, const Rays& rays, const Lattice& lattice, int secant_steps, int threads,
                    float* t_crossing, uint8_t* hit) {
  constexpr int RAYS = 64;  // searched together
  Arena sizes{nullptr}, tile_sizes{nullptr};
  const FieldTile counted(tile_sizes, FieldWeights(sizes, grid, net));
  const size_t tile_floats = tile_sizes.used;
  Arena arena{shared_scratch(sizes.used)};
  FieldWeights w(arena, grid, net);
  w.fill(net);
  parallel(threads, (rays.n + RAYS - 1) / RAYS, tile_floats, [=, &grid, &rays, &lattice](int64_t task, float* scratch) {
    Arena own{scratch};
    const FieldTile t(own, w);
    const int64_t start = task * RAYS, end = start + RAYS < rays.n ? start + RAYS : rays.n;
    search<TILE>(rays, lattice, secant_steps, start, end, t_crossing, hit, [&](const float* p, int points, float* level) {
      float x[3 * TILE];
      for (int i = 0; i < 3 * points; i++) {
        const float a = p[i] * 0.5f + 0.5f;
        x[i] = a < 0.0f ? 0.0f : a > 1.0f ? 1.0f : a;
      }
      value_tile(grid, w, t, x, points, level);
      for (int i = 0; i < points; i++, p += 3) level[i] += prior_radius - __builtin_sqrtf(p[0] * p[0] + p[1] * p[1] + p[2] * p[2]);
    });
  });
}

// Adds the segments' sums (rows, row) in order into to (rows, columns).
void sum_segments(const float* sums, int64_t segments, size_t stride, int rows, int columns, int row, float* to) {
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < columns; c++) {
      float sum = 0.0f;
      for (int64_t s = 0; s < segments; s++) sum += sums[s * stride + size_t(r) * row + c];
      to[size_t(r) * columns + c] = sum;
    }
}

void field_backward(const Grid& grid, const Net& net, const float* x, int64_t n, int threads, const Saved& saved, const float* d_out, const float* q,
                    float* g_h, float* d_table, float* d_w1, float* d_w2) {
  Arena sizes{nullptr}, tile_sizes{nullptr};
  FieldWeights w(sizes, grid, net);
  const size_t d1_size = size_t(net.hidden) * w.ep, stride = (d1_size + size_t(net.outputs) * w.hp + 15) & ~size_t(15);
  const int64_t n_tiles = tiles_of(n), segments = n_tiles < SEGMENTS ? n_tiles : SEGMENTS;
  const FieldTile counted(tile_sizes, w);
  const size_t tile_floats = tile_sizes.used;
  Arena arena{shared_scratch(sizes.used + stride * size_t(segments))};
  w = FieldWeights(arena, grid, net);
  w.fill(net);
  float* sums = arena.take(stride * size_t(segments));

  parallel(threads, segments, tile_floats, [=, &grid, &net, &saved](int64_t segment, float* scratch) {
    Arena own{scratch};
    const FieldTile t(own, w);
    float *d1 = sums + stride * size_t(segment), *d2 = d1 + d1_size;
    fill_zero(d1, stride);
    for (int64_t tile = segment * n_tiles / segments; tile < (segment + 1) * n_tiles / segments; tile++) {
      const int64_t start = tile * TILE;
      const int points = points_in(n, start), n_blocks = blocks_of(points);
      const float* h = saved.h + start * w.ep;
      hidden_layer(w, h, points, t.z, q ? t.s : nullptr);
      if (q) {  // second order
        for (int b = 0; b < n_blocks; b++) {
          const float* j = saved.jacobian + (start + LANES * b) * 3 * w.width;
          float* g_u = t.blocks + b * LANES * w.ep;
          vf along[3];
          load_points(q + 3 * (start + LANES * b), lanes_in(points, b), along);
          for (int k = 0; k < w.width; k++)
            store(g_u + k * LANES,
                  along[0] * load(j + 3 * k * LANES) + along[1] * load(j + (3 * k + 1) * LANES) + along[2] * load(j + (3 * k + 2) * LANES));
          for (int k = w.width; k < w.ep; k++) store(g_u + LANES * k, all(0.0f));
          block_to_rows(g_u, w.ep, t.u + b * LANES * w.ep);
        }
        if (d_w1) {
          gemm<ADD>(net.hidden, w.ep, points, t.s, 1, w.hp, t.u, w.ep, d1, w.ep);
          gemm<MASK>(points, w.hp, w.width, t.u, w.ep, 1, w.w1t, w.hp, t.g_z, w.hp, t.z, w.hp);
          for (int k = 0; k < w.hp; k += LANES) {
            vf sum = load(d2 + k);
            for (int p = 0; p < points; p++) sum += load(t.g_z + p * w.hp + k);
            store(d2 + k, sum);
          }
        }
      }
      if (d_out) {
        const float* d = d_out + start * net.outputs;
        gemm<MASK>(points, w.hp, net.outputs, d, net.outputs, 1, w.w2, w.hp, t.g_z, w.hp, t.z, w.hp);
        if (d_w1) {
          gemm<ADD>(net.outputs, w.hp, points, d, 1, net.outputs, t.z, w.hp, d2, w.hp);
          gemm<ADD>(net.hidden, w.ep, points, t.g_z, 1, w.hp, h, w.ep, d1, w.ep);
        }
        if (d_table) {
          gemm<PLAIN>(points, w.ep, net.hidden, t.g_z, w.hp, 1, w.w1, w.ep, t.u, w.ep);
          for (int b = 0; b < n_blocks; b++) rows_to_block(t.u + b * LANES * w.ep, w.ep, g_h + (start + LANES * b) * w.ep);
        }
      }
    }
  });
  if (d_w1) {
    sum_segments(sums, segments, stride, net.hidden, w.width, w.ep, d_w1);
    sum_segments(sums + d1_size, segments, stride, net.outputs, net.hidden, w.hp, d_w2);
  }
  if (d_table) scatter_columns(grid, x, n, threads, {d_out ? g_h : nullptr, LANES * w.ep, LANES, 1}, {saved.u, LANES * w.ep, LANES, 1}, q, d_table);
}

// ---- MLP

constexpr int MAX_LAYERS = 16;

struct MlpWeights {  // padded, both ways round; offsets of the rows that are kept and of the gradients
  int p[MAX_LAYERS + 1], widest = 0;
  float *w[MAX_LAYERS], *wt[MAX_LAYERS];  // (out, padded in), (in, padded out)
  size_t gradient[MAX_LAYERS + 1], total = 0;

  MlpWeights(Arena& arena, const int32_t* widths, int layers, const float* weights) {
    for (int l = 0; l <= layers; l++) {
      p[l] = padded(widths[l]);
      if (p[l] > widest) widest = p[l];
    }
    for (int l = 0; l < layers; l++) {
      const size_t size = size_t(widths[l + 1]) * p[l], size_t_ = size_t(widths[l]) * p[l + 1];
      w[l] = arena.take(size), wt[l] = arena.take(size_t_);
      gradient[l] = total, total += (size + 15) & ~size_t(15);
      if (!arena.base) continue;
      fill_zero(w[l], size), fill_zero(wt[l], size_t_);
      copy(weights, widths[l + 1], widths[l], widths[l], w[l], p[l]);
      copy_transposed(weights, widths[l + 1], widths[l], wt[l], p[l + 1]);
      weights += size_t(widths[l + 1]) * widths[l];
    }
  }
};

void mlp(const int32_t* widths, int layers, const float* weights, const float* x, int64_t n, int threads, float* y, float* hidden) {
  Arena sizes{nullptr};
  const MlpWeights plan(sizes, widths, layers, weights);
  Arena arena{shared_scratch(sizes.used)};
  const MlpWeights w(arena, widths, layers, weights);
  const size_t room = size_t(TILE) * w.widest;
  parallel(threads, tiles_of(n), 2 * room, [=, &w](int64_t tile, float* scratch) {
    const int64_t start = tile * TILE;
    const int points = points_in(n, start);
    const float* in = x + start * widths[0];
    int64_t in_row = widths[0];
    float* kept = hidden;
    for (int l = 0; l < layers - 1; l++) {
      const int row = w.p[l + 1];
      float* out = hidden ? kept + start * row : scratch + (l & 1) * room;
      gemm<RELU>(points, row, widths[l], in, in_row, 1, w.wt[l], row, out, row);
      in = out, in_row = row, kept += n * row;
    }
    const int last = layers - 1, out = widths[layers], row = w.p[layers];
    float* to = out == row ? y + start * out : scratch + (last & 1) * room;
    gemm<PLAIN>(points, row, widths[last], in, in_row, 1, w.wt[last], row, to, row);
    if (out != row) copy(to, points, out, row, y + start * out, out);
  });
}

void mlp_backward(const int32_t* widths, int layers, const float* weights, const float* x, int64_t n, int threads, const float* hidden, const float* dy,
                  float* dx, float* d_weights) {
  const int64_t n_tiles = tiles_of(n), segments = n_tiles < SEGMENTS ? n_tiles : SEGMENTS;
  Arena sizes{nullptr};
  const MlpWeights plan(sizes, widths, layers, weights);
  Arena arena{shared_scratch(sizes.used + plan.total * size_t(segments))};
  const MlpWeights w(arena, widths, layers, weights);
  float* sums = arena.take(w.total * size_t(segments));
  const size_t room = size_t(TILE) * w.widest;
  parallel(threads, segments, 3 * room, [=, &w](int64_t segment, float* scratch) {
    float *sum = sums + w.total * size_t(segment), *padded_x = scratch + 2 * room;
    fill_zero(sum, w.total);
    fill_zero(padded_x, room);
    for (int64_t tile = segment * n_tiles / segments; tile < (segment + 1) * n_tiles / segments; tile++) {
      const int64_t start = tile * TILE;
      const int points = points_in(n, start);
      const float* d = dy + start * widths[layers];
      int64_t d_row = widths[layers];
      const float* kept = hidden;
      for (int l = 1; l < layers; l++) kept += n * w.p[l];
      for (int l = layers - 1; l > 0; l--) {
        const int row = w.p[l];
        kept -= n * row;
        const float* in = kept + start * row;
        float* next = scratch + (l & 1) * room;
        gemm<ADD>(widths[l + 1], row, points, d, 1, d_row, in, row, sum + w.gradient[l], row);
        gemm<MASK>(points, row, widths[l + 1], d, d_row, 1, w.w[l], row, next, row, in, row);
        d = next, d_row = row;
      }
      const int in = widths[0], row = w.p[0];
      const float* rows = x + start * in;
      if (in != row) copy(rows, points, in, in, padded_x, row), rows = padded_x;
      gemm<ADD>(widths[1], row, points, d, 1, d_row, rows, row, sum, row);
      if (!dx) continue;
      float* to = in == row ? dx + start * in : scratch;  // d lies in the other half: l = 1 wrote to 1
      gemm<PLAIN>(points, row, widths[1], d, d_row, 1, w.w[0], row, to, row);
      if (in != row) copy(to, points, in, row, dx + start * in, in);
    }
  });
  for (int l = 0; l < layers; l++) {
    sum_segments(sums + w.gradient[l], segments, w.total, widths[l + 1], widths[l], w.p[l], d_weights);
    d_weights += size_t(widths[l + 1]) * widths[l];
  }
}

// ---- Adam

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

extern const Kernels KERNELS = {encode, encode_jacobian, scatter, field, field_backward, field_value, first_crossing, mlp, mlp_backward, adam};
