// From rows of blocks, as files hold them, to tiles of 16 interleaved rows, as kernels read them.
#pragma once
#include "types.h"

namespace puna {

// A run of bytes of a block that is interleaved `unit` bytes of each row at a time.
struct Field {
  int offset, bytes, unit;
  bool flip_sign;  // int8 stored as value + 128
  bool swap_middle = false;  // of four bytes the two in the middle change places
};

struct Format {
  const char* name;
  int block;  // columns of a block
  int bytes;  // bytes of a block
  InputKind input;
  int n_fields;
  Field fields[6];
};

const Format& format_of(Kind kind);
// COUNT if there is no such format.
Kind kind_named(const char* name);
// Bytes of one row, or 0 where cols is no whole number of blocks.
size_t row_bytes(Kind kind, int cols);
// Packs tiles tile0..tile1 of a matrix whose rows stand at src; rows past the end become zeros.
void pack(Kind kind, int rows, int cols, const uint8_t* src, uint8_t* dst, int tile0, int tile1);

}  // namespace puna
