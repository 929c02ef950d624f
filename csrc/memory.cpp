#include "memory.h"

#include <sys/mman.h>

// The address sanitizer knows nothing of memory that does not come from malloc: it is told what must not be touched.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)0)
#endif

namespace puna {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t FENCE = 4096;  // bytes before and behind pages that no one may touch
#else
constexpr size_t FENCE = 0;
#endif
constexpr size_t LARGE_FROM = 8 << 20;  // below, rounding up to large pages costs more memory than it saves time

Pages::Pages(size_t bytes, bool large) : bytes_(bytes) {
  if (bytes == 0) return;
  void* p = mmap(nullptr, bytes + 2 * FENCE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (large && bytes >= LARGE_FROM) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  data_ = (uint8_t*)p + FENCE;
  ASAN_POISON_MEMORY_REGION(p, FENCE);
  ASAN_POISON_MEMORY_REGION(data_ + bytes, FENCE);
}

Pages::~Pages() {
  if (!data_) return;
  ASAN_UNPOISON_MEMORY_REGION(data_ - FENCE, bytes_ + 2 * FENCE);
  munmap(data_ - FENCE, bytes_ + 2 * FENCE);
}

Arena::Arena(size_t bytes) : pages_(bytes) { ASAN_POISON_MEMORY_REGION(pages_.data(), bytes); }

uint8_t* Arena::take(size_t bytes) {
  const size_t padded = (bytes + 63) / 64 * 64;
  if (padded > pages_.size() - used_) throw std::bad_alloc();
  uint8_t* p = pages_.data() + used_;
  used_ += padded;
  ASAN_UNPOISON_MEMORY_REGION(p, bytes);
  return p;
}

}  // namespace puna
