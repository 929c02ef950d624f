// What image encoders are made of, over whole matrices of floats on a pool of threads.
//
// An encoder runs once per picture, over thousands of rows: its ops are called one by one (runtime/native_vision.py), not
// recorded. No result depends on the number of threads.
#pragma once
#include <vector>

#include "memory.h"
#include "threads.h"
#include "types.h"

namespace puna {

// Which rows attend to each other: `order` names all rows, group after group, of each the `real` ones first. Those see
// their whole group; the others see the real ones.
struct TileGroups {
  const int32_t* order;
  int rows, groups, real;
  int height() const { return rows / groups; }
};

class ImageOps {
 public:
  ImageOps(const Kernels& k, Pool& pool, CacheKind kind) : k_(k), pool_(pool), kind_(kind), scratch_(LINEAR_SCRATCH_ALL * pool.size()) {}

  // x [rows, w.cols] -> y [rows, stride], stride the padded rows of w; bias [stride] or null.
  void linear(Matrix& w, const float* x, int rows, const float* bias, float* y, int stride);
  void layer_norm(const float* x, const float* w, const float* bias, int rows, int cols, float eps, float* y);
  void gelu(const float* x, size_t n, float* y);
  void add(const float* a, const float* b, float factor, size_t n, float* y);  // a + factor * b
  // Rotates the pairs (2i, 2i + 1) of every head; cos, sin [rows, head_dim / 2].
  void rope(const float* x, int rows, int heads, int head_dim, const float* cos, const float* sin, float* y);
  // q, k, v, y [rows, heads * head_dim]
  void attend(const float* q, const float* k, const float* v, const TileGroups& groups, int heads, int head_dim, float scale, float* y);

 private:
  static constexpr size_t LINEAR_SCRATCH_ALL = LINEAR_SCRATCH > ATTEND_SCRATCH ? LINEAR_SCRATCH : ATTEND_SCRATCH;
  template <class Fn> void each(size_t n, size_t step, Fn fn);  // fn(begin, end, scratch) over pieces of 0..n
  Input convert(Matrix& w, const float* x, int rows);
  void fill_cache(const CacheLayer& c, const float* k, const float* v, const TileGroups& groups, int heads, int head_dim);

  const Kernels& k_;
  Pool& pool_;
  const CacheKind kind_;
  Pages scratch_, converted_, cache_;
};

// Keys and values of one picture for every cross-attention layer, as the attention kernels read them.
class ImageKeys {
 public:
  ImageKeys(CacheKind kind, int layers, int kv_heads, int head_dim, int positions);
  void fill(const Kernels& k, Pool& pool, int layer, const float* keys, const float* values);  // [positions, kv_heads * head_dim]
  const CacheLayer& layer(int i) const { return layers_[i]; }
  int layers() const { return (int)layers_.size(); }
  const int32_t* blocks() const { return blocks_.data(); }  // in order
  int positions() const { return positions_; }
  size_t bytes() const { return pages_.size(); }

 private:
  const int positions_;
  Pages pages_;
  std::vector<CacheLayer> layers_;
  std::vector<int32_t> blocks_;
};

}  // namespace puna
