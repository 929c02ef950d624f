// y = x w^T for 8-bit floats with a scale for every 32 columns of a row, activations in bf16. Included by linear.cpp only.
//
// A weight without its scale is a bf16 exactly, so that products are exact and only sums round. Every output is one chain,
// whatever the number of tokens:
//     sum = dot2(w, x, sum) over 32 columns, from 0;  acc = fma(sum, scale, acc)
// Few tokens: converted in registers. Many: two tiles are converted once, as many columns as fit scratch, and then
// multiplied with six tokens at a time.
#pragma once
#include <algorithm>

#include "../formats.h"
#include "linear_tiles.h"

namespace puna::PUNA_TARGET {
namespace {

constexpr int FP8_FEW = 4;        // tokens up to which converting in registers wins
constexpr int FP8_TILES = 4;      // for one token: as many sums at once as an addition takes cycles
constexpr int FP8_TOKENS = 6;     // multiplied together with two tiles
constexpr int FP8_BLOCKS = 12;    // of a converted part of a tile, at most
constexpr int FP8_MOST = 256;     // tokens of one pass over the weights: their sums stay in scratch
constexpr int PAIRS = GROUP / 2;  // of columns of a block
constexpr size_t FP8_AHEAD = 4096;

// A converted block of one tile.
struct alignas(64) Fp8Block {
  uint16_t pairs[PAIRS][2 * ROWS];
  float scale[ROWS];
};
static_assert(2 * FP8_BLOCKS * sizeof(Fp8Block) + FP8_MOST * 2 * ROWS * sizeof(float) <= LINEAR_SCRATCH);

// acc [T][R][16] of R tiles times T tokens, converted in registers.
template <int R, int T> void multiply_fp8(const Tiles& tiles, int i, const Input& x, int row, float* out) {
  f32x16 acc[R][T];
  const uint8_t* p[R];
  const uint16_t* v[T];
  for (int r = 0; r < R; r++) p[r] = tiles[i + r];
  for (int t = 0; t < T; t++) v[t] = x.bf16 + (size_t)(row + t) * x.cols;
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) acc[r][t] = zero();
  for (int k = 0; k < tiles.w.cols; k += GROUP) {
    for (int r = 0; r < R; r++) {
      if (T == 1) prefetch_far(p[r] + FP8_AHEAD);
      f32x16 sum[T];
      for (int t = 0; t < T; t++) sum[t] = zero();
      for (int j = 0; j < GROUP; j += 4) {
        bf16x32 w[2];
        WeightFP8::load(p[r], j, w);
        for (int t = 0; t < T; t++) sum[t] = dot2(dot2(sum[t], w[0], repeat2(v[t] + k + j)), w[1], repeat2(v[t] + k + j + 2));
      }
      const f32x16 scale = WeightFP8::scale(p[r]);
      for (int t = 0; t < T; t++) acc[r][t] = fma(sum[t], scale, acc[r][t]);
      p[r] += WeightFP8::BYTES * ROWS;
    }
  }
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) store(out + (t * R + r) * ROWS, acc[r][t]);
}

// Of n tokens as many as are done at once; returns their number.
template <int R> int multiply_fp8_tokens(const Tiles& tiles, int i, const Input& x, int row, int n, float* out) {
  if (n >= 4) return multiply_fp8<R, 4>(tiles, i, x, row, out), 4;
  if (n >= 2) return multiply_fp8<R, 2>(tiles, i, x, row, out), 2;
  return multiply_fp8<R, 1>(tiles, i, x, row, out), 1;
}

void few_tokens_fp8(const Tiles& tiles, const Input& x, int row0, int row1, const Output& out) {
  alignas(64) float acc[4 * FP8_TILES * ROWS];
  for (int i = 0, r; i < tiles.n; i += r) {
    r = row1 - row0 == 1 && tiles.n - i >= FP8_TILES ? FP8_TILES : tiles.n - i >= 2 ? 2 : 1;
    for (int t = row0, n; t < row1; t += n) {
      n = r == FP8_TILES ? multiply_fp8_tokens<FP8_TILES>(tiles, i, x, t, 1, acc)
          : r == 2       ? multiply_fp8_tokens<2>(tiles, i, x, t, row1 - t, acc)
                         : multiply_fp8_tokens<1>(tiles, i, x, t, row1 - t, acc);
      for (int j = 0; j < n; j++) emit(tiles, out, t + j, i, r, acc + j * r * ROWS, ROWS);
    }
  }
}

