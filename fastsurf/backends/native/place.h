// Search for surfaces and placement of samples for a training step: surface.py and sampling.py in one call.
#pragma once
#include "level.h"

namespace {

bool place(const Grid& grid, const Net& net, const Aim& aim, int threads, const Placed& placed) {
  constexpr int64_t RAYS = 64;  // searched together
  const Rays& rays = aim.rays;
  const int samples = aim.front + aim.interval;
  const int64_t most = int64_t(2.0 * 1.7320508075688772 / aim.step) + 1, along = blocks_along(aim.cells);
  const Packed packed = pack(grid, net, size_t(along * along * along + 3) / 4);
  const FieldWeights w = packed.weights;
  auto* blocks = reinterpret_cast<uint8_t*>(packed.room);
  occupied_blocks(aim.occupied, aim.cells, threads, blocks);
  const Cells cells{aim.occupied, blocks, aim.cells};
  bool bounded = true;
  parallel(threads, (rays.n + RAYS - 1) / RAYS, packed.tile_floats + size_t(most) * RAYS + 16,
           [=, &grid, &aim, &rays, &placed, &bounded](int64_t task, float* scratch) {
    Arena own{scratch};
    const FieldTile t(own, w);
    float* lattice = own.take(size_t(most) * RAYS);
    int64_t counts[RAYS];
    const int64_t start = task * RAYS, end = start + RAYS < rays.n ? start + RAYS : rays.n;
    const auto points_of = [&](int64_t ray, const float*& points) {
      float* to = lattice + (ray - start) * most;
      int64_t& count = counts[ray - start];
      count = occupied_steps_of(cells, rays.o + 3 * ray, rays.d + 3 * ray, rays.near[ray] + aim.offset[ray] * aim.step, rays.far[ray], aim.step, most, to);
      if (count < 0) count = 0, __atomic_store_n(&bounded, false, __ATOMIC_RELAXED);
      points = to;
      return count;
    };
    search<TILE>(rays, {aim.step, aim.secant_steps, aim.close}, start, end, placed.surface, placed.hit, points_of,
                 [&](const float* p, int points, float* level) { level_tile(grid, w, t, aim.prior_radius, p, points, level); });
    for (int64_t ray = start; ray < end; ray++)
      place_ray(aim, ray, placed.surface[ray], placed.hit[ray], lattice + (ray - start) * most, counts[ray - start], placed.t + ray * samples);
  });
  points_on_surface(aim, placed);
  return bounded;
}

}  // namespace
