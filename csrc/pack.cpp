#include "pack.h"

#include <algorithm>
#include <cstring>

namespace puna {
namespace {

// Fields in the order of the packed tile, which is the order of reading: one rising stream is what a core fetches ahead by
// itself. formats.h reads them by these offsets times 16.
const Format FORMATS[(int)Kind::COUNT] = {
    {"F32", 1, 4, InputKind::F32, 1, {{0, 4, 4, false}}},
    {"F16", 1, 2, InputKind::F32, 1, {{0, 2, 2, false}}},
    {"BF16", 2, 4, InputKind::BF16, 1, {{0, 4, 4, false}}},
    {"Q8_0", 32, 34, InputKind::Q8, 2, {{0, 2, 2, false}, {2, 32, 4, true}}},
    {"Q4_0", 32, 18, InputKind::Q8, 2, {{0, 2, 2, false}, {2, 16, 4, false}}},
    {"Q4_1", 32, 20, InputKind::Q8, 3, {{0, 2, 2, false}, {2, 2, 2, false}, {4, 16, 4, false}}},
    {"Q5_0", 32, 22, InputKind::Q8, 3, {{0, 2, 2, false}, {2, 4, 4, false}, {6, 16, 4, false}}},
    {"Q5_1", 32, 24, InputKind::Q8, 4, {{0, 2, 2, false}, {2, 2, 2, false}, {4, 4, 4, false}, {8, 16, 4, false}}},
    {"Q2_K", 256, 84, InputKind::Q8, 4, {{0, 16, 1, false}, {16, 64, 4, false}, {80, 2, 2, false}, {82, 2, 2, false}}},
    {"Q3_K", 256, 110, InputKind::Q8, 4, {{0, 32, 4, false}, {32, 64, 4, false}, {96, 12, 1, false}, {108, 2, 2, false}}},
    {"Q4_K", 256, 144, InputKind::Q8, 4, {{0, 2, 2, false}, {2, 2, 2, false}, {4, 12, 1, false}, {16, 128, 4, false}}},
    {"Q5_K", 256, 176, InputKind::Q8, 5, {{0, 2, 2, false}, {2, 2, 2, false}, {4, 12, 1, false}, {16, 32, 4, false}, {48, 128, 4, false}}},
    {"Q6_K", 256, 210, InputKind::Q8, 6,
     {{208, 2, 2, false}, {192, 16, 1, false}, {128, 32, 4, false}, {0, 64, 4, false}, {160, 32, 4, false}, {64, 64, 4, false}}},
    {"IQ4_NL", 32, 18, InputKind::Q8, 2, {{0, 2, 2, false}, {2, 16, 4, false}}},
    {"IQ4_XS", 256, 136, InputKind::Q8, 4, {{0, 2, 2, false}, {2, 2, 2, false}, {4, 4, 1, false}, {8, 128, 4, false}}},
    {"INT4", 32, 20, InputKind::Q8, 2, {{0, 4, 4, false}, {4, 16, 4, false}}},
    {"INT4_MIN", 32, 24, InputKind::Q8, 3, {{0, 4, 4, false}, {4, 4, 4, false}, {8, 16, 4, false}}},
    {"INT8", 32, 36, InputKind::Q8, 2, {{0, 4, 4, false}, {4, 32, 4, true}}},
    {"INT8_16", 32, 40, InputKind::Q8, 2, {{0, 8, 4, false}, {8, 32, 4, true}}},
    {"FP8", 32, 36, InputKind::BF16, 2, {{0, 4, 4, false}, {4, 32, 4, false, true}}},
};

template <int Unit> void interleave(const uint8_t* const* rows, const Field& f, uint8_t* dst) {
  for (int i = 0; i < f.bytes; i += Unit)
    for (int r = 0; r < TILE_ROWS; r++, dst += Unit) std::memcpy(dst, rows[r] + f.offset + i, Unit);
}

void flip_signs(uint8_t* p, int n) {
  for (int i = 0; i < n; i++) p[i] ^= 0x80;
}

void swap_middles(uint8_t* p, int n) {
  for (int i = 0; i < n; i += 4) std::swap(p[i + 1], p[i + 2]);
}

void pack_block(const Format& f, const uint8_t* const* rows, uint8_t* dst) {
  for (int i = 0; i < f.n_fields; i++) {
    const Field& field = f.fields[i];
    if (field.unit == 4) interleave<4>(rows, field, dst);
    else if (field.unit == 2) interleave<2>(rows, field, dst);
    else interleave<1>(rows, field, dst);
    if (field.flip_sign) flip_signs(dst, field.bytes * TILE_ROWS);
    if (field.swap_middle) swap_middles(dst, field.bytes * TILE_ROWS);
    dst += field.bytes * TILE_ROWS;
  }
}

}  // namespace

const Format& format_of(Kind kind) { return FORMATS[(int)kind]; }

Kind kind_named(const char* name) {
  int i = 0;
  while (i < (int)Kind::COUNT && std::strcmp(FORMATS[i].name, name) != 0) i++;
  return (Kind)i;
}

size_t row_bytes(Kind kind, int cols) {
  const Format& f = format_of(kind);
  return cols % f.block ? 0 : (size_t)(cols / f.block) * f.bytes;
}

void pack(Kind kind, int rows, int cols, const uint8_t* src, uint8_t* dst, int tile0, int tile1) {
  static const uint8_t zeros[256] = {};
  const Format& f = format_of(kind);
  const size_t stride = row_bytes(kind, cols);
  for (int t = tile0; t < tile1; t++) {
    const uint8_t* row[TILE_ROWS];
    for (int b = 0; b < cols / f.block; b++) {
      for (int r = 0; r < TILE_ROWS; r++) {
        const int at = t * TILE_ROWS + r;
        row[r] = at < rows ? src + (size_t)at * stride + (size_t)b * f.bytes : zeros;
      }
      pack_block(f, row, dst + ((size_t)t * stride + (size_t)b * f.bytes) * TILE_ROWS);
    }
  }
}

}  // namespace puna
