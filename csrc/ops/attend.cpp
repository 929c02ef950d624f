// Causal attention of up to 12 query rows over one key/value head, and the cache it reads.
//
// The positions of a sequence are cut into spans of SPAN, at multiples of SPAN. Within a span: scores, their maximum,
// weights exp2(score - maximum), the sum of weights and the weighted values. Spans are merged in order. A row's result
// thus depends on its own positions only, not on which rows run beside it or which thread visits which span.
//
// Cache tile of one head and 32 positions (keys, then values):
//   BF16        keys [head_dim / 2][32][2]   values [16][head_dim][2]: pairs for the two-term dot product
//   F16, F32    keys [head_dim][32]          values [32][head_dim]
//   Q8_0        the same as int8, then f16 scales: keys [head_dim / 32][32], values [32][head_dim / 32]
// head_dim is a multiple of 32.
#include <algorithm>
#include <limits>

#include "../simd.h"
#include "../types.h"

namespace puna::PUNA_TARGET {

void merge(SpanState& a, float* out_a, const SpanState& b, const float* out_b, int n);

namespace {

constexpr int B = BLOCK_TOKENS;
constexpr int MAX_HEAD_DIM = 256;

uint16_t f16_of(float x) {
  uint16_t lanes[16];
  store_f16(lanes, set1(x));
  return lanes[0];
}

void write_bf16(uint8_t* tile, int n, int slot, const float* k, const float* v) {
  alignas(64) uint16_t row[MAX_HEAD_DIM];
  for (int i = 0; i < n; i += 16) store_bf16(row + i, load(k + i));
  uint16_t* keys = (uint16_t*)tile;
  for (int i = 0; i < n; i += 2) std::memcpy(keys + (i / 2 * B + slot) * 2, row + i, 4);
  for (int i = 0; i < n; i += 16) store_bf16(row + i, load(v + i));
  uint16_t* values = keys + n * B + (slot / 2) * n * 2 + slot % 2;
  for (int i = 0; i < n; i++) values[2 * i] = row[i];
}

void write_f16(uint8_t* tile, int n, int slot, const float* k, const float* v) {
  uint16_t *keys = (uint16_t*)tile, *values = keys + n * B + slot * n;
  for (int i = 0; i < n; i++) keys[i * B + slot] = f16_of(k[i]);
  for (int i = 0; i < n; i += 16) store_f16(values + i, load(v + i));
}

void write_f32(uint8_t* tile, int n, int slot, const float* k, const float* v) {
  float *keys = (float*)tile, *values = keys + n * B + slot * n;
  for (int i = 0; i < n; i++) keys[i * B + slot] = k[i];
  std::copy(v, v + n, values);
}

// Where the parts of a Q8_0 tile stand.
struct Q8Tile {
  int8_t *k, *v;
  uint16_t *k_scale, *v_scale;
  Q8Tile(uint8_t* t, int n) : k((int8_t*)t), v(k + n * B), k_scale((uint16_t*)(v + n * B)), v_scale(k_scale + n / GROUP * B) {}
};

float quantize_group(const float* x, int8_t* q) {  // 32 values, scale rounded to f16 first
  const f32x16 a = load(x), b = load(x + 16);
  const float d = reduce_max(max(abs(a), abs(b))) / 127.0f;
  const f32x16 inverse = set1(d > 0.0f ? 1.0f / d : 0.0f);
  store_s8(q, round_i32(mul(a, inverse)));
  store_s8(q + 16, round_i32(mul(b, inverse)));
  return d;
}

void write_q8(uint8_t* tile, int n, int slot, const float* k, const float* v) {
  const Q8Tile t(tile, n);
  for (int g = 0; g < n / GROUP; g++) {
    int8_t q[GROUP];
    t.k_scale[g * B + slot] = f16_of(quantize_group(k + g * GROUP, q));
    for (int i = 0; i < GROUP; i++) t.k[(g * GROUP + i) * B + slot] = q[i];
    t.v_scale[slot * (n / GROUP) + g] = f16_of(quantize_group(v + g * GROUP, t.v + slot * n + g * GROUP));
  }
}

// Keys and values of a tile as floats in the F32 layout.
void widen_f16(const uint8_t* tile, int n, float* out) {
  for (int i = 0; i < 2 * n * B; i += 16) store(out + i, load_f16((const uint16_t*)tile + i));
}

void widen_q8(const uint8_t* tile, int n, float* out) {
  const Q8Tile t((uint8_t*)tile, n);
  for (int i = 0; i < n; i++)
    for (int s = 0; s < B; s += 16) store(out + i * B + s, mul(load_s8(t.k + i * B + s), load_f16(t.k_scale + i / GROUP * B + s)));
  float* values = out + n * B;
  float lanes[16];
  for (int s = 0; s < B; s++)
    for (int i = 0; i < n; i += 16) {
      store(lanes, load_f16(t.v_scale + std::min(s * (n / GROUP) + i / GROUP, B * (n / GROUP) - 16)));
      const int lane = s * (n / GROUP) + i / GROUP - std::min(s * (n / GROUP) + i / GROUP, B * (n / GROUP) - 16);
      store(values + s * n + i, mul(load_s8(t.v + s * n + i), set1(lanes[lane])));
    }
}

// The two inner products of attention over one tile, for the two forms of queries and weights.
struct Bf16Tile {
  using Value = uint16_t;
  static constexpr int STEP = 2;  // consecutive inner values in one lane
  static bf16x32 load(const Value* p) { return load_pairs(p); }
  static bf16x32 repeat(const Value* p) { return repeat2(p); }
  static f32x16 multiply(f32x16 acc, bf16x32 a, bf16x32 b) { return dot2(acc, a, b); }
  static void store_weights(Value* p, f32x16 w) { store_bf16(p, w); }
};
struct F32Tile {
  using Value = float;
  static constexpr int STEP = 1;
  static f32x16 load(const Value* p) { return PUNA_TARGET::load(p); }
  static f32x16 repeat(const Value* p) { return set1(*p); }
  static f32x16 multiply(f32x16 acc, f32x16 a, f32x16 b) { return fma(a, b, acc); }
  static void store_weights(Value* p, f32x16 w) { store(p, w); }
};

// acc[r][0..31] += sum over inner of a[r][inner] * b[inner][0..31]; b has `stride` outer columns.
template <class X, int R>
inline void product(const typename X::Value* const* a, const typename X::Value* b, size_t stride, int inner, f32x16 (&acc)[R][2]) {
  for (int i = 0; i < inner; i += X::STEP) {
    const auto b0 = X::load(b + i * stride), b1 = X::load(b + i * stride + 16 * X::STEP);
    for (int r = 0; r < R; r++) {
      const auto v = X::repeat(a[r] + i);
      acc[r][0] = X::multiply(acc[r][0], v, b0);
      acc[r][1] = X::multiply(acc[r][1], v, b1);
    }
  }
}

template <class X> struct Scratch {  // lies in AttendJob::scratch
  alignas(64) float scores[MAX_QUERY_ROWS][SPAN];
  alignas(64) typename X::Value weights[MAX_QUERY_ROWS][SPAN];
  alignas(64) float values[MAX_QUERY_ROWS][MAX_HEAD_DIM];
};

template <class X, int R> void score_tile(const AttendJob& job, int row, const typename X::Value* keys, int slot, Scratch<X>& s) {
  f32x16 acc[R][2];
  const typename X::Value* q[R];
  for (int r = 0; r < R; r++) {
    acc[r][0] = acc[r][1] = zero();
    q[r] = (const typename X::Value*)job.q[row + r];
  }
  product<X, R>(q, keys, B, job.cache->head_dim, acc);
  for (int r = 0; r < R; r++) {
    store(s.scores[row + r] + slot, acc[r][0]);
    store(s.scores[row + r] + slot + 16, acc[r][1]);
  }
}

template <class X, int R> void value_tile(const AttendJob& job, int row, const typename X::Value* values, int slot, Scratch<X>& s) {
  const int n = job.cache->head_dim;
  for (int c = 0; c < n; c += 32) {
    f32x16 acc[R][2];
    const typename X::Value* w[R];
    for (int r = 0; r < R; r++) {
      float* to = s.values[row + r] + c;
      acc[r][0] = slot ? load(to) : zero();
      acc[r][1] = slot ? load(to + 16) : zero();
      w[r] = s.weights[row + r] + slot;
    }
    product<X, R>(w, values + c * X::STEP, n, B, acc);
    for (int r = 0; r < R; r++) {
      store(s.values[row + r] + c, acc[r][0]);
      store(s.values[row + r] + c + 16, acc[r][1]);
    }
  }
}

// Calls f.template operator()<R>(row) for rows 0..n in groups that have a compiled kernel.
template <class Fn> inline void in_groups(int n, Fn f) {
  int row = 0;
  for (; n - row >= 12; row += 12) f.template operator()<12>(row);
  for (; n - row >= 8; row += 8) f.template operator()<8>(row);
  for (; n - row >= 4; row += 4) f.template operator()<4>(row);
  if (n - row == 3) f.template operator()<3>(row);
  else if (n - row == 2) f.template operator()<2>(row);
  else if (n - row == 1) f.template operator()<1>(row);
}

// scores -> weights of one row, `visible` of them in `padded` (a multiple of 32) slots.
template <class X> SpanState softmax(float scale_log2, int visible, int padded, float* scores, typename X::Value* weights) {
  const float lowest = -std::numeric_limits<float>::infinity();
  f32x16 top = set1(lowest);
  for (int i = 0; i < padded; i += 16) {
    f32x16 v = load(scores + i);
    if (i + 16 > visible) store(scores + i, v = keep_first(v, visible - i, lowest));
    top = max(top, v);
  }
  const float largest = reduce_max(top) * scale_log2;
  const f32x16 scale = set1(scale_log2), shift = set1(-largest);
  f32x16 sum = zero();
  for (int i = 0; i < padded; i += 16) {
    const f32x16 p = exp2(fma(load(scores + i), scale, shift));
    sum = add(sum, p);
    X::store_weights(weights + i, p);
  }
  return {largest, reduce_add(sum)};
}

template <class X> const typename X::Value* tile_values(const AttendJob& job, int block, float* wide) {
  const CacheLayer& c = *job.cache;
  const uint8_t* tile = c.tile(job.blocks[block], job.kv_head);
  if (c.kind == CacheKind::F16) widen_f16(tile, c.head_dim, wide);
  else if (c.kind == CacheKind::Q8_0) widen_q8(tile, c.head_dim, wide);
  else return (const typename X::Value*)tile;
  return (const typename X::Value*)wide;
}

template <class X> void attend_spans(const AttendJob& job) {
  Scratch<X>& s = *(Scratch<X>*)job.scratch;
  float* wide = (float*)(job.scratch + sizeof(Scratch<X>));
  const int n = job.cache->head_dim;
  const int last = *std::max_element(job.last, job.last + job.rows);
  for (int span = job.first_span; span < job.first_span + job.n_spans; span++) {
    const int start = span * SPAN, end = std::min(start + SPAN, last + 1);
    for (int p = start; p < end; p += B) {
      const auto* keys = tile_values<X>(job, p / B, wide);
      in_groups(job.rows, [&]<int R>(int row) { score_tile<X, R>(job, row, keys, p - start, s); });
    }
    const int padded = (end - start + B - 1) / B * B;
    SpanState state[MAX_QUERY_ROWS];
    for (int r = 0; r < job.rows; r++)
      if (job.last[r] >= start)
        state[r] = softmax<X>(job.scale_log2, std::min(end, job.last[r] + 1) - start, padded, s.scores[r], s.weights[r]);
      else
        std::fill_n(s.weights[r], padded, typename X::Value{});
    for (int p = start; p < end; p += B) {
      const auto* values = tile_values<X>(job, p / B, wide) + n * B;
      in_groups(job.rows, [&]<int R>(int row) { value_tile<X, R>(job, row, values, p - start, s); });
    }
    for (int r = 0; r < job.rows; r++)
      if (job.last[r] >= start) merge(job.state[r], job.out[r], state[r], s.values[r], n);
  }
}

static_assert(sizeof(Scratch<F32Tile>) + 2 * MAX_HEAD_DIM * B * sizeof(float) <= ATTEND_SCRATCH);

}  // namespace

// Appends span b to what is known of a row: out_a [n] = weighted values so far, unnormalised.
void merge(SpanState& a, float* out_a, const SpanState& b, const float* out_b, int n) {
  const float top = a.max > b.max ? a.max : b.max;
  float lanes[16];
  store(lanes, exp2(set1(a.max - top)));
  const float old_part = lanes[0];
  store(lanes, exp2(set1(b.max - top)));
  const float new_part = lanes[0];
  a.sum = a.sum * old_part + b.sum * new_part;
  a.max = top;
  for (int i = 0; i < n; i += 16) store(out_a + i, fma(load(out_a + i), set1(old_part), mul(load(out_b + i), set1(new_part))));
}

// Weighted values -> weighted mean.
void finish(const SpanState& s, float* out, int n) {
  for (int i = 0; i < n; i += 16) store(out + i, div(load(out + i), set1(s.sum)));
}

void attend(const AttendJob& job) {
  if (cache_query_is_bf16(job.cache->kind)) attend_spans<Bf16Tile>(job);
  else attend_spans<F32Tile>(job);
}

// k, v: [n_kv_heads * head_dim] of one position.
void cache_write(const CacheLayer& c, int block, int slot, const float* k, const float* v) {
  for (int h = 0; h < c.n_kv_heads; h++, k += c.head_dim, v += c.head_dim) {
    uint8_t* tile = c.tile(block, h);
    switch (c.kind) {
      case CacheKind::BF16: write_bf16(tile, c.head_dim, slot, k, v); break;
      case CacheKind::F16: write_f16(tile, c.head_dim, slot, k, v); break;
      case CacheKind::F32: write_f32(tile, c.head_dim, slot, k, v); break;
      case CacheKind::Q8_0: write_q8(tile, c.head_dim, slot, k, v); break;
    }
  }
}

// Zeroes the slots from `from_slot` on. Masked positions get weight 0, and 0 times what a former owner left there must
// be 0 too, even if that was infinite.
void cache_clear(const CacheLayer& c, int block, int from_slot) {
  if (from_slot == 0) {
    std::memset(c.tile(block, 0), 0, c.tile_bytes * c.n_kv_heads);
    return;
  }
  alignas(64) static const float zeros[16 * 1024] = {};
  for (int slot = from_slot; slot < B; slot++) cache_write(c, block, slot, zeros, zeros);
}

}  // namespace puna::PUNA_TARGET
