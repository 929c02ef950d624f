// How keys and values lie in a tile of the cache, for each type. Compiled once per target.
//
// A tile is a small matrix [n][32] whose 32 columns are the lanes of two vectors: for keys, n = head_dim and the columns
// are positions; for values, n = 32 positions and the columns are 32 of head_dim.
//   BF16       [n / 2][32][2]: pairs of rows, for the two-term dot product
//   F16, F32   [n][32]
//   Q8_0       [n][32] int8, then f16 scales: for keys [n / 32][32], a scale for 32 rows of a column; for values [32][1],
//              a scale for each row. Both are scales of 32 values of one position.
#pragma once
#include "simd.h"
#include "types.h"

namespace puna::PUNA_TARGET {

constexpr int MAX_HEAD_DIM = 256;

inline void widen_f16(const uint8_t* tile, int n, float* out) {
  for (int i = 0; i < n * 32; i += 16) store(out + i, load_f16((const uint16_t*)tile + i));
}

// by_row: a scale for each row (values), not for 32 rows of each column (keys).
inline void widen_q8(const uint8_t* tile, int n, bool by_row, float* out) {
  const int8_t* q = (const int8_t*)tile;
  const uint16_t* scales = (const uint16_t*)(tile + n * 32);
  alignas(64) float row_scale[32];
  if (by_row)
    for (int i = 0; i < 32; i += 16) store(row_scale + i, load_f16(scales + i));
  for (int i = 0; i < n; i++)
    for (int c = 0; c < 32; c += 16) {
      const f32x16 d = by_row ? set1(row_scale[i]) : load_f16(scales + i / 32 * 32 + c);
      store(out + i * 32 + c, mul(load_s8(q + i * 32 + c), d));
    }
}

}  // namespace puna::PUNA_TARGET
