#include "threads.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace puna {

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

Pool::Pool(int n_threads) : n_(n_threads) {
  try {
    for (int t = 1; t < n_; t++) threads_.emplace_back([this, t] { serve(t); });
  } catch (...) {  // the system has no more threads: those that run wait on our members
    stop();
    throw;
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  wake_.notify_all();
  for (auto& t : threads_) t.join();
}

void Pool::run(const std::function<void(int)>& fn) {
  job_ = &fn;
  busy_.store(n_ - 1, std::memory_order_relaxed);
  {
    std::lock_guard lock(mutex_);
    ticket_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  fn(0);
  spin_until([&] { return busy_.load(std::memory_order_acquire) == 0; });
}

// Between the steps of a generation there are some 100 us of sampling: spinning through them saves a wake-up per step;
// longer idleness sleeps.
void Pool::serve(int thread) {
  uint64_t seen = 0;
  const auto changed = [&] { return ticket_.load(std::memory_order_acquire) != seen || stopped_.load(std::memory_order_relaxed); };
  while (true) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(500);
    while (!changed() && std::chrono::steady_clock::now() < deadline)
      for (int i = 0; i < 16; i++) relax();
    if (!changed()) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, changed);
    }
    if (stopped_) return;
    seen = ticket_.load(std::memory_order_acquire);
    (*job_)(thread);
    busy_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace puna
