// A whole training step: encoding level by level, tiles of rays there and back, and the scatter, again level by level. Letters: native.h.
#pragma once
#include "field.h"
#include "mlp.h"

namespace {

constexpr float LET_THROUGH = float(1.0 - 1e-6);  // k: an opaque sample's share that it stops (compositing.py)
constexpr int RAY_TILE = 2 * TILE;                // samples in use of the rays of a tile; about a third of them has a colour
constexpr int MOST_RAYS = 64;                     // of a tile
constexpr float LEAST_OPACITY = 1e-4f, DEEP = 4.0f, WHOLE = 0.99f;  // of the mask loss (losses.py)
constexpr int HARMONICS = 16;
enum Input { DIRECTION = 1, FEATURE = 2, NORMAL = 4, POSITION = 8 };

// Real spherical harmonics up to degree 3 of a unit direction, as color.py has them.
void spherical_harmonics(const float* d, float* y) {
  const float x = d[0], yy = d[1], z = d[2], x2 = x * x, y2 = yy * yy, z2 = z * z;
  y[0] = 0.28209479177387814f;
  y[1] = -0.48860251190291987f * yy;
  y[2] = 0.48860251190291987f * z;
  y[3] = -0.48860251190291987f * x;
  y[4] = 1.0925484305920792f * x * yy;
  y[5] = -1.0925484305920792f * yy * z;
  y[6] = 0.94617469575755997f * z2 - 0.31539156525251999f;
  y[7] = -1.0925484305920792f * x * z;
  y[8] = 0.54627421529603959f * (x2 - y2);
  y[9] = 0.59004358992664352f * yy * (y2 - 3.0f * x2);
  y[10] = 2.8906114426405538f * x * yy * z;
  y[11] = 0.45704579946446572f * yy * (1.0f - 5.0f * z2);
  y[12] = 0.3731763325901154f * z * (5.0f * z2 - 3.0f);
  y[13] = 0.45704579946446572f * x * (1.0f - 5.0f * z2);
  y[14] = 1.4453057213202769f * z * (x2 - y2);
  y[15] = 0.59004358992664352f * x * (3.0f * y2 - x2);
}

struct StepTile {  // one thread's activations
  FieldTile field;
  float *points, *normal, *inverse, *level;           // (points, 3) scene units; 1 / |g|
  float *alpha, *trans, *weight, *d_level;            // of samples
  float *in, *y, *d_y, *room, *d_in, *hidden[MAX_LAYERS];  // of the colour head, one row a bright sample
  int32_t* bright;                                    // samples that have a colour, and which row of the head is theirs: -1 none
  int32_t* row_of;

