#include "image_ops.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#include "tile_scale.h"

namespace puna {
namespace {

constexpr int TOKEN_ROWS = 256;        // rows that share an unpacked panel of weights
constexpr size_t PIECE = 1 << 14;      // values of a piece of elementwise work
constexpr int LANES = 16;

int padded_head(int head_dim) { return (head_dim + 31) / 32 * 32; }

// fn over whole vectors, and over a copy of what is left.
template <class Fn> void in_vectors(const float* x, const float* b, size_t n, float* y, Fn fn) {
  const size_t whole = n / LANES * LANES;
  if (whole) fn(x, b, (int)whole, y);
  if (whole == n) return;
  float rest[LANES] = {}, rest_b[LANES] = {};
  std::copy(x + whole, x + n, rest);
  if (b) std::copy(b + whole, b + n, rest_b);
  fn(rest, rest_b, LANES, rest);
  std::copy(rest, rest + (n - whole), y + whole);
}

}  // namespace

template <class Fn> void ImageOps::each(size_t n, size_t step, Fn fn) {
  std::atomic<size_t> next{0};
  pool_.run([&](int thread) {
    for (size_t i; (i = next.fetch_add(step, std::memory_order_relaxed)) < n;)
      fn(i, std::min(n, i + step), scratch_.data() + LINEAR_SCRATCH_ALL * thread);
  });
}

// Activations in the form that the weight is multiplied with; rows of whole vectors.
Input ImageOps::convert(Matrix& w, const float* x, int rows) {
  const InputKind form = input_of(k_, pool_, w);
  if (form == InputKind::F32) return {w.cols, x, nullptr, nullptr};
  const int cols = (w.cols + LANES - 1) / LANES * LANES;
  const size_t bytes = form == InputKind::Q8 ? (size_t)rows * (cols / GROUP) * sizeof(QBlock) : (size_t)rows * cols * sizeof(uint16_t);
  if (converted_.size() < bytes) converted_ = Pages(bytes);
  each(rows, 8, [&](size_t begin, size_t end, uint8_t*) {
    std::vector<float> row(cols, 0.0f);
    for (size_t r = begin; r < end; r++) {
      const float* from = x + r * w.cols;
      if (cols != w.cols) from = (std::copy_n(from, w.cols, row.data()), row.data());
      if (form == InputKind::Q8) k_.quantize(from, cols, converted_.as<QBlock>() + r * (cols / GROUP));
      else k_.to_bf16(from, cols, converted_.as<uint16_t>() + r * cols);
    }
  });
  return {cols, x, converted_.as<uint16_t>(), converted_.as<QBlock>()};
}

void ImageOps::linear(Matrix& w, const float* x, int rows, const float* bias, float* y, int stride) {
  const Input input = convert(w, x, rows);
  const int panels = (w.tiles() + 1) / 2, blocks = (rows + TOKEN_ROWS - 1) / TOKEN_ROWS;
  each((size_t)panels * blocks, 1, [&](size_t item, size_t, uint8_t* scratch) {
    const int block = (int)(item / panels), tile = 2 * (int)(item % panels);
    const int row0 = (int)((int64_t)rows * block / blocks), row1 = (int)((int64_t)rows * (block + 1) / blocks);
    k_.linear(w, nullptr, input, row0, row1, tile, std::min(w.tiles(), tile + 2), {y, (size_t)stride, nullptr}, scratch);
  });
  if (bias)
    each(rows, 8, [&](size_t begin, size_t end, uint8_t*) {
      for (size_t r = begin; r < end; r++) k_.add(y + r * stride, bias, stride, y + r * stride);
    });
}

void ImageOps::layer_norm(const float* x, const float* w, const float* bias, int rows, int cols, float eps, float* y) {
  each(rows, 8, [&](size_t begin, size_t end, uint8_t*) {
    for (size_t r = begin; r < end; r++) k_.layer_norm(x + r * cols, w, bias, cols, eps, y + r * cols);
  });
}

void ImageOps::gelu(const float* x, size_t n, float* y) {
  each(n, PIECE, [&](size_t begin, size_t end, uint8_t*) {
    in_vectors(x + begin, nullptr, end - begin, y + begin, [&](const float* a, const float*, int m, float* to) { k_.gelu(a, m, to); });
  });
}

void ImageOps::add(const float* a, const float* b, float factor, size_t n, float* y) {
  each(n, PIECE, [&](size_t begin, size_t end, uint8_t*) {
    in_vectors(a + begin, b + begin, end - begin, y + begin, [&](const float* s, const float* t, int m, float* to) { k_.add_scaled(s, t, factor, m, to); });
  });
}

void ImageOps::rope(const float* x, int rows, int heads, int head_dim, const float* cos, const float* sin, float* y) {
  const int half = head_dim / 2;
  each(rows, 8, [&](size_t begin, size_t end, uint8_t*) {
    for (size_t at = begin * heads; at < end * heads; at++) {
      const float *from = x + at * head_dim, *c = cos + at / heads * half, *s = sin + at / heads * half;
      float* to = y + at * head_dim;
      for (int i = 0; i < half; i++) {
        const float a = from[2 * i], b = from[2 * i + 1];
        to[2 * i] = a * c[i] - b * s[i];
        to[2 * i + 1] = b * c[i] + a * s[i];
      }
    }
  });
}

// Rows in order into cache blocks of their group, heads widened to whole vectors with zeros.
void ImageOps::fill_cache(const CacheLayer& c, const float* k, const float* v, const TileGroups& groups, int heads, int head_dim) {
  const int height = groups.height(), blocks = c.n_blocks / groups.groups, wide = c.head_dim;
  each(c.n_blocks, 1, [&](size_t block, size_t, uint8_t*) {
    const int group = (int)block / blocks, first = (int)block % blocks * BLOCK_TOKENS, n = std::min(BLOCK_TOKENS, height - first);
    std::vector<float> keys((size_t)n * heads * wide, 0.0f), values(keys.size(), 0.0f);
    for (int i = 0; i < n; i++) {
      const size_t row = groups.order[(size_t)group * height + first + i];
      for (int h = 0; h < heads; h++) {
        const size_t from = (row * heads + h) * head_dim, to = ((size_t)i * heads + h) * wide;
        std::copy_n(k + from, head_dim, keys.data() + to);
        std::copy_n(v + from, head_dim, values.data() + to);
      }
    }
    k_.cache_write(c, (int)block, 0, n, keys.data(), (size_t)heads * wide, values.data(), (size_t)heads * wide);
    if (n < BLOCK_TOKENS) k_.cache_clear(c, (int)block, n);
  });
}

void ImageOps::attend(const float* q, const float* k, const float* v, const TileGroups& groups, int heads, int head_dim, float scale, float* y) {
  const int height = groups.height(), blocks = (height + BLOCK_TOKENS - 1) / BLOCK_TOKENS, wide = padded_head(head_dim);
  CacheLayer c = cache_layer(kind_, wide, heads, blocks * groups.groups, nullptr);
  const size_t bytes = c.head_bytes() * heads;
  if (cache_.size() < bytes) cache_ = Pages(bytes);
  c.data = cache_.data();
  fill_cache(c, k, v, groups, heads, head_dim);

  std::vector<int32_t> table(blocks * groups.groups);
  for (size_t i = 0; i < table.size(); i++) table[i] = (int32_t)i;
  const int runs = (height + MAX_QUERY_ROWS - 1) / MAX_QUERY_ROWS;
  const bool bf16 = cache_query_is_bf16(kind_);
  each((size_t)groups.groups * heads * runs, 1, [&](size_t item, size_t, uint8_t* scratch) {
    const int run = (int)(item % runs), head = (int)(item / runs % heads), group = (int)(item / runs / heads);
    const int begin = run * MAX_QUERY_ROWS, n = std::min(MAX_QUERY_ROWS, height - begin);
    alignas(64) float rows[MAX_QUERY_ROWS][256], sums[MAX_QUERY_ROWS][256] = {};
    alignas(64) uint16_t halves[MAX_QUERY_ROWS][256];
    const void* queries[MAX_QUERY_ROWS];
    float* out[MAX_QUERY_ROWS];
    int first[MAX_QUERY_ROWS] = {}, last[MAX_QUERY_ROWS];
    SpanState state[MAX_QUERY_ROWS];
    int furthest = 0;
    const int32_t* order = groups.order + (size_t)group * height + begin;
    for (int r = 0; r < n; r++) {
      std::fill(std::copy_n(q + ((size_t)order[r] * heads + head) * head_dim, head_dim, rows[r]), rows[r] + wide, 0.0f);
      if (bf16) k_.to_bf16(rows[r], wide, halves[r]);
      queries[r] = bf16 ? (const void*)halves[r] : rows[r];
      out[r] = sums[r];
      last[r] = (begin + r < groups.real ? height : groups.real) - 1;
      furthest = std::max(furthest, last[r]);
      state[r] = {-std::numeric_limits<float>::infinity(), 0};
    }
    k_.attend({&c, head, table.data() + group * blocks, 0, furthest / SPAN + 1, n, queries, first, last, scale * 1.4426950408889634f, state, out, scratch});
    for (int r = 0; r < n; r++) {
      k_.finish(state[r], out[r], wide);
      std::copy_n(out[r], head_dim, y + ((size_t)order[r] * heads + head) * head_dim);
    }
  });
}

ImageKeys::ImageKeys(CacheKind kind, int layers, int kv_heads, int head_dim, int positions) : positions_(positions) {
  const CacheLayer shape = cache_layer(kind, head_dim, kv_heads, (positions + BLOCK_TOKENS - 1) / BLOCK_TOKENS, nullptr);
  const size_t layer = shape.head_bytes() * kv_heads;
  pages_ = Pages(layer * layers, false);
  for (int i = 0; i < layers; i++) {
    layers_.push_back(shape);
    layers_.back().data = pages_.data() + layer * i;
  }
  for (int i = 0; i < shape.n_blocks; i++) blocks_.push_back(i);
}

void ImageKeys::fill(const Kernels& k, Pool& pool, int i, const float* keys, const float* values) {
  const CacheLayer& c = layers_[i];
  const size_t width = (size_t)c.n_kv_heads * c.head_dim;
  std::atomic<int> next{0};
  pool.run([&](int) {
    for (int block; (block = next.fetch_add(1)) < c.n_blocks;) {
      const int first = block * BLOCK_TOKENS, n = std::min(BLOCK_TOKENS, positions_ - first);
      k.cache_write(c, block, 0, n, keys + first * width, width, values + first * width, width);
    }
  });
}

}  // namespace puna
