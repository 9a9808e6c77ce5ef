// What this machine can do at most, for benchmark.py: built and called by it, in AVX2.
#include <immintrin.h>
#include <stdint.h>
#include <chrono>
#include <thread>
#include <vector>

namespace {

template <class F>
double seconds(int threads, F work) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; i++) pool.emplace_back(work, i);
  for (auto& t : pool) t.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

volatile float sink;

// Fused multiply-adds in registers: floating-point operations a second.
extern "C" double fma_peak(int threads) {
  constexpr int64_t ROUNDS = 20'000'000;
  const double s = seconds(threads, [](int) {
    __m256 a[10], b = _mm256_set1_ps(0.999f), c = _mm256_set1_ps(1e-6f), sum = _mm256_setzero_ps();
    for (int k = 0; k < 10; k++) a[k] = _mm256_set1_ps(float(k));
    for (int64_t i = 0; i < ROUNDS; i++)
#pragma GCC unroll 10
      for (int k = 0; k < 10; k++) a[k] = _mm256_fmadd_ps(a[k], b, c);
    for (int k = 0; k < 10; k++) sum = _mm256_add_ps(sum, a[k]);
    sink = _mm256_cvtss_f32(sum);
  });
  return threads * ROUNDS * 10.0 * 16.0 / s;
}

// Random 8-byte entries of a table of 2^log2_entries, read independently of each other: entries a second.
extern "C" double gather_rate(int threads, int log2_entries) {
  constexpr int64_t ROUNDS = 20'000'000;
  std::vector<uint64_t> table(size_t(1) << log2_entries, 1);
  const double s = seconds(threads, [&](int thread) {
    uint32_t at = 12345u + uint32_t(thread);
    uint64_t sum = 0;
    for (int64_t i = 0; i < ROUNDS; i++) {
      at = at * 1664525u + 1013904223u;
      sum += table[at >> (32 - log2_entries)];
    }
    sink = float(sum);
  });
  return threads * double(ROUNDS) / s;
}
