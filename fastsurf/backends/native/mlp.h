// The general MLP: ReLU between layers, none after the last.
#pragma once
#include "gemm.h"
#include "tiles.h"

namespace {

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

}  // namespace
