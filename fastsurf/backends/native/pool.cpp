#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>
#ifndef _WIN32
#include <unistd.h>
#endif

namespace {

class Buffer {  // grows, never shrinks, starts as zeros
 public:
  float* at_least(size_t floats) {
    if (floats > size_) {
      std::free(raw_);
      size_ = 0;
      raw_ = std::calloc(floats + 16, sizeof(float));
      if (!raw_) throw std::bad_alloc();
      size_ = floats;
    }
    const auto address = reinterpret_cast<uintptr_t>(raw_);
    return reinterpret_cast<float*>((address + 63) & ~uintptr_t(63));
  }

 private:
  void* raw_ = nullptr;
  size_t size_ = 0;
};

class Pool {
 public:
  void run(int threads, int64_t tasks, size_t scratch_floats, Task task, void* context) {
    if (tasks <= 0) return;
    if (threads > tasks) threads = static_cast<int>(tasks);
    const int helpers = threads > 1 ? grow(threads - 1) : 0;
    while (scratch_.size() <= static_cast<size_t>(helpers)) scratch_.emplace_back();
    std::vector<float*> scratch(helpers + 1);
    for (int i = 0; i <= helpers; i++) scratch[i] = scratch_[i].at_least(scratch_floats);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = task, context_ = context, tasks_ = tasks, buffers_ = scratch.data();
      next_.store(0);
      wanted_ = running_ = helpers;
      generation_++;
    }
    if (helpers) start_.notify_all();
    work(scratch[0]);
    if (helpers) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, [this] { return running_ == 0; });
    }
  }

  float* shared(size_t floats) { return shared_.at_least(floats); }

 private:
  int grow(int helpers) {  // as many as the machine gives
    try {
      while (static_cast<int>(workers_) < helpers) {
        std::thread(&Pool::worker, this, static_cast<int>(workers_)).detach();
        workers_++;
      }
    } catch (const std::system_error&) {
    }
    return static_cast<int>(workers_) < helpers ? static_cast<int>(workers_) : helpers;
  }

  void work(float* scratch) {
    for (int64_t i; (i = next_.fetch_add(1)) < tasks_;) task_(context_, i, scratch);
  }

  void worker(int me) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      start_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (me >= wanted_) continue;
      float* scratch = buffers_[me + 1];
      lock.unlock();
      work(scratch);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable start_, done_;
  uint64_t generation_ = 0;
  int wanted_ = 0, running_ = 0;
  size_t workers_ = 0;
  std::atomic<int64_t> next_{0};
  Task task_ = nullptr;
  void* context_ = nullptr;
  int64_t tasks_ = 0;
  float** buffers_ = nullptr;
  std::vector<Buffer> scratch_;
  Buffer shared_;
};

// Never destroyed: its threads may outlive every static object. A forked child has none of them and starts its own pool.
Pool& pool() {
  static Pool* instance = nullptr;
#ifdef _WIN32
  if (!instance) instance = new Pool;
#else
  static pid_t owner = 0;
  if (!instance || owner != getpid()) instance = new Pool, owner = getpid();
#endif
  return *instance;
}

}  // namespace

void run_parallel(int threads, int64_t tasks, size_t scratch_floats, Task task, void* context) { pool().run(threads, tasks, scratch_floats, task, context); }

float* shared_scratch(size_t floats) { return pool().shared(floats); }
