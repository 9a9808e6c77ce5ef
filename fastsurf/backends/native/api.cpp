// The C ABI that native.py loads: checks what could lead outside of memory, takes the lock, picks the instruction set.
// Every function returns 0, or one of the codes below.
#include <mutex>
#include <new>

#include "extraction.h"
#include "native.h"

#ifdef _WIN32
#define API extern "C" __declspec(dllexport)
#else
#define API extern "C" __attribute__((visibility("default")))
#endif

namespace {

enum Code { OK = 0, OUT_OF_MEMORY = 1, UNKNOWN_SET = 2, BAD_ARGUMENT = 3 };

const Kernels* kernels_for(int set) {
  if (set == 0) return &kernels_portable;
#ifdef FASTSURF_AVX2
  if (set == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kernels_avx2;
#endif
  return nullptr;
}

bool fits(const Level* levels, int n_levels, int64_t entries) {
  if (n_levels < 1 || n_levels > 64) return false;
  for (int i = 0; i < n_levels; i++) {
    const Level& l = levels[i];
    const int64_t r = l.resolution, vertices = (r * r * r + 7) / 8 * 8;
    if (r < 1 || r > (1 << 20) || l.size == 0 || l.size > 1u << 29 || int64_t(l.offset) + l.size > entries) return false;
    if (l.hashed ? (l.size & (l.size - 1)) != 0 : vertices > l.size) return false;
  }
  return entries < (int64_t(1) << 31);
}

template <class F>
int guarded(int set, bool sound, F body) {
  static std::mutex one_at_a_time;
  const Kernels* kernels = kernels_for(set);
  if (!kernels) return UNKNOWN_SET;
  if (!sound) return BAD_ARGUMENT;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  try {
    return body(*kernels) ? OK : BAD_ARGUMENT;
  } catch (const std::bad_alloc&) {
    return OUT_OF_MEMORY;
  }
}

}  // namespace

API int fastsurf_abi() { return 7; }

API int fastsurf_has(int set) { return kernels_for(set) != nullptr; }

API int fastsurf_encode(int set, int threads, const Level* levels, int n_levels, const float* table, int64_t entries, const float* x, int64_t n, float* h) {
  return guarded(set, fits(levels, n_levels, entries), [&](const Kernels& k) {
    k.encode({levels, n_levels, table, entries}, x, n, threads, h);
    return true;
  });
}

API int fastsurf_encode_jacobian(int set, int threads, const Level* levels, int n_levels, const float* table, int64_t entries, const float* x, int64_t n,
                                 const float* u, const float* q, float* dx, float* du, float* dxx) {
  return guarded(set, fits(levels, n_levels, entries) && (u || !(dx || dxx)) && (q || !(du || dxx)), [&](const Kernels& k) {
    k.encode_jacobian({levels, n_levels, table, entries}, x, n, threads, u, q, dx, du, dxx);
    return true;
  });
}

API int fastsurf_scatter(int set, int threads, const Level* levels, int n_levels, int64_t entries, const float* x, int64_t n, const float* g, const float* u,
                         const float* q, float* d_table) {
  return guarded(set, fits(levels, n_levels, entries) && (u || !q), [&](const Kernels& k) {
    k.scatter({levels, n_levels, nullptr, entries}, x, n, threads, g, u, q, d_table);
    return true;
  });
}

API int fastsurf_field(int set, int threads, const Level* levels, int n_levels, const float* table, int64_t entries, int hidden, int outputs, const float* w1,
                       const float* w2, const float* x, int64_t n, float* out, float* gradient, float* h, float* jacobian, float* u) {
  return guarded(set, fits(levels, n_levels, entries) && hidden > 0 && outputs > 0, [&](const Kernels& k) {
    k.field({levels, n_levels, table, entries}, {hidden, outputs, w1, w2}, x, n, threads, out, gradient, {h, jacobian, u});
    return true;
  });
}

API int fastsurf_field_backward(int set, int threads, const Level* levels, int n_levels, int64_t entries, int hidden, int outputs, const float* w1,
                                const float* w2, const float* x, int64_t n, float* h, float* jacobian, float* u, const float* d_out, const float* q,
                                float* g_h, float* d_table, float* d_w1, float* d_w2) {
  return guarded(set, fits(levels, n_levels, entries) && hidden > 0 && outputs > 0, [&](const Kernels& k) {
    k.field_backward({levels, n_levels, nullptr, entries}, {hidden, outputs, w1, w2}, x, n, threads, {h, jacobian, u}, d_out, q, g_h, d_table, d_w1, d_w2);
    return true;
  });
}

API int fastsurf_field_value(int set, int threads, const Level* levels, int n_levels, const float* table, int64_t entries, int hidden, int outputs,
                             const float* w1, const float* w2, const float* x, int64_t n, float* value) {
  return guarded(set, fits(levels, n_levels, entries) && hidden > 0 && outputs > 0, [&](const Kernels& k) {
    k.field_value({levels, n_levels, table, entries}, {hidden, outputs, w1, w2}, x, n, threads, value);
    return true;
  });
}

API int fastsurf_first_crossing(int set, int threads, const Level* levels, int n_levels, const float* table, int64_t entries, int hidden, int outputs,
                                const float* w1, const float* w2, float prior_radius, const float* rays_o, const float* rays_d, const float* t_near,
                                const float* t_far, int64_t n, const float* lattice, const int64_t* count, int64_t most, float step, int secant_steps,
                                float* t, uint8_t* hit) {
  return guarded(set, fits(levels, n_levels, entries) && hidden > 0 && outputs > 0 && most >= 0, [&](const Kernels& k) {
    k.first_crossing({levels, n_levels, table, entries}, {hidden, outputs, w1, w2}, prior_radius, {rays_o, rays_d, t_near, t_far, n},
                     {lattice, count, most, step}, secant_steps, threads, t, hit);
    return true;
  });
}

API int fastsurf_place(int set, int threads, const Level* levels, int n_levels, const float* table, int64_t entries, int hidden, int outputs,
                       const float* w1, const float* w2, const Aim* aim, const Placed* placed) {
  const bool sound = fits(levels, n_levels, entries) && hidden > 0 && outputs > 0 && aim->rays.n >= 0 && aim->cells > 0 && aim->cells <= 1024 &&
                     aim->step > 1e-6f && aim->front >= 0 && aim->interval >= 0;
  return guarded(set, sound, [&](const Kernels& k) { return k.place({levels, n_levels, table, entries}, {hidden, outputs, w1, w2}, *aim, threads, *placed); });
}

API int fastsurf_update_grid(int set, int threads, const Level* levels, int n_levels, const float* table, int64_t entries, int hidden, int outputs,
                             const float* w1, const float* w2, const Refresh* refresh) {
  const bool sound = fits(levels, n_levels, entries) && hidden > 0 && outputs > 0 && refresh->cells > 0 && refresh->cells <= 512 && refresh->lot > 0;
  return guarded(set, sound, [&](const Kernels& k) {
    k.update_grid({levels, n_levels, table, entries}, {hidden, outputs, w1, w2}, *refresh, threads);
    return true;
  });
}

API int fastsurf_mlp(int set, int threads, const int32_t* widths, int layers, const float* weights, const float* x, int64_t n, float* y, float* hidden) {
  return guarded(set, layers >= 1 && layers <= 17, [&](const Kernels& k) {
    k.mlp(widths, layers, weights, x, n, threads, y, hidden);
    return true;
  });
}

API int fastsurf_mlp_backward(int set, int threads, const int32_t* widths, int layers, const float* weights, const float* x, int64_t n, const float* hidden,
                              const float* dy, float* dx, float* d_weights) {
  return guarded(set, layers >= 1 && layers <= 17, [&](const Kernels& k) {
    k.mlp_backward(widths, layers, weights, x, n, threads, hidden, dy, dx, d_weights);
    return true;
  });
}

API int fastsurf_train_step(int set, int threads, const Level* levels, int n_levels, const float* table, int64_t entries, int hidden, int outputs,
                            const float* w1, const float* w2, const int32_t* widths, int layers, const float* head, const Step* step,
                            const StepResult* result) {
  const bool sound = fits(levels, n_levels, entries) && hidden > 0 && outputs > 0 && layers >= 1 && layers <= 17 && step->dimensions >= 0 &&
                     widths[0] >= 16 + outputs + 5 + step->dimensions &&
                     widths[layers] >= 3 && step->n >= 0 && step->n_pairs >= 0 && step->n_known >= 0 && step->samples >= 0 && step->cells > 0;
  return guarded(set, sound, [&](const Kernels& k) {
    k.train_step({levels, n_levels, table, entries}, {hidden, outputs, w1, w2}, widths, layers, head, *step, threads, *result);
    return true;
  });
}

API int fastsurf_adam(int set, int threads, float* p, const float* grad, float* m, float* v, int64_t n, float rate, float beta1, float beta2, float eps,
                      float root) {
  return guarded(set, true, [&](const Kernels& k) {
    k.adam(p, grad, m, v, n, threads, rate, beta1, beta2, eps, root);
    return true;
  });
}

API int fastsurf_occupied_steps(int set, int threads, const float* rays_o, const float* rays_d, const float* t_near, const float* t_far, int64_t n,
                                const uint8_t* occupied, int cells, float step, int64_t most, float* t_out, int64_t* count) {
  return guarded(set, cells > 0 && cells <= 1024 && step > 0.0f && most >= 0, [&](const Kernels&) {
    return occupied_steps(rays_o, rays_d, t_near, t_far, n, occupied, cells, step, most, threads, t_out, count);
  });
}

API int fastsurf_extraction_open(int set, int threads, int resolution, int closed, float margin, const uint8_t* cells, int n_cells, Extraction** to) {
  (void)threads;
  const bool sound = resolution > 0 && resolution <= 1 << 14 && n_cells > 0 && n_cells <= 1 << 10;
  return guarded(set, sound, [&](const Kernels&) {
    *to = new Extraction(resolution, closed != 0, margin, cells, n_cells);
    return true;
  });
}

API int fastsurf_extraction_plan(int set, int threads, Extraction* extraction, int64_t* wanted) {
  return guarded(set, true, [&](const Kernels&) {
    *wanted = extraction->plan(threads);
    return true;
  });
}

API int fastsurf_extraction_points(int set, int threads, const Extraction* extraction, int64_t first, int64_t count, float* x) {
  return guarded(set, extraction->wants(first, count), [&](const Kernels&) {
    extraction->points(threads, first, count, x);
    return true;
  });
}

API int fastsurf_extraction_accept(int set, int threads, Extraction* extraction, int64_t first, int64_t count, const float* values) {
  return guarded(set, extraction->wants(first, count), [&](const Kernels&) {
    extraction->accept(threads, first, count, values);
    return true;
  });
}

API int fastsurf_extraction_size(int set, int threads, const Extraction* extraction, int64_t* vertices, int64_t* faces) {
  (void)threads;
  return guarded(set, true, [&](const Kernels&) {
    *vertices = extraction->vertices(), *faces = extraction->faces();
    return true;
  });
}

API int fastsurf_extraction_write(int set, int threads, const Extraction* extraction, double* vertices, int32_t* faces) {
  return guarded(set, true, [&](const Kernels&) {
    extraction->write(threads, vertices, faces);
    return true;
  });
}

API int fastsurf_extraction_close(int set, int threads, Extraction* extraction) {
  (void)threads;
  return guarded(set, true, [&](const Kernels&) {
    delete extraction;
    return true;
  });
}

API int fastsurf_see(int set, int threads, const Photographs* photographs, const int64_t* drawn, int64_t n, int64_t n_object, const Seen* seen) {
  const bool sound = n >= 0 && n_object >= 0 && n_object <= n && photographs->n_views > 0;
  return guarded(set, sound, [&](const Kernels&) { return see(*photographs, drawn, n, n_object, threads, *seen); });
}
