#include "limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <numeric>
#include <vector>

#include "dispatch.h"
#include "memory.h"
#include "threads.h"

namespace puna {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Calls work(thread) -> amount on all threads until `seconds` have passed; amount per second.
template <class Fn> double rate(Pool& pool, double seconds, Fn work) {
  std::vector<double> done(pool.size());
  const double begin = now();
  double end;
  do {
    pool.run([&](int t) { done[t] += work(t); });
    end = now();
  } while (end - begin < seconds);
  return std::accumulate(done.begin(), done.end(), 0.0) / (end - begin);
}

}  // namespace

double read_gb_s(int threads, size_t bytes, double seconds) {
  const Kernels& k = choose_target("");
  Pool pool(threads);
  const size_t share = bytes / threads / 4096 * 4096;
  Pages buffer(share * threads);
  std::atomic<uint64_t> sink = 0;  // keeps the reads from being optimised away
  pool.run([&](int t) { std::memset(buffer.data() + t * share, t + 1, share); });
  return rate(pool, seconds, [&](int t) {
    sink.fetch_add(k.read(buffer.data() + t * share, share), std::memory_order_relaxed);
    return (double)share;
  }) / 1e9;
}

double int8_tops(const std::string& target, int threads, double seconds) {
  const Kernels& k = choose_target(target);
  Pool pool(threads);
  return rate(pool, seconds, [&](int) { return 2 * k.int8_peak(200000); }) / 1e12;
}

double bf16_tflops(const std::string& target, int threads, double seconds) {
  const Kernels& k = choose_target(target);
  Pool pool(threads);
  return rate(pool, seconds, [&](int) { return 2 * k.bf16_peak(200000); }) / 1e12;
}

}  // namespace puna
