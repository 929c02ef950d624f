// AMX (tiles of bf16) and AVX-512 FP16, which every core with AMX has: eight tiles of up to 16 rows of 64 bytes, and products of them. Included by simd.h only.
//
// A thread configures its tiles, multiplies, and releases them: a thread that holds tiles is dearer to switch, and a
// core with tiles in use does not rest. The process asks the system for them once (dispatch.cpp).
#pragma once

namespace puna::PUNA_TARGET {

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row
  uint8_t rows[16] = {};
  void set(int tile, int n_rows, int n_bytes) { rows[tile] = (uint8_t)n_rows, bytes[tile] = (uint16_t)n_bytes; }
};

inline void configure_tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
inline void release_tiles() { asm volatile("tilerelease"); }

template <int Tile> inline void clear_tile() { asm volatile("tilezero %%tmm%c0" ::"i"(Tile)); }
template <int Tile> inline void load_tile(const void* p, size_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile> inline void store_tile(void* p, size_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(Tile) : "memory");
}
// C [m][n] += sum over k of A [m][k] * B [k / 2][n][k % 2], bf16 to float. Denormals count as 0.
template <int C, int A, int B> inline void multiply_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

struct u16x32 { __m512i v; };
struct f16x32 { __m512h v; };  // 16 lanes x 2 consecutive values

inline f16x32 twice_f16(f32x16 a) {  // every number rounded to a half, in both places of its lane
  const __m512i h = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  return {_mm512_castsi512_ph(_mm512_or_si512(h, _mm512_slli_epi32(h, 16)))};
}
// Bytes 2 Half and 2 Half + 1 of each lane as words.
template <int Half> inline u16x32 bytes_to_words(u8x64 a) {
  constexpr int MORE = Half * 0x00020002;
  return {_mm512_shuffle_epi8(a.v, _mm512_set4_epi32(0x800d800c + MORE, 0x80098008 + MORE, 0x80058004 + MORE, 0x80018000 + MORE))};
}
inline f16x32 to_f16(u16x32 a) { return {_mm512_cvtepu16_ph(a.v)}; }
template <int N> inline u16x32 shr(u16x32 a) { return {_mm512_srli_epi16(a.v, N)}; }
inline f16x32 lookup16(f16x32 twice, u16x32 at) { return {_mm512_castsi512_ph(_mm512_permutexvar_epi16(at.v, _mm512_castph_si512(twice.v)))}; }  // twice[at % 32]
inline f16x32 load_f16x32(const _Float16* p) { return {_mm512_loadu_ph(p)}; }
inline f16x32 set1_f16(float x) { return {_mm512_set1_ph((_Float16)x)}; }
inline f16x32 mul(f16x32 a, f16x32 b) { return {_mm512_mul_ph(a.v, b.v)}; }
inline f16x32 fma(f16x32 a, f16x32 b, f16x32 c) { return {_mm512_fmadd_ph(a.v, b.v, c.v)}; }
// Halves as bf16, cut off behind 7 bits, times 2^-16; what is below 2^-14 comes to about 2^-31, not to 0.
inline void store_cut(uint16_t* p, f16x32 a) {
  const __m512i moved = _mm512_srai_epi16(_mm512_castph_si512(a.v), 3);
  _mm512_storeu_si512(p, _mm512_ternarylogic_epi32(moved, _mm512_set1_epi16((short)0x8fff), _mm512_set1_epi16(0x3000), 0xea));
}

}  // namespace puna::PUNA_TARGET
