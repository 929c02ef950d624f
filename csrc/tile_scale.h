// In which form a matrix wants activations, of this target.
#pragma once
#include "threads.h"
#include "types.h"

namespace puna {

// Measures the matrix's scale for tiles first, where the target multiplies in tiles and it is not known yet.
InputKind input_of(const Kernels& k, Pool& pool, Matrix& m);

}  // namespace puna
