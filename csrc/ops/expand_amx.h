// Quantized weights as bf16, the way the tile unit of AMX reads them. Included by linear_amx.h only.
//
// A weight of a block, d * (q - ZERO) or d * q + m, is computed as a half: the integer is exact, the product has 11 bits.
// Then it is cut off to the 8 bits of a bf16; what that takes away on average is put into the scales before, so that the
// mean error is none. What is left is 0.2 % of a weight, in the mean of squares.
//
// Halves reach from 2^-14 to 2^16. Every matrix has a power of two that puts its largest weight below 2^14 (Matrix::tile_scale),
// or does without tiles, if some of its rows are smaller than others by more than 2^12 or any scale is no number.
#pragma once
#include "../formats.h"

namespace puna::PUNA_TARGET {
namespace {

constexpr float MEAN_CUT = 1.0024f;        // half of what is cut off of numbers from 1 to 2, on average
constexpr float CUT_SCALE = 65536.0f;      // what store_cut leaves its numbers too small by
constexpr int EXPANDED = GROUP * ROWS;     // numbers of a tile: 32 columns of 16 rows

// Where the nibbles of a block stand. Of one kind low and high ones of a byte are columns 0-15 and 16-31 of a sub-block,
// of the other they are the same column of two sub-blocks. Looked up, they are halves at once.
template <class F> constexpr int split_nibbles_at = -1;
template <> constexpr int split_nibbles_at<Q4_0> = 32;
template <> constexpr int split_nibbles_at<Q4_1> = 64;
template <> constexpr int split_nibbles_at<IQ4_NL> = 32;
template <> constexpr int split_nibbles_at<IQ4_XS> = 128;
template <> constexpr int split_nibbles_at<INT4> = 64;
template <> constexpr int split_nibbles_at<INT4_MIN> = 128;
template <class F> constexpr int shared_nibbles_at = -1;
template <> constexpr int shared_nibbles_at<Q4_K> = 256;

// The 16 values of a nibble as halves, twice.
struct Levels {
  alignas(64) _Float16 v[32];
  constexpr Levels(int zero, const uint8_t* named) {
    for (int i = 0; i < 32; i++) v[i] = (_Float16)((named ? named[i % 16] : i % 16) - zero);
  }
};
template <class F> inline constexpr Levels levels{F::ZERO, split_nibbles_at<F> >= 0 && F::ZERO == 128 ? IQ4_LEVELS : nullptr};

// Scale and minimum of the 16 rows of a sub-block, for its halves.
template <class F> struct HalfScales {
  f16x32 d[F::HALVES ? 2 : 1], m[F::HALVES ? 2 : 1];

  HalfScales(const SubBlock& w, f32x16 scale) {
    for (int half = 0; half < (F::HALVES ? 2 : 1); half++) {
      d[half] = twice_f16(mul(w.d[half], scale));
      if constexpr (F::MIN) m[half] = twice_f16(mul(w.m[half], scale));
      else m[half] = mul(d[half], set1_f16(-(float)F::ZERO));  // exact: ZERO is a power of two
    }
  }
  // Columns 4k..4k+3: integers of columns 4k, 4k+1 in a, of 4k+2, 4k+3 in b.
  void put(uint16_t* to, int k, f16x32 a, f16x32 b, bool is_level) const {
    const int half = F::HALVES ? k / 4 : 0;
    const bool plain = is_level && !F::MIN;
    store_cut(to + 64 * k, plain ? mul(a, d[half]) : fma(a, d[half], m[half]));
    store_cut(to + 64 * k + 32, plain ? mul(b, d[half]) : fma(b, d[half], m[half]));
  }
};

// Sub-block S of a block, 32 columns of 16 rows: to [column / 2][row][column % 2].
template <class F, int S> inline void expand(const uint8_t* block, f32x16 scale, uint16_t* to) {
  SubBlock w;
  F::template load<S>(block, w);
  const HalfScales<F> scales(w, scale);
  constexpr int SPLIT = split_nibbles_at<F>, SHARED = shared_nibbles_at<F>;
  if constexpr (SPLIT >= 0) {
    const f16x32 table = load_f16x32(levels<F>.v);
    for (int k = 0; k < 4; k++) {
      const u8x64 both = load_bytes(block + SPLIT + S * 256 + 64 * k);
      const u16x32 a = bytes_to_words<0>(both), b = bytes_to_words<1>(both);
      scales.put(to, k, lookup16(table, a), lookup16(table, b), true);
      scales.put(to, k + 4, lookup16(table, shr<4>(a)), lookup16(table, shr<4>(b)), true);
    }
  } else if constexpr (SHARED >= 0) {
    const f16x32 table = load_f16x32(levels<F>.v);
    for (int k = 0; k < 8; k++) {
      const u8x64 both = load_bytes(block + SHARED + S / 2 * 512 + 64 * k);
      const u16x32 a = bytes_to_words<0>(both), b = bytes_to_words<1>(both);
      scales.put(to, k, lookup16(table, S % 2 ? shr<4>(a) : a), lookup16(table, S % 2 ? shr<4>(b) : b), true);
    }
  } else {
    for (int k = 0; k < 8; k++) scales.put(to, k, to_f16(bytes_to_words<0>(w.q[k])), to_f16(bytes_to_words<1>(w.q[k])), false);
  }
}

// fn.operator()<S>() for every sub-block of a block.
template <class F, int S = 0, class Fn> inline void each_sub(Fn fn) {
  fn.template operator()<S>();
  if constexpr (S + 1 < F::SUBS) each_sub<F, S + 1>(fn);
}

// What no weight of rows of a tile is larger than; not finite where a scale is not.
template <class F> f32x16 bounds_of_rows(const uint8_t* tile, int blocks) {
  const f32x16 most = set1(F::ZERO ? F::ZERO : 31.0f);
  f32x16 largest = zero(), sum = zero();
  for (int b = 0; b < blocks; b++, tile += F::BYTES * ROWS) {
    each_sub<F>([&]<int S>() {
      SubBlock w;
      F::template load<S>(tile, w);
      for (int half = 0; half < (F::HALVES ? 2 : 1); half++) {
        f32x16 bound = mul(abs(w.d[half]), most);
        if constexpr (F::MIN) bound = add(bound, abs(w.m[half]));
        largest = max(largest, bound);
        sum = add(sum, bound);
      }
    });
  }
  return max(largest, sub(sum, sum));  // NaN stays: it is the second one
}

}  // namespace
}  // namespace puna::PUNA_TARGET
