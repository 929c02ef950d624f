// Causal attention of up to 16 query rows over one key/value head.
//
// The positions of a sequence are cut into spans of SPAN, at multiples of SPAN. Within a span: scores, their maximum,
// weights exp2(score - maximum), the sum of weights and the weighted values. Spans are merged in order. A row's result
// thus depends on its own positions only, not on which rows run beside it or which thread visits which span.
//
// A row may see nothing before a first position, at any place of a span: scores before it are masked, and tiles and spans
// before the first position that any row of a call sees are left alone. Both add exact zeros to the others, or nothing.
//
// What a tile of the cache looks like, cache.cpp says. head_dim is a multiple of 32.
#include <algorithm>
#include <limits>

#include "../cache.h"
#if defined(__AMX_BF16__)
#include "attend_amx.h"
#endif

namespace puna::PUNA_TARGET {

void merge(SpanState& a, float* out_a, const SpanState& b, const float* out_b, int n);

namespace {

constexpr int B = BLOCK_TOKENS;
constexpr int TILES = SPAN / B;

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

// The two halves of a tile that is due soon: fetched line by line while another one is multiplied.
struct Next {
  const uint8_t *first, *second;
};

// The tiles of a span as they lie in the cache. They are read once: all keys, then the values column by column.
struct SpanTiles {
  const CacheLayer& c;
  const int32_t* blocks;
  int head, n;
  bool more;  // another span follows

