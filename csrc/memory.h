// Memory that costs nothing until it is touched.
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace puna {

// Zeroed pages from the kernel, large ones where it has them and `large` allows.
class Pages {
 public:
  Pages() = default;
  explicit Pages(size_t bytes, bool large = true);
  ~Pages();
  Pages(Pages&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Pages& operator=(Pages&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  uint8_t* data() const { return data_; }
  size_t size() const { return bytes_; }
  template <class T> T* as() const { return (T*)data_; }

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

// Weights of a model, one after the other in the order in which they are read.
class Arena {
 public:
  explicit Arena(size_t bytes);
  uint8_t* take(size_t bytes);  // 64-byte aligned; throws std::bad_alloc when the arena is full
  size_t used() const { return used_; }

 private:
  Pages pages_;
  size_t used_ = 0;
};

}  // namespace puna
