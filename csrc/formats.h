// Quantized block formats in packed form, one struct per GGUF type. Compiled once per target.
//
// Packing takes 16 rows (a tile) and interleaves their blocks field by field, `unit` bytes of each row at a time, so
// that one vector holds the same columns of 16 rows and no kernel needs a horizontal sum. Bits move, no number changes
// and no byte is added: a packed matrix is as large as the file's. formats.cpp lists the fields; the offsets below
// follow from them. Bit layouts of a block: GGUF (ggml-common.h names them block_q4_0, block_q4_K, ...).
//
// A format's columns are read 32 at a time (a sub-block s of SUBS per block):
//     weight = d * (q - ZERO)          where !MIN
//     weight = d * q + m               where MIN
// q[k] holds columns 4k..4k+3 of the sub-block, d and m one value per row; where HALVES, d[0] and m[0] hold for the
// first 16 columns and d[1], m[1] for the others.
#pragma once
#include "simd.h"
#include "types.h"

namespace puna::PUNA_TARGET {

struct SubBlock {
  u8x64 q[8];
  f32x16 d[2];
  f32x16 m[2];
};

constexpr int ROWS = 16;  // rows of a tile

// Low and high nibbles of 4 x 64 bytes: columns 0-15 in the low ones, 16-31 in the high ones (Q4_0 family).
inline void load_nibbles(const uint8_t* p, u8x64* q) {
  const u8x64 low = bset1(15);
  for (int k = 0; k < 4; k++) {
    u8x64 b = load_bytes(p + 64 * k);
    q[k] = band(b, low);
    q[k + 4] = band(shr<4>(b), low);
  }
}

// Fifth bits of 32 columns from one 32-bit word per row (Q5_0, Q5_1).
inline void add_fifth_bits(const uint8_t* words, u8x64* q) {
  q[0] = bor(q[0], spread_bits<0>(words, 16));
  q[1] = bor(q[1], spread_bits<1>(words, 16));
  q[2] = bor(q[2], spread_bits<2>(words, 16));
  q[3] = bor(q[3], spread_bits<3>(words, 16));
  q[4] = bor(q[4], spread_bits<4>(words, 16));
  q[5] = bor(q[5], spread_bits<5>(words, 16));
  q[6] = bor(q[6], spread_bits<6>(words, 16));
  q[7] = bor(q[7], spread_bits<7>(words, 16));
}

inline f32x16 f16_at(const uint8_t* p) { return load_f16((const uint16_t*)p); }

struct Q8_0 {
  static constexpr int SUBS = 1, BYTES = 34, ZERO = 128;
  static constexpr bool MIN = false, HALVES = false;
  template <int S> static void load(const uint8_t* t, SubBlock& w) {  // d, 32 int8 (stored + 128 by the packer)
    w.d[0] = f16_at(t);
    for (int k = 0; k < 8; k++) w.q[k] = load_bytes(t + 32 + 64 * k);
  }
};

struct Q4_0 {
  static constexpr int SUBS = 1, BYTES = 18, ZERO = 8;
  static constexpr bool MIN = false, HALVES = false;
  template <int S> static void load(const uint8_t* t, SubBlock& w) {  // d, nibbles
    w.d[0] = f16_at(t);
    load_nibbles(t + 32, w.q);
  }
};

struct Q4_1 {
  static constexpr int SUBS = 1, BYTES = 20, ZERO = 0;
  static constexpr bool MIN = true, HALVES = false;
  template <int S> static void load(const uint8_t* t, SubBlock& w) {  // d, m, nibbles
    w.d[0] = f16_at(t);
    w.m[0] = f16_at(t + 32);
    load_nibbles(t + 64, w.q);
  }
};

struct Q5_0 {
  static constexpr int SUBS = 1, BYTES = 22, ZERO = 16;
  static constexpr bool MIN = false, HALVES = false;
  template <int S> static void load(const uint8_t* t, SubBlock& w) {  // d, fifth bits, nibbles
    w.d[0] = f16_at(t);
    load_nibbles(t + 96, w.q);
    add_fifth_bits(t + 32, w.q);
  }
};

struct Q5_1 {
  static constexpr int SUBS = 1, BYTES = 24, ZERO = 0;
  static constexpr bool MIN = true, HALVES = false;
  template <int S> static void load(const uint8_t* t, SubBlock& w) {  // d, m, fifth bits, nibbles
    w.d[0] = f16_at(t);
    w.m[0] = f16_at(t + 32);
    load_nibbles(t + 128, w.q);
    add_fifth_bits(t + 64, w.q);
  }
};

// 6-bit scale and minimum S of the 12 bytes that Q4_K and Q5_K share; byte j of all rows stands at p + 16 j.
template <int S> inline void load_scale_min_k4(const uint8_t* p, f32x16 d, f32x16 dmin, SubBlock& w) {
  i32x16 scale, low;
  if constexpr (S < 4) {
    scale = band(load_u8(p + 16 * S), 63);
    low = band(load_u8(p + 16 * (S + 4)), 63);
  } else {
    i32x16 both = load_u8(p + 16 * (S + 4));
    scale = bor(band(both, 15), shl<4>(shr<6>(load_u8(p + 16 * (S - 4)))));
    low = bor(shr<4>(both), shl<4>(shr<6>(load_u8(p + 16 * S))));
  }
  w.d[0] = mul(d, to_f32(scale));
  w.m[0] = mul(sub(zero(), dmin), to_f32(low));
}

// Nibbles of sub-block S where two sub-blocks share 32 bytes (K formats): S even in the low, odd in the high ones, which
// stay where they are if `raised`.
template <int S, bool Raised = false> inline void load_shared_nibbles(const uint8_t* p, u8x64* q) {
  const u8x64 nibble = bset1(Raised && S % 2 ? 0xf0 : 15);
  for (int k = 0; k < 8; k++) {
    u8x64 b = load_bytes(p + (S / 2) * 512 + 64 * k);
    q[k] = band(S % 2 && !Raised ? shr<4>(b) : b, nibble);
  }
}

// load<S, true> leaves the q of such a sub-block too large by 2^raised, for a sum of products to be shifted down once.
template <class F, int S> constexpr int raised = 0;

struct Q4_K {
  static constexpr int SUBS = 8, BYTES = 144, ZERO = 0;
  static constexpr bool MIN = true, HALVES = false;
  template <int S, bool Raised = false> static void load(const uint8_t* t, SubBlock& w) {  // d, dmin, 12 scale bytes, 128 nibble bytes
    load_scale_min_k4<S>(t + 64, f16_at(t), f16_at(t + 32), w);
    load_shared_nibbles<S, Raised>(t + 256, w.q);
  }
};
template <int S> constexpr int raised<Q4_K, S> = S % 2 ? 4 : 0;

struct Q5_K {
  static constexpr int SUBS = 8, BYTES = 176, ZERO = 0;
  static constexpr bool MIN = true, HALVES = false;
  template <int S> static void load(const uint8_t* t, SubBlock& w) {  // d, dmin, 12 scale bytes, 32 fifth-bit bytes, nibbles
    load_scale_min_k4<S>(t + 64, f16_at(t), f16_at(t + 32), w);
    load_shared_nibbles<S>(t + 768, w.q);
    const u8x64 fifth = bset1(16);
    for (int k = 0; k < 8; k++) {
      u8x64 h = load_bytes(t + 256 + 64 * k);
      w.q[k] = bor(w.q[k], band(S < 4 ? shl<(S < 4 ? 4 - S : 0)>(h) : shr<(S > 4 ? S - 4 : 0)>(h), fifth));
    }
  }
};

struct Q6_K {
  static constexpr int SUBS = 8, BYTES = 210, ZERO = 32;
  static constexpr bool MIN = false, HALVES = true;
  template <int S> static void load(const uint8_t* t, SubBlock& w) {  // d, 16 int8 scales, twice: high pairs 32, low nibbles 64
    constexpr int half = S / 4, quarter = S % 4;
    const uint8_t *qh = t + (18 + 96 * half) * ROWS, *ql = qh + (32 + 32 * (quarter & 1)) * ROWS;
    const u8x64 low = bset1(15), pair = bset1(0x30);
    for (int k = 0; k < 8; k++) {
      u8x64 l = load_bytes(ql + 64 * k), h = load_bytes(qh + 64 * k);
      l = band(quarter / 2 ? shr<4>(l) : l, low);
      h = quarter == 0 ? shl<4>(h) : quarter == 1 ? shl<2>(h) : quarter == 2 ? h : shr<2>(h);
      w.q[k] = bor(l, band(h, pair));
    }
    const int8_t* scales = (const int8_t*)t + (2 + 8 * half + 2 * quarter) * ROWS;
    f32x16 d = f16_at(t);
    w.d[0] = mul(d, to_f32(load_i8(scales)));
    w.d[1] = mul(d, to_f32(load_i8(scales + ROWS)));
  }
};

// Bit pairs of sub-block S where four sub-blocks share 32 bytes (Q2_K, Q3_K).
template <int S> inline void load_shared_pairs(const uint8_t* p, u8x64* q) {
  const u8x64 low = bset1(3);
  for (int k = 0; k < 8; k++) q[k] = band(shr<2 * (S % 4)>(load_bytes(p + (S / 4) * 512 + 64 * k)), low);
}

struct Q3_K {
  static constexpr int SUBS = 8, BYTES = 110, ZERO = 4;
  static constexpr bool MIN = false, HALVES = true;
  template <int I> static i32x16 scale(const uint8_t* p) {  // 6 bits: low four in bytes 0-7, high two in bytes 8-11
    i32x16 low = I < 8 ? band(load_u8(p + ROWS * (I % 8)), 15) : shr<4>(load_u8(p + ROWS * (I % 8)));
    i32x16 high = band(shr<2 * (I / 4)>(load_u8(p + ROWS * (8 + I % 4))), 3);
    return iadd(bor(low, shl<4>(high)), iset1(-32));
  }
  template <int S> static void load(const uint8_t* t, SubBlock& w) {  // high bits 32, pairs 64, 12 scale bytes, d
    load_shared_pairs<S>(t + 32 * ROWS, w.q);
    const u8x64 third = bset1(4);
    for (int k = 0; k < 8; k++) {
      u8x64 h = load_bytes(t + 64 * k);
      w.q[k] = bor(w.q[k], band(S < 2 ? shl<(S < 2 ? 2 - S : 0)>(h) : shr<(S > 2 ? S - 2 : 0)>(h), third));
    }
    f32x16 d = f16_at(t + 108 * ROWS);
    w.d[0] = mul(d, to_f32(scale<2 * S>(t + 96 * ROWS)));
    w.d[1] = mul(d, to_f32(scale<2 * S + 1>(t + 96 * ROWS)));
  }
};

struct Q2_K {
  static constexpr int SUBS = 8, BYTES = 84, ZERO = 0;
  static constexpr bool MIN = true, HALVES = true;
  template <int S> static void load(const uint8_t* t, SubBlock& w) {  // 16 scale bytes (scale, min nibbles), pairs 64, d, dmin
    load_shared_pairs<S>(t + 16 * ROWS, w.q);
    f32x16 d = f16_at(t + 80 * ROWS), dmin = f16_at(t + 82 * ROWS);
    for (int half = 0; half < 2; half++) {
      i32x16 both = load_u8(t + (2 * S + half) * ROWS);
      w.d[half] = mul(d, to_f32(band(both, 15)));
      w.m[half] = mul(sub(zero(), dmin), to_f32(shr<4>(both)));
    }
  }
};

// The 16 levels of IQ4_NL and IQ4_XS, raised by 128 to be unsigned.
alignas(16) constexpr uint8_t IQ4_LEVELS[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

inline void look_up_levels(u8x64* q) {
  for (int k = 0; k < 8; k++) q[k] = lookup16(IQ4_LEVELS, q[k]);
}

struct IQ4_NL {
  static constexpr int SUBS = 1, BYTES = 18, ZERO = 128;
  static constexpr bool MIN = false, HALVES = false;
  template <int S> static void load(const uint8_t* t, SubBlock& w) {  // d, nibbles
    w.d[0] = f16_at(t);
    load_nibbles(t + 32, w.q);
    look_up_levels(w.q);
  }
};

struct IQ4_XS {
  static constexpr int SUBS = 8, BYTES = 136, ZERO = 128;
  static constexpr bool MIN = false, HALVES = false;
  template <int S> static void load(const uint8_t* t, SubBlock& w) {  // d, 16 high scale bits, 4 low scale bytes, nibbles
    i32x16 high = band(shr<2 * S>(load_u16((const uint16_t*)(t + 32))), 3);
    i32x16 low = band(shr<4 * (S % 2)>(load_u8(t + 64 + ROWS * (S / 2))), 15);
    w.d[0] = mul(f16_at(t), to_f32(iadd(bor(low, shl<4>(high)), iset1(-32))));
    load_nibbles(t + 128 + S * 256, w.q);
    look_up_levels(w.q);
  }
};

// Codes with float scales: what releases quantized by others become at load, number for number (weights/blocks/recode.py and packed.py).
struct INT4 {
  static constexpr int SUBS = 1, BYTES = 20, ZERO = 8;
  static constexpr bool MIN = false, HALVES = false;
  template <int S> static void load(const uint8_t* t, SubBlock& w) {  // float d, nibbles
    w.d[0] = PUNA_TARGET::load((const float*)t);
    load_nibbles(t + 64, w.q);
  }
};

struct INT4_MIN {
  static constexpr int SUBS = 1, BYTES = 24, ZERO = 0;
  static constexpr bool MIN = true, HALVES = false;
  template <int S> static void load(const uint8_t* t, SubBlock& w) {  // float d, float m, nibbles
    w.d[0] = PUNA_TARGET::load((const float*)t);
    w.m[0] = PUNA_TARGET::load((const float*)t + ROWS);
    load_nibbles(t + 128, w.q);
  }
};

struct INT8 {
  static constexpr int SUBS = 1, BYTES = 36, ZERO = 128;
  static constexpr bool MIN = false, HALVES = false;
  template <int S> static void load(const uint8_t* t, SubBlock& w) {  // float d, 32 int8 (stored + 128 by the packer)
    w.d[0] = PUNA_TARGET::load((const float*)t);
    for (int k = 0; k < 8; k++) w.q[k] = load_bytes(t + 64 + 64 * k);
  }
};

struct INT8_16 {
  static constexpr int SUBS = 1, BYTES = 40, ZERO = 128;
  static constexpr bool MIN = false, HALVES = true;
  template <int S> static void load(const uint8_t* t, SubBlock& w) {  // two float d, 32 int8 (stored + 128 by the packer)
    w.d[0] = PUNA_TARGET::load((const float*)t);
    w.d[1] = PUNA_TARGET::load((const float*)t + ROWS);
    for (int k = 0; k < 8; k++) w.q[k] = load_bytes(t + 128 + 64 * k);
  }
};

// Unquantized weights: a tile is [cols][16] (bf16: [cols / 2][16][2]); one accumulator per output, columns in order.
struct WeightF32 {
  using Value = float;
  static constexpr int STEP = 1, BYTES = 4;
  static const Value* row(const Input& x, int t) { return x.f32 + (size_t)t * x.cols; }
  static f32x16 load(const uint8_t* tile, int col) { return PUNA_TARGET::load((const float*)tile + (size_t)col * ROWS); }
  static f32x16 repeat(const Value* p) { return set1(*p); }
  static f32x16 multiply(f32x16 acc, f32x16 w, f32x16 x) { return fma(w, x, acc); }
};
struct WeightF16 : WeightF32 {
  static constexpr int BYTES = 2;
  static f32x16 load(const uint8_t* tile, int col) { return f16_at(tile + (size_t)col * 2 * ROWS); }
};
struct WeightBF16 {
  using Value = uint16_t;
  static constexpr int STEP = 2, BYTES = 2;
  static const Value* row(const Input& x, int t) { return x.bf16 + (size_t)t * x.cols; }
  static bf16x32 load(const uint8_t* tile, int col) { return load_pairs((const uint16_t*)tile + (size_t)col * ROWS); }
  static bf16x32 repeat(const Value* p) { return repeat2(p); }
  static f32x16 multiply(f32x16 acc, bf16x32 w, bf16x32 x) { return dot2(acc, w, x); }
};
// E4M3 numbers, a float scale for 32 of a row. bf16 holds every one of them; no NaN comes here. Of four columns the
// packer has the third before the second, so that pairs of neighbours come out of `load`.
struct WeightFP8 {
  static constexpr int BYTES = 36;  // of 32 columns of a row
  static const uint8_t* block(const uint8_t* tile, int col) { return tile + (size_t)(col / GROUP) * BYTES * ROWS; }
  // Columns j, j + 1 and j + 2, j + 3 of a block without its scale; j is a multiple of 4.
  static void load(const uint8_t* block, int j, bf16x32* w) { load_e4m3(block + (4 + j) * ROWS, w); }
  static f32x16 scale(const uint8_t* block) { return PUNA_TARGET::load((const float*)block); }
};

}  // namespace puna::PUNA_TARGET
