// The general MLP: ReLU between layers, none after the last.
#pragma once
#include "gemm.h"
#include "tiles.h"

namespace {

constexpr int MAX_LAYERS = 17;

struct MlpWeights {  // padded, both ways round; offsets of the gradients
  int layers, n[MAX_LAYERS + 1], p[MAX_LAYERS + 1], widest = 0;  // widths, and padded
  float *w[MAX_LAYERS], *wt[MAX_LAYERS];                         // (out, padded in), (in, padded out)
  size_t gradient[MAX_LAYERS + 1], total = 0;

  MlpWeights(Arena& arena, const int32_t* widths, int n_layers, const float* weights) : layers(n_layers) {
    for (int l = 0; l <= layers; l++) {
      n[l] = widths[l], p[l] = padded(widths[l]);
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

  void sum_gradients(const float* sums, int64_t segments, size_t stride, float* d_weights) const {
    for (int l = 0; l < layers; l++) {
      sum_segments(sums + gradient[l], segments, stride, n[l + 1], n[l], p[l], d_weights);
      d_weights += size_t(n[l + 1]) * n[l];
    }
  }
};

// y (points, p[layers]) of x, rows of x_row; hidden[l], for 0 < l < layers: room for the rows after that ReLU, (points, p[l]).
void mlp_tile(const MlpWeights& w, const float* x, int64_t x_row, int points, float* const* hidden, float* y) {
  for (int l = 0; l < w.layers - 1; l++) {
    gemm<RELU>(points, w.p[l + 1], w.n[l], x, x_row, 1, w.wt[l], w.p[l + 1], hidden[l + 1], w.p[l + 1]);
    x = hidden[l + 1], x_row = w.p[l + 1];
  }
  const int last = w.layers - 1;
  gemm<PLAIN>(points, w.p[w.layers], w.n[last], x, x_row, 1, w.wt[last], w.p[w.layers], y, w.p[w.layers]);
}

// The way back: adds to `sum`; dx (points, p[0]) may be null, its columns before `first` (a multiple of 8) are left out. x: rows of p[0];
// d = dy: rows of d_row; room: 2 (points, widest).
void mlp_tile_backward(const MlpWeights& w, const float* x, int points, const float* const* hidden, const float* d, int64_t d_row, float* room, float* sum,
                       float* dx, int first = 0) {
  for (int l = w.layers - 1; l > 0; l--) {
    const int row = w.p[l];
    float* next = room + (l & 1) * size_t(points) * w.widest;
    gemm<ADD>(w.n[l + 1], row, points, d, 1, d_row, hidden[l], row, sum + w.gradient[l], row);
    gemm<MASK>(points, row, w.n[l + 1], d, d_row, 1, w.w[l], row, next, row, hidden[l], row);
    d = next, d_row = row;
  }
  gemm<ADD>(w.n[1], w.p[0], points, d, 1, d_row, x, w.p[0], sum, w.p[0]);
  if (dx) gemm<PLAIN>(points, w.p[0] - first, w.n[1], d, d_row, 1, w.w[0] + first, w.p[0], dx + first, w.p[0]);
}

void mlp(const int32_t* widths, int layers, const float* weights, const float* x, int64_t n, int threads, float* y, float* hidden) {
  Arena sizes{nullptr};
  const MlpWeights plan(sizes, widths, layers, weights);
  Arena arena{shared_scratch(sizes.used)};
  const MlpWeights w(arena, widths, layers, weights);
  const size_t room = size_t(TILE) * w.widest;
  parallel(threads, tiles_of(n), 2 * room, [=, &w](int64_t tile, float* scratch) {
    const int64_t start = tile * TILE;
    const int points = points_in(n, start), out = w.n[layers], row = w.p[layers];
    float *rows[MAX_LAYERS], *kept = hidden;
    for (int l = 1; l < layers; l++) {
      rows[l] = hidden ? kept + start * w.p[l] : scratch + (l & 1) * room;
      if (hidden) kept += n * w.p[l];
    }
    float* to = out == row ? y + start * out : scratch + (layers & 1) * room;
    mlp_tile(w, x + start * w.n[0], w.n[0], points, rows, to);
    if (out != row) copy(to, points, out, row, y + start * out, out);
  });
}

void mlp_backward(const int32_t* widths, int layers, const float* weights, const float* x, int64_t n, int threads, const float* hidden, const float* dy,
                  float* dx, float* d_weights) {
  const int64_t n_tiles = tiles_of(n), segments = segments_of(n_tiles);
  Arena sizes{nullptr};
  const MlpWeights plan(sizes, widths, layers, weights);
  Arena arena{shared_scratch(sizes.used + plan.total * size_t(segments))};
  const MlpWeights w(arena, widths, layers, weights);
  float* sums = arena.take(w.total * size_t(segments));
  const size_t room = size_t(TILE) * w.widest;
  parallel(threads, segments, 4 * room, [=, &w](int64_t segment, float* scratch) {
    float *sum = sums + w.total * size_t(segment), *padded_x = scratch + 2 * room, *padded_dx = scratch + 3 * room;
    fill_zero(sum, w.total);
    fill_zero(padded_x, room);
    for (int64_t tile = segment * n_tiles / segments; tile < (segment + 1) * n_tiles / segments; tile++) {
      const int64_t start = tile * TILE;
      const int points = points_in(n, start), in = w.n[0], row = w.p[0];
      const float *rows[MAX_LAYERS], *kept = hidden, *x_rows = x + start * in;
      for (int l = 1; l < layers; l++) rows[l] = kept + start * w.p[l], kept += n * w.p[l];
      if (in != row) copy(x_rows, points, in, in, padded_x, row), x_rows = padded_x;
      float* to = !dx ? nullptr : in == row ? dx + start * in : padded_dx;
      mlp_tile_backward(w, x_rows, points, rows, dy + start * w.n[layers], w.n[layers], scratch, sum, to);
      if (dx && in != row) copy(to, points, in, row, dx + start * in, in);
    }
  });
  w.sum_gradients(sums, segments, w.total, d_weights);
}

}  // namespace
