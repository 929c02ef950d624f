// AVX2 with FMA and F16C: every 16-lane value is two 8-lane halves. Included by simd.h only.
#pragma once
#include <immintrin.h>

namespace puna::PUNA_TARGET {

struct f32x16 { __m256 a, b; };
struct i32x16 { __m256i a, b; };
struct u8x64 { __m256i a, b; };
struct s8x4 { __m256i even, odd; };  // the four bytes as sign-extended 16-bit pairs: (0, 2) and (1, 3)
struct bf16x32 { __m256i a, b; };

#define PUNA_BOTH(expr_a, expr_b) { return {expr_a, expr_b}; }
inline f32x16 load(const float* p) PUNA_BOTH(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8))
inline void store(float* p, f32x16 x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
inline f32x16 set1(float x) PUNA_BOTH(_mm256_set1_ps(x), _mm256_set1_ps(x))
inline f32x16 zero() PUNA_BOTH(_mm256_setzero_ps(), _mm256_setzero_ps())
inline f32x16 add(f32x16 x, f32x16 y) PUNA_BOTH(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b))
inline f32x16 sub(f32x16 x, f32x16 y) PUNA_BOTH(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b))
inline f32x16 mul(f32x16 x, f32x16 y) PUNA_BOTH(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b))
inline f32x16 div(f32x16 x, f32x16 y) PUNA_BOTH(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b))
inline f32x16 fma(f32x16 x, f32x16 y, f32x16 z) PUNA_BOTH(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b))
inline f32x16 max(f32x16 x, f32x16 y) PUNA_BOTH(_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b))
inline f32x16 min(f32x16 x, f32x16 y) PUNA_BOTH(_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b))
inline f32x16 select_greater(f32x16 a, f32x16 b, f32x16 x, f32x16 y)  // a > b ? x : y
    PUNA_BOTH(_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_GT_OQ)), _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_GT_OQ)))
inline f32x16 abs(f32x16 x) {
  const __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(x.a, m), _mm256_and_ps(x.b, m)};
}
inline f32x16 fraction(f32x16 x)  // x - floor(x)
    PUNA_BOTH(_mm256_sub_ps(x.a, _mm256_floor_ps(x.a)), _mm256_sub_ps(x.b, _mm256_floor_ps(x.b)))
inline __m256 scale2(__m256 a, __m256 x) {
  const __m256i n = _mm256_slli_epi32(_mm256_cvtps_epi32(_mm256_floor_ps(x)), 23);
  const __m256 scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), n));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(-126.0f), _CMP_LT_OQ), scaled);
}
inline f32x16 scale2(f32x16 a, f32x16 x) PUNA_BOTH(scale2(a.a, x.a), scale2(a.b, x.b))  // a * 2^floor(x); 0 where x < -126
inline f32x16 keep_first(f32x16 x, int n, float fill) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256 f = _mm256_set1_ps(fill);
  __m256 ma = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
  __m256 mb = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane));
  return {_mm256_blendv_ps(f, x.a, ma), _mm256_blendv_ps(f, x.b, mb)};
}
inline float reduce_add(f32x16 x) {
  __m256 h = _mm256_add_ps(x.a, x.b);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
inline float reduce_max(f32x16 x) {
  __m256 h = _mm256_max_ps(x.a, x.b);
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}
inline __m256 rotate_pairs(__m256 x, __m256 c, __m256 s) {
  return _mm256_fmaddsub_ps(x, c, _mm256_mul_ps(_mm256_permute_ps(x, 0xB1), s));
}
inline void rotate_pairs(f32x16& x, f32x16 c, f32x16 s) { x = {rotate_pairs(x.a, c.a, s.a), rotate_pairs(x.b, c.b, s.b)}; }
inline __m256 butterfly8(__m256 x) {  // times -1 is exact, so that a fused operation rounds as a difference does
  x = _mm256_fmadd_ps(x, _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), _mm256_permute_ps(x, 0xB1));
  x = _mm256_fmadd_ps(x, _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1), _mm256_permute_ps(x, 0x4E));
  return _mm256_fmadd_ps(x, _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1), _mm256_permute2f128_ps(x, x, 1));
}
inline f32x16 butterfly16(f32x16 x) {
  const __m256 a = butterfly8(x.a), b = butterfly8(x.b);
  return {_mm256_add_ps(a, b), _mm256_sub_ps(a, b)};
}
inline f32x16 duplicate_pairs(const float* p) {
  __m256 v = _mm256_loadu_ps(p);
  return {_mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)),
          _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7))};
}

