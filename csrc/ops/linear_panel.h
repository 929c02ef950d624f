// The many-token kernel of `linear`: weights unpacked into L1 once, then multiplied with up to six tokens at a time.
//
// A step of 32 columns, two tiles and six tokens is 96 dot products, 12 products with scales (and 12 with minima). The
// cores this was written on do one such operation a cycle, with integer additions beside them: so the product of the
// two scales is made by adding exponents (types.h, QBlock), and costs nothing (docs/speed.md, 2026-11-25).
#pragma once
#include <cstring>

#include "../formats.h"
#include "../types.h"

namespace puna::PUNA_TARGET {
namespace {

template <class F> inline i32x16 start(int32_t nsum) {  // -ZERO * sum of x, in place of subtracting ZERO from each q
  return F::ZERO ? iset1(F::ZERO * nsum) : izero();
}

// What a format looks like once unpacked; formats that agree share one compiled kernel.
template <int Zero, bool Min, bool Halves> struct Unpacked {
  static constexpr int ZERO = Zero;
  static constexpr bool MIN = Min, HALVES = Halves;
};
template <class F> using UnpackedOf = Unpacked<F::ZERO, F::MIN, F::HALVES>;

constexpr int QUARTERS = 4;  // 1, 1.25, 1.5, 1.75: what scales of activations are beside a power of two
inline float quarter(int i) { return 1.0f + 0.25f * (float)i; }
inline i32x16 quarter_bits(int i) { return iset1(0x3f800000 + (i << 21)); }
inline int quarter_of(const float& d) {
  uint16_t high;
  std::memcpy(&high, (const char*)&d + 2, 2);
  return high >> 5 & 3;
}

// A sub-block of one tile, unpacked: what every quantized format becomes before the many-token kernel.
// d[.][i] + (bits of a token's scale of quarter i) are the bits of the product of both scales.
template <class U> struct alignas(64) PanelSub {
  static constexpr int SCALES = U::HALVES ? 2 : 1;
  uint8_t q[8][64];
  int32_t d[SCALES][QUARTERS][ROWS];
  float m[U::MIN ? SCALES : 0][ROWS];

  f32x16 product(int half, const float& dx) const { return from_bits(iadd(bits_of(set1(dx)), iload(d[half][quarter_of(dx)]))); }
  f32x16 plain_product(int half, const float& dx) const { return mul(from_bits(iadd(iload(d[half][0]), quarter_bits(0))), set1(dx)); }
};

// Where a scale is 0, weights and scale that come to 0 without one. False where exponents cannot be added.
template <class F> inline bool tame(SubBlock& w, int half) {
  const int good = lanes_within(w.d[half], MIN_WEIGHT_SCALE, MAX_WEIGHT_SCALE);
  if (good == 0xffff) return true;
  const int zeros = lanes_within(w.d[half], 0.0f, 0.0f);
  if ((good | zeros) != 0xffff) return false;
  for (int k = F::HALVES ? 4 * half : 0; k < (F::HALVES ? 4 * half + 4 : 8); k++) w.q[k] = put_words(w.q[k], zeros, F::ZERO);
  w.d[half] = select_greater(abs(w.d[half]), zero(), w.d[half], set1(1.0f));
  return true;
}

// False where the panel must be multiplied without adding exponents.
template <class F, int S> inline bool unpack_sub(const uint8_t* block, PanelSub<UnpackedOf<F>>* out) {
  SubBlock w;
  F::template load<S>(block, w);
  bool tamed = true;
  for (int half = 0; half < (F::HALVES ? 2 : 1); half++) {
    tamed &= tame<F>(w, half);
    for (int i = 0; i < QUARTERS; i++) istore(out[S].d[half][i], isub(bits_of(mul(w.d[half], set1(quarter(i)))), quarter_bits(i)));
    if constexpr (F::MIN) store(out[S].m[half], w.m[half]);
  }
  for (int k = 0; k < 8; k++) store_bytes(out[S].q[k], w.q[k]);
  if constexpr (S + 1 < F::SUBS) tamed &= unpack_sub<F, S + 1>(block, out);
  return tamed;
}

// acc [T][R][16] (+)= R unpacked tiles times T tokens over `subs` sub-blocks.
template <class F, int R, int T, bool Plain = false>
void multiply_panel(const PanelSub<F>* const* panel, int subs, const QBlock* x, size_t x_stride, float* out, bool fresh) {
  f32x16 acc[R][T];
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) acc[r][t] = fresh ? zero() : load(out + (t * R + r) * ROWS);
  for (int s = 0; s < subs; s++) {
    for (int half = 0; half < (F::HALVES ? 2 : 1); half++) {
      constexpr int STEPS = F::HALVES ? 4 : 8;
      i32x16 v[R][T];
      int32_t nsum[T];
      for (int t = 0; t < T; t++) {
        const QBlock& b = x[t * x_stride + s];
        nsum[t] = !F::HALVES ? b.nsum : half ? b.nsum - b.nsum_low : b.nsum_low;
        for (int r = 0; r < R; r++) v[r][t] = start<F>(nsum[t]);
      }
      for (int k = STEPS * half; k < STEPS * half + STEPS; k++) {
        u8x64 q[R];
        for (int r = 0; r < R; r++) q[r] = load_bytes(panel[r][s].q[k]);
        for (int t = 0; t < T; t++) {
          s8x4 a = repeat4(x[t * x_stride + s].q + 4 * k);
          for (int r = 0; r < R; r++) v[r][t] = dot4(v[r][t], q[r], a);
        }
      }
      for (int t = 0; t < T; t++) {
        const QBlock& b = x[t * x_stride + s];
        for (int r = 0; r < R; r++) {
          const f32x16 d = Plain ? panel[r][s].plain_product(half, b.d) : panel[r][s].product(half, b.d);
          acc[r][t] = fma(to_f32(v[r][t]), d, acc[r][t]);
        }
        if constexpr (F::MIN) {
          const f32x16 sx = set1(F::HALVES ? b.d * (float)-nsum[t] : b.s);
          for (int r = 0; r < R; r++) acc[r][t] = fma(load(panel[r][s].m[half]), sx, acc[r][t]);
        }
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) store(out + (t * R + r) * ROWS, acc[r][t]);
}

template <class U, int R> void multiply_tokens(const PanelSub<U>* const* panel, int subs, const QBlock* x, size_t stride, int t, float* out, bool fresh) {
  switch (t) {
    case 1: return multiply_panel<U, R, 1>(panel, subs, x, stride, out, fresh);
    case 2: return multiply_panel<U, R, 2>(panel, subs, x, stride, out, fresh);
    case 3: return multiply_panel<U, R, 3>(panel, subs, x, stride, out, fresh);
    case 4: return multiply_panel<U, R, 4>(panel, subs, x, stride, out, fresh);
    case 5: return multiply_panel<U, R, 5>(panel, subs, x, stride, out, fresh);
    default: return multiply_panel<U, R, 6>(panel, subs, x, stride, out, fresh);
  }
}

// What adding exponents cannot do: scales of weights out of all proportion, and activations that are no numbers.
template <class U, int R> void multiply_plainly(const PanelSub<U>* const* panel, int subs, const QBlock* x, size_t stride, int t, float* out, bool fresh) {
  for (int i = 0; i < t; i++) multiply_panel<U, R, 1, true>(panel, subs, x + i * stride, stride, out + i * R * ROWS, fresh);
}

inline bool are_numbers(const QBlock* x, size_t stride, int t) {
  bool good = true;
  for (int i = 0; i < t; i++) good &= x[i * stride].d == x[i * stride].d;  // of a row all or none
  return good;
}

}  // namespace
}  // namespace puna::PUNA_TARGET
