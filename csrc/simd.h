// Vector types of one CPU target. Every kernel file is compiled once per target (see CMakeLists.txt) and sees
// exactly one of the three implementations below; nothing else in csrc/ may name an instruction set.
//
// All targets compute on 16 float lanes, so that packed weights have one layout and reductions one order:
//   f32x16   16 floats         i32x16   16 int32         u8x64   64 bytes = 16 rows x 4 consecutive columns
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(PUNA_AVX512)
#include "simd_avx512.h"
#if defined(__AMX_BF16__)
#include "simd_amx.h"
#endif
#elif defined(PUNA_AVX2)
#include "simd_avx2.h"
#else
#include "simd_scalar.h"
#endif

namespace puna::PUNA_TARGET {

inline f32x16 load_bf16(const uint16_t* p);

// 2^x for x <= 127, relative error below 2e-7 from x = -126 on, next to nothing or 0 below. 2^floor(x) times the minimax
// polynomial of degree 5 for 2^f on [0, 1], 1 at f = 0.
inline f32x16 exp2(f32x16 x) {
  const f32x16 f = fraction(x);
  f32x16 p = set1(1.867130213300388e-3f);
  p = fma(p, f, set1(9.017030018834329e-3f));
  p = fma(p, f, set1(5.579991332063371e-2f));
  p = fma(p, f, set1(2.401644500957153e-1f));
  p = fma(p, f, set1(6.931513118094624e-1f));
  p = fma(p, f, set1(1.0f));
  return scale2(p, x);
}

// x / 2 * (1 + erf(x / sqrt(2))). erfc by a polynomial in 1 / (1 + p |x|) times exp(-x^2), absolute error of erf 1.5e-7
// (Abramowitz and Stegun 7.1.26).
inline f32x16 gelu(f32x16 x) {
  const f32x16 z = abs(mul(x, set1(0.7071067811865476f)));
  const f32x16 t = div(set1(1.0f), fma(z, set1(0.3275911f), set1(1.0f)));
  f32x16 p = set1(1.061405429f);
  p = fma(p, t, set1(-1.453152027f));
  p = fma(p, t, set1(1.421413741f));
  p = fma(p, t, set1(-0.284496736f));
  p = fma(p, t, set1(0.254829592f));
  const f32x16 power = max(mul(mul(z, z), set1(-1.4426950408889634f)), set1(-126.0f));
  const f32x16 tail = mul(mul(p, t), exp2(power));  // erfc(|z|)
  const f32x16 twice = select_greater(x, zero(), sub(set1(2.0f), tail), tail);
  return mul(mul(x, set1(0.5f)), twice);
}

inline f32x16 silu(f32x16 x) {
  f32x16 e = exp2(min(mul(x, set1(-1.4426950408889634f)), set1(126.0f)));
  return div(x, add(set1(1.0f), e));
}

}  // namespace puna::PUNA_TARGET
