// What the native library computes, and the letters used for it in every file here.
//
//   n points x in [0, 1]^3, rows of 3 floats. L levels of a hash grid, 2 features each: the encoding h (n, 2L), level-major.
//   Per level: p = scale x + 0.5, cell = floor(p), w = p - cell; corner c = 0..7 has bit d set where it lies one further on axis d,
//   and weight w_c = prod_d (w_d or 1 - w_d). J = dh/dx (2L, 3).
//   Field: z = relu(W1 h), out = W2 z, v = W2[0], m = (z > 0), s = m v, u = W1^T s = d out[0] / dh, gradient = J^T u.
//   Backward, given d_out and d_gradient = q (G_a is the loss's gradient with respect to a):
//     first order     G_z = m (W2^T d_out),  dW2 = d_out z^T,  dW1 = G_z h^T,  G_h = W1^T G_z
//     second order    G_u = J q,  dW1 += s G_u^T,  dv += m (W1 G_u)          (the ReLU's own second derivative is 0)
//     table           dT[corner c] += w_c G_h + (q . grad w_c) u             one scatter for both orders
//
// Weights come as [out, in], row-major. "Rows" are matrices of one row a point; "blocks" hold LANES points (8 or 4), lane by lane: [column][LANES].
// Widths are padded to multiples of 8 inside (hp = hidden, padded; ep = encoding; op = outputs), n to multiples of 8 in saved blocks.
//
// Results don't depend on the number of threads: every row is computed alike wherever it falls, weight gradients are summed per
// segment of points and then in the segments' order, and the table is scattered by one thread a level in the points' order.
//
// kernels.cpp is compiled once per instruction set into one Kernels table. It uses nothing of the standard library that could leave
// a shared copy of a function compiled for the wrong set; threads and memory are behind pool.h.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct Level {
  float scale;
  int32_t resolution;     // vertices an axis
  uint32_t offset, size;  // entries
  int32_t hashed;         // then size is a power of two; else size is resolution^3, rounded up to a multiple of 8
};

struct Grid {
  const Level* levels;
  int n_levels;
  const float* table;  // (entries, 2); null where only its gradient is wanted
  int64_t entries;
};

struct Net {
  int hidden, outputs;
  const float *w1, *w2;  // (hidden, 2L), (outputs, hidden)
};

struct Rays {  // t is distance along them in scene units, where the field covers [-1, 1]^3
  const float *o, *d;       // (n, 3)
  const float *near, *far;  // (n,)
  int64_t n;
};

struct Lattice {  // points of rays in occupied cells, as occupied_steps leaves them
  const float* t;        // (n, most)
  const int64_t* count;  // (n,)
  int64_t most;
  float step;
};

struct Aim {  // rays to be searched for the surface and to get samples (sampling.py); S = front + interval samples a ray
  Rays rays;
  const float *offset, *jitter;  // (n,) of the lattice, in steps; (n, S)
  const uint8_t* occupied;       // (cells, cells, cells)
  int32_t cells, front, interval, secant_steps;
  float prior_radius, step, width;
  float close;  // a level that small ends the secant steps
};

struct Placed {
  float *t, *surface;  // (n, S); (n,) as first_crossing gives it
  uint8_t* hit;        // (n,)
  float* on;           // (n + 1, 3), the crossings of the rays that hit, one after the other
  int64_t* hits;       // how many
};

struct Refresh {  // an update of the occupancy grid (grid.py)
  float* values;      // (cells, cells, cells)
  uint8_t* occupied;  // of the same shape
  int32_t cells, lot, everywhere;
  uint32_t seed;
  float threshold, decay, due, sharpness, prior_radius;
};

struct Saved {      // what a forward pass of the field leaves for the backward pass; np = n rounded up to 8
  float* h;         // (np, ep) rows
  float* jacobian;  // (np / LANES, 2L, 3, LANES) blocks
  float* u;         // (np / LANES, ep, LANES) blocks
};

