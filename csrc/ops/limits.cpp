// What the machine can do at best, by the same instructions as the kernels: the denominators of every speed claim.
#include "../simd.h"
#include "../types.h"

namespace puna::PUNA_TARGET {

// Touches every cache line of p[0..n), n a multiple of 256, in four streams of loads.
uint64_t read(const uint8_t* p, size_t n) {
  u8x64 a = bset1(0), b = a, c = a, d = a;
  for (size_t i = 0; i < n; i += 256) {
    a = bor(a, load_bytes(p + i));
    b = bor(b, load_bytes(p + i + 64));
    c = bor(c, load_bytes(p + i + 128));
    d = bor(d, load_bytes(p + i + 192));
  }
  alignas(64) uint8_t bytes[64];
  store_bytes(bytes, bor(bor(a, b), bor(c, d)));
  uint64_t sum = 0;
  for (uint8_t x : bytes) sum += x;
  return sum;
}

// Hides a value from the optimiser, so that a round cannot be hoisted out of its loop.
template <class T> inline void pin(T& x) {
#if defined(PUNA_AVX512)
  asm volatile("" : "+v"(x.v));
#elif defined(PUNA_AVX2)
  asm volatile("" : "+x"(x.a), "+x"(x.b));
#else
  asm volatile("" : "+m"(x));
#endif
}

// Independent chains that hide the latency of one instruction.
#if defined(PUNA_AVX512)
constexpr int CHAINS = 12;
#else
constexpr int CHAINS = 4;
#endif

constexpr int REPEATS = 4;  // of all chains per turn of the loop

#if defined(__AMX_BF16__)
// What quantized weights and those of bf16 are multiplied with here: 16 tokens, 16 outputs and 32 columns an instruction.
// F32, F16 and FP8 stay with vectors, and are far below it.
double tile_peak(int64_t rounds) {
  TileShapes shapes;
  for (int i = 0; i < 8; i++) shapes.set(i, 16, 64);
  configure_tiles(shapes);
  clear_tile<4>(), clear_tile<5>(), clear_tile<6>(), clear_tile<7>();
  constexpr int TURNS = 12;  // about the work of the loops below
  for (int64_t i = 0; i < rounds; i += TURNS) multiply_bf16<0, 4, 6>(), multiply_bf16<1, 4, 7>(), multiply_bf16<2, 5, 6>(), multiply_bf16<3, 5, 7>();
  release_tiles();
  return 4.0 * 16 * 16 * 32 * (double)((rounds + TURNS - 1) / TURNS);
}

double int8_peak(int64_t rounds) { return tile_peak(rounds); }
double bf16_peak(int64_t rounds) { return tile_peak(rounds); }
#else
// Multiply-accumulates done by `rounds` rounds of the int8 dot product on registers.
double int8_peak(int64_t rounds) {
  i32x16 acc[CHAINS];
  for (auto& a : acc) a = izero();
  const int8_t four[4] = {1, 2, 3, 4};
  u8x64 w = bset1(3);
  s8x4 x = repeat4(four);
  for (int64_t i = 0; i < rounds; i++) {
    pin(w);
#pragma GCC unroll 4
    for (int r = 0; r < REPEATS; r++)
#pragma GCC unroll 12
      for (int c = 0; c < CHAINS; c++) acc[c] = dot4(acc[c], w, x);
  }
  for (auto& a : acc) pin(a);
  return 64.0 * CHAINS * REPEATS * (double)rounds;
}

double bf16_peak(int64_t rounds) {
  f32x16 acc[CHAINS];
  for (auto& a : acc) a = zero();
  const uint16_t ones[32] = {0x3f80, 0x3f80};
  bf16x32 w = load_pairs(ones), x = repeat2(ones);
  for (int64_t i = 0; i < rounds; i++) {
    pin(w);
#pragma GCC unroll 4
    for (int r = 0; r < REPEATS; r++)
#pragma GCC unroll 12
      for (int c = 0; c < CHAINS; c++) acc[c] = dot2(acc[c], w, x);
  }
  for (auto& a : acc) pin(a);
  return 32.0 * CHAINS * REPEATS * (double)rounds;
}
#endif

}  // namespace puna::PUNA_TARGET
