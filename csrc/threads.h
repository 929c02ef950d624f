// A pool of threads that walk the same list of work together.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace puna {

void relax();  // tells the core that this is a spin loop

// Waits for another thread that is at work. Yielding hands a busy core to a stranger for a whole time slice, so it is
// the last resort: for the case that the partner needs this very core.
template <class Done> void spin_until(Done done) {
  for (int spins = 0; !done(); spins++)
    if (spins < 1 << 15) relax();  // some 500 us
    else std::this_thread::yield();
}

// All threads meet; the last to arrive runs a function before any goes on.
class Barrier {
 public:
  explicit Barrier(int n) : n_(n) {}
  template <class Fn> void wait(Fn last) {
    const int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == n_ - 1) {
      last();
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
  }

 private:
  const int n_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
};

class Pool {
 public:
  explicit Pool(int n_threads);
  ~Pool();
  int size() const { return n_; }
  // Runs fn(thread) on every thread, the caller being thread 0; returns when all are done. fn must not throw.
  void run(const std::function<void(int)>& fn);

 private:
  void serve(int thread);
  void stop();
  const int n_;
  std::vector<std::thread> threads_;
  const std::function<void(int)>* job_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wake_;
  alignas(64) std::atomic<uint64_t> ticket_{0};  // a new value: a new job
  alignas(64) std::atomic<int> busy_{0};
  std::atomic<bool> stopped_{false};
};

}  // namespace puna
