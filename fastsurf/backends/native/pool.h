// Threads and scratch memory. One pool for the process; one caller at a time (api.cpp holds the lock).
#pragma once
#include <stddef.h>
#include <stdint.h>

using Task = void (*)(void* context, int64_t task, float* scratch);

// Runs task 0 .. tasks - 1, each once, on up to `threads` threads, the caller among them. Each thread has its own scratch of
// `scratch_floats`, 64-byte aligned, with whatever an earlier task left in it. Throws std::bad_alloc before any task has run.
void run_parallel(int threads, int64_t tasks, size_t scratch_floats, Task task, void* context);

// Memory that lives until the next call of this function, 64-byte aligned.
float* shared_scratch(size_t floats);

namespace {

template <class F>
void parallel(int threads, int64_t tasks, size_t scratch_floats, F body) {
  run_parallel(threads, tasks, scratch_floats, [](void* context, int64_t task, float* scratch) { (*static_cast<F*>(context))(task, scratch); }, &body);
}

// Hands out 64-byte aligned pieces of a buffer; without a buffer it only counts.
struct Arena {
  float* base;
  size_t used = 0;
  float* take(size_t floats) {
    float* piece = base ? base + used : nullptr;
    used += (floats + 15) & ~size_t(15);
    return piece;
  }
};

}  // namespace
