// The field: encoding and two-layer MLP, with the analytic gradient and both orders of the way back.
#pragma once
#include "encode.h"

namespace {

struct FieldWeights {  // padded, both ways round
  int width, hidden, outputs, ep, hp, op;
  float *w1, *w1t, *w2, *w2t;  // (hidden, ep), (2L, hp), (outputs, hp), (hidden, op)

  FieldWeights(Arena& arena, const Grid& grid, const Net& net)
      : width(2 * grid.n_levels), hidden(net.hidden), outputs(net.outputs), ep(padded(width)), hp(padded(net.hidden)), op(padded(net.outputs)), w1(arena.take(size_t(net.hidden) * ep)),
        w1t(arena.take(size_t(width) * hp)), w2(arena.take(size_t(net.outputs) * hp)), w2t(arena.take(size_t(net.hidden) * op)) {}

  void fill(const Net& net) const {
    fill_zero(w1, size_t(w2t - w1) + size_t(net.hidden) * op);
    copy(net.w1, net.hidden, width, width, w1, ep);
    copy_transposed(net.w1, net.hidden, width, w1t, hp);
    copy(net.w2, net.outputs, net.hidden, net.hidden, w2, hp);
    copy_transposed(net.w2, net.outputs, net.hidden, w2t, op);
  }

  // A segment's gradients: (hidden, ep) and behind them (outputs, hp).
  size_t w1_floats() const { return size_t(hidden) * ep; }
  size_t gradient_floats() const { return (w1_floats() + size_t(outputs) * hp + 15) & ~size_t(15); }
  void sum_gradients(const float* sums, int64_t segments, size_t stride, float* d_w1, float* d_w2) const {
    sum_segments(sums, segments, stride, hidden, width, ep, d_w1);
    sum_segments(sums + w1_floats(), segments, stride, outputs, hidden, hp, d_w2);
  }
};

struct FieldTile {  // one thread's activations
  float *blocks, *rows, *jacobian, *z, *s, *g_z, *u, *out, *gradient;
  float *z_chosen, *u_chosen;  // rows of those points alone whose gradient matters

