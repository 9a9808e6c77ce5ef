// Where rays first meet the surface, as surface.py defines it: a ray marches over its lattice until a point lies inside, then secant
// steps with the Illinois rule close in. Many rays are searched at once and each asks for its next points, so that tiles stay full; a
// level does not depend on the tile it is computed in, and so neither does a crossing.
#pragma once
#include "native.h"

namespace {

constexpr int MARCH_AHEAD = 8;       // at most so many points of a marching ray in a round: those behind its crossing are wasted
constexpr float ON_SURFACE = 1e-6f;  // a level that small is rounding: no more secant steps

struct Marching {  // how rays are searched
  float step;         // of the lattice
  int secant_steps;   // at most
  float close;        // a level that small ends them
};

class Search {  // of one ray
 public:
  int64_t ray;
  int asked;  // points of this round
  float t;    // asked for after marching; at the end of the search the crossing
  bool hit = false;

  Search() = default;
  // points: of its lattice
  Search(int64_t which, const Rays& rays, const Marching& how, const float* points, int64_t count)
      : ray(which), t(rays.far[which]), near_(rays.near[which]), how_(how), points_(points), end_(points + count), t_out_(near_) {}

  bool marching() const { return stage_ == MARCH; }
  bool empty() const { return points_ >= end_; }

  // Where the level is wanted next; a marching ray gets `ahead` points.
  const float* ask(int ahead) {
    if (!marching()) return asked = 1, &t;
    asked = end_ - points_ < ahead ? int(end_ - points_) : ahead;
    return points_;
  }

  // Takes the levels of the points asked for; true at the end of the search.
  bool advance(const float* level) {
    if (stage_ == MARCH) return march(level);
    if (stage_ == START) {
      f_out_ = *level;
      return f_out_ > 0.0f || refine();  // inside already: the box cuts the solid there
    }
    const bool inside = *level > 0.0f, again = refined_ > 0 && inside == was_inside_;
    if (inside) {
      t_in_ = t, f_in_ = *level;
      if (again) f_out_ *= 0.5f;  // the end that stays for a second time weighs half, so that both ends close in
    } else {
      t_out_ = t, f_out_ = *level;
      if (again) f_in_ *= 0.5f;
    }
    was_inside_ = inside, refined_++;
    return __builtin_fabsf(*level) < how_.close || refine();
  }

 private:
  enum Stage { MARCH, START, REFINE };

  bool march(const float* level) {
    for (int i = 0; i < asked; i++, points_++) {
      if (!(level[i] > 0.0f)) {
        t_out_ = *points_, f_out_ = level[i];
        continue;
      }
      hit = true, t_in_ = *points_, f_in_ = level[i];
      // the point before may lie in a culled cell, a step or more away: then start from one step before the crossing
      const bool far = t_out_ < t_in_ - 1.01f * how_.step;
      if (far) t_out_ = t_in_ - how_.step > near_ ? t_in_ - how_.step : near_;
      if (!far && f_out_ > -__builtin_inff()) return refine();
      stage_ = START, t = t_out_;
      return false;
    }
    return empty();
  }

  // The zero of the line between both ends: the next point, or the crossing.
  bool refine() {
    const float rise = f_in_ - f_out_, share = -f_out_ / (rise < 1e-12f ? 1e-12f : rise);
    t = t_out_ + (t_in_ - t_out_) * (share < 0.0f ? 0.0f : share > 1.0f ? 1.0f : share);
    stage_ = REFINE;
    return refined_ == how_.secant_steps;
  }

  float near_;
  Marching how_;
  int refined_ = 0;
  const float *points_, *end_;  // of the lattice, still to come
  Stage stage_ = MARCH;
  bool was_inside_ = false;
  float t_out_, f_out_ = -__builtin_inff(), t_in_, f_in_;  // the ends: the last point outside, the first inside, and their levels
};

// Rays start .. end - 1, some hundreds. points_of(ray, points) sets where its lattice lies and returns the number of points; level(p, count, f):
// f (count,) at points p (count, 3) in scene units, count <= MOST.
template <int MOST, class Points, class Level>
void search(const Rays& rays, const Marching& how, int64_t start, int64_t end, float* t, uint8_t* hit, Points points_of, Level level) {
  Search searches[MOST];
  float p[3 * MOST], f[MOST];
  int active = 0;
  for (int64_t next = start; active || next < end;) {
    for (; next < end && active < MOST; next++) {
      const float* points = nullptr;
      const int64_t count = points_of(next, points);
      t[next] = rays.far[next], hit[next] = 0;
      if (count > 0) searches[active++] = Search(next, rays, how, points, count);
    }
    if (!active) break;
    int marching = 0, points = 0, over = 0;
    for (int i = 0; i < active; i++) marching += searches[i].marching();
    const int room = marching ? (MOST - (active - marching)) / marching : 0, ahead = room < MARCH_AHEAD ? room : MARCH_AHEAD;
    for (int i = 0; i < active; i++) {
      const float *at = searches[i].ask(ahead), *o = rays.o + 3 * searches[i].ray, *d = rays.d + 3 * searches[i].ray;
      for (int k = 0; k < searches[i].asked; k++, points++)
        for (int axis = 0; axis < 3; axis++) p[3 * points + axis] = o[axis] + at[k] * d[axis];
    }
    level(p, points, f);
    const float* levels = f;
    for (int i = 0; i < active; i++) {
      Search s = searches[i];
      const bool done = s.advance(levels);
      levels += s.asked;
      if (!done)
        searches[i - over] = s;
      else
        over++, t[s.ray] = s.hit ? s.t : rays.far[s.ray], hit[s.ray] = s.hit;
    }
    active -= over;
  }
}

// On a lattice that is there, with a level as exact as it gets.
template <int MOST, class Level>
void search(const Rays& rays, const Lattice& lattice, int secant_steps, int64_t start, int64_t end, float* t, uint8_t* hit, Level level) {
  const auto points_of = [&](int64_t ray, const float*& points) {
    points = lattice.t + ray * lattice.most;
    return lattice.count[ray] < lattice.most ? lattice.count[ray] : lattice.most;
  };
  search<MOST>(rays, {lattice.step, secant_steps, ON_SURFACE}, start, end, t, hit, points_of, level);
}

}  // namespace
