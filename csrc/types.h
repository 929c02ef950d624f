// Data that all targets share: packed weights, quantized activations, the table of kernels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace puna {

constexpr int TILE_ROWS = 16;  // rows of a weight matrix that are interleaved
constexpr int GROUP = 32;      // activations that share a scale

enum class Kind : int { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, INT4, INT4_MIN, INT8, INT8_16, FP8, COUNT };

// What `linear` multiplies a weight kind with.
enum class InputKind : int { F32, BF16, Q8 };

constexpr float UNKNOWN_SCALE = -1;

// Weights [rows, cols], packed in tiles of 16 rows (pack.h); the last tile is padded with zero rows.
struct Matrix {
  Kind kind;
  int rows, cols;
  size_t tile_bytes;
  const uint8_t* data;
  float tile_scale = UNKNOWN_SCALE;  // what weights are multiplied with to be halves in tiles (ops/linear_amx.h); 0 where they cannot
  int tiles() const { return (rows + TILE_ROWS - 1) / TILE_ROWS; }
  const uint8_t* tile(int i) const { return data + (size_t)i * tile_bytes; }
};

// 32 activations as int8: x = d * q. Sums let a kernel treat weights as unsigned with a zero point or a minimum.
// d is 1, 1.25, 1.5 or 1.75 times a power of two: then a kernel that keeps its weights' scales times these four gets
// d_w * d by adding exponents, to the bit, on a port of the core that multiplications leave free. Activations lose a
// tenth of a bit. Where one of a row is too large, or no number, all d and s of the row are NaN.
struct QBlock {
  int8_t q[GROUP];
  float d;
  float s;           // d * sum of q
  int32_t nsum;      // -(sum of q)
  int32_t nsum_low;  // -(sum of the first 16 q)
};
static_assert(sizeof(QBlock) == 48);

constexpr float MIN_ACTIVATION_SCALE = 0x1p-60f, MAX_ACTIVATION_SCALE = 0x1p60f;
constexpr float MIN_WEIGHT_SCALE = 0x1p-62f, MAX_WEIGHT_SCALE = 0x1p62f;  // for which adding exponents is right

// Activations [rows, cols] in whichever of the three forms were asked for.
struct Input {
  int cols;
  const float* f32;      // row stride cols
  const uint16_t* bf16;  // row stride cols
  const QBlock* q8;      // row stride cols / 32
};

// Where `linear` puts its result [rows, stride].
struct Output {
  float* y;
  size_t stride;
  const float* residual;  // added if not null, same stride; may be y itself
};

// Rotary tables of a step: [tokens, head_dim / 2].
struct Rotation {
  const float* cos;
  const float* sin;
};

enum class CacheKind : int { BF16, F16, F32, Q8_0 };

constexpr int BLOCK_TOKENS = 32;   // positions of a cache block
constexpr int SPAN = 256;          // positions whose softmax is computed together, whatever the batch or chunking
constexpr int MAX_QUERY_ROWS = 16; // query rows (tokens x heads of a group) that share one pass over keys

// One layer of the cache. Keys of a head lie in tiles of BLOCK_TOKENS positions, values in tiles of BLOCK_TOKENS
// positions and 32 columns; tiles of neighbouring blocks are neighbours, so that a long sequence is read in long streams.
struct CacheLayer {
  CacheKind kind;
  int head_dim, n_kv_heads, n_blocks;
  size_t key_bytes, value_bytes;  // of a tile
  uint8_t* data;                  // [n_kv_heads]{keys [n_blocks], values [head_dim / 32][n_blocks]}
  size_t head_bytes() const { return n_blocks * (key_bytes + head_dim / 32 * value_bytes); }
  uint8_t* keys(int block, int head) const { return data + head * head_bytes() + block * key_bytes; }
  uint8_t* values(int block, int head, int column) const {
    return data + head * head_bytes() + n_blocks * key_bytes + ((size_t)(column / 32) * n_blocks + block) * value_bytes;
  }
};

// Result of attention over spans so far, one row: running maximum (scaled, base 2), sum of weights, weighted values.
struct SpanState {
  float max, sum;
};

struct AttendJob {
  const CacheLayer* cache;
  int kv_head;
  const int32_t* blocks;   // block table of the sequence
  int first_span, n_spans; // spans to visit
  int rows;                // query rows, at most MAX_QUERY_ROWS
  const void* const* q;    // per row: head_dim values, bf16 or f32 as cache_query_is_bf16 says
  const int* first;        // per row: first visible position
  const int* last;         // per row: last visible position
  float scale_log2;        // score scale * log2(e)
  SpanState* state;        // per row: in and out (fresh: max -inf, sum 0)
  float* const* out;       // per row: head_dim weighted values, unnormalised; in and out
  uint8_t* scratch;        // ATTEND_SCRATCH bytes, 64-byte aligned
};

constexpr size_t LINEAR_SCRATCH = 256 * 1024;
constexpr size_t ATTEND_SCRATCH = 320 * 1024;

// Every kernel of one CPU target. Contracts stand beside the definitions in ops/*.cpp.
struct Kernels {
  const char* name;
  float (*weight_range)(const Matrix& w, int tile0, int tile1, float* least);  // null where nothing is multiplied in tiles
  void (*linear)(const Matrix& w, const Matrix* up, const Input& x, int row0, int row1, int tile0, int tile1, const Output& y, uint8_t* scratch);
  void (*embed)(const Matrix& w, int row, float* y);
  void (*rms_norm)(const float* x, const float* w, int n, float eps, float* y);
  void (*layer_norm)(const float* x, const float* w, const float* bias, int n, float eps, float* y);
  void (*quantize)(const float* x, int n, QBlock* y);
  void (*to_bf16)(const float* x, int n, uint16_t* y);
  void (*add)(const float* a, const float* b, int n, float* y);
  void (*add_scaled)(const float* a, const float* b, float factor, int n, float* y);
  void (*gelu)(const float* x, int n, float* y);
  void (*scale)(const float* x, float factor, int n, float* y);
  void (*swiglu)(const float* gate, const float* up, int n, float* y);
  void (*hadamard)(const float* x, int n, float* y);
  void (*rope)(const float* x, int heads, int head_dim, const float* cos, const float* sin, float* y);
  void (*cache_write)(const CacheLayer& c, int block, int slot, int n, const float* k, size_t k_stride, const float* v, size_t v_stride);
  void (*cache_clear)(const CacheLayer& c, int block, int from_slot);
  void (*cache_prefetch)(const CacheLayer& c, int block, int slot);
  void (*attend)(const AttendJob& job);
  void (*merge)(SpanState& a, float* out_a, const SpanState& b, const float* out_b, int n);
  void (*finish)(const SpanState& s, float* out, int n);
  void (*encode)(Kind kind, const float* x, const float* importance, int cols, size_t block0, size_t block1, uint8_t* out);
  uint64_t (*read)(const uint8_t* p, size_t n);  // limits: touch every line
  double (*int8_peak)(int64_t rounds);           // limits: multiply-accumulates done
  double (*bf16_peak)(int64_t rounds);
};

inline bool cache_query_is_bf16(CacheKind k) { return k == CacheKind::BF16; }
CacheLayer cache_layer(CacheKind kind, int head_dim, int n_kv_heads, int n_blocks, uint8_t* data);

}  // namespace puna
