// y = x w^T for every kind of weight, and the gated pair silu(x w1^T) * (x w3^T).
//
// Contract: x [rows, cols] in the form that input_of (tile_scale.h) names; y [rows, stride], stride a multiple of 16 and
// at least the padded rows of w; the call computes tokens row0..row1 and weight tiles tile0..tile1. With `up` (same
// kind and shape) the result is silu(w x) * (up x). scratch: LINEAR_SCRATCH bytes, 64-byte aligned.
//
// Every output is one chain of float operations in column order, the same in every path below, so that a result
// depends neither on how many tokens run together nor on which thread computes it:
//     for each 32 columns (16 where the format has two scales):  acc = fma(float(int dot), d_w * d_x, acc)
//                                                   with a minimum: acc = fma(m_w, s_x, acc)
//
// A target with tiles has a chain of its own for most weights: linear_amx.h.
//
// Few tokens: unpack in registers and multiply up to eight, at memory speed for one. Many tokens: unpack two tiles into L1
// once, then multiply them with six tokens at a time (2 x 6 accumulators of 16 lanes fill the register file).
#include <algorithm>
#include <limits>

#if defined(__AMX_BF16__)
#include "linear_amx.h"
#endif
#include "linear_fp8.h"
#include "linear_panel.h"
#include "linear_tiles.h"

