// Writing the cache: keys and values of neighbouring positions into the tiles of cache.h.
//
// Contracts: k and v hold n_kv_heads * head_dim floats for each of n positions; slot + n <= BLOCK_TOKENS. Different slots of
// a block may be written by different threads at once.
#include "../cache.h"

#include <algorithm>

namespace puna::PUNA_TARGET {
namespace {

constexpr int B = BLOCK_TOKENS;

void write_bf16(const CacheLayer& c, int block, int head, int slot, const float* k, const float* v) {
  alignas(64) uint16_t row[MAX_HEAD_DIM];
  for (int i = 0; i < c.head_dim; i += 16) store_bf16(row + i, load(k + i));
  uint16_t* keys = (uint16_t*)c.keys(block, head);
  for (int i = 0; i < c.head_dim; i += 2) std::memcpy(keys + (i / 2 * B + slot) * 2, row + i, 4);
  for (int i = 0; i < c.head_dim; i += 16)
    store_bf16_alternate((uint16_t*)c.values(block, head, i) + slot / 2 * 64 + i % 32 * 2, slot % 2, load(v + i));
}

// Sixteen positions at once: whole lines, each written once, where one position touches a line for every pair of rows.
constexpr int RUN = 16;

void write_run_bf16(const CacheLayer& c, int block, int head, int slot, const float* k, size_t k_stride, const float* v, size_t v_stride) {
  uint16_t* keys = (uint16_t*)c.keys(block, head);
  for (int i = 0; i < c.head_dim; i += 32) {
    alignas(64) uint16_t rows[RUN][32];
    for (int t = 0; t < RUN; t++) {
      store_bf16(rows[t], load(k + t * k_stride + i));
      store_bf16(rows[t] + 16, load(k + t * k_stride + i + 16));
    }
    transpose16((const uint32_t*)rows, (uint32_t*)keys + i / 2 * B + slot, B);
  }
  for (int i = 0; i < c.head_dim; i += 16)
    for (int t = 0; t < RUN; t += 2)
      store_bf16_pairs((uint16_t*)c.values(block, head, i) + (slot + t) / 2 * 64 + i % 32 * 2, load(v + t * v_stride + i), load(v + (t + 1) * v_stride + i));
}

void write_f16(const CacheLayer& c, int block, int head, int slot, const float* k, const float* v) {
  alignas(64) uint16_t row[MAX_HEAD_DIM];
  for (int i = 0; i < c.head_dim; i += 16) store_f16(row + i, load(k + i));
  uint16_t* keys = (uint16_t*)c.keys(block, head);
  for (int i = 0; i < c.head_dim; i++) keys[i * B + slot] = row[i];
  for (int i = 0; i < c.head_dim; i += 16) store_f16((uint16_t*)c.values(block, head, i) + slot * 32 + i % 32, load(v + i));
}

void write_f32(const CacheLayer& c, int block, int head, int slot, const float* k, const float* v) {
  float* keys = (float*)c.keys(block, head);
  for (int i = 0; i < c.head_dim; i++) keys[i * B + slot] = k[i];
  for (int i = 0; i < c.head_dim; i += 16) store((float*)c.values(block, head, i) + slot * 32 + i % 32, load(v + i));
}

uint16_t quantize_group(const float* x, int8_t* q) {  // returns the scale as f16
  const f32x16 a = load(x), b = load(x + 16);
  const float d = reduce_max(max(abs(a), abs(b))) / 127.0f;
  const f32x16 inverse = set1(d > 0.0f ? 1.0f / d : 0.0f);
  store_s8(q, round_i32(mul(a, inverse)));
  store_s8(q + 16, round_i32(mul(b, inverse)));
  uint16_t lanes[16];
  store_f16(lanes, set1(d));
  return lanes[0];
}

void write_q8(const CacheLayer& c, int block, int head, int slot, const float* k, const float* v) {
  int8_t* keys = (int8_t*)c.keys(block, head);
  uint16_t* key_scales = (uint16_t*)(keys + c.head_dim * B);
  for (int g = 0; g < c.head_dim; g += GROUP) {
    int8_t q[GROUP];
    key_scales[g / GROUP * B + slot] = quantize_group(k + g, q);
    for (int i = 0; i < GROUP; i++) keys[(g + i) * B + slot] = q[i];
    int8_t* values = (int8_t*)c.values(block, head, g);
    ((uint16_t*)(values + B * 32))[slot] = quantize_group(v + g, values + slot * 32);
  }
}

void write_head(const CacheLayer& c, int block, int head, int slot, const float* k, const float* v) {
  switch (c.kind) {
    case CacheKind::BF16: return write_bf16(c, block, head, slot, k, v);
    case CacheKind::F16: return write_f16(c, block, head, slot, k, v);
    case CacheKind::F32: return write_f32(c, block, head, slot, k, v);
    case CacheKind::Q8_0: return write_q8(c, block, head, slot, k, v);
  }
}

}  // namespace

void cache_write(const CacheLayer& c, int block, int slot, int n, const float* k, size_t k_stride, const float* v, size_t v_stride) {
  for (int t = 0, step; t < n; t += step, k += step * k_stride, v += step * v_stride) {
    step = c.kind == CacheKind::BF16 && slot + t == (slot + t) / RUN * RUN && n - t >= RUN ? RUN : 1;
    for (int h = 0, at = 0; h < c.n_kv_heads; h++, at += c.head_dim) {
      if (step == RUN) write_run_bf16(c, block, h, slot + t, k + at, k_stride, v + at, v_stride);
      else write_head(c, block, h, slot + t, k + at, v + at);
    }
  }
}

// Fetches what cache_write of this position will touch: a key is spread over one line for each of its rows.
void cache_prefetch(const CacheLayer& c, int block, int slot) {
  const int rows = c.kind == CacheKind::BF16 ? c.head_dim / 2 : c.head_dim;
  const size_t key_row = c.key_bytes / rows, value_row = c.value_bytes / B;
  for (int h = 0; h < c.n_kv_heads; h++) {
    for (int i = 0; i < rows; i++) prefetch(c.keys(block, h) + i * key_row + slot * (key_row / B));
    for (int g = 0; g < c.head_dim; g += 32) prefetch(c.values(block, h, g) + slot / 2 * 2 * value_row);
  }
}

// Zeroes the slots from `from_slot` on. Masked positions get weight 0, and 0 times what a former owner left there must
// be 0 too, even if that was infinite.
void cache_clear(const CacheLayer& c, int block, int from_slot) {
  if (from_slot > 0) {
    static const float zeros[MAX_HEAD_DIM] = {};
    for (int slot = from_slot; slot < B; slot++)
      for (int h = 0; h < c.n_kv_heads; h++) write_head(c, block, h, slot, zeros, zeros);
    return;
  }
  for (int h = 0; h < c.n_kv_heads; h++) {
    std::memset(c.keys(block, h), 0, c.key_bytes);
    for (int g = 0; g < c.head_dim; g += 32) std::memset(c.values(block, h, g), 0, c.value_bytes);
  }
}

}  // namespace puna::PUNA_TARGET
