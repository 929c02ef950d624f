// y = x w^T in tiles (AMX): 16 tokens times 16 outputs times 32 columns of bf16 are one instruction, summed in float32.
// Included by linear.cpp only. Quantized weights become bf16 on the way (expand_amx.h); activations are bf16.
//
// Every output is one chain over columns, 32 at a time, in the tile unit's own order, whatever the number of tokens or
// the thread: a token of a tile does not see the others.
//
// Few tokens: two tiles of weights stream through a ring in the first-level cache. Many: they are expanded once, as many
// columns as fit scratch, and multiplied with 32 tokens at a time.
#pragma once
#include <algorithm>
#include <type_traits>

#include "expand_amx.h"
#include "linear_tiles.h"

namespace puna::PUNA_TARGET {
namespace {

constexpr int TILE_TOKENS = 16, TWO_TILES = 32;  // rows, or columns, of a tile of sums and of two
constexpr int MOST_COLUMNS = 2048;               // of expanded weights that stay in the second-level cache
constexpr int MOST_TOKENS = 512;                 // of one pass over them: their sums stay in scratch
constexpr size_t PANEL_BYTES = 2 * MOST_COLUMNS * ROWS * sizeof(uint16_t);
static_assert(PANEL_BYTES + MOST_TOKENS * TWO_TILES * sizeof(float) <= LINEAR_SCRATCH);
constexpr size_t AHEAD_IN_TILES = 8192;          // bytes of a tile fetched before they are needed, at most a tile

inline bool fits_tiles(const Tiles& t) { return t.w.tile_scale > 0 && (!t.up || t.up->tile_scale > 0); }

// Tiles 0 to 3: sums [tokens / 16][weight tile]; 4, 5: activations; 6, 7: weights.
inline void configure_for(int tokens) {
  TileShapes s;
  for (int i = 0; i < 2; i++) {
    const int n = std::clamp(tokens - TILE_TOKENS * i, 1, TILE_TOKENS);
    s.set(2 * i, n, 64);
    s.set(2 * i + 1, n, 64);
    s.set(4 + i, n, 64);
    s.set(6 + i, 16, 64);
  }
  configure_tiles(s);
}

// The sums of up to 32 tokens and two tiles of weights, in registers; Wide: of more than 16 tokens.
template <bool Wide> struct Sums {
  static constexpr size_t STRIDE = TWO_TILES * sizeof(float);
  static void clear() {
    clear_tile<0>(), clear_tile<1>();
    if constexpr (Wide) clear_tile<2>(), clear_tile<3>();
  }
  static void load(const float* p) {
    load_tile<0>(p, STRIDE), load_tile<1>(p + ROWS, STRIDE);
    if constexpr (Wide) load_tile<2>(p + TILE_TOKENS * TWO_TILES, STRIDE), load_tile<3>(p + TILE_TOKENS * TWO_TILES + ROWS, STRIDE);
  }
  static void store(float* p) {
    store_tile<0>(p, STRIDE), store_tile<1>(p + ROWS, STRIDE);
    if constexpr (Wide) store_tile<2>(p + TILE_TOKENS * TWO_TILES, STRIDE), store_tile<3>(p + TILE_TOKENS * TWO_TILES + ROWS, STRIDE);
  }
  // 32 columns
  static void add(const uint16_t* x, size_t x_stride, const uint16_t* w0, const uint16_t* w1) {
    load_tile<6>(w0, 64);
    load_tile<4>(x, x_stride * sizeof(uint16_t));
    multiply_bf16<0, 4, 6>();
    load_tile<7>(w1, 64);
    multiply_bf16<1, 4, 7>();
    if constexpr (Wide) {
      load_tile<5>(x + TILE_TOKENS * x_stride, x_stride * sizeof(uint16_t));
      multiply_bf16<2, 5, 6>();
      multiply_bf16<3, 5, 7>();
    }
  }
};

// Two neighbouring tiles of a call: one, where it is the last of an odd number, is both.
struct Pair {
  const uint8_t *data[2], *next[2];  // next: the tiles that come after these
  size_t tile_bytes;
  f32x16 scale[2];
  f32x16 unscale[2];
  int n;