namespace puna::PUNA_TARGET {
namespace {

constexpr int FEW = 64;      // tokens up to which unpacking in registers, once for eight of them, wins
constexpr size_t CHUNK_BYTES = 256 * 1024;  // of weights that stay in L2 while few tokens pass by
constexpr int PANEL = 2;     // tiles multiplied together
constexpr int TOKENS = 6;    // tokens multiplied together
constexpr int PANEL_SUBS = 16;  // sub-blocks of a panel at most: what fits L1 beside the activations

// Fetches weights into the second-level cache before block b needs them. A core with much to do on each byte does not run
// ahead far enough by itself: every line is named. One that only streams does, and is slowed by as many hints; one hint in
// 512 bytes keeps its own prefetcher going (docs/speed.md, 2026-11-24 and 25).
constexpr int AHEAD = 6144;
template <class F, int T> inline void fetch_ahead(const uint8_t* block, int b) {
  constexpr int BYTES = F::BYTES * TILE_ROWS;
  if constexpr (T > 1 || F::SUBS > 1) {
    for (int i = 0; i < BYTES; i += T > 1 ? 64 : 512) prefetch_far(block + AHEAD + i);
  } else if (b % 2 == 0) {
    prefetch_far(block + 2 * AHEAD);
  }
}

// acc += sub-block w times one token's 32 activations; the order of operations that the header promises.
template <class F, int Raised> inline f32x16 multiply(const SubBlock& w, const QBlock& x, f32x16 acc) {
  static_assert(Raised == 0 || (F::ZERO == 0 && !F::HALVES));
  const f32x16 dx = set1(x.d);
  if constexpr (!F::HALVES) {
    i32x16 v = start<F>(x.nsum);
    for (int k = 0; k < 8; k++) v = dot4(v, w.q[k], x.q + 4 * k);
    if constexpr (Raised > 0) v = shr_signed<Raised>(v);
    acc = fma(to_f32(v), mul(w.d[0], dx), acc);
    if constexpr (F::MIN) acc = fma(w.m[0], set1(x.s), acc);
  } else {
    for (int half = 0; half < 2; half++) {
      const int32_t nsum = half ? x.nsum - x.nsum_low : x.nsum_low;
      i32x16 v = start<F>(nsum);
      for (int k = 4 * half; k < 4 * half + 4; k++) v = dot4(v, w.q[k], x.q + 4 * k);
      acc = fma(to_f32(v), mul(w.d[half], dx), acc);
      if constexpr (F::MIN) acc = fma(w.m[half], set1(x.d * (float)-nsum), acc);
    }
  }
  return acc;
}

template <class F, int T, int S> inline void few_sub(const uint8_t* block, const QBlock* const* x, int sub, f32x16* acc) {
  SubBlock w;
  if constexpr (raised<F, S> > 0) F::template load<S, true>(block, w);
  else F::template load<S>(block, w);
  for (int t = 0; t < T; t++) acc[t] = multiply<F, raised<F, S>>(w, x[t][sub + S], acc[t]);
  if constexpr (S + 1 < F::SUBS) few_sub<F, T, S + 1>(block, x, sub, acc);
}

// One tile times T tokens, unpacked in registers. `cold`: the tile comes from memory.
template <class F, int T> void few(const uint8_t* tile, int blocks, bool cold, const QBlock* x, size_t x_stride, float* out, size_t out_stride) {
  f32x16 acc[T];
  const QBlock* rows[T];
  for (int t = 0; t < T; t++) {
    acc[t] = zero();
    rows[t] = x + t * x_stride;
  }
  for (int b = 0; b < blocks; b++) {
    const uint8_t* block = tile + (size_t)b * F::BYTES * ROWS;
    if (cold) fetch_ahead<F, T>(block, b);
    few_sub<F, T, 0>(block, rows, b * F::SUBS, acc);
  }
  for (int t = 0; t < T; t++) store(out + t * out_stride, acc[t]);
}

// acc[t][..16] of n <= 8 tokens; returns how many tokens it did.
template <class F> int few_at_once(const uint8_t* tile, int blocks, bool cold, const QBlock* x, size_t x_stride, int n, float* acc, size_t acc_stride) {
  if (n >= 8) return few<F, 8>(tile, blocks, cold, x, x_stride, acc, acc_stride), 8;
  if (n >= 4) return few<F, 4>(tile, blocks, cold, x, x_stride, acc, acc_stride), 4;
  if (n >= 2) return few<F, 2>(tile, blocks, cold, x, x_stride, acc, acc_stride), 2;
  return few<F, 1>(tile, blocks, cold, x, x_stride, acc, acc_stride), 1;
}

// Tiles that fit the second-level cache pass by one small group of tokens, whose activations stay in the first, then by
// the next group.
template <class F> void few_tokens(const Tiles& tiles, const Input& x, int row0, int row1, const Output& out) {
  const int blocks = tiles.w.cols / (GROUP * F::SUBS), step = tiles.up ? 2 : 1;
  const size_t stride = x.cols / GROUP;
  const int chunk = std::max(1, (int)(CHUNK_BYTES / tiles.w.tile_bytes / step)) * step;
  alignas(64) float acc[8][2][ROWS];
  for (int i0 = 0; i0 < tiles.n; i0 += chunk) {
    for (int t = row0, n; t < row1; t += n) {
      for (int i = i0; i < std::min(tiles.n, i0 + chunk); i += step) {
        for (int j = 0; j < step; j++) n = few_at_once<F>(tiles[i + j], blocks, t == row0, x.q8 + t * stride, stride, row1 - t, acc[0][j], 2 * ROWS);
        for (int k = 0; k < n; k++) emit(tiles, out, t + k, i, step, acc[k][0], ROWS);
      }
    }
  }
}

// How many of the tokens left go next: six as long as the last group does not become a small one, which is slow.
inline int group(int left) { return left >= TOKENS + 4 || left <= TOKENS ? std::min(left, TOKENS) : (left + 1) / 2; }

constexpr int MAX_BLOCK_TOKENS = 516;  // tokens of one pass over a panel: their sums stay in scratch
static_assert(PANEL * PANEL_SUBS * 1152 + MAX_BLOCK_TOKENS * PANEL * ROWS * sizeof(float) <= LINEAR_SCRATCH);

template <class F> void many_tokens(const Tiles& tiles, const Input& x, int row0, int row1, const Output& out, uint8_t* scratch) {
  const int subs = tiles.w.cols / GROUP;
  constexpr int MOST = F::SUBS == 1 ? 12 : PANEL_SUBS;
  static_assert(MOST % F::SUBS == 0 && MOST <= PANEL_SUBS);
  const int parts = (subs + MOST - 1) / MOST;
  const int part = ((subs + parts - 1) / parts + F::SUBS - 1) / F::SUBS * F::SUBS;
  using Sub = PanelSub<UnpackedOf<F>>;
  Sub* unpacked = (Sub*)scratch;
  float* sums = (float*)(scratch + PANEL * PANEL_SUBS * sizeof(Sub));
  for (int i = 0; i < tiles.n; i += PANEL) {
    const int r = std::min(PANEL, tiles.n - i);
    const Sub* panel[PANEL] = {unpacked, unpacked + PANEL_SUBS};
    for (int s = 0; s < subs; s += part) {
      const int n = std::min(part, subs - s);
      bool tamed = true;
      for (int j = 0; j < r; j++)
        for (int b = 0; b < n; b += F::SUBS)
          tamed &= unpack_sub<F, 0>(tiles[i + j] + (size_t)((s + b) / F::SUBS) * F::BYTES * ROWS, unpacked + j * PANEL_SUBS + b);
      for (int j = 0; j < r; j++) {  // the part that comes after this one, of these tiles or of the next
        const uint8_t* next = s + n < subs ? tiles[i + j] + (size_t)(s + n) / F::SUBS * F::BYTES * ROWS : i + PANEL + j < tiles.n ? tiles[i + PANEL + j] : nullptr;
        if (next) prefetch_range(next, (size_t)n / F::SUBS * F::BYTES * ROWS);
      }
      for (int t = row0, tokens; t < row1; t += tokens) {
        tokens = group(row1 - t);
        const QBlock* xt = x.q8 + (size_t)t * subs + s;
        float* to = sums + (size_t)(t - row0) * r * ROWS;
        const bool done = s + n == subs;
        const int next = std::min(row1, t + tokens + TOKENS);
        for (int j = t == row0 ? t : t + tokens; done && j < next; j++) prefetch_output(tiles, out, j, i);
        const bool plain = !tamed || !are_numbers(xt, subs, tokens);
        if (r == PANEL) (plain ? multiply_plainly<UnpackedOf<F>, PANEL> : multiply_tokens<UnpackedOf<F>, PANEL>)(panel, n, xt, subs, tokens, to, s == 0);
        else (plain ? multiply_plainly<UnpackedOf<F>, 1> : multiply_tokens<UnpackedOf<F>, 1>)(panel, n, xt, subs, tokens, to, s == 0);
        for (int j = 0; done && j < tokens; j++) emit(tiles, out, t + j, i, r, to + j * r * ROWS, ROWS);
      }
    }
  }
}

template <class F> void quantized(const Tiles& tiles, const Input& x, int row0, int row1, const Output& out, uint8_t* scratch) {
#if defined(__AMX_BF16__)
  if (fits_tiles(tiles)) return multiply_tiles<F>(tiles, x, row0, row1, out, scratch);
#endif
  if (row1 - row0 <= FEW) return few_tokens<F>(tiles, x, row0, row1, out);
  for (int t = row0; t < row1; t += MAX_BLOCK_TOKENS) many_tokens<F>(tiles, x, t, std::min(row1, t + MAX_BLOCK_TOKENS), out, scratch);
}

template <class W, int R, int T> void multiply_float(const Tiles& tiles, int i, const Input& x, int row, float* out) {
  f32x16 acc[R][T];
  const uint8_t* p[R];
  const typename W::Value* v[T];
  for (int r = 0; r < R; r++) p[r] = tiles[i + r];
  for (int t = 0; t < T; t++) v[t] = W::row(x, row + t);
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) acc[r][t] = zero();
  for (int k = 0; k < tiles.w.cols; k += W::STEP) {
    for (int t = 0; t < T; t++) {
      const auto a = W::repeat(v[t] + k);
      for (int r = 0; r < R; r++) acc[r][t] = W::multiply(acc[r][t], W::load(p[r], k), a);
    }
  }
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) store(out + (t * R + r) * ROWS, acc[r][t]);
}

