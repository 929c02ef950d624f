// y = one row of a weight matrix as floats, exactly as its format defines them.
//
// Contract: row < w.rows; y has w.cols floats.
#include "../formats.h"
#include "../types.h"

namespace puna::PUNA_TARGET {
namespace {

template <class F, int S> inline void dequantize_sub(const uint8_t* block, int lane, float* y) {
  SubBlock w;
  F::template load<S>(block, w);
  alignas(64) uint8_t q[8][64];
  alignas(64) float d[2][ROWS], m[2][ROWS];
  for (int k = 0; k < 8; k++) store_bytes(q[k], w.q[k]);
  for (int half = 0; half < (F::HALVES ? 2 : 1); half++) {
    store(d[half], w.d[half]);
    if constexpr (F::MIN) store(m[half], w.m[half]);
  }
  for (int c = 0; c < GROUP; c++) {
    const int half = F::HALVES ? c / 16 : 0;
    const float v = d[half][lane] * (float)(q[c / 4][4 * lane + c % 4] - F::ZERO);
    y[S * GROUP + c] = F::MIN ? v + m[half][lane] : v;
  }
  if constexpr (S + 1 < F::SUBS) dequantize_sub<F, S + 1>(block, lane, y);
}

template <class F> void dequantize_row(const Matrix& w, int row, float* y) {
  const uint8_t* tile = w.tile(row / ROWS);
  for (int b = 0; b < w.cols / (GROUP * F::SUBS); b++)
    dequantize_sub<F, 0>(tile + (size_t)b * F::BYTES * ROWS, row % ROWS, y + b * GROUP * F::SUBS);
}

template <class W> void widen_row(const Matrix& w, int row, float* y) {
  const uint8_t* tile = w.tile(row / ROWS);
  alignas(64) float lanes[ROWS];
  for (int k = 0; k < w.cols; k++) {
    store(lanes, W::load(tile, k));
    y[k] = lanes[row % ROWS];
  }
}

void widen_row_fp8(const Matrix& w, int row, float* y) {
  const uint8_t* tile = w.tile(row / ROWS);
  alignas(64) uint16_t pairs[2][2 * ROWS];
  alignas(64) float scales[ROWS];
  for (int k = 0; k < w.cols; k += 4) {
    const uint8_t* block = WeightFP8::block(tile, k);
    bf16x32 v[2];
    WeightFP8::load(block, k % GROUP, v);
    store(scales, WeightFP8::scale(block));
    for (int i = 0; i < 2; i++) store_pairs(pairs[i], v[i]);
    for (int j = 0; j < 4; j++) {
      const uint32_t bits = (uint32_t)pairs[j / 2][2 * (row % ROWS) + j % 2] << 16;
      float value;
      std::memcpy(&value, &bits, 4);
      y[k + j] = value * scales[row % ROWS];
    }
  }
}

}  // namespace

void embed(const Matrix& w, int row, float* y) {
  switch (w.kind) {
    case Kind::F32: return widen_row<WeightF32>(w, row, y);
    case Kind::F16: return widen_row<WeightF16>(w, row, y);
    case Kind::BF16: {
      const uint16_t* tile = (const uint16_t*)w.tile(row / ROWS);
      for (int k = 0; k < w.cols; k++) {
        uint32_t u = (uint32_t)tile[(k / 2 * ROWS + row % ROWS) * 2 + k % 2] << 16;
        std::memcpy(y + k, &u, 4);
      }
      return;
    }
    case Kind::Q8_0: return dequantize_row<Q8_0>(w, row, y);
    case Kind::Q4_0: return dequantize_row<Q4_0>(w, row, y);
    case Kind::Q4_1: return dequantize_row<Q4_1>(w, row, y);
    case Kind::Q5_0: return dequantize_row<Q5_0>(w, row, y);
    case Kind::Q5_1: return dequantize_row<Q5_1>(w, row, y);
    case Kind::Q2_K: return dequantize_row<Q2_K>(w, row, y);
    case Kind::Q3_K: return dequantize_row<Q3_K>(w, row, y);
    case Kind::Q4_K: return dequantize_row<Q4_K>(w, row, y);
    case Kind::Q5_K: return dequantize_row<Q5_K>(w, row, y);
    case Kind::Q6_K: return dequantize_row<Q6_K>(w, row, y);
    case Kind::IQ4_NL: return dequantize_row<IQ4_NL>(w, row, y);
    case Kind::IQ4_XS: return dequantize_row<IQ4_XS>(w, row, y);
    case Kind::INT4: return dequantize_row<INT4>(w, row, y);
    case Kind::INT4_MIN: return dequantize_row<INT4_MIN>(w, row, y);
    case Kind::INT8: return dequantize_row<INT8>(w, row, y);
    case Kind::INT8_16: return dequantize_row<INT8_16>(w, row, y);
    case Kind::FP8: return widen_row_fp8(w, row, y);
    case Kind::COUNT: break;
  }
}

}  // namespace puna::PUNA_TARGET
