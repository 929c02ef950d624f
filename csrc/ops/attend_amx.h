// The two products of attention over bf16 tiles of the cache, where a core multiplies tiles (AMX): all query rows of a job
// at once. A row's sums are one chain over its own columns, or positions, in the tile unit's order. Included by attend.cpp
// only.
#pragma once
#include "../cache.h"

namespace puna::PUNA_TARGET {
namespace {

constexpr int CACHE_ROW = 2 * BLOCK_TOKENS * sizeof(uint16_t);  // bytes of two inner values of 32 positions or columns
constexpr int INNER = 32;                                       // values of a row that one instruction multiplies

inline void configure_for_rows(int rows) {
  TileShapes s;
  for (int i : {0, 1, 4}) s.set(i, rows, 64);
  for (int i : {6, 7}) s.set(i, INNER / 2, 64);
  configure_tiles(s);
}

// Sums in tiles 0 and 1 += 32 inner values of all rows times a part [32 inner][32] of a tile of the cache.
inline void multiply_part(const uint16_t* rows, size_t stride, const uint8_t* part) {
  load_tile<4>(rows, stride * sizeof(uint16_t));
  load_tile<6>(part, CACHE_ROW);
  multiply_bf16<0, 4, 6>();
  load_tile<7>(part + CACHE_ROW / 2, CACHE_ROW);
  multiply_bf16<1, 4, 7>();
}

inline void store_sums(float* to, size_t stride) {
  store_tile<0>(to, stride * sizeof(float));
  store_tile<1>(to + 16, stride * sizeof(float));
}

}  // namespace
}  // namespace puna::PUNA_TARGET
