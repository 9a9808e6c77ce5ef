// Vectors of 8 lanes in GCC's and Clang's vector extensions. Everything is inlined into the translation unit that includes it.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace {

typedef float vf __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));
typedef uint32_t vu __attribute__((vector_size(32)));
typedef double vd4 __attribute__((vector_size(32)));
typedef float vf_any __attribute__((vector_size(32), aligned(4), may_alias));  // 8 floats anywhere
typedef float pair __attribute__((vector_size(8), aligned(4), may_alias));     // one entry of the table
typedef double pair_bits __attribute__((aligned(4), may_alias));               // the same, moved as one 8-byte word

INLINE vf load(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
INLINE void store(float* p, vf a) { *reinterpret_cast<vf_any*>(p) = a; }
INLINE vf all(float a) { return vf{a, a, a, a, a, a, a, a}; }
INLINE vi all(int32_t a) { return vi{a, a, a, a, a, a, a, a}; }
INLINE vu all(uint32_t a) { return vu{a, a, a, a, a, a, a, a}; }
INLINE vf keep_if(vi mask, vf a) { return vf(mask & vi(a)); }
INLINE vf lerp(vf a, vf step, vf w) { return step * w + a; }

// 8 lanes from an array of structures: lane l from p[l * stride]; lanes from `lanes` on repeat the last.
INLINE vf load_lanes(const float* p, int64_t stride, int lanes) {
  vf a;
  for (int l = 0; l < 8; l++) a[l] = p[(l < lanes ? l : lanes - 1) * stride];
  return a;
}
INLINE void store_lanes(float* p, int64_t stride, int lanes, vf a) {
  for (int l = 0; l < lanes; l++) p[l * stride] = a[l];
}

INLINE void transpose8(vf r[8]) {
  vf t[8], s[8];
  UNROLL for (int k = 0; k < 8; k += 2) {
    t[k] = __builtin_shufflevector(r[k], r[k + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[k + 1] = __builtin_shufflevector(r[k], r[k + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  UNROLL for (int k = 0; k < 8; k += 4) UNROLL for (int j = 0; j < 2; j++) {
    s[k + 2 * j] = __builtin_shufflevector(t[k + j], t[k + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    s[k + 2 * j + 1] = __builtin_shufflevector(t[k + j], t[k + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  UNROLL for (int k = 0; k < 4; k++) {
    r[k] = __builtin_shufflevector(s[k], s[k + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    r[k + 4] = __builtin_shufflevector(s[k], s[k + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// A block [columns][8] <-> 8 rows; columns a multiple of 8.
INLINE void block_to_rows(const float* block, int columns, float* rows) {
  for (int c = 0; c < columns; c += 8) {
    vf r[8];
    UNROLL for (int k = 0; k < 8; k++) r[k] = load(block + (c + k) * 8);
    transpose8(r);
    UNROLL for (int k = 0; k < 8; k++) store(rows + k * columns + c, r[k]);
  }
}
INLINE void rows_to_block(const float* rows, int columns, float* block) {
  for (int c = 0; c < columns; c += 8) {
    vf r[8];
    UNROLL for (int k = 0; k < 8; k++) r[k] = load(rows + k * columns + c);
    transpose8(r);
    UNROLL for (int k = 0; k < 8; k++) store(block + (c + k) * 8, r[k]);
  }
}

}  // namespace
