// The hash grid for LANES points at a time: find the cell, gather its corners, scatter to them.
#pragma once
#include "native.h"
#include "simd.h"

namespace {

struct Cell {
  vu entry[8];  // of each corner, level offset included
  vf w[3];
};

INLINE vf place(float scale, vf x) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return x * all(scale) + all(0.5f);  // contracted to one rounding
#else
  vf p;
  UNROLL for (int l = 0; l < LANES; l++) p[l] = float(double(x[l]) * double(scale) + 0.5);  // the same rounding
  return p;
#endif
}

// floor as integers, far positions and NaN clamped; w keeps their NaN or infinity
INLINE vi floor_cell(vf p, vf& w) {
  const vf far = all(1e9f);
  vf q = p > -far ? p : -far;
  q = q < far ? q : far;
  vi i = __builtin_convertvector(q, vi);
  i += vi(__builtin_convertvector(i, vf) > q);
  w = p - __builtin_convertvector(i, vf);
  return i;
}

INLINE bool any(vi mask) {
  typedef int64_t vl __attribute__((vector_size(4 * LANES)));
  int64_t bits = 0;
  UNROLL for (int l = 0; l < LANES / 2; l++) bits |= vl(mask)[l];
  return bits != 0;
}

INLINE void find_cell(const Level& level, const vf x[3], Cell& c) {
  const vu gx = vu(floor_cell(place(level.scale, x[0]), c.w[0]));
  const vu gy = vu(floor_cell(place(level.scale, x[1]), c.w[1]));
  const vu gz = vu(floor_cell(place(level.scale, x[2]), c.w[2]));
  if (level.hashed) {
    const vu mask = all(level.size - 1), offset = all(level.offset), py = all(2654435761u), pz = all(805459861u);
    const vu y = gy * py, z = gz * pz;
    const vu hx[2] = {gx, gx + 1u}, hy[2] = {y, y + py}, hz[2] = {z, z + pz};
    UNROLL for (int k = 0; k < 8; k++) c.entry[k] = ((hx[k & 1] ^ hy[k >> 1 & 1] ^ hz[k >> 2]) & mask) + offset;
  } else {
    const uint32_t r = uint32_t(level.resolution), steps[3] = {1u, r, r * r};
    const vi last = all(level.resolution - 1);
    const vi outside = (vi(gx | gy | gz) < 0) | (vi(gx) > last) | (vi(gy) > last) | (vi(gz) > last);
    const vu first = gx + gy * r + gz * (r * r);
    const bool far = any(outside);  // then one subtraction is not enough for the remainder
    UNROLL for (int k = 0; k < 8; k++) {
      vu e = first + ((k & 1 ? steps[0] : 0u) + (k & 2 ? steps[1] : 0u) + (k & 4 ? steps[2] : 0u));
      if (far) {
        for (int l = 0; l < LANES; l++) e[l] %= level.size;
      } else {
        e -= vu(vi(e) > all(int32_t(level.size - 1))) & level.size;
      }
      c.entry[k] = e + level.offset;
    }
  }
}

// Neighbours along x mostly share a line: one of the two is enough.
INLINE void prefetch(const float* table, const Cell& c) {
  for (int k = 0; k < 8; k += 2)
    for (int l = 0; l < LANES; l++) __builtin_prefetch(table + 2 * size_t(c.entry[k][l]), 0, 3);
}

