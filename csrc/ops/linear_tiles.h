// The weight tiles of a call of `linear`, and what becomes of their sums. Included by the files of `linear` only.
#pragma once
#include "../formats.h"

namespace puna::PUNA_TARGET {
namespace {

// The weight tiles of a call in the order of computation; gate and up tiles alternate.
struct Tiles {
  const Matrix& w;
  const Matrix* up;
  int first, n;
  const uint8_t* operator[](int i) const {
    return up ? (i % 2 ? *up : w).tile(first + i / 2) : w.tile(first + i);
  }
};

inline void prefetch_range(const uint8_t* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) prefetch(p + i);
}

// acc: [n tiles][16] results of one token, tiles i..i+n of the call.
inline void emit(const Tiles& tiles, const Output& out, int row, int i, int n, const float* acc, size_t acc_stride) {
  float* y = out.y + row * out.stride;
  const float* residual = out.residual ? out.residual + row * out.stride : nullptr;
  for (int j = 0; j < n; j++) {
    f32x16 v = load(acc + j * acc_stride);
    size_t at;
    if (tiles.up) {
      v = mul(silu(v), load(acc + ++j * acc_stride));
      at = (size_t)(tiles.first + (i + j) / 2) * ROWS;
    } else {
      at = (size_t)(tiles.first + i + j) * ROWS;
    }
    if (residual) v = add(load(residual + at), v);
    store(y + at, v);
  }
}

// Rows of the result lie pages apart: fetched while the sums are still being computed, they cost nothing.
inline void prefetch_output(const Tiles& tiles, const Output& out, int row, int i) {
  const size_t at = row * out.stride + (size_t)(tiles.first + (tiles.up ? i / 2 : i)) * ROWS;
  prefetch_to_write(out.y + at);
  prefetch_to_write(out.y + at + ROWS);
  if (out.residual && out.residual != out.y) prefetch(out.residual + at);
}

}  // namespace
}  // namespace puna::PUNA_TARGET
