#include "tile_scale.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "pack.h"

namespace puna {
namespace {

constexpr int LARGEST_EXPONENT = 13;        // of a weight times its scale: halves end at 2^16
constexpr float MOST_APART = 4096;          // the largest rows and the smallest: halves begin at 2^-14
constexpr float MOST_EXTREME = 0x1p60f;     // of weights, beyond which the scale itself would be no good factor

// A power of two, or 0 where halves cannot hold the matrix.
float tile_scale_of(const Kernels& k, Pool& pool, const Matrix& m) {
  std::vector<float> largest(pool.size()), least(pool.size());
  pool.run([&](int t) { largest[t] = k.weight_range(m, m.tiles() * t / pool.size(), m.tiles() * (t + 1) / pool.size(), &least[t]); });
  const float most = *std::max_element(largest.begin(), largest.end()), smallest = *std::min_element(least.begin(), least.end());
  if (!(most < MOST_EXTREME) || most < 1 / MOST_EXTREME || most > MOST_APART * smallest) return 0;
  return std::ldexp(1.0f, LARGEST_EXPONENT - std::ilogb(most));
}

}  // namespace

InputKind input_of(const Kernels& k, Pool& pool, Matrix& m) {
  const InputKind input = format_of(m.kind).input;
  if (!k.weight_range || input != InputKind::Q8) return input;
  if (m.tile_scale == UNKNOWN_SCALE) m.tile_scale = tile_scale_of(k, pool, m);
  return m.tile_scale > 0 ? InputKind::BF16 : InputKind::Q8;
}

}  // namespace puna