// h[2]; DERIVATIVES >= 1: j[feature * 3 + axis] = dh/dx; DERIVATIVES == 2: m[feature * 3 + 0, 1, 2] = d2h / dxdy, dxdz, dydz
template <int DERIVATIVES>
INLINE void blend(const Level& level, const float* table, const Cell& c, vf h[2], vf j[6], vf m[6]) {
  vf corner[2][8];
  UNROLL for (int k = 0; k < 8; k++) load_pairs(table, c.entry[k], corner[0][k], corner[1][k]);
  const vf x = c.w[0], y = c.w[1], z = c.w[2], s = all(level.scale);
  UNROLL for (int f = 0; f < 2; f++) {
    const vf* q = corner[f];
    const vf d0 = q[1] - q[0], d1 = q[3] - q[2], d2 = q[5] - q[4], d3 = q[7] - q[6];
    const vf a0 = lerp(q[0], d0, x), a1 = lerp(q[2], d1, x), a2 = lerp(q[4], d2, x), a3 = lerp(q[6], d3, x);
    const vf e0 = a1 - a0, e1 = a3 - a2, b0 = lerp(a0, e0, y), b1 = lerp(a2, e1, y);
    h[f] = lerp(b0, b1 - b0, z);
    if (DERIVATIVES >= 1) {
      const vf g0 = lerp(d0, d1 - d0, y), g1 = lerp(d2, d3 - d2, y);
      j[f * 3] = s * lerp(g0, g1 - g0, z);
      j[f * 3 + 1] = s * lerp(e0, e1 - e0, z);
      j[f * 3 + 2] = s * (b1 - b0);
      if (DERIVATIVES == 2) {
        const vf xy0 = d1 - d0, xy1 = d3 - d2, yz0 = (q[6] - q[4]) - (q[2] - q[0]), yz1 = (q[7] - q[5]) - (q[3] - q[1]);
        m[f * 3] = s * s * lerp(xy0, xy1 - xy0, z);
        m[f * 3 + 1] = s * s * (g1 - g0);
        m[f * 3 + 2] = s * s * lerp(yz0, yz1 - yz0, x);
      }
    }
  }
}

// d_table[corner] += w_c g + (q . grad w_c) u, lane by lane in order
template <bool SECOND>
INLINE void scatter_cell(const Level& level, float* d_table, const Cell& c, const vf g[2], const vf u[2], const vf q[3], int lanes) {
  const vf wx[2] = {1.0f - c.w[0], c.w[0]}, wy[2] = {1.0f - c.w[1], c.w[1]}, wz[2] = {1.0f - c.w[2], c.w[2]}, s = all(level.scale);
  alignas(32) float add[8][2 * LANES];
  vf qx, qy, qz;
  if (SECOND) qx = q[0] * s, qy = q[1] * s, qz = q[2] * s;
  UNROLL for (int yz = 0; yz < 4; yz++) {
    const vf a = wy[yz & 1], b = wz[yz >> 1], ab = a * b;
    vf slope, along;  // d/dy and d/dz of ab, times q; and q_x ab
    if (SECOND) {
      const vf sy = qy * b, sz = qz * a;
      slope = (yz & 1 ? sy : -sy) + (yz & 2 ? sz : -sz);
      along = qx * ab;
    }
    UNROLL for (int xx = 0; xx < 2; xx++) {
      const int k = yz * 2 + xx;
      const vf w = wx[xx] * ab;
      vf add0 = w * g[0], add1 = w * g[1];
      if (SECOND) {
        const vf grad = wx[xx] * slope + (xx ? along : -along);
        add0 += grad * u[0];
        add1 += grad * u[1];
      }
      store_pairs(add[k], add0, add1);
    }
  }
  for (int l = 0; l < lanes; l++)
    UNROLL for (int k = 0; k < 8; k++) {
      pair* entry = reinterpret_cast<pair*>(d_table + 2 * size_t(c.entry[k][l]));
      *entry += *reinterpret_cast<const pair*>(add[k] + PAIR_AT[l]);
    }
}

// `lanes` points from rows `x`, by axis
INLINE void load_points(const float* x, int lanes, vf p[3]) {
  UNROLL for (int d = 0; d < 3; d++) p[d] = load_lanes(x + d, 3, lanes);
}

constexpr int AHEAD = 2;  // groups of points whose table lines are fetched early; 1 and 3 are no better

}  // namespace
