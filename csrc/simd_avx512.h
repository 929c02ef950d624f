// AVX-512 (F, BW, DQ, VL, VNNI; BF16 where the target has it). Included by simd.h only.
#pragma once
#include <immintrin.h>

namespace puna::PUNA_TARGET {

struct f32x16 { __m512 v; };
struct i32x16 { __m512i v; };
struct u8x64 { __m512i v; };
struct s8x4 { __m512i v; };     // four signed bytes, repeated 16 times
struct bf16x32 { __m512i v; };  // 16 lanes x 2 consecutive values

inline f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
inline f32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
inline f32x16 zero() { return {_mm512_setzero_ps()}; }
inline f32x16 add(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline f32x16 sub(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline f32x16 mul(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline f32x16 div(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline f32x16 select_greater(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {  // a > b ? x : y
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), y.v, x.v)};
}
inline f32x16 abs(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
inline f32x16 fraction(f32x16 a) { return {_mm512_reduce_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }  // a - floor(a)
inline f32x16 scale2(f32x16 a, f32x16 x) { return {_mm512_scalef_ps(a.v, x.v)}; }  // a * 2^floor(x); next to nothing or 0 where x < -126
inline f32x16 keep_first(f32x16 a, int n, float fill) {  // lanes n.. become fill
  __mmask16 m = n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
  return {_mm512_mask_mov_ps(_mm512_set1_ps(fill), m, a.v)};
}
inline float reduce_add(f32x16 a) {  // pairs lane i with i+8, then i+4, i+2, i+1
  __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
inline float reduce_max(f32x16 a) { return _mm512_reduce_max_ps(a.v); }
inline void rotate_pairs(f32x16& x, f32x16 cos, f32x16 sin) {  // (a, b) -> (a cos - b sin, a sin + b cos) in lanes 2i, 2i+1
  __m512 swapped = _mm512_permute_ps(x.v, 0xB1);
  x.v = _mm512_fmaddsub_ps(x.v, cos.v, _mm512_mul_ps(swapped, sin.v));
}
// The 16-point Hadamard transform: lanes i and i ^ h become their sum and difference, for h = 1, 2, 4, 8. Times -1 is
// exact, so that a fused operation rounds as a difference does.
inline f32x16 butterfly16(f32x16 x) {
  const __m512 one = _mm512_set1_ps(1.0f), minus = _mm512_set1_ps(-1.0f);
  __m512 v = _mm512_fmadd_ps(x.v, _mm512_mask_mov_ps(one, 0xaaaa, minus), _mm512_permute_ps(x.v, 0xB1));
  v = _mm512_fmadd_ps(v, _mm512_mask_mov_ps(one, 0xcccc, minus), _mm512_permute_ps(v, 0x4E));
  v = _mm512_fmadd_ps(v, _mm512_mask_mov_ps(one, 0xf0f0, minus), _mm512_shuffle_f32x4(v, v, 0xB1));
  return {_mm512_fmadd_ps(v, _mm512_mask_mov_ps(one, 0xff00, minus), _mm512_shuffle_f32x4(v, v, 0x4E))};
}
inline f32x16 duplicate_pairs(const float* p) {  // p[0], p[0], p[1], p[1], ... p[7], p[7]
  const __m512i idx = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return {_mm512_permutexvar_ps(idx, _mm512_castps256_ps512(_mm256_loadu_ps(p)))};
}

inline f32x16 load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline void store_f16(uint16_t* p, f32x16 a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline f32x16 load_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
inline f32x16 load_s8(const int8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))}; }
inline void store_bf16(uint16_t* p, f32x16 a) {  // round to nearest even
#if defined(__AVX512BF16__)
  __m256bh h = _mm512_cvtneps_pbh(a.v);
  std::memcpy(p, &h, 32);
#else
  __m512i u = _mm512_castps_si512(a.v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  u = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(u, 16)));
#endif
}
inline void store_bf16_alternate(uint16_t* p, int odd, f32x16 a) {  // p[2 i + odd] = a[i], nothing between is touched
  alignas(32) uint16_t h[16];
  store_bf16(h, a);
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i*)h));
  if (odd) _mm512_mask_storeu_epi16(p, 0xaaaaaaaa, _mm512_slli_epi32(wide, 16));
  else _mm512_mask_storeu_epi16(p, 0x55555555, wide);
}
inline void store_bf16_pairs(uint16_t* p, f32x16 a, f32x16 b) {  // p[2 i] = a[i], p[2 i + 1] = b[i]
  alignas(64) uint16_t h[32];
  store_bf16(h, a);
  store_bf16(h + 16, b);
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i*)h)), high = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i*)(h + 16)));
  _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}
