#include "memory.h"

#include <sys/mman.h>

namespace puna {

constexpr size_t LARGE_FROM = 8 << 20;  // below, rounding up to large pages costs more memory than it saves time

Pages::Pages(size_t bytes, bool large) : bytes_(bytes) {
  if (bytes == 0) return;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (large && bytes >= LARGE_FROM) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  data_ = (uint8_t*)p;
}

Pages::~Pages() {
  if (data_) munmap(data_, bytes_);
}

uint8_t* Arena::take(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (used_ + bytes > pages_.size()) throw std::bad_alloc();
  uint8_t* p = pages_.data() + used_;
  used_ += bytes;
  return p;
}

}  // namespace puna