  StepTile(Arena& arena, const FieldWeights& w, const MlpWeights& head, int most)
      : field(arena, w, most), points(arena.take(3 * most)), normal(arena.take(3 * most)), inverse(arena.take(most)), level(arena.take(most)),
        alpha(arena.take(most)), trans(arena.take(most)), weight(arena.take(most)), d_level(arena.take(most)),
        in(arena.take(size_t(most) * head.p[0])), y(arena.take(size_t(most) * head.p[head.layers])), d_y(arena.take(size_t(most) * head.p[head.layers])),
        room(arena.take(2 * size_t(most) * head.widest)), d_in(arena.take(size_t(most) * head.p[0])) {
    for (int l = 1; l < head.layers; l++) hidden[l] = arena.take(size_t(most) * head.p[l]);
    bright = reinterpret_cast<int32_t*>(arena.take(most)), row_of = reinterpret_cast<int32_t*>(arena.take(most));
  }
};

struct Totals {  // of a segment
  float color = 0.0f, mask = 0.0f, smooth = 0.0f, points = 0.0f, square = 0.0f;
};

struct StepWork {  // what all threads share
  const Grid& grid;
  const Step& step;
  const FieldWeights& field;
  const MlpWeights& head;
  const float* in_use;      // of samples_in_use
  const int32_t* count;
  float *x, *q, *g_h, *u;   // of packed points, in blocks: x and q of 3, G_h, u (h before it is known)
  float* jacobian;          // blocks of the packed points from `slopes_from` on
  int64_t slopes_from;
  float *d_behind, *d_appearance, *errors;
};

// From the middle of the scene, kept off 0
INLINE vf distance_of(const vf p[3]) {
  const vf r = square_root(p[0] * p[0] + p[1] * p[1] + p[2] * p[2]);
  return r < all(1e-6f) ? all(1e-6f) : r;
}

// -log(1 - sigmoid(logit))
INLINE float softplus(float logit) { return logit > 15.0f ? logit : __builtin_log1pf(__builtin_expf(logit)); }

INLINE const float* jacobian_at(const StepWork& work, int64_t packed) { return work.jacobian + (packed - work.slopes_from) * 3 * work.field.width; }

// z of encoded points, `points` of them, a multiple of LANES.
void look(const StepWork& work, const StepTile& t, int points, int64_t packed) {
  rows_and_hidden(work.field, t.field, work.u + packed * work.field.ep, points / LANES, t.field.rows);
}

// After look: the normals, of the chosen points or of all.
void find_normals(const StepWork& work, const StepTile& t, int points, const Chosen* chosen, int64_t packed) {
  field_tile_gradient(work.field, t.field, jacobian_at(work, packed), points, chosen, work.u + packed * work.field.ep);
  for (int i = 0; i < points; i += LANES) {
    vf p[3], g[3];
    load_points(t.points + 3 * i, LANES, p);
    const vf radius = distance_of(p);
    UNROLL for (int d = 0; d < 3; d++) g[d] = load(t.field.gradient + 3 * i + d * LANES) * 0.5f - p[d] / radius;
    const vf norm = square_root(g[0] * g[0] + g[1] * g[1] + g[2] * g[2]), inverse = 1.0f / (norm < all(1e-12f) ? all(1e-12f) : norm);
    UNROLL for (int d = 0; d < 3; d++) store_lanes(t.normal + 3 * i + d, 3, LANES, -g[d] * inverse);
    store(t.inverse + i, inverse);
  }
}

// After look: levels and occupancies.
void find_levels(const StepWork& work, const StepTile& t, int points) {
  first_output(work.field, t.field.z, points, t.level);
  for (int i = 0; i < points; i += LANES) {
    vf p[3];
    load_points(t.points + 3 * i, LANES, p);
    store(t.level + i, load(t.level + i) + (work.step.prior_radius - distance_of(p)));
    store(t.alpha + i, sigmoid(work.step.sharpness * load(t.level + i)));
  }
}

// q of point i, in blocks, from the gradient G with respect to its normal.
INLINE void blame_normal(const StepTile& t, int i, const float* G, float* q) {
  q += i / LANES * 3 * LANES + i % LANES;
  const float *n = t.normal + 3 * i, along = n[0] * G[0] + n[1] * G[1] + n[2] * G[2];
  for (int d = 0; d < 3; d++) q[d * LANES] = -0.5f * t.inverse[i] * (G[d] - n[d] * along);
}

// Last rows of a tile repeat its last point and are blamed for nothing; returns how many rows there are then.
int fill_up(float* points, int count) {
  const int rows = LANES * blocks_of(count);
  for (int i = count; i < rows; i++)
    for (int d = 0; d < 3; d++) points[3 * i + d] = points[3 * (count - 1) + d];
  return rows;
}

// Weights of a ray's samples; which are bright enough for a colour goes to t.bright. Returns how many are by now.
int weigh(const StepTile& t, int first, int end, float least, int bright) {
  float through = 1.0f;
  for (int i = first; i < end; i++) {
    t.trans[i] = through, t.weight[i] = t.alpha[i] * through;
    through *= 1.0f - t.alpha[i] * LET_THROUGH;
    t.row_of[i] = t.weight[i] > least ? bright : -1;
    if (t.row_of[i] >= 0) t.bright[bright++] = i;
  }
  return bright;
}

// A ray's losses; leaves d_level and, for bright samples, d_y.
void blame_ray(const StepWork& work, const StepTile& t, int64_t ray, int first, int end, Totals& totals) {
  const Step& s = work.step;
  const int y_row = work.head.p[work.head.layers];
  const float *behind = s.behind + 3 * ray, *target = s.target + 3 * ray, share = 1.0f / float(s.n);
  float rgb[3] = {}, d_rgb[3], d_paint[3], opacity = 0.0f;  // gradients as weights see them, and as colours do
  for (int i = first; i < end; i++) {
    opacity += t.weight[i];
    if (t.row_of[i] < 0) continue;
    for (int c = 0; c < 3; c++) rgb[c] += t.weight[i] * t.y[t.row_of[i] * y_row + c];
  }
  float off = 0.0f;  // sum over channels
  for (int c = 0; c < 3; c++) {
    const float error = rgb[c] + (1.0f - opacity) * behind[c] - target[c], size = __builtin_fabsf(error);
    off += size < s.huber ? 0.5f * error * error / s.huber : size - 0.5f * s.huber;
    totals.square += error * error;
    work.errors[3 * ray + c] = error;
    d_rgb[c] = size < s.huber ? error / s.huber : error > 0.0f ? 1.0f : error < 0.0f ? -1.0f : 0.0f;
  }
  const float factor = s.trust ? s.trust[ray] : 1.0f, trust = 1.0f / (1.0f + off / s.outlier);
  totals.color += factor * off * trust;
  float base = 0.0f;  // gradient of any weight, by the opacity
  for (int c = 0; c < 3; c++) {
    d_rgb[c] *= s.color_weight * share * factor;
    d_paint[c] = d_rgb[c] * (s.plain_colors ? 1.0f : trust * trust);
    d_rgb[c] *= trust * trust;
    base -= d_rgb[c] * behind[c];
    if (work.d_behind) work.d_behind[3 * ray + c] = (1.0f - opacity) * d_rgb[c];
  }
  float carve = 0.0f;  // gradient of a level over its alpha, on a ray that should meet nothing
  int deepest = first;
  float pull = 0.0f;  // gradient of its level, on a ray that is on the right side of its mask
  if (s.mask) {
    const float m = s.mask[ray];
    for (int i = first + 1; i < end; i++)
      if (t.level[i] > t.level[deepest]) deepest = i;
    if ((first < end && t.level[deepest] > 0.0f) == (m > 0.5f)) {
      const float weight = m > WHOLE ? trust * trust : 1.0f, a = first < end ? t.alpha[deepest] : 0.0f;
      totals.mask -= weight * m * __builtin_logf(a < LEAST_OPACITY ? LEAST_OPACITY : a);
      if (first < end) totals.mask += weight * (1.0f - m) * softplus(s.sharpness * t.level[deepest]);
      pull = s.mask_weight * share * s.sharpness * weight * ((1.0f - m) * a - (a < LEAST_OPACITY ? 0.0f : m * (1.0f - a)));
    } else {
      const float o = opacity < LEAST_OPACITY ? LEAST_OPACITY : opacity;
      totals.mask -= m * __builtin_logf(o);
      if (opacity >= LEAST_OPACITY) base -= s.mask_weight * share * m / o;
      float depth = 0.0f;
      for (int i = first; i < end; i++) depth += softplus(s.sharpness * t.level[i]);
      const bool deep = depth > DEEP;
      totals.mask += (1.0f - m) * (deep ? DEEP * (1.0f + __builtin_logf(depth / DEEP)) : depth);
      carve = s.mask_weight * share * (1.0f - m) * s.sharpness * (deep ? DEEP / depth : 1.0f);
    }
  }
  float after = 0.0f;  // of the samples behind: sum of weight times its gradient
  for (int i = end - 1; i >= first; i--) {
    float d_weight = base;
    if (t.row_of[i] >= 0) {
      const float* c = t.y + t.row_of[i] * y_row;
      float* d = t.d_y + t.row_of[i] * y_row;
      for (int k = 0; k < 3; k++) {
        d_weight += d_rgb[k] * c[k];
        d[k] = t.weight[i] * d_paint[k] * c[k] * (1.0f - c[k]);
      }
    }
    const float a = t.alpha[i], d_alpha = t.trans[i] * d_weight - after * LET_THROUGH / (1.0f - a * LET_THROUGH);
    t.d_level[i] = s.sharpness * a * (1.0f - a) * d_alpha + carve * a;
    after += t.weight[i] * d_weight;
  }
  if (first < end) t.d_level[deepest] += pull;
}

// Inputs of the colour head: row r of t.in belongs to sample t.bright[r] of the ray.
void head_inputs(const StepWork& work, const StepTile& t, int from, int to, int64_t ray) {
  const float* direction = work.step.rays_d + 3 * ray;
  const int row = work.head.p[0], features = work.field.outputs - 1, inputs = work.step.inputs;
  float harmonics[HARMONICS];
  spherical_harmonics(direction, harmonics);
  for (int r = from; r < to; r++) {
    float* in = t.in + r * row;
    const int i = t.bright[r];
    const float* feature = t.field.out + r * work.field.op + 1;
    fill_zero(in, size_t(row));
    if (inputs & DIRECTION)
      for (int k = 0; k < HARMONICS; k++) in[k] = harmonics[k];
    in += HARMONICS;
    if (inputs & FEATURE)
      for (int k = 0; k < features; k++) in[k] = feature[k];
    in += features;
    if (inputs & NORMAL)
      for (int k = 0; k < 3; k++) in[k] = t.normal[3 * i + k];
    if (inputs & POSITION)
      for (int k = 0; k < 3; k++) in[3 + k] = t.points[3 * i + k];
    in += 6;
    for (int k = 0; k < work.step.dimensions; k++) in[k] = work.step.appearance[work.step.dimensions * ray + k];
  }
}

// The gradient of a ray's embedding: d_in holds those of its rows' inputs.
void blame_appearance(const StepWork& work, const StepTile& t, int from, int to, int64_t ray) {
  const int row = work.head.p[0], dimensions = work.step.dimensions;
  const float* d = t.d_in + HARMONICS + work.field.outputs - 1 + 6;
  float* to_ray = work.d_appearance + dimensions * ray;
  fill_zero(to_ray, size_t(dimensions));
  for (int r = from; r < to; r++)
    for (int k = 0; k < dimensions; k++) to_ray[k] += d[r * row + k];
}

// The points of a tile, of rays, of known points or of pairs. Returns how many rows there are; starts, where not null: where each ray's samples begin.
int ray_points(const StepWork& work, int64_t first, int64_t end, float* points, int* starts) {
  int count = 0;
  for (int64_t ray = first; ray < end; ray++) {
    if (starts) starts[ray - first] = count;
    copy(work.in_use + ray * work.step.samples * 3, 1, 3 * work.count[ray], 0, points + 3 * count, 0);
    count += work.count[ray];
  }
  if (starts) starts[end - first] = count;
  return fill_up(points, count);
}
int known_points(const StepWork& work, int64_t first, int64_t end, float* points) {
  copy(work.step.known + 3 * first, 1, 3 * int(end - first), 0, points, 0);
  return fill_up(points, int(end - first));
}
int pair_points(const StepWork& work, int64_t first, int64_t end, float* points) {
  const int pairs = int(end - first);
  for (int side = 0; side < 2; side++)
    copy(work.step.pairs + 3 * (side * work.step.n_pairs + first), 1, 3 * pairs, 0, points + 3 * pairs * side, 0);
  return fill_up(points, 2 * pairs);
}

// Rays first .. end - 1, whose samples in use are the packed points from `packed` on. Adds to the weights' gradients.
void ray_tile(const StepWork& work, const StepTile& t, int64_t first, int64_t end, int64_t packed, float* d1, float* d2, float* d_head, Totals& totals) {
  const FieldWeights& w = work.field;
  const MlpWeights& head = work.head;
  const int y_row = head.p[head.layers], features = w.outputs - 1;
  int starts[MOST_RAYS + 1], bright = 0;
  const int rows = ray_points(work, first, end, t.points, starts);
  const FieldTile& f = t.field;
  look(work, t, rows, packed);
  find_levels(work, t, rows);

  int lit[MOST_RAYS + 1] = {};  // bright samples of the rays before
  for (int64_t ray = first; ray < end; ray++)
    lit[ray - first + 1] = bright = weigh(t, starts[ray - first], starts[ray - first + 1], work.step.least_weight, bright);
  const Chosen chosen{t.bright, bright};
  gather_rows(f.z, chosen, w.hp, f.z_chosen);
  gemm<PLAIN>(bright, w.op, w.hidden, f.z_chosen, w.hp, 1, w.w2t, w.op, f.out, w.op);
  if (work.step.inputs & NORMAL) find_normals(work, t, rows, &chosen, packed);
  for (int64_t ray = first; ray < end; ray++) {
    const int from = lit[ray - first], to = lit[ray - first + 1];
    if (from < to) head_inputs(work, t, from, to, ray);
  }
  mlp_tile(head, t.in, head.p[0], bright, t.hidden, t.y);
  for (int k = 0; k < bright * y_row; k += LANES) store(t.y + k, sigmoid(load(t.y + k)));
  fill_zero(t.d_y, size_t(bright) * y_row);
  fill_zero(t.d_level, size_t(rows));
  for (int64_t ray = first; ray < end; ray++) blame_ray(work, t, ray, starts[ray - first], starts[ray - first + 1], totals);

  mlp_tile_backward(head, t.in, bright, t.hidden, t.d_y, y_row, t.room, d_head, t.d_in, HARMONICS);
  if (work.d_appearance)
    for (int64_t ray = first; ray < end; ray++) blame_appearance(work, t, lit[ray - first], lit[ray - first + 1], ray);
  const float* d_feature = t.d_in + HARMONICS;
  if (work.step.inputs & NORMAL) {
    float* q = work.q + 3 * packed;
    fill_zero(q, 3 * size_t(rows));
    for (int r = 0; r < bright; r++) blame_normal(t, t.bright[r], d_feature + r * head.p[0] + features, q);
    field_tile_second_order(w, f, jacobian_at(work, packed), rows, &chosen, in_blocks(q, 3), d1, d2);
  }
  blame_first_output(w, f, rows, t.d_level, d2);
  if (work.step.inputs & FEATURE && bright) blame_features(w, f, chosen, d_feature, head.p[0], d2);
  field_tile_first_layer(w, f, f.rows, rows, work.g_h + packed * w.ep, d1);
}

// Known points first .. end - 1: cross-entropy of their occupancies.
void known_tile(const StepWork& work, const StepTile& t, int64_t first, int64_t end, int64_t packed, float* d1, float* d2, Totals& totals) {
  const Step& s = work.step;
  const int rows = known_points(work, first, end, t.points);
  look(work, t, rows, packed);
  find_levels(work, t, rows);
  fill_zero(t.d_level, size_t(rows));
  for (int i = 0; i < end - first; i++) {
    const float logit = s.sharpness * t.level[i], wanted = s.wanted[first + i];
    totals.points += softplus(logit) - wanted * logit;
    t.d_level[i] = s.points_weight * s.sharpness / float(s.n_known) * (t.alpha[i] - wanted);
  }
  if (s.inputs & NORMAL) fill_zero(work.q + 3 * packed, 3 * size_t(rows));
  blame_first_output(work.field, t.field, rows, t.d_level, d2);
  field_tile_first_layer(work.field, t.field, t.field.rows, rows, work.g_h + packed * work.field.ep, d1);
}

// Pairs first .. end - 1: the normals at the surface in the first half of the rows, those close to it in the second.
void pair_tile(const StepWork& work, const StepTile& t, int64_t first, int64_t end, int64_t packed, float* d1, float* d2, Totals& totals) {
  const Step& s = work.step;
  const int pairs = int(end - first);
  const int rows = pair_points(work, first, end, t.points);
  look(work, t, rows, packed);
  find_normals(work, t, rows, nullptr, packed);
  float* q = work.q + 3 * packed;
  fill_zero(q, 3 * size_t(rows));
  for (int i = 0; i < pairs; i++) {
    const float *a = t.normal + 3 * i, *b = a + 3 * pairs;
    const float apart[3] = {a[0] - b[0], a[1] - b[1], a[2] - b[2]};
    const float distance = __builtin_sqrtf(apart[0] * apart[0] + apart[1] * apart[1] + apart[2] * apart[2]);
    const float emphasis = s.emphasis ? s.emphasis[first + i] : 1.0f;
    totals.smooth += emphasis * distance;
    const float slope = distance > 0.0f ? emphasis * s.smooth_weight / (float(s.n_pairs) * distance) : 0.0f;
    const float G[3] = {slope * apart[0], slope * apart[1], slope * apart[2]}, opposite[3] = {-G[0], -G[1], -G[2]};
    blame_normal(t, i, G, q);
    blame_normal(t, pairs + i, opposite, q);
  }
  field_tile_second_order(work.field, t.field, jacobian_at(work, packed), rows, nullptr, in_blocks(q, 3), d1, d2);
}

struct Plan {  // of tiles: of rays, of known points from tile `rays` on and of pairs from `known` on. Tile k has those from first[k] up to end[k],
               // packed points from start[k] on
  int64_t *first, *end, *start, rays = 0, known = 0, tiles = 0, packed = 0, without_pairs = 0;

