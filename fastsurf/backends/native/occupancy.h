// The update of the occupancy grid, as grid.py defines it. Cells are numbered (x cells + y) cells + z.
#pragma once
#include "level.h"

namespace {

INLINE uint32_t mix(uint32_t h) {
  h = (h ^ h >> 16) * 0x85ebca6bu;
  h = (h ^ h >> 13) * 0xc2b2ae35u;
  return h ^ h >> 16;
}

// Sinks the cells start .. end - 1, which are whole lots; leaves in `looks` those to look at, ascending. Returns how many.
int sink_and_choose(const Refresh& r, int64_t start, int64_t end, int32_t* looks) {
  int n = 0;
  for (int64_t first = start; first < end; first += r.lot) {
    const int64_t drawn = first + mix(mix(4 * uint32_t(first) + 3) + mix(r.seed)) % uint32_t(r.lot);
    const int64_t last = first + r.lot < end ? first + r.lot : end;
    for (int64_t cell = first; cell < last; cell++) {
      const bool in_use = r.occupied[cell];
      const float value = r.values[cell];
      looks[n] = int32_t(cell);
      n += r.everywhere || (in_use ? !(value > r.due) : cell == drawn);
      r.values[cell] = in_use ? value * r.decay : value;
    }
  }
  return n;
}

// A random point of each cell, p (n, 3).
void points_in_cells(const Refresh& r, const int32_t* looks, int n, float* p) {
  const uint32_t seed = mix(r.seed);
  for (int i = 0; i < n; i++) {
    const int32_t cell = looks[i], corner[3] = {cell / (r.cells * r.cells), cell / r.cells % r.cells, cell % r.cells};
    UNROLL for (int axis = 0; axis < 3; axis++) {
      const float jitter = float(mix(mix(4 * uint32_t(cell) + uint32_t(axis)) + seed) >> 8) * 0x1p-24f;
      p[3 * i + axis] = (float(corner[axis]) + jitter) * (2.0f / float(r.cells)) - 1.0f;
    }
  }
}

// One plane of cells: which of them, or of those that touch them, are above the threshold. room: (cells, cells)
void dilate_plane(const Refresh& r, int32_t x, uint8_t* room) {
  const int32_t g = r.cells;
  const int64_t plane = int64_t(g) * g;
  for (int64_t i = 0; i < plane; i++) room[i] = 0;
  for (int32_t from = x > 0 ? x - 1 : 0; from <= x + 1 && from < g; from++) {
    const float* values = r.values + from * plane;
    for (int64_t i = 0; i < plane; i++) room[i] |= values[i] > r.threshold;
  }
  uint8_t* to = r.occupied + x * plane;
  for (int32_t y = 0; y < g; y++, to += g) {
    const uint8_t *here = room + int64_t(y) * g, *before = y > 0 ? here - g : here, *after = y + 1 < g ? here + g : here;
    uint8_t last = 0, now = before[0] | here[0] | after[0];
    for (int32_t z = 0; z < g; z++) {
      const uint8_t next = z + 1 < g ? before[z + 1] | here[z + 1] | after[z + 1] : 0;
      to[z] = last | now | next;
      last = now, now = next;
    }
  }
}

void update_grid(const Grid& grid, const Net& net, const Refresh& r, int threads) {
  const Packed packed = pack(grid, net);
  const FieldWeights w = packed.weights;
  const int64_t total = int64_t(r.cells) * r.cells * r.cells, chunk = (4096 + r.lot - 1) / r.lot * int64_t(r.lot);
  parallel(threads, (total + chunk - 1) / chunk, packed.tile_floats + size_t(chunk) + 16, [=, &grid, &r](int64_t task, float* scratch) {
    Arena own{scratch};
    const FieldTile t(own, w);
    int32_t* looks = reinterpret_cast<int32_t*>(own.take(size_t(chunk)));
    const int64_t start = task * chunk, end = start + chunk < total ? start + chunk : total;
    const int n = sink_and_choose(r, start, end, looks);
    for (int first = 0; first < n; first += TILE) {
      const int points = points_in(n, first);
      float p[3 * TILE], value[TILE] = {};
      points_in_cells(r, looks + first, points, p);
      level_tile(grid, w, t, r.prior_radius, p, points, value);
      for (int i = 0; i < points; i += LANES) store(value + i, sigmoid(r.sharpness * load(value + i)));
      for (int i = 0; i < points; i++) {
        float& kept = r.values[looks[first + i]];
        // one that was not in use has not sunk yet
        const float sunk = r.occupied[looks[first + i]] ? kept : kept * r.decay;
        kept = value[i] > sunk ? value[i] : sunk;
      }
    }
  });
  parallel(threads, r.cells, (size_t(r.cells) * r.cells + 3) / 4, [=, &r](int64_t x, float* scratch) {
    dilate_plane(r, int32_t(x), reinterpret_cast<uint8_t*>(scratch));
  });
}

}  // namespace