  const uint8_t* keys(int t) const { return c.keys(blocks[t], head); }
  const uint8_t* values(int t, int column) const { return c.values(blocks[t], head, column); }
  Next after_keys(int t) const {
    if (t + 1 < n) return {keys(t + 1), keys(t + 1) + c.key_bytes / 2};
    return {values(0, 0), values(n > 1, 0)};
  }
  Next after_values(int t, int column) const {  // two tiles on: they are small
    const int at = column / 32 * n + t + 2, end = c.head_dim / 32 * n;
    const uint8_t* p = at < end ? values(at % n, at / n * 32) : more ? keys(n) + (at - end) * c.key_bytes / 2 : values(t, column);
    return {p, p + c.value_bytes / 2};
  }
};

// acc[r][0..31] += sum over inner of a[r][inner] * tile[inner][0..31]
template <class X, int R>
inline void product(const typename X::Value* const* a, const typename X::Value* tile, int inner, Next next, f32x16 (&acc)[R][2]) {
  constexpr int ROW = 32 * sizeof(typename X::Value);  // bytes
  for (int i = 0; i < inner; i += X::STEP) {
    const auto b0 = X::load(tile + i * 32), b1 = X::load(tile + i * 32 + 16 * X::STEP);
    const uint8_t* ahead = i < inner / 2 ? next.first + i * ROW : next.second + (i - inner / 2) * ROW;
    prefetch_far(ahead);
    prefetch_far(ahead + 64);
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
  alignas(64) float wide[TILES][MAX_HEAD_DIM * B];  // tiles of types that are widened before use
};

// scores [row..row+R][slots of tile t]
template <class X, int R> void score_tile(const AttendJob& job, int row, const typename X::Value* keys, int t, Next next, Scratch<X>& s) {
  f32x16 acc[R][2];
  const typename X::Value* q[R];
  for (int r = 0; r < R; r++) {
    acc[r][0] = acc[r][1] = zero();
    q[r] = (const typename X::Value*)job.q[row + r];
  }
  product<X, R>(q, keys, job.cache->head_dim, next, acc);
  for (int r = 0; r < R; r++) {
    store(s.scores[row + r] + t * B, acc[r][0]);
    store(s.scores[row + r] + t * B + 16, acc[r][1]);
  }
}

// values [row..row+R][column..column+32] = weights times the values of n tiles
template <class X, int R>
void weigh_values(int row, int column, const typename X::Value* const* tiles, const SpanTiles& span, Scratch<X>& s) {
  f32x16 acc[R][2];
  for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = zero();
  for (int t = 0; t < span.n; t++) {
    const typename X::Value* w[R];
    for (int r = 0; r < R; r++) w[r] = s.weights[row + r] + t * B;
    product<X, R>(w, tiles[t], B, span.after_values(t, column), acc);
  }
  for (int r = 0; r < R; r++) {
    store(s.values[row + r] + column, acc[r][0]);
    store(s.values[row + r] + column + 16, acc[r][1]);
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

// scores -> weights of one row, those of hidden..visible of them, in `padded` (a multiple of 32) slots.
template <class X> SpanState softmax(float scale_log2, int hidden, int visible, int padded, float* scores, typename X::Value* weights) {
  const float lowest = -std::numeric_limits<float>::infinity();
  std::fill_n(scores, hidden, lowest);
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

// A tile of n rows of 32 as X multiplies it; `wide` holds it where its type has to be widened.
template <class X> const typename X::Value* open_tile(CacheKind kind, const uint8_t* tile, int n, bool is_values, float* wide) {
  if (kind == CacheKind::F16) widen_f16(tile, n, wide);
  else if (kind == CacheKind::Q8_0) widen_q8(tile, n, is_values, wide);
  else return (const typename X::Value*)tile;
  return (const typename X::Value*)wide;
}

inline bool sees(const AttendJob& job, int r, int start, int end) { return job.last[r] >= start && job.first[r] < end; }

template <class X> void score_tiles(const AttendJob& job, const SpanTiles& span, Scratch<X>& s) {
  for (int t = 0; t < span.n; t++) {
    const auto* keys = open_tile<X>(span.c.kind, span.keys(t), span.c.head_dim, false, s.wide[0]);
    in_groups(job.rows, [&]<int R>(int row) { score_tile<X, R>(job, row, keys, t, span.after_keys(t), s); });
  }
}

template <class X> void weigh_tiles(const AttendJob& job, const SpanTiles& span, Scratch<X>& s) {
  for (int column = 0; column < span.c.head_dim; column += 32) {
    const typename X::Value* tiles[TILES];
    for (int t = 0; t < span.n; t++) tiles[t] = open_tile<X>(span.c.kind, span.values(t, column), B, true, s.wide[t]);
    in_groups(job.rows, [&]<int R>(int row) { weigh_values<X, R>(row, column, tiles, span, s); });
  }
}

#if defined(__AMX_BF16__)
inline void fetch_next(const Next& next, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) prefetch_far(next.first + i), prefetch_far(next.second + i);
}

// Queries side by side, as a tile of them is read.
inline uint16_t* rows_of(Scratch<Bf16Tile>& s) { return (uint16_t*)s.wide; }

template <> void score_tiles<Bf16Tile>(const AttendJob& job, const SpanTiles& span, Scratch<Bf16Tile>& s) {
  const int n = span.c.head_dim;
  uint16_t* rows = rows_of(s);
  for (int r = 0; r < job.rows; r++) std::memcpy(rows + r * n, job.q[r], n * sizeof(uint16_t));
  configure_for_rows(job.rows);
  for (int t = 0; t < span.n; t++) {
    const uint8_t* keys = span.keys(t);
    fetch_next(span.after_keys(t), span.c.key_bytes / 2);
    clear_tile<0>(), clear_tile<1>();
    for (int i = 0; i < n; i += INNER) multiply_part(rows + i, n, keys + i / 2 * CACHE_ROW);
    store_sums(s.scores[0] + t * B, SPAN);
  }
  release_tiles();
}

template <> void weigh_tiles<Bf16Tile>(const AttendJob& job, const SpanTiles& span, Scratch<Bf16Tile>& s) {
  configure_for_rows(job.rows);
  for (int column = 0; column < span.c.head_dim; column += 32) {
    clear_tile<0>(), clear_tile<1>();
    for (int t = 0; t < span.n; t++) {
      fetch_next(span.after_values(t, column), span.c.value_bytes / 2);
      multiply_part(s.weights[0] + t * B, SPAN, span.values(t, column));
    }
    store_sums(s.values[0] + column, MAX_HEAD_DIM);
  }
  release_tiles();
}
#endif

template <class X> void attend_span(const AttendJob& job, int start, int end, bool more, Scratch<X>& s) {
  const CacheLayer& c = *job.cache;
  const int n_tiles = (end - start + B - 1) / B, padded = n_tiles * B;
  const SpanTiles span{c, job.blocks + start / B, job.kv_head, n_tiles, more};
  score_tiles<X>(job, span, s);
  SpanState state[MAX_QUERY_ROWS];
  for (int r = 0; r < job.rows; r++) {
    if (!sees(job, r, start, end)) std::fill_n(s.weights[r], padded, typename X::Value{});
    else state[r] = softmax<X>(job.scale_log2, std::max(job.first[r] - start, 0), std::min(end, job.last[r] + 1) - start, padded, s.scores[r], s.weights[r]);
  }
  weigh_tiles<X>(job, span, s);
  for (int r = 0; r < job.rows; r++)
    if (sees(job, r, start, end)) merge(job.state[r], job.out[r], state[r], s.values[r], c.head_dim);
}

template <class X> void attend_spans(const AttendJob& job) {
  static_assert(sizeof(Scratch<X>) <= ATTEND_SCRATCH);
  const int last = *std::max_element(job.last, job.last + job.rows);
  const int first = *std::min_element(job.first, job.first + job.rows) / B * B;
  const int end = job.first_span + job.n_spans;
  for (int span = job.first_span; span < end; span++)
    attend_span<X>(job, std::max(span * SPAN, first), std::min((span + 1) * SPAN, last + 1), span + 1 < end, *(Scratch<X>*)job.scratch);
}

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

}  // namespace puna::PUNA_TARGET
