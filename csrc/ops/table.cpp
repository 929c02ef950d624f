// The kernels of this target as a table. Compiled once per target, like every file of this folder.
#include "../types.h"

#define PUNA_STRING_(x) #x
#define PUNA_STRING(x) PUNA_STRING_(x)

namespace puna::PUNA_TARGET {

void linear(const Matrix&, const Matrix*, const Input&, int, int, int, int, const Output&, uint8_t*);
#if defined(__AMX_BF16__)
float weight_range(const Matrix&, int, int, float*);
#else
constexpr auto weight_range = nullptr;
#endif
void embed(const Matrix&, int, float*);
void rms_norm(const float*, const float*, int, float, float*);
void layer_norm(const float*, const float*, const float*, int, float, float*);
void quantize(const float*, int, QBlock*);
void to_bf16(const float*, int, uint16_t*);
void add(const float*, const float*, int, float*);
void add_scaled(const float*, const float*, float, int, float*);
void gelu(const float*, int, float*);
void scale(const float*, float, int, float*);
void swiglu(const float*, const float*, int, float*);
void hadamard(const float*, int, float*);
void rope(const float*, int, int, const float*, const float*, float*);
void cache_write(const CacheLayer&, int, int, int, const float*, size_t, const float*, size_t);
void cache_clear(const CacheLayer&, int, int);
void cache_prefetch(const CacheLayer&, int, int);
void attend(const AttendJob&);
void merge(SpanState&, float*, const SpanState&, const float*, int);
void finish(const SpanState&, float*, int);
void encode(Kind, const float*, const float*, int, size_t, size_t, uint8_t*);
uint64_t read(const uint8_t*, size_t);
double int8_peak(int64_t);
double bf16_peak(int64_t);

extern const Kernels kernels;
const Kernels kernels = {PUNA_STRING(PUNA_TARGET), weight_range, linear, embed, rms_norm, layer_norm, quantize, to_bf16, add, add_scaled, gelu, scale, swiglu, hadamard, rope,
                         cache_write, cache_clear, cache_prefetch, attend, merge, finish, encode, read, int8_peak, bf16_peak};

}  // namespace puna::PUNA_TARGET
