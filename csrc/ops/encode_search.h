// The search for scales: which scale, or scale and minimum, makes rounding hurt least.
//
// Sixteen sub-blocks are searched at once, one in each lane, so that every target finds the same numbers and none
// needs a sum across lanes. The error that is made small is sum w (x - x')^2: w are the importances of columns, or 1.
//
// For fixed codes q the best scale is least squares, d = sum w q x / sum w q^2, and takes (sum w q x)^2 / sum w q^2 off
// the error; with a minimum it is the 2 x 2 system. So codes are rounded for several scales, each gives its best scale,
// and the best of all is rounded again until nothing is gained (Lloyd's iteration).
#pragma once
#include "../simd.h"

namespace puna::PUNA_TARGET {

// N values of 16 sub-blocks: lane r holds sub-block r.
template <int N> struct Lanes {
  f32x16 x[N], w[N];
};

inline f32x16 round_lanes(f32x16 a) { return to_f32(round_i32(a)); }
inline f32x16 keep_where_greater(f32x16 a, f32x16 b, f32x16 x) { return select_greater(a, b, x, zero()); }

// Codes are whole numbers from LOW to HIGH.
template <int Low, int High> struct WholeCodes {
  static constexpr float LOW = Low, HIGH = High;
  static f32x16 nearest(f32x16 a) { return min(max(round_lanes(a), set1(LOW)), set1(HIGH)); }
};

// Codes are the 16 levels of IQ4_NL and IQ4_XS.
struct Iq4Codes {
  static constexpr float LOW = -127, HIGH = 113;
  static constexpr int8_t LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  static f32x16 nearest(f32x16 a) {
    f32x16 level = set1(LEVELS[0]);
    for (int i = 0; i < 15; i++) {
      const float border = 0.5f * (LEVELS[i] + LEVELS[i + 1]);
      level = add(level, keep_where_greater(a, set1(border), set1((float)(LEVELS[i + 1] - LEVELS[i]))));
    }
    return level;
  }
};

inline f32x16 inverse(f32x16 d) { return keep_where_greater(abs(d), zero(), div(set1(1.0f), select_greater(abs(d), zero(), d, set1(1.0f)))); }

struct Scale {
  f32x16 d, gain;  // gain: what the scale takes off the error
};

// The best scale for the codes that are nearest at scale 1 / inv.
template <class Codes, int N> Scale refit(const Lanes<N>& s, f32x16 inv) {
  f32x16 qx = zero(), qq = zero();
  for (int i = 0; i < N; i++) {
    const f32x16 q = Codes::nearest(mul(s.x[i], inv)), wq = mul(s.w[i], q);
    qx = fma(wq, s.x[i], qx);
    qq = fma(wq, q, qq);
  }
  const f32x16 d = mul(qx, inverse(qq));
  return {d, mul(qx, d)};
}

inline void take_better(Scale& best, const Scale& other) {
  best.d = select_greater(other.gain, best.gain, other.d, best.d);
  best.gain = max(other.gain, best.gain);
}

// Scales that bring the value of largest magnitude near either end of the codes, `tries` on each side of each end.
template <class Codes, int N> f32x16 search_scale(const Lanes<N>& s, int tries, float step) {
  f32x16 extreme = zero();
  for (int i = 0; i < N; i++) extreme = select_greater(abs(s.x[i]), abs(extreme), s.x[i], extreme);
  const f32x16 per_code = inverse(extreme);
  Scale best{zero(), zero()};
  for (const float end : {Codes::LOW, Codes::HIGH})
    for (int k = -tries; k <= tries; k++) take_better(best, refit<Codes>(s, mul(per_code, set1(end + step * k))));
  for (int k = 0; k < 3; k++) take_better(best, refit<Codes>(s, inverse(best.d)));
  return best.d;
}

template <class Codes, int N> f32x16 scale_error(const Lanes<N>& s, f32x16 d) {
  const f32x16 inv = inverse(d);
  f32x16 error = zero();
  for (int i = 0; i < N; i++) {
    const f32x16 e = sub(s.x[i], mul(d, Codes::nearest(mul(s.x[i], inv))));
    error = fma(mul(s.w[i], e), e, error);
  }
  return error;
}

struct Affine {
  f32x16 d, m, error;  // x' = d q + m
};

// The best scale and minimum for the codes 0..Top that are nearest at (inv, m); m <= 0 where `Negative`.
template <int Top, bool Negative, int N> Affine refit_affine(const Lanes<N>& s, f32x16 inv, f32x16 m) {
  f32x16 w = zero(), q1 = zero(), q2 = zero(), x1 = zero(), qx = zero();
  for (int i = 0; i < N; i++) {
    const f32x16 q = WholeCodes<0, Top>::nearest(mul(sub(s.x[i], m), inv)), wq = mul(s.w[i], q);
    w = add(w, s.w[i]);
    q1 = add(q1, wq);
    q2 = fma(wq, q, q2);
    x1 = fma(s.w[i], s.x[i], x1);
    qx = fma(wq, s.x[i], qx);
  }
  // Where all codes are one code, the system has one unknown: a minimum without a scale, or a scale without a minimum.
  const f32x16 whole = mul(w, q2), det = sub(whole, mul(q1, q1)), least = mul(set1(1e-6f), whole), by_det = inverse(det);
  const f32x16 mean = mul(x1, inverse(w)), alone = mul(qx, inverse(q2));
  Affine a;
  a.d = select_greater(det, least, mul(sub(mul(w, qx), mul(x1, q1)), by_det), zero());
  a.m = select_greater(det, least, mul(sub(mul(q2, x1), mul(q1, qx)), by_det), mean);
  if constexpr (Negative) {
    a.d = select_greater(a.m, zero(), alone, a.d);
    a.m = min(a.m, zero());
  }
  a.error = zero();
  const f32x16 new_inv = inverse(a.d);
  for (int i = 0; i < N; i++) {
    const f32x16 q = WholeCodes<0, Top>::nearest(mul(sub(s.x[i], a.m), new_inv));
    const f32x16 e = sub(sub(s.x[i], a.m), mul(a.d, q));
    a.error = fma(mul(s.w[i], e), e, a.error);
  }
  return a;
}

inline void take_better(Affine& best, const Affine& other) {
  best.d = select_greater(best.error, other.error, other.d, best.d);
  best.m = select_greater(best.error, other.error, other.m, best.m);
  best.error = min(best.error, other.error);
}

template <int Top, bool Negative, int N> Affine search_affine(const Lanes<N>& s, int tries, float step) {
  f32x16 low = Negative ? zero() : s.x[0], high = Negative ? zero() : s.x[0];
  for (int i = 0; i < N; i++) low = min(low, s.x[i]), high = max(high, s.x[i]);
  const f32x16 per_code = inverse(sub(high, low));
  Affine best{zero(), low, set1(INFINITY)};
  for (int k = -tries; k <= tries; k++) take_better(best, refit_affine<Top, Negative>(s, mul(per_code, set1(Top + step * k)), low));
  for (int k = 0; k < 4; k++) take_better(best, refit_affine<Top, Negative>(s, inverse(best.d), best.m));
  return best;
}

template <int Top, int N> f32x16 affine_error(const Lanes<N>& s, f32x16 d, f32x16 m) {
  const f32x16 inv = inverse(d);
  f32x16 error = zero();
  for (int i = 0; i < N; i++) {
    const f32x16 y = sub(s.x[i], m), e = sub(y, mul(d, WholeCodes<0, Top>::nearest(mul(y, inv))));
    error = fma(mul(s.w[i], e), e, error);
  }
  return error;
}

}  // namespace puna::PUNA_TARGET
