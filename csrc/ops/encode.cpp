// Quantizing weights: float rows to the block formats of GGUF files.
//
// Contract: x [.., cols] float32, finite; block b of the format holds values b * L .. b * L + L - 1 of the flattened
// matrix; importance [cols] are weights of the squared error of each column, or null for all alike; blocks block0..block1
// are written to their places in `out`, which is where block 0 would lie. Every target writes the same bytes.
//
// A format has sub-blocks with a scale (and a minimum) each. encode_search.h finds those in floats. Where they are stored
// as small whole numbers under a scale of the super-block, they are then chosen again among their neighbours, and the
// super-block's scale by least squares, with the codes that really result.
#include <algorithm>
#include <cmath>

#include "../types.h"
#include "encode_search.h"

namespace puna::PUNA_TARGET {
namespace {

constexpr int LANES = 16;

// What a group of 16 sub-blocks becomes.
template <int N> struct Encoded {
  int q[LANES][N];                      // codes
  int scale[LANES], minimum[LANES];     // of sub-blocks, where the format stores whole numbers
  float d[LANES], m[LANES];             // of the block that a lane belongs to
};

f32x16 to_half(f32x16 a) {
  uint16_t h[LANES];
  store_f16(h, min(max(a, set1(-65504.0f)), set1(65504.0f)));
  return load_f16(h);
}

void put_half(uint8_t* p, float x) {
  float lanes[LANES] = {x};
  uint16_t h[LANES];
  store_f16(h, load(lanes));
  std::memcpy(p, h, 2);
}

template <class Codes, int N> void round_codes(const Lanes<N>& s, f32x16 d, f32x16 m, Encoded<N>& e) {
  const f32x16 inv = inverse(d);
  float q[LANES];
  for (int i = 0; i < N; i++) {
    store(q, Codes::nearest(mul(sub(s.x[i], m), inv)));
    for (int r = 0; r < LANES; r++) e.q[r][i] = (int)q[r];
  }
}

// The sum of each block's lanes, in every one of its lanes.
template <int Subs> f32x16 sum_of_block(f32x16 a) {
  float v[LANES];
  store(v, a);
  for (int b = 0; b < LANES; b += Subs) {
    float sum = 0;
    for (int r = b; r < b + Subs; r++) sum += v[r];
    for (int r = b; r < b + Subs; r++) v[r] = sum;
  }
  return load(v);
}

// The lane of largest magnitude of each block, in every one of its lanes.
template <int Subs> f32x16 extreme_of_block(f32x16 a) {
  float v[LANES];
  store(v, a);
  for (int b = 0; b < LANES; b += Subs) {
    const float extreme = *std::max_element(v + b, v + b + Subs, [](float x, float y) { return std::fabs(x) < std::fabs(y); });
    for (int r = b; r < b + Subs; r++) v[r] = extreme;
  }
  return load(v);
}

inline f32x16 clamp(f32x16 a, float low, float high) { return min(max(a, set1(low)), set1(high)); }

constexpr int ROUNDS = 3;  // of choosing whole scales, then the scale above them

// Sub-block scales as whole numbers Low..High under one scale of the block.
template <class Codes, int Subs, int Low, int High, int N> void encode_scales(const Lanes<N>& s, int tries, float step, Encoded<N>& e) {
  const f32x16 ideal = search_scale<Codes>(s, tries, step);
  f32x16 d = to_half(mul(extreme_of_block<Subs>(ideal), set1(1.0f / Low)));
  f32x16 scale = clamp(round_lanes(mul(ideal, inverse(d))), Low, High);
  f32x16 error = set1(INFINITY), kept_d = d, kept_scale = scale;
  for (int round = 0; round < ROUNDS; round++) {
    f32x16 best = scale_error<Codes>(s, mul(d, scale)), chosen = scale;
    for (const float by : {-1.0f, 1.0f}) {
      const f32x16 other = clamp(add(scale, set1(by)), Low, High), found = scale_error<Codes>(s, mul(d, other));
      chosen = select_greater(best, found, other, chosen);
      best = min(best, found);
    }
    scale = chosen;
    const f32x16 total = sum_of_block<Subs>(best);
    kept_d = select_greater(error, total, d, kept_d);
    kept_scale = select_greater(error, total, scale, kept_scale);
    error = min(error, total);
    f32x16 ax = zero(), aa = zero();
    const f32x16 inv = inverse(mul(d, scale));
    for (int i = 0; i < N; i++) {
      const f32x16 a = mul(scale, Codes::nearest(mul(s.x[i], inv))), wa = mul(s.w[i], a);
      ax = fma(wa, s.x[i], ax);
      aa = fma(wa, a, aa);
    }
    d = to_half(mul(sum_of_block<Subs>(ax), inverse(sum_of_block<Subs>(aa))));
  }
  round_codes<Codes>(s, mul(kept_d, kept_scale), zero(), e);
  store(e.d, kept_d);
  float whole[LANES];
  store(whole, kept_scale);
  std::copy_n(whole, LANES, e.scale);
}

// Sub-block scales and minimums as whole numbers 0..Most under a scale and a minimum of the block.
template <int Top, int Subs, int Most, int N> void encode_affine(const Lanes<N>& s, int tries, float step, Encoded<N>& e) {
  const Affine ideal = search_affine<Top, true>(s, tries, step);
  const f32x16 low = sub(zero(), ideal.m);
  f32x16 d = to_half(mul(extreme_of_block<Subs>(ideal.d), set1(1.0f / Most))), m = to_half(mul(extreme_of_block<Subs>(low), set1(1.0f / Most)));
  f32x16 scale = clamp(round_lanes(mul(ideal.d, inverse(d))), 0, Most), minimum = clamp(round_lanes(mul(low, inverse(m))), 0, Most);
  f32x16 error = set1(INFINITY), kept_d = d, kept_m = m, kept_scale = scale, kept_minimum = minimum;
  for (int round = 0; round < ROUNDS; round++) {
    f32x16 best = set1(INFINITY), chosen_scale = scale, chosen_minimum = minimum;
    for (const float by : {0.0f, -1.0f, 1.0f})
      for (const float also : {0.0f, -1.0f, 1.0f}) {
        const f32x16 a = clamp(add(scale, set1(by)), 0, Most), b = clamp(add(minimum, set1(also)), 0, Most);
        const f32x16 found = affine_error<Top>(s, mul(d, a), sub(zero(), mul(m, b)));
        chosen_scale = select_greater(best, found, a, chosen_scale);
        chosen_minimum = select_greater(best, found, b, chosen_minimum);
        best = min(best, found);
      }
    scale = chosen_scale;
    minimum = chosen_minimum;
    const f32x16 total = sum_of_block<Subs>(best);
    kept_d = select_greater(error, total, d, kept_d);
    kept_m = select_greater(error, total, m, kept_m);
    kept_scale = select_greater(error, total, scale, kept_scale);
    kept_minimum = select_greater(error, total, minimum, kept_minimum);
    error = min(error, total);
    // x = d (scale q) - m minimum: least squares for d and m over the block
    f32x16 aa = zero(), ab = zero(), bb = zero(), ax = zero(), bx = zero();
    const f32x16 b = sub(zero(), minimum), at = mul(m, b), inv = inverse(mul(d, scale));
    for (int i = 0; i < N; i++) {
      const f32x16 a = mul(scale, WholeCodes<0, Top>::nearest(mul(sub(s.x[i], at), inv))), wa = mul(s.w[i], a), wb = mul(s.w[i], b);
      aa = fma(wa, a, aa);
      ab = fma(wa, b, ab);
      bb = fma(wb, b, bb);
      ax = fma(wa, s.x[i], ax);
      bx = fma(wb, s.x[i], bx);
    }
    aa = sum_of_block<Subs>(aa), ab = sum_of_block<Subs>(ab), bb = sum_of_block<Subs>(bb), ax = sum_of_block<Subs>(ax), bx = sum_of_block<Subs>(bx);
    const f32x16 det = sub(mul(aa, bb), mul(ab, ab));
    const f32x16 by_det = keep_where_greater(det, mul(set1(1e-6f), mul(aa, bb)), inverse(det));
    const f32x16 alone = mul(ax, inverse(aa));  // without minimums the system has one unknown
    d = to_half(max(zero(), select_greater(by_det, zero(), mul(sub(mul(bb, ax), mul(ab, bx)), by_det), alone)));
    m = to_half(max(zero(), mul(sub(mul(aa, bx), mul(ab, ax)), by_det)));
  }
  round_codes<WholeCodes<0, Top>>(s, mul(kept_d, kept_scale), sub(zero(), mul(kept_m, kept_minimum)), e);
  store(e.d, kept_d);
  store(e.m, kept_m);
  float whole[LANES];
  store(whole, kept_scale);
  std::copy_n(whole, LANES, e.scale);
  store(whole, kept_minimum);
  std::copy_n(whole, LANES, e.minimum);
}

template <class Codes, int N> void encode_one_scale(const Lanes<N>& s, int tries, float step, Encoded<N>& e) {
  const f32x16 d = to_half(search_scale<Codes>(s, tries, step));
  round_codes<Codes>(s, d, zero(), e);
  store(e.d, d);
}

template <int Top, int N> void encode_one_affine(const Lanes<N>& s, Encoded<N>& e) {
  const Affine a = search_affine<Top, false>(s, 8, 0.2f);
  const f32x16 d = to_half(a.d), m = to_half(a.m);
  round_codes<WholeCodes<0, Top>>(s, d, m, e);
  store(e.d, d);
  store(e.m, m);
}

// Codes of `Bits` bits whose lowest fields, of `width` neighbouring bytes, come first: value v of the block.
template <int Bits> inline void put(uint8_t* p, int width, int v, int code) {
  constexpr int PER_BYTE = 8 / Bits;
  const int group = v / (width * PER_BYTE), rest = v % (width * PER_BYTE);
  p[group * width + rest % width] |= code << (Bits * (rest / width));
}

template <int N> struct Blocks {  // one block's lanes of a group
  const Encoded<N>& e;
  int lane;
  int code(int v) const { return e.q[lane + v / N][v % N]; }
};

struct EncodeQ8_0 {
  static constexpr int LEN = 32, SUB = 32, BYTES = 34;
  static void choose(const Lanes<32>& s, Encoded<32>& e) { encode_one_scale<WholeCodes<-127, 127>>(s, 2, 0.3f, e); }
  static void pack(const Blocks<32>& b, uint8_t* p) {
    put_half(p, b.e.d[b.lane]);
    for (int v = 0; v < 32; v++) p[2 + v] = (uint8_t)b.code(v);
  }
};

template <int Bits> struct EncodeSymmetric {  // Q4_0, Q5_0
  static constexpr int LEN = 32, SUB = 32, HALF = 1 << (Bits - 1), FIFTH = Bits == 5 ? 4 : 0, BYTES = 18 + FIFTH;
  static void choose(const Lanes<32>& s, Encoded<32>& e) { encode_one_scale<WholeCodes<-HALF, HALF - 1>>(s, 8, 0.15f, e); }
  static void pack(const Blocks<32>& b, uint8_t* p) {
    put_half(p, b.e.d[b.lane]);
    for (int v = 0; v < 32; v++) {
      put<4>(p + 2 + FIFTH, 16, v, (b.code(v) + HALF) & 15);
      if (FIFTH) p[2 + v / 8] |= ((b.code(v) + HALF) >> 4) << (v % 8);
    }
  }
};

template <int Bits> struct EncodeAffine {  // Q4_1, Q5_1
  static constexpr int LEN = 32, SUB = 32, FIFTH = Bits == 5 ? 4 : 0, BYTES = 20 + FIFTH;
  static void choose(const Lanes<32>& s, Encoded<32>& e) { encode_one_affine<(1 << Bits) - 1>(s, e); }
  static void pack(const Blocks<32>& b, uint8_t* p) {
    put_half(p, b.e.d[b.lane]);
    put_half(p + 2, b.e.m[b.lane]);
    for (int v = 0; v < 32; v++) {
      put<4>(p + 4 + FIFTH, 16, v, b.code(v) & 15);
      if (FIFTH) p[4 + v / 8] |= (b.code(v) >> 4) << (v % 8);
    }
  }
};

struct EncodeQ2_K {
  static constexpr int LEN = 256, SUB = 16, BYTES = 84;
  static void choose(const Lanes<16>& s, Encoded<16>& e) { encode_affine<3, 16, 15>(s, 12, 0.1f, e); }
  static void pack(const Blocks<16>& b, uint8_t* p) {
    for (int r = 0; r < 16; r++) p[r] = b.e.scale[b.lane + r] | b.e.minimum[b.lane + r] << 4;
    for (int v = 0; v < 256; v++) put<2>(p + 16, 32, v, b.code(v));
    put_half(p + 80, b.e.d[b.lane]);
    put_half(p + 82, b.e.m[b.lane]);
  }
};

struct EncodeQ3_K {
  static constexpr int LEN = 256, SUB = 16, BYTES = 110;
  static void choose(const Lanes<16>& s, Encoded<16>& e) { encode_scales<WholeCodes<-4, 3>, 16, -32, 31>(s, 10, 0.15f, e); }
  static void pack(const Blocks<16>& b, uint8_t* p) {
    for (int v = 0; v < 256; v++) {
      put<1>(p, 32, v, (b.code(v) + 4) >> 2);
      put<2>(p + 32, 32, v, (b.code(v) + 4) & 3);
    }
    for (int r = 0; r < 16; r++) {
      put<4>(p + 96, 8, r, (b.e.scale[b.lane + r] + 32) & 15);
      put<2>(p + 104, 4, r, (b.e.scale[b.lane + r] + 32) >> 4);
    }
    put_half(p + 108, b.e.d[b.lane]);
  }
};

template <int Bits> struct EncodeAffineK {  // Q4_K, Q5_K
  static constexpr int LEN = 256, SUB = 32, FIFTH = Bits == 5 ? 32 : 0, BYTES = 144 + FIFTH;
  static void choose(const Lanes<32>& s, Encoded<32>& e) { encode_affine<(1 << Bits) - 1, 8, 63>(s, 8, 0.2f, e); }
  static void pack(const Blocks<32>& b, uint8_t* p) {
    put_half(p, b.e.d[b.lane]);
    put_half(p + 2, b.e.m[b.lane]);
    for (int r = 0; r < 4; r++) {
      const int *scale = b.e.scale + b.lane + r, *minimum = b.e.minimum + b.lane + r;
      p[4 + r] = scale[0] | (scale[4] >> 4) << 6;
      p[8 + r] = minimum[0] | (minimum[4] >> 4) << 6;
      p[12 + r] = (scale[4] & 15) | (minimum[4] & 15) << 4;
    }
    for (int v = 0; v < 256; v++) {
      put<4>(p + 16 + FIFTH, 32, v, b.code(v) & 15);
      if (FIFTH) put<1>(p + 16, 32, v, b.code(v) >> 4);
    }
  }
};

struct EncodeQ6_K {
  static constexpr int LEN = 256, SUB = 16, BYTES = 210;
  static void choose(const Lanes<16>& s, Encoded<16>& e) { encode_scales<WholeCodes<-32, 31>, 16, -128, 127>(s, 5, 0.25f, e); }
  static void pack(const Blocks<16>& b, uint8_t* p) {
    for (int v = 0; v < 256; v++) {
      put<4>(p, 64, v, (b.code(v) + 32) & 15);
      put<2>(p + 128, 32, v, (b.code(v) + 32) >> 4);
    }
    for (int r = 0; r < 16; r++) p[192 + r] = (uint8_t)b.e.scale[b.lane + r];
    put_half(p + 208, b.e.d[b.lane]);
  }
};

int level_index(int level) { return (int)(std::lower_bound(Iq4Codes::LEVELS, Iq4Codes::LEVELS + 16, level) - Iq4Codes::LEVELS); }

struct EncodeIQ4_NL {
  static constexpr int LEN = 32, SUB = 32, BYTES = 18;
  static void choose(const Lanes<32>& s, Encoded<32>& e) { encode_one_scale<Iq4Codes>(s, 5, 4.0f, e); }
  static void pack(const Blocks<32>& b, uint8_t* p) {
    put_half(p, b.e.d[b.lane]);
    for (int v = 0; v < 32; v++) put<4>(p + 2, 16, v, level_index(b.code(v)));
  }
};

struct EncodeIQ4_XS {
  static constexpr int LEN = 256, SUB = 32, BYTES = 136;
  static void choose(const Lanes<32>& s, Encoded<32>& e) { encode_scales<Iq4Codes, 8, -32, 31>(s, 5, 4.0f, e); }
  static void pack(const Blocks<32>& b, uint8_t* p) {
    put_half(p, b.e.d[b.lane]);
    for (int r = 0; r < 8; r++) {
      const int scale = b.e.scale[b.lane + r] + 32;
      p[2 + r / 4] |= (scale >> 4) << (2 * (r % 4));
      p[4 + r / 2] |= (scale & 15) << (4 * (r % 2));
    }
    for (int v = 0; v < 256; v++) put<4>(p + 8, 16, v, level_index(b.code(v)));
  }
};

template <class F> void encode_blocks(const float* x, const float* importance, int cols, size_t block0, size_t block1, uint8_t* out) {
  constexpr int SUBS = F::LEN / F::SUB, STEP = LANES / SUBS;
  Lanes<F::SUB> s;
  Encoded<F::SUB> e;
  for (size_t b = block0; b < block1; b += STEP) {
    const int n = (int)std::min<size_t>(STEP, block1 - b) * SUBS;  // lanes with a sub-block
    const size_t at = b * F::LEN;
    for (int i = 0; i < F::SUB; i++) {
      float values[LANES] = {}, weights[LANES] = {};
      for (int r = 0; r < n; r++) {
        values[r] = x[at + (size_t)r * F::SUB + i];
        weights[r] = importance ? importance[(at + (size_t)r * F::SUB + i) % cols] : 1.0f;
      }
      s.x[i] = load(values);
      s.w[i] = load(weights);
    }
    F::choose(s, e);
    for (int r = 0; r < n; r += SUBS) {
      uint8_t* p = out + (b + r / SUBS) * F::BYTES;
      std::fill_n(p, F::BYTES, 0);
      F::pack({e, r}, p);
    }
  }
}

}  // namespace

void encode(Kind kind, const float* x, const float* importance, int cols, size_t block0, size_t block1, uint8_t* out) {
  switch (kind) {
    case Kind::Q8_0: return encode_blocks<EncodeQ8_0>(x, importance, cols, block0, block1, out);
    case Kind::Q4_0: return encode_blocks<EncodeSymmetric<4>>(x, importance, cols, block0, block1, out);
    case Kind::Q5_0: return encode_blocks<EncodeSymmetric<5>>(x, importance, cols, block0, block1, out);
    case Kind::Q4_1: return encode_blocks<EncodeAffine<4>>(x, importance, cols, block0, block1, out);
    case Kind::Q5_1: return encode_blocks<EncodeAffine<5>>(x, importance, cols, block0, block1, out);
    case Kind::Q2_K: return encode_blocks<EncodeQ2_K>(x, importance, cols, block0, block1, out);
    case Kind::Q3_K: return encode_blocks<EncodeQ3_K>(x, importance, cols, block0, block1, out);
    case Kind::Q4_K: return encode_blocks<EncodeAffineK<4>>(x, importance, cols, block0, block1, out);
    case Kind::Q5_K: return encode_blocks<EncodeAffineK<5>>(x, importance, cols, block0, block1, out);
    case Kind::Q6_K: return encode_blocks<EncodeQ6_K>(x, importance, cols, block0, block1, out);
    case Kind::IQ4_NL: return encode_blocks<EncodeIQ4_NL>(x, importance, cols, block0, block1, out);
    case Kind::IQ4_XS: return encode_blocks<EncodeIQ4_XS>(x, importance, cols, block0, block1, out);
    default: return;
  }
}

}  // namespace puna::PUNA_TARGET