inline f32x16 load_f16(const uint16_t* p)
    PUNA_BOTH(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8))))
inline void store_f16(uint16_t* p, f32x16 x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline __m256 load_bf16_8(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline f32x16 load_bf16(const uint16_t* p) PUNA_BOTH(load_bf16_8(p), load_bf16_8(p + 8))
inline __m256i load_i8_8(const int8_t* p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline f32x16 load_s8(const int8_t* p) PUNA_BOTH(_mm256_cvtepi32_ps(load_i8_8(p)), _mm256_cvtepi32_ps(load_i8_8(p + 8)))
inline void store_bf16_8(uint16_t* p, __m256 x) {
  __m256i u = _mm256_castps_si256(x);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  u = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1)));
}
inline void store_bf16(uint16_t* p, f32x16 x) { store_bf16_8(p, x.a); store_bf16_8(p + 8, x.b); }
inline void store_bf16_alternate(uint16_t* p, int odd, f32x16 a) {  // p[2 i + odd] = a[i], nothing between is touched
  uint16_t h[16];
  store_bf16(h, a);
  for (int i = 0; i < 16; i++) p[2 * i + odd] = h[i];
}
inline void store_bf16_pairs(uint16_t* p, f32x16 a, f32x16 b) {  // p[2 i] = a[i], p[2 i + 1] = b[i]
  store_bf16_alternate(p, 0, a);
  store_bf16_alternate(p, 1, b);
}
inline void transpose16(const uint32_t* x, uint32_t* y, size_t y_stride) {  // y[i][j] = x[j][i] for 16 x 16 words
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) y[i * y_stride + j] = x[j * 16 + i];
}
inline i32x16 round_i32(f32x16 x) PUNA_BOTH(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b))
inline void store_s8(int8_t* p, i32x16 x) {
  __m128i lo = _mm_packs_epi32(_mm256_castsi256_si128(x.a), _mm256_extracti128_si256(x.a, 1));
  __m128i hi = _mm_packs_epi32(_mm256_castsi256_si128(x.b), _mm256_extracti128_si256(x.b, 1));
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(lo, hi));
}
inline i32x16 izero() PUNA_BOTH(_mm256_setzero_si256(), _mm256_setzero_si256())
inline i32x16 iset1(int x) PUNA_BOTH(_mm256_set1_epi32(x), _mm256_set1_epi32(x))
inline i32x16 iadd(i32x16 x, i32x16 y) PUNA_BOTH(_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b))
inline i32x16 isub(i32x16 x, i32x16 y) PUNA_BOTH(_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b))
inline i32x16 iload(const int32_t* p) PUNA_BOTH(_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8)))
inline void istore(int32_t* p, i32x16 x) { _mm256_storeu_si256((__m256i*)p, x.a); _mm256_storeu_si256((__m256i*)(p + 8), x.b); }
inline i32x16 bits_of(f32x16 x) PUNA_BOTH(_mm256_castps_si256(x.a), _mm256_castps_si256(x.b))
inline f32x16 from_bits(i32x16 x) PUNA_BOTH(_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b))
inline int lanes_within(__m256 magnitude, float least, float most) {
  return _mm256_movemask_ps(_mm256_and_ps(_mm256_cmp_ps(magnitude, _mm256_set1_ps(least), _CMP_GE_OQ), _mm256_cmp_ps(magnitude, _mm256_set1_ps(most), _CMP_LE_OQ)));
}
inline int lanes_within(f32x16 x, float least, float most) {  // bit i: least <= |x[i]| <= most
  const f32x16 magnitude = abs(x);
  return lanes_within(magnitude.a, least, most) | lanes_within(magnitude.b, least, most) << 8;
}
inline i32x16 ishl(i32x16 x, int n) PUNA_BOTH(_mm256_sll_epi32(x.a, _mm_cvtsi32_si128(n)), _mm256_sll_epi32(x.b, _mm_cvtsi32_si128(n)))
inline int reduce_add(i32x16 x) {
  __m256i h = _mm256_add_epi32(x.a, x.b);
  __m128i q = _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
  q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xB1)));
}
inline void reduce_max4(const f32x16 (&v)[4], float* out) { for (int i = 0; i < 4; i++) out[i] = reduce_max(v[i]); }
inline void reduce_add4(const i32x16 (&v)[4], int* out) { for (int i = 0; i < 4; i++) out[i] = reduce_add(v[i]); }
// 64 E4M3 numbers as bf16: those at even places in w[0], at odd ones in w[1]. The two bytes of each are made apart; below
// the normal range (magnitudes under 8) they are looked up.
inline void e4m3_halves(__m256i c, __m256i* even, __m256i* odd) {
  const __m256i high_of = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0));
  const __m256i low_of = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, (char)0x80, (char)0xc0, 0, 0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0));
  const __m256i m = _mm256_and_si256(c, _mm256_set1_epi8(127)), small = _mm256_cmpgt_epi8(_mm256_set1_epi8(8), m);
  __m256i high = _mm256_add_epi8(_mm256_and_si256(_mm256_srli_epi16(m, 4), _mm256_set1_epi8(15)), _mm256_set1_epi8(0x3c));
  __m256i low = _mm256_and_si256(_mm256_slli_epi16(m, 4), _mm256_set1_epi8((char)0xf0));
  high = _mm256_blendv_epi8(high, _mm256_shuffle_epi8(high_of, m), small);
  low = _mm256_blendv_epi8(low, _mm256_shuffle_epi8(low_of, m), small);
  high = _mm256_or_si256(high, _mm256_and_si256(c, _mm256_set1_epi8((char)128)));
  const __m256i bytes = _mm256_set1_epi16(255);
  *even = _mm256_or_si256(_mm256_slli_epi16(high, 8), _mm256_and_si256(low, bytes));
  *odd = _mm256_or_si256(_mm256_andnot_si256(bytes, high), _mm256_srli_epi16(low, 8));
}
inline void load_e4m3(const uint8_t* p, bf16x32* w) {
  e4m3_halves(_mm256_loadu_si256((const __m256i*)p), &w[0].a, &w[1].a);
  e4m3_halves(_mm256_loadu_si256((const __m256i*)(p + 32)), &w[0].b, &w[1].b);
}
inline f32x16 to_f32(i32x16 x) PUNA_BOTH(_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b))
inline __m256i load_u8_8(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline i32x16 load_u8(const uint8_t* p) PUNA_BOTH(load_u8_8(p), load_u8_8(p + 8))
inline i32x16 load_i8(const int8_t* p) PUNA_BOTH(load_i8_8(p), load_i8_8(p + 8))
inline i32x16 load_u16(const uint16_t* p)
    PUNA_BOTH(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(p + 8))))
