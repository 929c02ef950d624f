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
#elif defined(PUNA_AVX2)
#include "simd_avx2.h"
#else
#include "simd_scalar.h"
#endif

namespace puna::PUNA_TARGET {

inline f32x16 load_bf16(const uint16_t* p);

// 2^x for x <= 127, relative error below 2e-7; anything under -126 gives 0. Cody-Waite split into a rounded integer and
// a fraction in [-0.5, 0.5], degree-6 minimax polynomial for the fraction.
inline f32x16 exp2(f32x16 x) {
  const f32x16 lo = set1(-126.0f);
  f32x16 c = max(x, lo);
  f32x16 n = round(c);
  f32x16 f = sub(c, n);
  f32x16 p = set1(1.535336188319500e-4f);
  p = fma(p, f, set1(1.339887440266574e-3f));
  p = fma(p, f, set1(9.618437357674640e-3f));
  p = fma(p, f, set1(5.550332471162809e-2f));
  p = fma(p, f, set1(2.402264791363012e-1f));
  p = fma(p, f, set1(6.931472028550421e-1f));
  p = fma(p, f, set1(1.0f));
  return zero_if_less(scale2(p, n), x, lo);
}

inline f32x16 silu(f32x16 x) {
  f32x16 e = exp2(min(mul(x, set1(-1.4426950408889634f)), set1(126.0f)));
  return div(x, add(set1(1.0f), e));
}

}  // namespace puna::PUNA_TARGET