  // Of the tile, or of the one that comes after it, what is due a while behind byte `at`.
  void fetch(int j, size_t at, size_t bytes) const {
    const size_t ahead = at + std::min(AHEAD_IN_TILES, tile_bytes);
    const uint8_t* p = ahead < tile_bytes ? data[j] + ahead : next[j] + (ahead - tile_bytes);
    for (size_t i = 0; i < bytes; i += 64) prefetch_far(p + i);
  }
};
template <class F> Pair pair_at(const Tiles& tiles, int i) {
  Pair p;
  p.n = std::min(2, tiles.n - i);
  p.tile_bytes = tiles.w.tile_bytes;
  for (int j = 0; j < 2; j++) {
    const int at = i + std::min(j, p.n - 1);
    const float scale = tiles.up && at % 2 ? tiles.up->tile_scale : tiles.w.tile_scale;
    p.data[j] = tiles[at];
    p.next[j] = tiles[std::min(tiles.n - 1, i + 2 + j)];
    p.scale[j] = set1(scale * MEAN_CUT);
    p.unscale[j] = set1(std::is_same_v<F, WeightBF16> ? 1.0f : CUT_SCALE / scale);
  }
  return p;
}

inline void emit_sums(const Tiles& tiles, const Pair& pair, float* sums, int n, const Output& out, int row, int i) {
  for (int t = 0; t < n; t++, sums += TWO_TILES) {
    for (int j = 0; j < pair.n; j++) store(sums + ROWS * j, mul(load(sums + ROWS * j), pair.unscale[j]));
    emit(tiles, out, row + t, i, pair.n, sums, ROWS);
  }
}

// Of two tiles, all columns, expanded while up to 32 tokens stay. What is multiplied was written some hundred
// instructions before: a tile is loaded from the cache, not from what is on its way there.
template <class F, bool Wide> void stream(const Pair& pair, int cols, const uint16_t* x, size_t x_stride) {
  constexpr int HALF = F::SUBS == 1 ? 2 : 1;  // blocks of a half of the ring
  alignas(64) uint16_t ring[2][HALF * F::SUBS][2][EXPANDED];
  const int blocks = cols / GROUP / F::SUBS;
  int ready = 0;  // 32 columns each, of the other half
  Sums<Wide>::clear();
  for (int b = 0, turn = 0; b < blocks || ready; b += HALF, turn ^= 1) {
    int written = 0, done = 0;
    const auto multiply_next = [&] {
      if (done == ready) return;
      Sums<Wide>::add(x, x_stride, ring[turn ^ 1][done][0], ring[turn ^ 1][done][1]);
      x += GROUP, done++;
    };
    for (int i = b; i < std::min(blocks, b + HALF); i++) {
      const size_t at = (size_t)i * F::BYTES * ROWS;
      for (int j = 0; j < 2; j++) pair.fetch(j, at, F::BYTES * ROWS);
      each_sub<F>([&]<int S>() {
        multiply_next();
        for (int j = 0; j < 2; j++) expand<F, S>(pair.data[j] + at, pair.scale[j], ring[turn][written][j]);
        written++;
      });
    }
    while (done < ready) multiply_next();
    ready = written;
  }
}

// Columns that lie expanded at w0 and w1.
template <bool Wide> void multiply_expanded(const uint16_t* w0, const uint16_t* w1, int cols, const uint16_t* x, size_t x_stride) {
  for (int c = 0; c < cols; c += GROUP) Sums<Wide>::add(x + c, x_stride, w0 + c * ROWS, w1 + c * ROWS);
}

template <class F> void few_in_tiles(const Tiles& tiles, const Input& x, int row0, int row1, const Output& out) {
  alignas(64) float sums[TWO_TILES * TWO_TILES];
  const uint16_t* rows = x.bf16 + (size_t)row0 * x.cols;
  for (int i = 0; i < tiles.n; i += 2) {
    const Pair pair = pair_at<F>(tiles, i);
    for (int t = row0; t < row1; t++) prefetch_output(tiles, out, t, i);
    const auto all = [&]<bool Wide>() {
      if constexpr (std::is_same_v<F, WeightBF16>) {
        Sums<Wide>::clear();
        multiply_expanded<Wide>((const uint16_t*)pair.data[0], (const uint16_t*)pair.data[1], tiles.w.cols, rows, x.cols);
      } else {
        stream<F, Wide>(pair, tiles.w.cols, rows, x.cols);
      }
      Sums<Wide>::store(sums);
    };
    if (row1 - row0 > TILE_TOKENS) all.template operator()<true>();
    else all.template operator()<false>();
    emit_sums(tiles, pair, sums, row1 - row0, out, row0, i);
  }
}

// Columns c0..c0+n of a pair as bf16: where they are, of each tile.
template <class F> void expand_columns(const Pair& pair, int c0, int n, uint16_t* panel, const uint16_t* (&to)[2]) {
  for (int j = 0; j < 2; j++) {
    if constexpr (std::is_same_v<F, WeightBF16>) {
      to[j] = (const uint16_t*)pair.data[j] + c0 * ROWS;
    } else {
      const uint8_t* block = pair.data[j] + (size_t)c0 / GROUP / F::SUBS * F::BYTES * ROWS;
      uint16_t* at = panel + (j < pair.n ? j : 0) * n * ROWS;
      to[j] = at;
      for (int c = 0; c < n && j < pair.n; c += GROUP * F::SUBS, block += F::BYTES * ROWS)
        each_sub<F>([&]<int S>() { expand<F, S>(block, pair.scale[j], at + (c + S * GROUP) * ROWS); });
    }
  }
}

// Columns c0..c0+n_cols of a pair, expanded at w, with all tokens: 32 at a time. Their sums so far lie in all_sums; after
// the last columns they go out.
inline void multiply_columns(const Tiles& tiles, const Pair& pair, int i, const uint16_t* const (&w)[2], int c0, int n_cols, const Input& x,
                             int row0, int row1, float* all_sums, const Output& out) {
  const bool done = c0 + n_cols == tiles.w.cols;
  for (int t = row0, n; t < row1; t += n) {
    n = std::min(TWO_TILES, row1 - t);
    if (n < TWO_TILES || t == row0) configure_for(n);
    for (int j = t; done && j < t + n; j++) prefetch_output(tiles, out, j, i);
    float* sums = all_sums + (size_t)(t - row0) * TWO_TILES;
    const auto all = [&]<bool Wide>() {
      if (c0 == 0) Sums<Wide>::clear();
      else Sums<Wide>::load(sums);
      multiply_expanded<Wide>(w[0], w[1], n_cols, x.bf16 + (size_t)t * x.cols + c0, x.cols);
      Sums<Wide>::store(sums);
    };
    if (n > TILE_TOKENS) all.template operator()<true>();
    else all.template operator()<false>();
    if (done) emit_sums(tiles, pair, sums, n, out, t, i);
  }
}

template <class F> void many_in_tiles(const Tiles& tiles, const Input& x, int row0, int row1, const Output& out, uint8_t* scratch) {
  uint16_t* panel = (uint16_t*)scratch;
  float* sums = (float*)(scratch + PANEL_BYTES);
  for (int i = 0; i < tiles.n; i += 2) {
    const Pair pair = pair_at<F>(tiles, i);
    for (int c0 = 0, n_cols; c0 < tiles.w.cols; c0 += n_cols) {
      n_cols = std::min(MOST_COLUMNS, tiles.w.cols - c0);
      const uint16_t* w[2];
      expand_columns<F>(pair, c0, n_cols, panel, w);
      multiply_columns(tiles, pair, i, w, c0, n_cols, x, row0, row1, sums, out);
    }
  }
}

template <class F> void multiply_tiles(const Tiles& tiles, const Input& x, int row0, int row1, const Output& out, uint8_t* scratch) {
  if (row1 - row0 <= TWO_TILES) {
    configure_for(row1 - row0);
    few_in_tiles<F>(tiles, x, row0, row1, out);
  } else {
    for (int t = row0; t < row1; t += MOST_TOKENS) many_in_tiles<F>(tiles, x, t, std::min(row1, t + MOST_TOKENS), out, scratch);
  }
  release_tiles();
}

}  // namespace
}  // namespace puna::PUNA_TARGET
