// Plain C++: the reference every other target is tested against, and what runs where there is no vector unit we
// know. Included by simd.h only.
#pragma once
#include <algorithm>

namespace puna::PUNA_TARGET {

struct f32x16 { float v[16]; };
struct i32x16 { int32_t v[16]; };
struct u8x64 { uint8_t v[64]; };
struct s8x4 { int8_t v[4]; };
struct bf16x32 { uint16_t v[32]; };

// As the vector units do where no int holds the number, or where it is none.
inline int32_t to_int(float x) { return std::fabs(x) < 2147483648.0f ? (int32_t)x : INT32_MIN; }

#define PUNA_LANES(type, n, expr) { type r; for (int i = 0; i < n; i++) r.v[i] = (expr); return r; }
inline f32x16 load(const float* p) PUNA_LANES(f32x16, 16, p[i])
inline void store(float* p, f32x16 a) { std::memcpy(p, a.v, 64); }
inline f32x16 set1(float x) PUNA_LANES(f32x16, 16, x)
inline f32x16 zero() { return set1(0.0f); }
inline f32x16 add(f32x16 a, f32x16 b) PUNA_LANES(f32x16, 16, a.v[i] + b.v[i])
inline f32x16 sub(f32x16 a, f32x16 b) PUNA_LANES(f32x16, 16, a.v[i] - b.v[i])
inline f32x16 mul(f32x16 a, f32x16 b) PUNA_LANES(f32x16, 16, a.v[i] * b.v[i])
inline f32x16 div(f32x16 a, f32x16 b) PUNA_LANES(f32x16, 16, a.v[i] / b.v[i])
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) PUNA_LANES(f32x16, 16, std::fma(a.v[i], b.v[i], c.v[i]))
inline f32x16 max(f32x16 a, f32x16 b) PUNA_LANES(f32x16, 16, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
inline f32x16 min(f32x16 a, f32x16 b) PUNA_LANES(f32x16, 16, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
inline f32x16 select_greater(f32x16 a, f32x16 b, f32x16 x, f32x16 y) PUNA_LANES(f32x16, 16, a.v[i] > b.v[i] ? x.v[i] : y.v[i])
inline f32x16 abs(f32x16 a) PUNA_LANES(f32x16, 16, std::fabs(a.v[i]))
inline f32x16 fraction(f32x16 a) PUNA_LANES(f32x16, 16, a.v[i] - std::floor(a.v[i]))
inline f32x16 scale2(f32x16 a, f32x16 x) PUNA_LANES(f32x16, 16, x.v[i] < -126.0f ? 0.0f : std::ldexp(a.v[i], to_int(std::floor(x.v[i]))))
inline f32x16 keep_first(f32x16 a, int n, float fill) PUNA_LANES(f32x16, 16, i < n ? a.v[i] : fill)
inline float reduce_add(f32x16 a) {
  for (int half = 8; half >= 1; half /= 2)
    for (int i = 0; i < half; i++) a.v[i] += a.v[i + half];
  return a.v[0];
}
inline float reduce_max(f32x16 a) { return *std::max_element(a.v, a.v + 16); }
inline void rotate_pairs(f32x16& x, f32x16 c, f32x16 s) {
  for (int i = 0; i < 16; i += 2) {
    float a = x.v[i], b = x.v[i + 1];
    x.v[i] = std::fma(a, c.v[i], -(b * s.v[i]));
    x.v[i + 1] = std::fma(b, c.v[i + 1], a * s.v[i + 1]);
  }
}
inline f32x16 butterfly16(f32x16 a) {
  for (int h = 1; h < 16; h *= 2)
    for (int i = 0; i < 16; i++)
      if (!(i & h)) {
        const float x = a.v[i], y = a.v[i + h];
        a.v[i] = x + y;
        a.v[i + h] = x - y;
      }
  return a;
}
inline f32x16 duplicate_pairs(const float* p) PUNA_LANES(f32x16, 16, p[i / 2])

inline float from_bf16(uint16_t h) {
  uint32_t u = (uint32_t)h << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline float from_f16(uint16_t h) {
  uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
  float f;
  if (exponent == 0) {
    f = std::ldexp((float)fraction, -24);
    return sign ? -f : f;
  }
  uint32_t u = sign | ((exponent == 31 ? 255 : exponent + 112) << 23) | (fraction << 13);
  std::memcpy(&f, &u, 4);
  return f;
}
inline uint16_t to_f16(float f) {  // round to nearest even
  uint32_t u;
  std::memcpy(&u, &f, 4);
  uint16_t sign = (u >> 16) & 0x8000;
  float a = std::fabs(f);
  if (!(a < 65520.0f)) return sign | (a != a ? 0x7e00 : 0x7c00);
  if (a < 6.103515625e-05f) return sign | (uint16_t)std::nearbyint(std::ldexp(a, 24));
  u = (u & 0x7fffffff) - (112u << 23);
  return sign | (uint16_t)((u + 0xfff + ((u >> 13) & 1)) >> 13);
}
inline uint16_t to_bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline f32x16 load_f16(const uint16_t* p) PUNA_LANES(f32x16, 16, from_f16(p[i]))
inline void store_f16(uint16_t* p, f32x16 a) { for (int i = 0; i < 16; i++) p[i] = to_f16(a.v[i]); }
inline f32x16 load_bf16(const uint16_t* p) PUNA_LANES(f32x16, 16, from_bf16(p[i]))
inline f32x16 load_s8(const int8_t* p) PUNA_LANES(f32x16, 16, (float)p[i])
inline void store_bf16(uint16_t* p, f32x16 a) { for (int i = 0; i < 16; i++) p[i] = to_bf16(a.v[i]); }
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
inline i32x16 round_i32(f32x16 a) PUNA_LANES(i32x16, 16, to_int(std::nearbyint(a.v[i])))
inline void store_s8(int8_t* p, i32x16 a) { for (int i = 0; i < 16; i++) p[i] = (int8_t)std::clamp(a.v[i], -128, 127); }
inline i32x16 izero() PUNA_LANES(i32x16, 16, 0)
inline i32x16 iset1(int x) PUNA_LANES(i32x16, 16, x)
inline i32x16 iadd(i32x16 a, i32x16 b) PUNA_LANES(i32x16, 16, (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i]))
inline i32x16 ishl(i32x16 a, int n) PUNA_LANES(i32x16, 16, (int32_t)((uint32_t)a.v[i] << n))
inline i32x16 isub(i32x16 a, i32x16 b) PUNA_LANES(i32x16, 16, (int32_t)((uint32_t)a.v[i] - (uint32_t)b.v[i]))
inline i32x16 iload(const int32_t* p) PUNA_LANES(i32x16, 16, p[i])
inline void istore(int32_t* p, i32x16 a) { std::memcpy(p, a.v, 64); }
inline i32x16 bits_of(f32x16 a) { i32x16 r; std::memcpy(r.v, a.v, 64); return r; }
inline f32x16 from_bits(i32x16 a) { f32x16 r; std::memcpy(r.v, a.v, 64); return r; }
inline int lanes_within(f32x16 a, float least, float most) {  // bit i: least <= |a[i]| <= most
  int m = 0;
  for (int i = 0; i < 16; i++) m |= (std::fabs(a.v[i]) >= least && std::fabs(a.v[i]) <= most) << i;
  return m;
}
inline int reduce_add(i32x16 a) { int s = 0; for (int x : a.v) s += x; return s; }
inline void reduce_max4(const f32x16 (&v)[4], float* out) { for (int i = 0; i < 4; i++) out[i] = reduce_max(v[i]); }
inline void reduce_add4(const i32x16 (&v)[4], int* out) { for (int i = 0; i < 4; i++) out[i] = reduce_add(v[i]); }
inline uint16_t e4m3_as_bf16(uint8_t c) {
  const int exponent = c >> 3 & 15, fraction = c & 7;
  const float magnitude = std::ldexp((float)(exponent ? 8 + fraction : fraction), std::max(exponent, 1) - 10);
  uint32_t bits;
  std::memcpy(&bits, &magnitude, 4);
  return (uint16_t)(bits >> 16 | (c & 128) << 8);
}
inline void load_e4m3(const uint8_t* p, bf16x32* w) {
  for (int i = 0; i < 64; i++) w[i % 2].v[i / 2] = e4m3_as_bf16(p[i]);
}
inline f32x16 to_f32(i32x16 a) PUNA_LANES(f32x16, 16, (float)a.v[i])
inline i32x16 load_u8(const uint8_t* p) PUNA_LANES(i32x16, 16, p[i])
inline i32x16 load_i8(const int8_t* p) PUNA_LANES(i32x16, 16, p[i])
inline i32x16 load_u16(const uint16_t* p) PUNA_LANES(i32x16, 16, p[i])
template <int N> inline i32x16 shr(i32x16 a) PUNA_LANES(i32x16, 16, (int32_t)((uint32_t)a.v[i] >> N))
template <int N> inline i32x16 shr_signed(i32x16 a) PUNA_LANES(i32x16, 16, a.v[i] >> N)
template <int N> inline i32x16 shl(i32x16 a) PUNA_LANES(i32x16, 16, (int32_t)((uint32_t)a.v[i] << N))
inline i32x16 band(i32x16 a, int m) PUNA_LANES(i32x16, 16, a.v[i] & m)
inline i32x16 bor(i32x16 a, i32x16 b) PUNA_LANES(i32x16, 16, a.v[i] | b.v[i])

inline u8x64 load_bytes(const uint8_t* p) PUNA_LANES(u8x64, 64, p[i])
inline void store_bytes(uint8_t* p, u8x64 a) { std::memcpy(p, a.v, 64); }
inline u8x64 bset1(int x) PUNA_LANES(u8x64, 64, (uint8_t)x)
inline u8x64 band(u8x64 a, u8x64 b) PUNA_LANES(u8x64, 64, a.v[i] & b.v[i])
inline u8x64 bor(u8x64 a, u8x64 b) PUNA_LANES(u8x64, 64, a.v[i] | b.v[i])
inline u8x64 put_words(u8x64 a, int lanes, int value) PUNA_LANES(u8x64, 64, lanes >> (i / 4) & 1 ? (uint8_t)value : a.v[i])
inline u8x64 lookup16(const uint8_t* table, u8x64 idx) PUNA_LANES(u8x64, 64, table[idx.v[i] & 15])
// The vector targets shift 16-bit lanes; callers mask away what crosses, so byte shifts give the same result.
template <int N> inline u8x64 shr(u8x64 a) PUNA_LANES(u8x64, 64, (uint8_t)(a.v[i] >> N))
template <int N> inline u8x64 shl(u8x64 a) PUNA_LANES(u8x64, 64, (uint8_t)(a.v[i] << N))
template <int G> inline u8x64 spread_bits(const uint8_t* words, int value)
    PUNA_LANES(u8x64, 64, (words[i / 4 * 4 + G / 2] >> (G % 2 * 4 + i % 4)) & 1 ? (uint8_t)value : 0)

inline s8x4 repeat4(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline i32x16 dot4(i32x16 acc, u8x64 w, s8x4 a) {
  for (int r = 0; r < 16; r++)
    for (int i = 0; i < 4; i++) acc.v[r] += (int32_t)w.v[4 * r + i] * a.v[i];
  return acc;
}
inline i32x16 dot4(i32x16 acc, u8x64 w, const int8_t* p) { return dot4(acc, w, repeat4(p)); }
inline bf16x32 load_pairs(const uint16_t* p) PUNA_LANES(bf16x32, 32, p[i])
inline void store_pairs(uint16_t* p, bf16x32 a) { std::memcpy(p, a.v, 64); }
inline bf16x32 repeat2(const uint16_t* p) PUNA_LANES(bf16x32, 32, p[i % 2])
inline f32x16 dot2(f32x16 acc, bf16x32 a, bf16x32 b) {
  for (int i = 0; i < 16; i++) {
    acc.v[i] = std::fma(from_bf16(a.v[2 * i]), from_bf16(b.v[2 * i]), acc.v[i]);
    acc.v[i] = std::fma(from_bf16(a.v[2 * i + 1]), from_bf16(b.v[2 * i + 1]), acc.v[i]);
  }
  return acc;
}
#undef PUNA_LANES

inline void prefetch_to_write(const void*) {}
inline void prefetch(const void*) {}
inline void prefetch_far(const void*) {}

}  // namespace puna::PUNA_TARGET