// A step of training: rays with samples on them, what they should show, pairs of points whose normals should agree, and points whose occupancy is
// known.
//   p scene position, g = d level / dp, normal n = -g / |g|, level = out[0] + prior_radius - |p|, alpha = sigmoid(sharpness level) in cells in use.
//   T_j = prod_{i<j} (1 - k alpha_i), k just below 1; weight = alpha T; rgb = sum weight c + (1 - sum weight) behind; c = sigmoid(head)
//   Head's inputs: 16 spherical harmonics of the direction, the features out[1..], n, p, the ray's embedding, zeros.
// A ray's samples in use lie "packed", one after the other; rays share tiles of about 2 TILE of them, known points and pairs tiles of TILE.
struct Step {
  const float *rays_o, *rays_d, *t_near, *t_far;  // (n, 3), (n,)
  const float* t;                                 // (n, samples)
  const uint8_t* occupied;                        // (cells, cells, cells)
  const float *behind, *target, *mask;            // (n, 3), (n, 3); (n,) or null
  const float* pairs;                             // (2, n_pairs, 3), scene units
  const float *known, *wanted;                    // (n_known, 3), (n_known,) occupancy
  int64_t n, n_pairs, n_known;
  int32_t samples, cells;
  float prior_radius, sharpness;
  float least_weight;                            // lighter samples have no colour
  float color_weight, mask_weight, smooth_weight, points_weight;  // of the losses
  int32_t inputs;                                // of the head that are in use, bits: harmonics, features, n, p
  float huber;                                   // colours off by less are blamed in proportion; 0: all alike
  float outlier;                                 // rays off by this are blamed a quarter as much as others
  int32_t plain_colors;                          // 1: colours, but not weights, are blamed as if there were no outliers
  const float* appearance;                       // (n, dimensions), embeddings
  const float* trust;                            // (n,) factors of the rays' colour losses, or null
  const float* emphasis;                        // (n_pairs,) factors of the pairs' distances, or null
  int32_t dimensions;
};

struct StepResult {  // all overwritten; d_behind and d_appearance may be null
  float* losses;     // color, mask, smooth, points, mean squared error
  float *d_table, *d_w1, *d_w2, *d_head, *d_behind;
  float *d_appearance, *errors;  // (n, dimensions); (n, 3), rgb - target
};

struct Kernels {
  // h (n, 2L)
  void (*encode)(const Grid&, const float* x, int64_t n, int threads, float* h);
  // each where its pointer is not null: dx = J^T u (n, 3); du = J q (n, 2L); dxx = (sum_f u_f d2 h_f / dx2) q (n, 3)
  void (*encode_jacobian)(const Grid&, const float* x, int64_t n, int threads, const float* u, const float* q, float* dx, float* du, float* dxx);
  // d_table = the sum of w_c g + (q . grad w_c) u over all corners; g or (q and u) may be null
  void (*scatter)(const Grid&, const float* x, int64_t n, int threads, const float* g, const float* u, const float* q, float* d_table);
  // out (n, outputs), gradient (n, 3); saved.h null: nothing is saved
  void (*field)(const Grid&, const Net&, const float* x, int64_t n, int threads, float* out, float* gradient, const Saved&);
  // d_out or q may be null, d_table or d_w1 and d_w2 too. g_h: room for (np / LANES, ep, LANES). All gradients are overwritten
  void (*field_backward)(const Grid&, const Net&, const float* x, int64_t n, int threads, const Saved&, const float* d_out, const float* q, float* g_h,
                         float* d_table, float* d_w1, float* d_w2);
  // out[:, 0]
  void (*field_value)(const Grid&, const Net&, const float* x, int64_t n, int threads, float* value);
  // t (n,) of the first change of out[0] + prior_radius - |o + t d| from outside (negative) to inside, `far` where there is none; hit (n,)
  void (*first_crossing)(const Grid&, const Net&, float prior_radius, const Rays&, const Lattice&, int secant_steps, int threads, float* t, uint8_t* hit);
  // false: a ray has more than 2^24 lattice points
  bool (*place)(const Grid&, const Net&, const Aim&, int threads, const Placed&);
  void (*update_grid)(const Grid&, const Net&, const Refresh&, int threads);
  // widths[0..layers]; weights one after the other; hidden: room for the rows after each ReLU, layer by layer (n, widths[l]), or null
  void (*mlp)(const int32_t* widths, int layers, const float* weights, const float* x, int64_t n, int threads, float* y, float* hidden);
  // dx may be null; d_weights is overwritten
  void (*mlp_backward)(const int32_t* widths, int layers, const float* weights, const float* x, int64_t n, int threads, const float* hidden, const float* dy,
                       float* dx, float* d_weights);
  // widths, layers, head: the colour head, as for mlp
  void (*train_step)(const Grid&, const Net&, const int32_t* widths, int layers, const float* head, const Step&, int threads, const StepResult&);
  // rate and eps already hold the bias correction: p -= rate m / (sqrt(v) root + eps)
  void (*adam)(float* p, const float* grad, float* m, float* v, int64_t n, int threads, float rate, float beta1, float beta2, float eps, float root);
};