inline void convert_fp8(const uint8_t* block, Fp8Block& to) {
  for (int j = 0; j < GROUP; j += 4) {
    bf16x32 w[2];
    WeightFP8::load(block, j, w);
    store_pairs(to.pairs[j / 2], w[0]);
    store_pairs(to.pairs[j / 2 + 1], w[1]);
  }
  store(to.scale, WeightFP8::scale(block));
}

// acc [T][R][16] (+)= `blocks` converted blocks of R tiles times T tokens.
template <int R, int T> void multiply_converted(const Fp8Block* const* w, int blocks, const uint16_t* x, size_t x_stride, float* out, bool fresh) {
  f32x16 acc[R][T];
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) acc[r][t] = fresh ? zero() : load(out + (t * R + r) * ROWS);
  for (int b = 0; b < blocks; b++) {
    f32x16 sum[R][T];
    for (int r = 0; r < R; r++)
      for (int t = 0; t < T; t++) sum[r][t] = zero();
    for (int k = 0; k < PAIRS; k++) {
      bf16x32 q[R];
      for (int r = 0; r < R; r++) q[r] = load_pairs(w[r][b].pairs[k]);
      for (int t = 0; t < T; t++) {
        const bf16x32 a = repeat2(x + t * x_stride + b * GROUP + 2 * k);
        for (int r = 0; r < R; r++) sum[r][t] = dot2(sum[r][t], q[r], a);
      }
    }
    for (int r = 0; r < R; r++)
      for (int t = 0; t < T; t++) acc[r][t] = fma(sum[r][t], load(w[r][b].scale), acc[r][t]);
  }
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) store(out + (t * R + r) * ROWS, acc[r][t]);
}

template <int R> void multiply_converted_tokens(const Fp8Block* const* w, int blocks, const uint16_t* x, size_t stride, int n, float* out, bool fresh) {
  switch (n) {
    case 1: return multiply_converted<R, 1>(w, blocks, x, stride, out, fresh);
    case 2: return multiply_converted<R, 2>(w, blocks, x, stride, out, fresh);
    case 3: return multiply_converted<R, 3>(w, blocks, x, stride, out, fresh);
    case 4: return multiply_converted<R, 4>(w, blocks, x, stride, out, fresh);
    case 5: return multiply_converted<R, 5>(w, blocks, x, stride, out, fresh);
    default: return multiply_converted<R, 6>(w, blocks, x, stride, out, fresh);
  }
}

void many_tokens_fp8(const Tiles& tiles, const Input& x, int row0, int row1, const Output& out, uint8_t* scratch) {
  Fp8Block* converted = (Fp8Block*)scratch;
  float* sums = (float*)(scratch + 2 * FP8_BLOCKS * sizeof(Fp8Block));
  const Fp8Block* w[2] = {converted, converted + FP8_BLOCKS};
  const int blocks = tiles.w.cols / GROUP;
  for (int i = 0, r; i < tiles.n; i += r) {
    r = std::min(2, tiles.n - i);
    for (int b0 = 0, n; b0 < blocks; b0 += n) {
      n = std::min(FP8_BLOCKS, blocks - b0);
      for (int j = 0; j < r; j++)
        for (int b = 0; b < n; b++) convert_fp8(WeightFP8::block(tiles[i + j], (b0 + b) * GROUP), converted[j * FP8_BLOCKS + b]);
      for (int t = row0, tokens; t < row1; t += tokens) {
        tokens = std::min(FP8_TOKENS, row1 - t);
        const uint16_t* xt = x.bf16 + (size_t)t * x.cols + (size_t)b0 * GROUP;
        float* to = sums + (size_t)(t - row0) * r * ROWS;
        if (r == 2) multiply_converted_tokens<2>(w, n, xt, x.cols, tokens, to, b0 == 0);
        else multiply_converted_tokens<1>(w, n, xt, x.cols, tokens, to, b0 == 0);
        for (int j = 0; b0 + n == blocks && j < tokens; j++) emit(tiles, out, t + j, i, r, to + j * r * ROWS, ROWS);
      }
    }
  }
}

void fp8(const Tiles& tiles, const Input& x, int row0, int row1, const Output& out, uint8_t* scratch) {
  if (row1 - row0 <= FP8_FEW) return few_tokens_fp8(tiles, x, row0, row1, out);
  for (int t = row0; t < row1; t += FP8_MOST) many_tokens_fp8(tiles, x, t, std::min(row1, t + FP8_MOST), out, scratch);
}

}  // namespace
}  // namespace puna::PUNA_TARGET
