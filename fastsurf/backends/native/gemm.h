// Small matrix products of row-major operands, register-blocked; columns in multiples of 8.
#pragma once
#include "simd.h"

namespace {

enum After { PLAIN, RELU, MASK, ADD };  // MASK: keep where `other` > 0; ADD: add to what is in C

template <After AFTER, int ROWS, int VECTORS>
INLINE void gemm_block(int K, const float* A, int64_t a_row, int64_t a_k, const float* B, int64_t b_row, float* C, int64_t c_row, const float* other,
                       int64_t other_row) {
  vf sum[ROWS][VECTORS];
  UNROLL for (int r = 0; r < ROWS; r++)
    UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] = AFTER == ADD ? load(C + r * c_row + LANES * v) : all(0.0f);
  for (int k = 0; k < K; k++) {
    vf b[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) b[v] = load(B + k * b_row + LANES * v);
    UNROLL for (int r = 0; r < ROWS; r++) {
      const vf a = all(A[r * a_row + k * a_k]);
      UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] += a * b[v];
    }
  }
  UNROLL for (int r = 0; r < ROWS; r++)
    UNROLL for (int v = 0; v < VECTORS; v++) {
      vf c = sum[r][v];
      if (AFTER == RELU) c = keep_if(~vi(c < all(0.0f)), c);  // NaN stays NaN
      if (AFTER == MASK) c = keep_if(vi(load(other + r * other_row + LANES * v) > all(0.0f)), c);
      store(C + r * c_row + LANES * v, c);
    }
}

// Rows m .. M - 1 in blocks of ROWS as long as they go; returns the first row that is left.
template <After AFTER, int ROWS, int VECTORS>
INLINE int gemm_rows(int m, int M, int K, const float* A, int64_t a_row, int64_t a_k, const float* B, int64_t b_row, float* C, int64_t c_row, const float* other,
                     int64_t other_row) {
  for (; m + ROWS <= M; m += ROWS)
    gemm_block<AFTER, ROWS, VECTORS>(K, A + m * a_row, a_row, a_k, B, b_row, C + m * c_row, c_row, AFTER == MASK ? other + m * other_row : nullptr, other_row);
  return m;
}

// A register block holds about twelve sums: more don't fit into sixteen registers, fewer wait for each other.
template <After AFTER, int VECTORS>
INLINE void gemm_columns(int M, int K, const float* A, int64_t a_row, int64_t a_k, const float* B, int64_t b_row, float* C, int64_t c_row, const float* other,
                         int64_t other_row) {
  constexpr int BLOCK = VECTORS == 1 ? 8 : VECTORS == 2 ? 6 : 4;
  int m = gemm_rows<AFTER, BLOCK, VECTORS>(0, M, K, A, a_row, a_k, B, b_row, C, c_row, other, other_row);
  if (BLOCK > 4) m = gemm_rows<AFTER, 4, VECTORS>(m, M, K, A, a_row, a_k, B, b_row, C, c_row, other, other_row);
  m = gemm_rows<AFTER, 2, VECTORS>(m, M, K, A, a_row, a_k, B, b_row, C, c_row, other, other_row);
  gemm_rows<AFTER, 1, VECTORS>(m, M, K, A, a_row, a_k, B, b_row, C, c_row, other, other_row);
}

// C (M, N) = A B, with A[m, k] = A[m a_row + k a_k], B (K, N), N a multiple of 8. Every element is summed over k in order.
template <After AFTER>
__attribute__((noinline)) void gemm(int M, int N, int K, const float* A, int64_t a_row, int64_t a_k, const float* B, int64_t b_row, float* C, int64_t c_row,
                                    const float* other = nullptr, int64_t other_row = 0) {
  for (int n = 0, left; (left = (N - n) / LANES) > 0;) {
    const int vectors = left == 3 || left == 5 ? 3 : left > 1 ? 2 : 1;
    const float* o = AFTER == MASK ? other + n : nullptr;
    if (vectors == 3)
      gemm_columns<AFTER, 3>(M, K, A, a_row, a_k, B + n, b_row, C + n, c_row, o, other_row);
    else if (vectors == 2)
      gemm_columns<AFTER, 2>(M, K, A, a_row, a_k, B + n, b_row, C + n, c_row, o, other_row);
    else
      gemm_columns<AFTER, 1>(M, K, A, a_row, a_k, B + n, b_row, C + n, c_row, o, other_row);
    n += vectors * LANES;
  }
}

// to[c, r] or to[r, c] of a (rows, columns) matrix, into a zeroed (padded) one
INLINE void copy_transposed(const float* from, int rows, int columns, float* to, int to_row) {
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < columns; c++) to[c * to_row + r] = from[r * columns + c];
}
INLINE void copy(const float* from, int64_t rows, int columns, int64_t from_row, float* to, int64_t to_row) {
  for (int64_t r = 0; r < rows; r++)
    for (int c = 0; c < columns; c++) to[r * to_row + c] = from[r * from_row + c];
}

}  // namespace