template <int N> inline i32x16 shr(i32x16 x) PUNA_BOTH(_mm256_srli_epi32(x.a, N), _mm256_srli_epi32(x.b, N))
template <int N> inline i32x16 shr_signed(i32x16 x) PUNA_BOTH(_mm256_srai_epi32(x.a, N), _mm256_srai_epi32(x.b, N))
template <int N> inline i32x16 shl(i32x16 x) PUNA_BOTH(_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N))
inline i32x16 band(i32x16 x, int m) PUNA_BOTH(_mm256_and_si256(x.a, _mm256_set1_epi32(m)), _mm256_and_si256(x.b, _mm256_set1_epi32(m)))
inline i32x16 bor(i32x16 x, i32x16 y) PUNA_BOTH(_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b))

inline __m256i load_256(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline u8x64 load_bytes(const uint8_t* p) PUNA_BOTH(load_256(p), load_256(p + 32))
inline void store_bytes(uint8_t* p, u8x64 x) { _mm256_storeu_si256((__m256i*)p, x.a); _mm256_storeu_si256((__m256i*)(p + 32), x.b); }
inline u8x64 bset1(int x) PUNA_BOTH(_mm256_set1_epi8((char)x), _mm256_set1_epi8((char)x))
inline u8x64 band(u8x64 x, u8x64 y) PUNA_BOTH(_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b))
inline u8x64 bor(u8x64 x, u8x64 y) PUNA_BOTH(_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b))
inline __m256i put_words(__m256i x, int lanes, int value) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_blendv_epi8(x, _mm256_set1_epi8((char)value), _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(lanes), bit), bit));
}
inline u8x64 put_words(u8x64 x, int lanes, int value) PUNA_BOTH(put_words(x.a, lanes, value), put_words(x.b, lanes >> 8, value))
inline u8x64 lookup16(const uint8_t* table, u8x64 i) {
  __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
  return {_mm256_shuffle_epi8(t, i.a), _mm256_shuffle_epi8(t, i.b)};
}
template <int N> inline u8x64 shr(u8x64 x) PUNA_BOTH(_mm256_srli_epi16(x.a, N), _mm256_srli_epi16(x.b, N))
template <int N> inline u8x64 shl(u8x64 x) PUNA_BOTH(_mm256_slli_epi16(x.a, N), _mm256_slli_epi16(x.b, N))
template <int G> inline __m256i spread_bits_8(const uint8_t* words, int value) {
  constexpr int b = G / 2;
  const __m256i pick = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(b, b, b, b, 4 + b, 4 + b, 4 + b, 4 + b, 8 + b, 8 + b, 8 + b, 8 + b, 12 + b, 12 + b, 12 + b, 12 + b));
  const __m256i bit = _mm256_set1_epi32(G % 2 ? (int)0x80402010 : 0x08040201);
  __m256i x = _mm256_and_si256(_mm256_shuffle_epi8(load_256(words), pick), bit);
  return _mm256_and_si256(_mm256_cmpeq_epi8(x, bit), _mm256_set1_epi8((char)value));
}
template <int G> inline u8x64 spread_bits(const uint8_t* words, int value)
    PUNA_BOTH(spread_bits_8<G>(words, value), spread_bits_8<G>(words + 32, value))

