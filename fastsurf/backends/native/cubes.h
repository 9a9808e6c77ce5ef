// Marching cubes (Lorensen and Cline 1987): which triangles a cell gets for the signs of its corners.
//
// Corner c = 0..7 has bit d set where it lies one further on axis d. Edge 4 d + k runs along axis d from corner edge_start(4 d + k). The table
// is derived: on each face of the cell, seen from outside, every run of outside corners is cut off by a segment, so that inside corners that
// face each other across a diagonal are joined; both cells at a face see the same, and the surface has no cracks. The segments close to
// loops, which are cut into triangles such that no diagonal lies in a face, where the neighbour might have it too.
#pragma once
#include <stdint.h>

namespace {

constexpr int MOST_TRIANGLES = 5;

struct Case {
  int8_t triangles;
  int8_t edge[3 * MOST_TRIANGLES];
};

inline int edge_start(int edge) {
  const int axis = edge / 4, low = edge & 3;  // spread the two bits round the axis
  const int below = (1 << axis) - 1;
  return (low & below) | (low & ~below) << 1;
}

inline int edge_between(int a, int b) {
  const int axis = (a ^ b) == 1 ? 0 : (a ^ b) == 2 ? 1 : 2, start = a & b, below = (1 << axis) - 1;
  return 4 * axis + ((start & below) | (start >> 1 & ~below));
}

inline bool in_one_face(int e, int f) {
  const int a = edge_start(e), b = a | 1 << e / 4, c = edge_start(f), d = c | 1 << f / 4;
  return ((a & b & c & d) | (~a & ~b & ~c & ~d & 7)) != 0;
}

class CubeTable {
 public:
  CubeTable() {
    for (int signs = 0; signs < 256; signs++) fill(signs, cases_[signs]);
  }
  const Case& operator[](int signs) const { return cases_[signs]; }  // bit c: corner c is inside

 private:
  static void fill(int signs, Case& to) {
    int next[12];
    for (int& e : next) e = -1;
    for (int axis = 0; axis < 3; axis++)
      for (int side = 0; side < 2; side++) {
        const int u = 1 << (axis + 1) % 3, v = 1 << (axis + 2) % 3, base = side << axis;
        const int round[4] = {base, base | (side ? v : u), base | u | v, base | (side ? u : v)};  // clockwise from outside
        for (int i = 0; i < 4; i++) {
          if (signs >> round[i] & 1 || !(signs >> round[(i + 3) & 3] & 1)) continue;
          int last = i;  // of the run of outside corners that starts at i
          while (!(signs >> round[(last + 1) & 3] & 1)) last++;
          next[edge_between(round[(i + 3) & 3], round[i])] = edge_between(round[last & 3], round[(last + 1) & 3]);
        }
      }
    to.triangles = 0;
    for (int first = 0; first < 12; first++) {
      int loop[12], n = 0;
      for (int e = first; next[e] >= 0;) {
        const int after = next[e];
        loop[n++] = e, next[e] = -1, e = after;
      }
      if (n) triangulate(loop, n, to);
    }
  }

  // The fewest diagonals in a face: 0 for every loop that occurs.
  static void triangulate(const int* loop, int n, Case& to) {
    int cost[12][12] = {}, middle[12][12] = {};
    for (int span = 2; span < n; span++)
      for (int i = 0; i + span < n; i++) {
        const int k = i + span;
        cost[i][k] = 1 << 20;
        for (int j = i + 1; j < k; j++) {
          const int c = cost[i][j] + cost[j][k];
          if (c < cost[i][k]) cost[i][k] = c, middle[i][k] = j;
        }
        if (span < n - 1) cost[i][k] += in_one_face(loop[i], loop[k]);
      }
    split(loop, middle, 0, n - 1, to);
  }

  static void split(const int* loop, const int (*middle)[12], int i, int k, Case& to) {
    if (k < i + 2) return;
    const int j = middle[i][k];
    int8_t* edge = to.edge + 3 * to.triangles++;
    edge[0] = int8_t(loop[i]), edge[1] = int8_t(loop[j]), edge[2] = int8_t(loop[k]);
    split(loop, middle, i, j, to);
    split(loop, middle, j, k, to);
  }

  Case cases_[256];
};

}  // namespace
