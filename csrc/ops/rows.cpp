// Ops on one row of activations: norms, add, scale, swiglu, gelu, hadamard, rope, and the conversions that feed `linear`.
//
// Contracts: n is a multiple of 16 (of 32 for quantize); pointers need no alignment; y may be x.
#include <algorithm>
#include <cstring>
#include <limits>

#include "../simd.h"
#include "../types.h"

namespace puna::PUNA_TARGET {

// y = x / sqrt(mean(x^2) + eps) * w
void rms_norm(const float* x, const float* w, int n, float eps, float* y) {
  f32x16 sum = zero();
  for (int i = 0; i < n; i += 16) {
    f32x16 v = load(x + i);
    sum = fma(v, v, sum);
  }
  const f32x16 scale = set1(1.0f / std::sqrt(reduce_add(sum) / (float)n + eps));
  for (int i = 0; i < n; i += 16) store(y + i, mul(mul(load(x + i), scale), load(w + i)));
}

// y = (x - mean(x)) / sqrt(variance(x) + eps) * w + bias
void layer_norm(const float* x, const float* w, const float* bias, int n, float eps, float* y) {
  f32x16 sum = zero();
  for (int i = 0; i < n; i += 16) sum = add(sum, load(x + i));
  const f32x16 mean = set1(reduce_add(sum) / (float)n);
  f32x16 squares = zero();
  for (int i = 0; i < n; i += 16) {
    const f32x16 v = sub(load(x + i), mean);
    squares = fma(v, v, squares);
  }
  const f32x16 scale = set1(1.0f / std::sqrt(reduce_add(squares) / (float)n + eps));
  for (int i = 0; i < n; i += 16) store(y + i, fma(mul(sub(load(x + i), mean), scale), load(w + i), load(bias + i)));
}

// The nearest whole number from -127 to 127; -127 for what is no number, by the order of max's arguments.
inline i32x16 round_s8(f32x16 x) { return round_i32(min(max(x, set1(-127.0f)), set1(127.0f))); }

// The scale of a group: max|x| / 127 rounded up to a multiple of a quarter of its power of two (types.h says why).
inline float scale_of(float largest) {
  if (!(largest <= 127 * MAX_ACTIVATION_SCALE)) return std::numeric_limits<float>::quiet_NaN();
  const float d = std::max(largest / 127.0f, MIN_ACTIVATION_SCALE);
  uint32_t bits;
  std::memcpy(&bits, &d, 4);
  bits = (bits + 0x1fffff) & ~0x1fffffu;
  float rounded;
  std::memcpy(&rounded, &bits, 4);
  return rounded;
}

// N groups, their reductions together. False where a number is too large, or none.
template <int N> inline bool quantize_groups(const float* x, QBlock* y) {
  f32x16 top[4] = {};
  for (int g = 0; g < N; g++) top[g] = max(abs(load(x + g * GROUP)), abs(load(x + g * GROUP + 16)));
  float largest[4];
  reduce_max4(top, largest);
  i32x16 q[2][4] = {};
  float d[4];
  for (int g = 0; g < N; g++) {
    d[g] = scale_of(largest[g]);
    const f32x16 inverse = set1(1.0f / d[g]);
    for (int half = 0; half < 2; half++) {
      q[half][g] = round_s8(mul(load(x + g * GROUP + half * 16), inverse));
      store_s8(y[g].q + half * 16, q[half][g]);
    }
  }
  bool good = true;
  int low[4], high[4];
  reduce_add4(q[0], low);
  reduce_add4(q[1], high);
  for (int g = 0; g < N; g++) {
    const int sum = low[g] + high[g];
    y[g].d = d[g];
    y[g].s = d[g] * (float)sum;
    y[g].nsum = -sum;
    y[g].nsum_low = -low[g];
    good &= d[g] == d[g];
  }
  return good;
}

void quantize(const float* x, int n, QBlock* y) {
  int i = 0;
  bool good = true;
  for (; i + 4 * GROUP <= n; i += 4 * GROUP) good &= quantize_groups<4>(x + i, y + i / GROUP);
  for (; i < n; i += GROUP) good &= quantize_groups<1>(x + i, y + i / GROUP);
  if (!good)
    for (i = 0; i < n / GROUP; i++) y[i].d = y[i].s = std::numeric_limits<float>::quiet_NaN();
}

void to_bf16(const float* x, int n, uint16_t* y) {
  for (int i = 0; i < n; i += 16) store_bf16(y + i, load(x + i));
}

void add(const float* a, const float* b, int n, float* y) {
  for (int i = 0; i < n; i += 16) store(y + i, add(load(a + i), load(b + i)));
}

// y = a + factor * b
void add_scaled(const float* a, const float* b, float factor, int n, float* y) {
  for (int i = 0; i < n; i += 16) store(y + i, fma(load(b + i), set1(factor), load(a + i)));
}

void gelu(const float* x, int n, float* y) {
  for (int i = 0; i < n; i += 16) store(y + i, gelu(load(x + i)));
}

void scale(const float* x, float factor, int n, float* y) {
  for (int i = 0; i < n; i += 16) store(y + i, mul(load(x + i), set1(factor)));
}

// y = silu(gate) * up
void swiglu(const float* gate, const float* up, int n, float* y) {
  for (int i = 0; i < n; i += 16) store(y + i, mul(silu(load(gate + i)), load(up + i)));
}

// y = H x / sqrt(n), H being Sylvester's Hadamard matrix; n is a power of two, at least 16.
void hadamard(const float* x, int n, float* y) {
  const f32x16 factor = set1(1.0f / std::sqrt((float)n));
  for (int i = 0; i < n; i += 16) store(y + i, butterfly16(mul(load(x + i), factor)));
  for (int h = 16; h < n; h *= 2)
    for (int i = 0; i < n; i += 2 * h)
      for (int j = i; j < i + h; j += 16) {
        const f32x16 a = load(y + j), b = load(y + j + h);
        store(y + j, add(a, b));
        store(y + j + h, sub(a, b));
      }
}

// Rotates the pairs (2i, 2i + 1) of every head by the angle whose cosine and sine stand at i.
void rope(const float* x, int heads, int head_dim, const float* cos, const float* sin, float* y) {
  for (int i = 0; i < head_dim; i += 16) {
    const f32x16 c = duplicate_pairs(cos + i / 2), s = duplicate_pairs(sin + i / 2);
    for (int h = 0; h < heads; h++) {
      f32x16 v = load(x + h * head_dim + i);
      rotate_pairs(v, c, s);
      store(y + h * head_dim + i, v);
    }
  }
}

}  // namespace puna::PUNA_TARGET