inline s8x4 repeat4(const int8_t* p) {
  int x;
  std::memcpy(&x, p, 4);
  __m256i v = _mm256_set1_epi32(x);
  return {_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)};
}
// Exact: maddubs would saturate its 16-bit sums for weights above 128.
inline __m256i dot4(__m256i acc, __m256i w, s8x4 s) {
  __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(0xff)), s.even);
  __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), s.odd);
  return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
inline i32x16 dot4(i32x16 acc, u8x64 w, s8x4 s) PUNA_BOTH(dot4(acc.a, w.a, s), dot4(acc.b, w.b, s))
inline i32x16 dot4(i32x16 acc, u8x64 w, const int8_t* p) { return dot4(acc, w, repeat4(p)); }

inline bf16x32 load_pairs(const uint16_t* p) PUNA_BOTH(load_256(p), load_256(p + 16))
inline void store_pairs(uint16_t* p, bf16x32 x) {
  _mm256_storeu_si256((__m256i*)p, x.a);
  _mm256_storeu_si256((__m256i*)(p + 16), x.b);
}
inline bf16x32 repeat2(const uint16_t* p) {
  int x;
  std::memcpy(&x, p, 4);
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
inline __m256 dot2(__m256 acc, __m256i a, __m256i b) {
  const __m256i high = _mm256_set1_epi32((int)0xffff0000);
  __m256 even = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)), acc);
  return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(a, high)), _mm256_castsi256_ps(_mm256_and_si256(b, high)), even);
}
inline f32x16 dot2(f32x16 acc, bf16x32 x, bf16x32 y) PUNA_BOTH(dot2(acc.a, x.a, y.a), dot2(acc.b, x.b, y.b))
#undef PUNA_BOTH

inline void prefetch_to_write(const void* p) { __builtin_prefetch(p, 1); }
inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
inline void prefetch_far(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }  // into the second-level cache

}  // namespace puna::PUNA_TARGET