extern const Kernels kernels_portable;
#ifdef FASTSURF_AVX2
extern const Kernels kernels_avx2;
#endif

constexpr int BLOCK_SHIFT = 3;  // a block of cells is 8 a side
inline int64_t blocks_along(int cells) { return (cells + (1 << BLOCK_SHIFT) - 1) >> BLOCK_SHIFT; }

// Which blocks (b, b, b) hold an occupied cell, b = blocks_along(cells).
void occupied_blocks(const uint8_t* occupied, int cells, int threads, uint8_t* blocks);

struct Cells {
  const uint8_t *occupied, *blocks;
  int cells;
};

// The lattice points of one ray in occupied cells, the first `most` of them; -1 where it has more than 2^24 points.
int64_t occupied_steps_of(const Cells& cells, const float* o, const float* d, float near, float far, float step, int64_t most, float* t);

// Of many rays; false where one has too many points.
bool occupied_steps(const float* rays_o, const float* rays_d, const float* t_near, const float* t_far, int64_t n, const uint8_t* occupied, int cells,
                    float step, int64_t most, int threads, float* t_out, int64_t* count);

// The samples of each ray that lie in cells in use, front to back: points (n, samples, 3), the first count (n,) of each ray filled.
void samples_in_use(const Step& step, int threads, float* points, int32_t* count);

// The samples t (S,) of one ray, which crosses the surface at `surface` or (not hit) is spread over its lattice.
void place_ray(const Aim& aim, int64_t ray, float surface, bool hit, const float* lattice, int64_t count, float* t);

// Placed.on and hits, from the rest.
void points_on_surface(const Aim& aim, const Placed& placed);

struct Runs {  // pixels.py's Pool
  const int64_t *ends, *shifts;  // (n,)
  int64_t n, size;
};

struct Photographs {  // as scene.py holds them: pixels.py's nodes, poses, one buffer of pixels
  const float* nodes;                // (n_nodes, 2)
  const int64_t *first, *counts;     // (n_views,), (n_views, 2)
  const float* per_pixel;            // (n_views, 2)
  const float *rotations, *origins;  // (n_views, 3, 3), (n_views, 3)
  const int64_t *offsets, *widths;   // (n_views + 1,), (n_views,)
  const uint8_t *colors, *coverage;  // (n_pixels, 3); (n_pixels,) or null
  int64_t n_views;
  Runs object, rest;
};

struct Seen {  // a batch; mask is not written without coverage
  float *origins, *directions, *t_near, *t_far, *rgb, *mask;
  int64_t *view, *pixel;
};

// Rays and colours of pixels, `n_object` drawn from the one pool and then the others from the rest; false where a pool has less.
bool see(const Photographs& photographs, const int64_t* drawn, int64_t n, int64_t n_object, int threads, const Seen& seen);