template <class W, int R> void multiply_float_tokens(const Tiles& tiles, int i, const Input& x, int row, int n, float* out) {
  switch (n) {
    case 1: return multiply_float<W, R, 1>(tiles, i, x, row, out);
    case 2: return multiply_float<W, R, 2>(tiles, i, x, row, out);
    case 3: return multiply_float<W, R, 3>(tiles, i, x, row, out);
    case 4: return multiply_float<W, R, 4>(tiles, i, x, row, out);
    case 5: return multiply_float<W, R, 5>(tiles, i, x, row, out);
    default: return multiply_float<W, R, 6>(tiles, i, x, row, out);
  }
}

template <class W> void unquantized(const Tiles& tiles, const Input& x, int row0, int row1, const Output& out) {
  constexpr int WIDE = 4;
  alignas(64) float acc[TOKENS * WIDE * ROWS];
  for (int i = 0, r; i < tiles.n; i += r) {
    r = tiles.n - i >= WIDE ? WIDE : tiles.up ? 2 : 1;
    for (int t = row0; t < row1; t += TOKENS) {
      const int n = std::min(TOKENS, row1 - t);
      if (r == WIDE) multiply_float_tokens<W, WIDE>(tiles, i, x, t, n, acc);
      else if (r == 2) multiply_float_tokens<W, 2>(tiles, i, x, t, n, acc);
      else multiply_float_tokens<W, 1>(tiles, i, x, t, n, acc);
      for (int j = 0; j < n; j++) emit(tiles, out, t + j, i, r, acc + j * r * ROWS, ROWS);
    }
  }
}