inline void transpose16(const uint32_t* x, uint32_t* y, size_t y_stride) {  // y[i][j] = x[j][i] for 16 x 16 words
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(x + i * 16);
  for (int i = 0; i < 16; i += 2) b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]), b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]), a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
  for (int i = 0; i < 4; i++) {  // a[4 g + i]: column 4 q + i of rows 4 g .. 4 g + 3 in quarter q; quarters are transposed now
    const __m512i even_low = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88), odd_low = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88), odd_high = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    _mm512_storeu_si512(y + i * y_stride, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
    _mm512_storeu_si512(y + (i + 4) * y_stride, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    _mm512_storeu_si512(y + (i + 8) * y_stride, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
    _mm512_storeu_si512(y + (i + 12) * y_stride, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
}
inline i32x16 round_i32(f32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
inline void store_s8(int8_t* p, i32x16 a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(a.v)); }
inline i32x16 izero() { return {_mm512_setzero_si512()}; }
inline i32x16 iset1(int x) { return {_mm512_set1_epi32(x)}; }
inline i32x16 iadd(i32x16 a, i32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline i32x16 isub(i32x16 a, i32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline i32x16 iload(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void istore(int32_t* p, i32x16 a) { _mm512_storeu_si512(p, a.v); }
inline i32x16 bits_of(f32x16 a) { return {_mm512_castps_si512(a.v)}; }
inline f32x16 from_bits(i32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
inline int lanes_within(f32x16 a, float least, float most) {  // bit i: least <= |a[i]| <= most
  const __m512 magnitude = _mm512_abs_ps(a.v);
  return _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(least), _CMP_GE_OQ) & _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(most), _CMP_LE_OQ);
}
inline i32x16 ishl(i32x16 a, int n) { return {_mm512_sll_epi32(a.v, _mm_cvtsi32_si128(n))}; }
// out[i] = reduction of v[i]
inline void reduce_max4(const f32x16 (&v)[4], float* out) {
  const __m512 ab = _mm512_max_ps(_mm512_unpacklo_ps(v[0].v, v[1].v), _mm512_unpackhi_ps(v[0].v, v[1].v));
  const __m512 cd = _mm512_max_ps(_mm512_unpacklo_ps(v[2].v, v[3].v), _mm512_unpackhi_ps(v[2].v, v[3].v));
  const __m512 x = _mm512_max_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  _mm_storeu_ps(out, _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
}
inline void reduce_add4(const i32x16 (&v)[4], int* out) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0].v, v[1].v), _mm512_unpackhi_epi32(v[0].v, v[1].v));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2].v, v[3].v), _mm512_unpackhi_epi32(v[2].v, v[3].v));
  const __m512i x = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i h = _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti32x8_epi32(x, 1));
  _mm_storeu_si128((__m128i*)out, _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1)));
}
// 64 E4M3 numbers as bf16: those at even places in w[0], at odd ones in w[1]. The two bytes of each are made apart.
#if defined(__AVX512VBMI__)
struct BytesOfE4M3 {  // by magnitude
  alignas(64) uint8_t high[128], low[128];
  constexpr BytesOfE4M3() : high(), low() {
    for (int i = 0; i < 128; i++) {
      int bits = (i << 4) + (120 << 7);
      for (int top = 0; i < 8 && top < 3; top++)  // below the normal range: i * 2^-9
        if (i >> top == 1) bits = (top + 118) << 7 | ((i << (7 - top)) & 127);
      if (i == 0) bits = 0;
      high[i] = (uint8_t)(bits >> 8);
      low[i] = (uint8_t)bits;
    }
  }
};
inline constexpr BytesOfE4M3 E4M3;
#endif
inline void load_e4m3(const uint8_t* p, bf16x32* w) {
  const __m512i c = _mm512_loadu_si512(p);
#if defined(__AVX512VBMI__)
  const __m512i magnitude = _mm512_permutex2var_epi8(_mm512_load_si512(E4M3.high), c, _mm512_load_si512(E4M3.high + 64));
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(E4M3.low), c, _mm512_load_si512(E4M3.low + 64));
#else  // shifts, and a small table below the normal range
  const __m512i high_of = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0));
  const __m512i low_of = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, (char)0x80, (char)0xc0, 0, 0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0));
  const __m512i m = _mm512_and_si512(c, _mm512_set1_epi8(127));
  const __mmask64 small = _mm512_cmplt_epu8_mask(m, _mm512_set1_epi8(8));
  const __m512i shifted = _mm512_add_epi8(_mm512_and_si512(_mm512_srli_epi16(m, 4), _mm512_set1_epi8(15)), _mm512_set1_epi8(0x3c));
  const __m512i magnitude = _mm512_mask_shuffle_epi8(shifted, small, high_of, m);
  const __m512i low = _mm512_mask_shuffle_epi8(_mm512_and_si512(_mm512_slli_epi16(m, 4), _mm512_set1_epi8((char)0xf0)), small, low_of, m);
