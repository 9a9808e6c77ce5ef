// Vectors of LANES floats in GCC's and Clang's vector extensions. Everything is inlined into the translation unit that includes it.
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

#ifdef __AVX2__
constexpr int LANES = 8;
#else
constexpr int LANES = 4;  // GCC keeps vectors wider than the registers in memory
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef double vd __attribute__((vector_size(4 * LANES)));                             // half as many
typedef float vf_any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));  // floats anywhere
typedef float pair __attribute__((vector_size(8), aligned(4), may_alias));            // one entry of the table
typedef double pair_bits __attribute__((aligned(4), may_alias));                      // the same, moved as one 8-byte word

INLINE vf load(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
INLINE void store(float* p, vf a) { *reinterpret_cast<vf_any*>(p) = a; }
#ifdef __AVX2__
INLINE vf all(float a) { return vf{a, a, a, a, a, a, a, a}; }
INLINE vi all(int32_t a) { return vi{a, a, a, a, a, a, a, a}; }
INLINE vu all(uint32_t a) { return vu{a, a, a, a, a, a, a, a}; }
#else
INLINE vf all(float a) { return vf{a, a, a, a}; }
INLINE vi all(int32_t a) { return vi{a, a, a, a}; }
INLINE vu all(uint32_t a) { return vu{a, a, a, a}; }
#endif
INLINE vf keep_if(vi mask, vf a) { return vf(mask & vi(a)); }
INLINE vf lerp(vf a, vf step, vf w) { return step * w + a; }

// From an array of structures: lane l from p[l * stride]; lanes from `lanes` on repeat the last.
INLINE vf load_lanes(const float* p, int64_t stride, int lanes) {
  vf a;
  for (int l = 0; l < LANES; l++) a[l] = p[(l < lanes ? l : lanes - 1) * stride];
  return a;
}
INLINE void store_lanes(float* p, int64_t stride, int lanes, vf a) {
  for (int l = 0; l < lanes; l++) p[l * stride] = a[l];
}

INLINE vf square_root(vf a) {
  UNROLL for (int l = 0; l < LANES; l++) a[l] = __builtin_sqrtf(a[l]);
  return a;
}

// e^a within 2 units in the last place, of a cut to +-80; NaN stays NaN (Cephes' expf).
INLINE vf exponential(vf a) {
  a = a < all(-80.0f) ? all(-80.0f) : a;
  a = a > all(80.0f) ? all(80.0f) : a;
  const vf halves = a * 1.44269504088896341f + (a < all(0.0f) ? all(-0.5f) : all(0.5f));
  const vi whole = __builtin_convertvector(halves, vi);
  const vf n = __builtin_convertvector(whole, vf), r = (a - n * 0.693359375f) + n * 2.12194440e-4f;
  vf sum = all(1.9875691500e-4f);
  sum = sum * r + 1.3981999507e-3f;
  sum = sum * r + 8.3334519073e-3f;
  sum = sum * r + 4.1665795894e-2f;
  sum = sum * r + 1.6666665459e-1f;
  sum = sum * r + 5.0000001201e-1f;
  return (sum * (r * r) + r + 1.0f) * vf((whole + 127) << 23);
}
INLINE vf sigmoid(vf a) { return 1.0f / (1.0f + exponential(-a)); }

INLINE float sum_lanes(vf a) {
  float sum = 0.0f;
  for (int l = 0; l < LANES; l++) sum += a[l];
  return sum;
}

// The lane-by-lane pairs (a, b): that of lane l at to[PAIR_AT[l]].
#ifdef __AVX2__
constexpr int PAIR_AT[LANES] = {0, 2, 8, 10, 4, 6, 12, 14};
INLINE void store_pairs(float* to, vf a, vf b) {
  store(to, __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13));
  store(to + 8, __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15));
}
#else
constexpr int PAIR_AT[LANES] = {0, 2, 4, 6};
INLINE void store_pairs(float* to, vf a, vf b) {
  store(to, __builtin_shufflevector(a, b, 0, 4, 1, 5));
  store(to + 4, __builtin_shufflevector(a, b, 2, 6, 3, 7));
}
#endif

// Both numbers of the pair at table[2 entry], for every lane.
INLINE void load_pairs(const float* table, vu entry, vf& first, vf& second) {
  const pair_bits* t = reinterpret_cast<const pair_bits*>(table);
#ifdef __AVX2__
  const vf a = vf(vd{t[entry[0]], t[entry[1]], t[entry[4]], t[entry[5]]}), b = vf(vd{t[entry[2]], t[entry[3]], t[entry[6]], t[entry[7]]});
  first = __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14);
  second = __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
#else
  const vf a = vf(vd{t[entry[0]], t[entry[1]]}), b = vf(vd{t[entry[2]], t[entry[3]]});
  first = __builtin_shufflevector(a, b, 0, 2, 4, 6);
  second = __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
}

INLINE void transpose(vf r[LANES]) {
  vf s[LANES];
#ifdef __AVX2__
  vf t[LANES];
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
#else
  s[0] = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), s[1] = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  s[2] = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5), s[3] = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(s[0], s[2], 0, 1, 4, 5), r[1] = __builtin_shufflevector(s[0], s[2], 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(s[1], s[3], 0, 1, 4, 5), r[3] = __builtin_shufflevector(s[1], s[3], 2, 3, 6, 7);
#endif
}

// A block [columns][LANES] <-> LANES rows; columns a multiple of 8.
INLINE void block_to_rows(const float* block, int columns, float* rows) {
  for (int c = 0; c < columns; c += LANES) {
    vf r[LANES];
    UNROLL for (int k = 0; k < LANES; k++) r[k] = load(block + (c + k) * LANES);
    transpose(r);
    UNROLL for (int k = 0; k < LANES; k++) store(rows + k * columns + c, r[k]);
  }
}
INLINE void rows_to_block(const float* rows, int columns, float* block) {
  for (int c = 0; c < columns; c += LANES) {
    vf r[LANES];
    UNROLL for (int k = 0; k < LANES; k++) r[k] = load(rows + k * columns + c);
    transpose(r);
    UNROLL for (int k = 0; k < LANES; k++) store(block + (c + k) * LANES, r[k]);
  }
}

}  // namespace