// fn.operator()<F>() for the format of a quantized kind with integers.
template <class Fn> inline void with_format(Kind kind, Fn fn) {
  switch (kind) {
    case Kind::Q8_0: return fn.template operator()<Q8_0>();
    case Kind::Q4_0: return fn.template operator()<Q4_0>();
    case Kind::Q4_1: return fn.template operator()<Q4_1>();
    case Kind::Q5_0: return fn.template operator()<Q5_0>();
    case Kind::Q5_1: return fn.template operator()<Q5_1>();
    case Kind::Q2_K: return fn.template operator()<Q2_K>();
    case Kind::Q3_K: return fn.template operator()<Q3_K>();
    case Kind::Q4_K: return fn.template operator()<Q4_K>();
    case Kind::Q5_K: return fn.template operator()<Q5_K>();
    case Kind::Q6_K: return fn.template operator()<Q6_K>();
    case Kind::IQ4_NL: return fn.template operator()<IQ4_NL>();
    case Kind::IQ4_XS: return fn.template operator()<IQ4_XS>();
    case Kind::INT4: return fn.template operator()<INT4>();
    case Kind::INT4_MIN: return fn.template operator()<INT4_MIN>();
    case Kind::INT8: return fn.template operator()<INT8>();
    case Kind::INT8_16: return fn.template operator()<INT8_16>();
    default: return;
  }
}

}  // namespace

#if defined(__AMX_BF16__)
// The largest of what bounds rows of tiles tile0..tile1, and in `least` the smallest of those above 0.
float weight_range(const Matrix& w, int tile0, int tile1, float* least) {
  alignas(64) float bounds[ROWS];
  float largest = 0;
  *least = std::numeric_limits<float>::infinity();
  for (int i = tile0; i < tile1; i++) {
    with_format(w.kind, [&]<class F>() { store(bounds, bounds_of_rows<F>(w.tile(i), w.cols / GROUP / F::SUBS)); });
    for (float b : bounds) {
      if (!(b <= std::numeric_limits<float>::max())) return std::numeric_limits<float>::infinity();
      largest = std::max(largest, b);
      if (b > 0) *least = std::min(*least, b);
    }
  }
  return largest;
}
#endif

void linear(const Matrix& w, const Matrix* up, const Input& x, int row0, int row1, int tile0, int tile1, const Output& y, uint8_t* scratch) {
  const Tiles tiles{w, up, tile0, (tile1 - tile0) * (up ? 2 : 1)};
  switch (w.kind) {
    case Kind::F32: return unquantized<WeightF32>(tiles, x, row0, row1, y);
    case Kind::F16: return unquantized<WeightF16>(tiles, x, row0, row1, y);
    case Kind::BF16:
#if defined(__AMX_BF16__)
      if (w.cols % GROUP == 0) return multiply_tiles<WeightBF16>(tiles, x, row0, row1, y, scratch);
#endif
      return unquantized<WeightBF16>(tiles, x, row0, row1, y);
    case Kind::FP8: return fp8(tiles, x, row0, row1, y, scratch);
    default: with_format(w.kind, [&]<class F>() { quantized<F>(tiles, x, row0, row1, y, scratch); });
  }
}

}  // namespace puna::PUNA_TARGET