  Plan(Arena& arena, int64_t most)
      : first(reinterpret_cast<int64_t*>(arena.take(2 * size_t(most)))), end(reinterpret_cast<int64_t*>(arena.take(2 * size_t(most)))),
        start(reinterpret_cast<int64_t*>(arena.take(2 * size_t(most)))) {}

  void add(int64_t from, int64_t to, int64_t points) {
    first[tiles] = from, end[tiles] = to, start[tiles] = packed;
    packed += (points + LANES - 1) / LANES * LANES, tiles++;
  }

  // Whole rays side by side while their samples fit into `most` rows, then the known points, then the pairs.
  void fill(const int32_t* count, int64_t n, int64_t n_known, int64_t n_pairs, int most) {
    for (int64_t ray = 0, next, points; ray < n; ray = next) {
      for (next = ray, points = 0; next < n && next - ray < MOST_RAYS && points + count[next] <= most; next++) points += count[next];
      add(ray, next, points);
    }
    rays = tiles;
    for (int64_t point = 0; point < n_known; point += TILE) add(point, point + points_in(n_known, point), points_in(n_known, point));
    known = tiles, without_pairs = packed;
    for (int64_t pair = 0; pair < n_pairs; pair += TILE / 2) {
      const int64_t next = pair + TILE / 2 < n_pairs ? pair + TILE / 2 : n_pairs;
      add(pair, next, 2 * (next - pair));
    }
  }
};

// work.x and, level by level, h of all packed points with its derivatives where normals are wanted.
void encode_packed(const StepWork& work, const Plan& plan, int threads, int most) {
  parallel(threads, plan.tiles, 3 * size_t(most), [=, &work, &plan](int64_t k, float* points) {
    const int64_t first = plan.first[k], to = plan.end[k];
    const int rows = k < plan.rays    ? ray_points(work, first, to, points, nullptr)
                     : k < plan.known ? known_points(work, first, to, points)
                                      : pair_points(work, first, to, points);
    float* x = work.x + 3 * plan.start[k];
    for (int i = 0; i < rows; i += LANES) {
      vf p[3];
      load_points(points + 3 * i, LANES, p);
      for (int d = 0; d < 3; d++) {
        const vf a = p[d] * 0.5f + 0.5f, b = a < all(0.0f) ? all(0.0f) : a;
        store(x + 3 * i + d * LANES, b > all(1.0f) ? all(1.0f) : b);
      }
    }
  });
  const int levels = work.grid.n_levels, ep = work.field.ep, row = 3 * work.field.width;
  const int64_t pieces = 1 + 3 * threads / levels;  // of a level, so that all threads have some
  const int64_t size = (plan.packed / LANES + pieces - 1) / pieces * LANES;
  parallel(threads, pieces * levels, 0, [=, &work, &plan](int64_t task, float*) {
    const int l = levels - 1 - int(task / pieces);
    const int64_t start = task % pieces * size, end = start + size < plan.packed ? start + size : plan.packed;
    const int64_t split = work.slopes_from < start ? start : work.slopes_from < end ? work.slopes_from : end;
    if (start < split) encode_level<false>(work.grid, l, in_blocks(work.x + 3 * start, 3), split - start, work.u + start * ep, ep, nullptr);
    if (split < end)
      encode_level<true>(work.grid, l, in_blocks(work.x + 3 * split, 3), end - split, work.u + split * ep, ep,
                         work.jacobian + (split - work.slopes_from) * row);
  });
}

void train_step(const Grid& grid, const Net& net, const int32_t* widths, int layers, const float* head_weights, const Step& step, int threads,
                const StepResult& result) {
  const int most = step.samples > RAY_TILE ? padded(step.samples) : RAY_TILE;
  const size_t most_tiles = size_t(step.n + step.n_known / TILE + 1 + step.n_pairs / (TILE / 2) + 1);
  const size_t most_packed = size_t(step.n * step.samples + step.n_known + 2 * step.n_pairs) + 8 * most_tiles;
  Arena sizes{nullptr}, tile_sizes{nullptr};
  const FieldWeights field_plan(sizes, grid, net);
  const MlpWeights head_plan(sizes, widths, layers, head_weights);
  const StepTile counted(tile_sizes, field_plan, head_plan, most);
  const size_t tile_floats = tile_sizes.used, field_floats = field_plan.gradient_floats(), stride = field_floats + head_plan.total;
  const size_t packed_floats = most_packed * size_t(6 + 2 * field_plan.ep + 3 * field_plan.width) + size_t(step.n) * (size_t(step.samples) * 3 + 2);
  Arena arena{shared_scratch(sizes.used + SEGMENTS * stride + packed_floats + 6 * most_tiles + 1024)};
  FieldWeights w(arena, grid, net);
  w.fill(net);
  const MlpWeights head(arena, widths, layers, head_weights);
  float* sums = arena.take(SEGMENTS * stride);
  Plan plan(arena, int64_t(most_tiles));
  float* in_use = arena.take(size_t(step.n) * step.samples * 3);
  int32_t* count = reinterpret_cast<int32_t*>(arena.take(size_t(step.n)));
  samples_in_use(step, threads, in_use, count);
  plan.fill(count, step.n, step.n_known, step.n_pairs, most);
  const size_t packed = size_t(plan.packed);
  const int64_t slopes_from = step.inputs & NORMAL ? 0 : plan.without_pairs;
  float *x = arena.take(3 * packed), *q = arena.take(3 * packed), *g_h = arena.take(packed * w.ep), *u = arena.take(packed * w.ep);
  float* jacobian = arena.take((packed - size_t(slopes_from)) * 3 * w.width);
  float* d_appearance = step.dimensions ? result.d_appearance : nullptr;
  const StepWork work{grid, step, w, head, in_use, count, x, q, g_h, u, jacobian, slopes_from, result.d_behind, d_appearance, result.errors};
  encode_packed(work, plan, threads, most);

  const int64_t segments = segments_of(plan.tiles);
  Totals totals[SEGMENTS];
  parallel(threads, segments, tile_floats, [=, &work, &plan, &totals](int64_t segment, float* scratch) {
    Arena own{scratch};
    const StepTile t(own, work.field, work.head, most);
    float *d1 = sums + stride * size_t(segment), *d2 = d1 + work.field.w1_floats(), *d_head = d1 + field_floats;
    fill_zero(d1, stride);
    Totals& total = totals[segment];
    for (int64_t k = segment * plan.tiles / segments; k < (segment + 1) * plan.tiles / segments; k++)
      if (k < plan.rays)
        ray_tile(work, t, plan.first[k], plan.end[k], plan.start[k], d1, d2, d_head, total);
      else if (k < plan.known)
        known_tile(work, t, plan.first[k], plan.end[k], plan.start[k], d1, d2, total);
      else
        pair_tile(work, t, plan.first[k], plan.end[k], plan.start[k], d1, d2, total);
  });
  w.sum_gradients(sums, segments, stride, result.d_w1, result.d_w2);
  head.sum_gradients(sums + field_floats, segments, stride, result.d_head);
  const int64_t of_values = plan.without_pairs, of_pairs = plan.packed - of_values;  // of_values: rays and known points
  const int inputs = step.inputs;
  scatter_levels(grid, threads, result.d_table, [=, &grid](int l) {
    const Columns none = in_blocks(nullptr, 0);
    if (inputs & NORMAL)
      scatter_level<true>(grid.levels[l], l, in_blocks(x, 3), of_values, in_blocks(g_h, w.ep), in_blocks(u, w.ep), in_blocks(q, 3),
                          result.d_table);
    else
      scatter_level<false>(grid.levels[l], l, in_blocks(x, 3), of_values, in_blocks(g_h, w.ep), none, none, result.d_table);
    scatter_level<true>(grid.levels[l], l, in_blocks(x + 3 * of_values, 3), of_pairs, none, in_blocks(u + of_values * w.ep, w.ep),
                        in_blocks(q + 3 * of_values, 3), result.d_table);
  });

  Totals all_rays;
  for (int64_t k = 0; k < segments; k++) {
    all_rays.color += totals[k].color, all_rays.mask += totals[k].mask;
    all_rays.smooth += totals[k].smooth, all_rays.points += totals[k].points, all_rays.square += totals[k].square;
  }
  const float n = step.n ? float(step.n) : 1.0f, n_pairs = step.n_pairs ? float(step.n_pairs) : 1.0f;
  const float n_known = step.n_known ? float(step.n_known) : 1.0f;
  result.losses[0] = step.color_weight * all_rays.color / n;
  result.losses[1] = step.mask_weight * all_rays.mask / n;
  result.losses[2] = step.smooth_weight * all_rays.smooth / n_pairs;
  result.losses[3] = step.points_weight * all_rays.points / n_known;
  result.losses[4] = all_rays.square / (3.0f * n);
}

}  // namespace