#endif
  const __m512i high = _mm512_ternarylogic_epi32(magnitude, c, _mm512_set1_epi8((char)128), 0xf8);  // magnitude | (c & sign)
  const __m512i bytes = _mm512_set1_epi16(255);
  w[0].v = _mm512_ternarylogic_epi32(_mm512_slli_epi16(high, 8), low, bytes, 0xf8);
  w[1].v = _mm512_ternarylogic_epi32(_mm512_srli_epi16(low, 8), high, bytes, 0xf4);  // ... | (high & ~bytes)
}
inline f32x16 to_f32(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline i32x16 load_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
inline i32x16 load_i8(const int8_t* p) { return {_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
inline i32x16 load_u16(const uint16_t* p) { return {_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p))}; }
template <int N> inline i32x16 shr(i32x16 a) { return {_mm512_srli_epi32(a.v, N)}; }
template <int N> inline i32x16 shr_signed(i32x16 a) { return {_mm512_srai_epi32(a.v, N)}; }
template <int N> inline i32x16 shl(i32x16 a) { return {_mm512_slli_epi32(a.v, N)}; }
inline i32x16 band(i32x16 a, int m) { return {_mm512_and_si512(a.v, _mm512_set1_epi32(m))}; }
inline i32x16 bor(i32x16 a, i32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }

inline u8x64 load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_bytes(uint8_t* p, u8x64 a) { _mm512_storeu_si512(p, a.v); }
inline u8x64 bset1(int x) { return {_mm512_set1_epi8((char)x)}; }
inline u8x64 band(u8x64 a, u8x64 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline u8x64 bor(u8x64 a, u8x64 b) { return {_mm512_or_si512(a.v, b.v)}; }
inline u8x64 put_words(u8x64 a, int lanes, int value) { return {_mm512_mask_mov_epi32(a.v, (__mmask16)lanes, _mm512_set1_epi8((char)value))}; }
inline u8x64 lookup16(const uint8_t* table, u8x64 idx) {
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), idx.v)};
}
template <int N> inline u8x64 shr(u8x64 a) { return {_mm512_srli_epi16(a.v, N)}; }  // bits cross byte borders: mask after
template <int N> inline u8x64 shl(u8x64 a) { return {_mm512_slli_epi16(a.v, N)}; }
// Byte 4r+i becomes value where bit 4*G+i of 32-bit word r is set, else 0.
template <int G> inline u8x64 spread_bits(const uint8_t* words, int value) {
  constexpr int b = G / 2;
  const __m512i pick = _mm512_broadcast_i32x4(_mm_setr_epi8(b, b, b, b, 4 + b, 4 + b, 4 + b, 4 + b, 8 + b, 8 + b, 8 + b, 8 + b,
                                                            12 + b, 12 + b, 12 + b, 12 + b));
  const __m512i bit = _mm512_set1_epi32(G % 2 ? (int)0x80402010 : 0x08040201);
  __m512i x = _mm512_shuffle_epi8(_mm512_loadu_si512(words), pick);
  return {_mm512_maskz_set1_epi8(_mm512_test_epi8_mask(x, bit), (char)value)};
}

inline s8x4 repeat4(const int8_t* p) {
  int x;
  std::memcpy(&x, p, 4);
  return {_mm512_set1_epi32(x)};
}
inline i32x16 dot4(i32x16 acc, u8x64 w, s8x4 a) { return {_mm512_dpbusd_epi32(acc.v, w.v, a.v)}; }
// The same with repeat4(p), as one instruction: compilers make it two.
inline i32x16 dot4(i32x16 acc, u8x64 w, const int8_t* p) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc.v) : "v"(w.v), "m"(*(const int8_t(*)[4])p));
  return acc;
}

inline bf16x32 load_pairs(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_pairs(uint16_t* p, bf16x32 a) { _mm512_storeu_si512(p, a.v); }
inline bf16x32 repeat2(const uint16_t* p) {
  int x;
  std::memcpy(&x, p, 4);
  return {_mm512_set1_epi32(x)};
}
inline f32x16 dot2(f32x16 acc, bf16x32 a, bf16x32 b) {
#if defined(__AVX512BF16__)
  return {_mm512_dpbf16_ps(acc.v, (__m512bh)a.v, (__m512bh)b.v)};
#else
  const __m512i high = _mm512_set1_epi32((int)0xffff0000);
  __m512 even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(b.v, 16)), acc.v);
  return {_mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a.v, high)), _mm512_castsi512_ps(_mm512_and_si512(b.v, high)), even)};
#endif
}

inline void prefetch_to_write(const void* p) { __builtin_prefetch(p, 1); }
inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
inline void prefetch_far(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }  // into the second-level cache

}  // namespace puna::PUNA_TARGET