  FieldTile(Arena& arena, const FieldWeights& w, int points = TILE)
      : blocks(arena.take(points * w.ep)), rows(arena.take(points * w.ep)), jacobian(arena.take(points * 3 * w.width)), z(arena.take(points * w.hp)),
        s(arena.take(points * w.hp)), g_z(arena.take(points * w.hp)), u(arena.take(points * w.ep)), out(arena.take(points * w.op)),
        gradient(arena.take(points * 3)), z_chosen(arena.take(points * w.hp)), u_chosen(arena.take(points * w.ep)) {}
};

struct Packed {
  FieldWeights weights;
  size_t tile_floats;  // that a FieldTile takes
  float* room;
};

// The weights in shared scratch, and `more` floats of room behind them.
Packed pack(const Grid& grid, const Net& net, size_t more = 0) {
  Arena sizes{nullptr}, tile_sizes{nullptr};
  const FieldTile counted(tile_sizes, FieldWeights(sizes, grid, net));
  Arena arena{shared_scratch(sizes.used + more)};
  const FieldWeights weights(arena, grid, net);
  weights.fill(net);
  return {weights, tile_sizes.used, arena.take(more)};
}

struct Chosen {  // rows of a tile, in ascending order
  const int32_t* rows;
  int count;
};

INLINE void gather_rows(const float* from, const Chosen& chosen, int row, float* to) {
  for (int r = 0; r < chosen.count; r++)
    for (int k = 0; k < row; k += LANES) store(to + r * row + k, load(from + chosen.rows[r] * row + k));
}

// z = relu(W1 h), rows of hp
INLINE void hidden_layer(const FieldWeights& w, const float* h, int points, float* z) {
  gemm<RELU>(points, w.hp, w.width, h, w.ep, 1, w.w1t, w.hp, z, w.hp);
}

// s = m v, rows of hp
INLINE void slopes(const FieldWeights& w, const float* z, int points, float* s) {
  for (int p = 0; p < points; p++)
    for (int k = 0; k < w.hp; k += LANES) store(s + p * w.hp + k, keep_if(vi(load(z + p * w.hp + k) > all(0.0f)), load(w.w2 + k)));
}

// h from blocks to rows, and z
INLINE void rows_and_hidden(const FieldWeights& w, const FieldTile& t, float* blocks, int n_blocks, float* h) {
  for (int b = 0; b < n_blocks; b++) {
    for (int k = w.width; k < w.ep; k++) store(blocks + (b * w.ep + k) * LANES, all(0.0f));
    block_to_rows(blocks + b * LANES * w.ep, w.ep, h + b * LANES * w.ep);
  }
  hidden_layer(w, h, LANES * n_blocks, t.z);
}

// out[0] of rows z, a multiple of LANES
INLINE void first_output(const FieldWeights& w, const float* z, int points, float* value) {
  for (int p = 0; p < points; p += LANES) {
    vf sum[LANES];
    UNROLL for (int l = 0; l < LANES; l++) sum[l] = all(0.0f);
    for (int k = 0; k < w.hp; k += LANES) {
      const vf v = load(w.w2 + k);
      UNROLL for (int l = 0; l < LANES; l++) sum[l] += load(z + (p + l) * w.hp + k) * v;
    }
    transpose(sum);
    for (int l = 1; l < LANES; l++) sum[0] += sum[l];
    store(value + p, sum[0]);
  }
}

// A tile's `out` (points, op); h is left in rows, z in t, and with JACOBIAN J in blocks. `room`: (points, ep).
template <bool JACOBIAN>
void field_tile(const Grid& grid, const FieldWeights& w, const FieldTile& t, const float* x, int points, float* h, float* jacobian, float* room, float* out) {
  const int n_blocks = blocks_of(points);
  encode_tile<JACOBIAN>(grid, x, points, room, w.ep, jacobian);
  rows_and_hidden(w, t, room, n_blocks, h);
  gemm<PLAIN>(points, w.op, w.hidden, t.z, w.hp, 1, w.w2t, w.op, out, w.op);
}

// With t.z: t.gradient in blocks of 3, u in blocks, s in t; where `chosen` is not null right in its rows alone, u and the gradient 0
// elsewhere, s its rows one after the other, as those of t.z_chosen have to be.
void field_tile_gradient(const FieldWeights& w, const FieldTile& t, const float* jacobian, int points, const Chosen* chosen, float* u) {
  const int n_blocks = blocks_of(points), rows = chosen ? chosen->count : LANES * n_blocks;
  slopes(w, chosen ? t.z_chosen : t.z, rows, t.s);
  gemm<PLAIN>(rows, w.ep, w.hidden, t.s, w.hp, 1, w.w1, w.ep, chosen ? t.u_chosen : t.u, w.ep);
  if (chosen) {
    fill_zero(t.u, size_t(n_blocks) * LANES * w.ep);
    for (int r = 0; r < rows; r++)
      for (int k = 0; k < w.ep; k += LANES) store(t.u + chosen->rows[r] * w.ep + k, load(t.u_chosen + r * w.ep + k));
  }
  for (int b = 0; b < n_blocks; b++) {
    float* u_block = u + b * LANES * w.ep;
    rows_to_block(t.u + b * LANES * w.ep, w.ep, u_block);
    const float* j = jacobian + b * 3 * LANES * w.width;
    vf g[3] = {};
    for (int k = 0; k < w.width; k++) {
      const vf u_k = load(u_block + LANES * k);
      UNROLL for (int d = 0; d < 3; d++) g[d] += u_k * load(j + (3 * k + d) * LANES);
    }
    UNROLL for (int d = 0; d < 3; d++) store(t.gradient + (3 * b + d) * LANES, g[d]);
  }
}

void field(const Grid& grid, const Net& net, const float* x, int64_t n, int threads, float* out, float* gradient, const Saved& saved) {
  const Packed packed = pack(grid, net);
  const FieldWeights w = packed.weights;
  parallel(threads, tiles_of(n), packed.tile_floats, [=, &grid, &saved](int64_t tile, float* scratch) {
    Arena own{scratch};
    const FieldTile t(own, w);
    const int64_t start = tile * TILE;
    const int points = points_in(n, start);
    float* h = saved.h ? saved.h + start * w.ep : t.rows;
    float* jacobian = saved.h ? saved.jacobian + start * 3 * w.width : t.jacobian;
    float* u = saved.h ? saved.u + start * w.ep : t.blocks;
    float* to = out + start * w.outputs;
    field_tile<true>(grid, w, t, x + 3 * start, points, h, jacobian, u, w.outputs == w.op ? to : t.out);
    field_tile_gradient(w, t, jacobian, points, nullptr, u);
    if (w.outputs != w.op) copy(t.out, points, w.outputs, w.op, to, w.outputs);
    for (int b = 0; b < blocks_of(points); b++)
      for (int d = 0; d < 3; d++) store_lanes(gradient + (start + LANES * b) * 3 + d, 3, lanes_in(points, b), load(t.gradient + (3 * b + d) * LANES));
  });
}

// out[0] of a tile's points
void value_tile(const Grid& grid, const FieldWeights& w, const FieldTile& t, const float* x, int points, float* value) {
  encode_tile<false>(grid, x, points, t.blocks, w.ep, nullptr);
  for (int b = 0; b < blocks_of(points); b++) block_to_rows(t.blocks + b * LANES * w.ep, w.ep, t.rows + b * LANES * w.ep);
  hidden_layer(w, t.rows, points, t.z);
  for (int p = 0; p < points; p++) {
    vf sum = {};
    for (int k = 0; k < w.hp; k += LANES) sum += load(t.z + p * w.hp + k) * load(w.w2 + k);
    value[p] = sum_lanes(sum);
  }
}

void field_value(const Grid& grid, const Net& net, const float* x, int64_t n, int threads, float* value) {
  const Packed packed = pack(grid, net);
  const FieldWeights w = packed.weights;
  parallel(threads, tiles_of(n), packed.tile_floats, [=, &grid](int64_t tile, float* scratch) {
    Arena own{scratch};
    const FieldTile t(own, w);
    const int64_t start = tile * TILE;
    const int points = points_in(n, start);
    value_tile(grid, w, t, x + 3 * start, points, value + start);
  });
}

// The second order's share in d1 (hidden, ep) and d2 (outputs, hp), of a tile whose z and s are in t; `chosen` as for field_tile_gradient: q is
// 0 in other rows.
void field_tile_second_order(const FieldWeights& w, const FieldTile& t, const float* jacobian, int points, const Chosen* chosen, const Columns& q, float* d1,
                             float* d2) {
  for (int b = 0; b < blocks_of(points); b++) {
    const float* j = jacobian + b * LANES * 3 * w.width;
    float* g_u = t.blocks + b * LANES * w.ep;
    vf along[3];
    q.points(b, lanes_in(points, b), along);
    for (int k = 0; k < w.width; k++)
      store(g_u + k * LANES, along[0] * load(j + 3 * k * LANES) + along[1] * load(j + (3 * k + 1) * LANES) + along[2] * load(j + (3 * k + 2) * LANES));
    for (int k = w.width; k < w.ep; k++) store(g_u + LANES * k, all(0.0f));
    block_to_rows(g_u, w.ep, t.u + b * LANES * w.ep);
  }
  if (chosen) gather_rows(t.u, *chosen, w.ep, t.u_chosen);
  const int rows = chosen ? chosen->count : points;
  const float *g_u = chosen ? t.u_chosen : t.u, *z = chosen ? t.z_chosen : t.z;
  gemm<ADD>(w.hidden, w.ep, rows, t.s, 1, w.hp, g_u, w.ep, d1, w.ep);
  gemm<MASK>(rows, w.hp, w.width, g_u, w.ep, 1, w.w1t, w.hp, t.g_z, w.hp, z, w.hp);
  for (int k = 0; k < w.hp; k += LANES) {
    vf sum = load(d2 + k);
    for (int p = 0; p < rows; p++) sum += load(t.g_z + p * w.hp + k);
    store(d2 + k, sum);
  }
}

// G_z of points that are blamed for out[0] by d_level (points,), into t.g_z, and d2's first row: VECTORS vectors of both, from column `first` on.
template <int VECTORS>
INLINE void blame_columns(const FieldWeights& w, const FieldTile& t, int points, const float* d_level, int first, float* d2) {
  vf v[VECTORS], sum[VECTORS];
  UNROLL for (int k = 0; k < VECTORS; k++) v[k] = load(w.w2 + first + k * LANES), sum[k] = load(d2 + first + k * LANES);
  for (int p = 0; p < points; p++) {
    const vf d = all(d_level[p]);
    UNROLL for (int k = 0; k < VECTORS; k++) {
      const vf z = load(t.z + p * w.hp + first + k * LANES);
      sum[k] += d * z;
      store(t.g_z + p * w.hp + first + k * LANES, keep_if(vi(z > all(0.0f)), d * v[k]));
    }
  }
  UNROLL for (int k = 0; k < VECTORS; k++) store(d2 + first + k * LANES, sum[k]);
}

INLINE void blame_first_output(const FieldWeights& w, const FieldTile& t, int points, const float* d_level, float* d2) {
  int first = 0;
  for (; first + 4 * LANES <= w.hp; first += 4 * LANES) blame_columns<4>(w, t, points, d_level, first, d2);
  for (; first < w.hp; first += LANES) blame_columns<1>(w, t, points, d_level, first, d2);
}

// After that the share of the other outputs, which only the chosen points, z in t.z_chosen, are blamed for: d_feature, rows of d_row.
INLINE void blame_features(const FieldWeights& w, const FieldTile& t, const Chosen& chosen, const float* d_feature, int d_row, float* d2) {
  gemm<ADD>(w.outputs - 1, w.hp, chosen.count, d_feature, 1, d_row, t.z_chosen, w.hp, d2 + w.hp, w.hp);
  gemm<MASK>(chosen.count, w.hp, w.outputs - 1, d_feature, d_row, 1, w.w2 + w.hp, w.hp, t.s, w.hp, t.z_chosen, w.hp);
  for (int r = 0; r < chosen.count; r++) {
    float* g_z = t.g_z + chosen.rows[r] * w.hp;
    for (int k = 0; k < w.hp; k += LANES) store(g_z + k, load(g_z + k) + load(t.s + r * w.hp + k));
  }
}

// From G_z in t.g_z on: d1 and, where not null, g_h in blocks.
void field_tile_first_layer(const FieldWeights& w, const FieldTile& t, const float* h, int points, float* g_h, float* d1) {
  if (d1) gemm<ADD>(w.hidden, w.ep, points, t.g_z, 1, w.hp, h, w.ep, d1, w.ep);
  if (!g_h) return;
  gemm<PLAIN>(points, w.ep, w.hidden, t.g_z, w.hp, 1, w.w1, w.ep, t.u, w.ep);
  for (int b = 0; b < blocks_of(points); b++) rows_to_block(t.u + b * LANES * w.ep, w.ep, g_h + b * LANES * w.ep);
}

// The way back through a tile whose z (and s, with q) are in t. Adds to d1 and d2 where they are not null; g_h, where not null, in blocks.
// d_out: rows of outputs; it or q may be null.
void field_tile_backward(const FieldWeights& w, const FieldTile& t, const float* h, const float* jacobian, int points, const float* d_out, const float* q,
                         float* g_h, float* d1, float* d2) {
  if (q && d1) field_tile_second_order(w, t, jacobian, points, nullptr, in_rows(q, 3), d1, d2);
  if (!d_out) return;
  gemm<MASK>(points, w.hp, w.outputs, d_out, w.outputs, 1, w.w2, w.hp, t.g_z, w.hp, t.z, w.hp);
  if (d1) gemm<ADD>(w.outputs, w.hp, points, d_out, 1, w.outputs, t.z, w.hp, d2, w.hp);
  field_tile_first_layer(w, t, h, points, g_h, d1);
}

void field_backward(const Grid& grid, const Net& net, const float* x, int64_t n, int threads, const Saved& saved, const float* d_out, const float* q,
                    float* g_h, float* d_table, float* d_w1, float* d_w2) {
  Arena sizes{nullptr}, tile_sizes{nullptr};
  FieldWeights w(sizes, grid, net);
  const int64_t n_tiles = tiles_of(n), segments = segments_of(n_tiles);
  const FieldTile counted(tile_sizes, w);
  const size_t tile_floats = tile_sizes.used, stride = w.gradient_floats();
  Arena arena{shared_scratch(sizes.used + stride * size_t(segments))};
  w = FieldWeights(arena, grid, net);
  w.fill(net);
  float* sums = arena.take(stride * size_t(segments));

  parallel(threads, segments, tile_floats, [=, &saved](int64_t segment, float* scratch) {
    Arena own{scratch};
    const FieldTile t(own, w);
    float *d1 = sums + stride * size_t(segment), *d2 = d1 + w.w1_floats();
    fill_zero(d1, stride);
    for (int64_t tile = segment * n_tiles / segments; tile < (segment + 1) * n_tiles / segments; tile++) {
      const int64_t start = tile * TILE;
      const int points = points_in(n, start);
      const float* h = saved.h + start * w.ep;
      hidden_layer(w, h, points, t.z);
      if (q) slopes(w, t.z, points, t.s);
      field_tile_backward(w, t, h, saved.jacobian + start * 3 * w.width, points, d_out ? d_out + start * w.outputs : nullptr,
                          q ? q + 3 * start : nullptr, d_table && d_out ? g_h + start * w.ep : nullptr, d_w1 ? d1 : nullptr, d2);
    }
  });
  if (d_w1) w.sum_gradients(sums, segments, stride, d_w1, d_w2);
  if (d_table) scatter_columns(grid, x, n, threads, in_blocks(d_out ? g_h : nullptr, w.ep), in_blocks(saved.u, w.ep), q, d_table);
}

}  // namespace
