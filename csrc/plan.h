// A recorded forward pass: ops over numbered buffers, run on a pool of threads for any batch.
//
// Knows nothing of Python or files. Built once per model by runtime/native.py; `step` runs it.
#pragma once
#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#include "memory.h"
#include "threads.h"
#include "types.h"

namespace puna {

// Where the keys and values of a sequence are: of position p in blocks[(p - origin) / BLOCK_TOKENS].
struct BlockTable {
  const int32_t* blocks;
  int origin;
};

// The part of one sequence that a step runs.
struct Chunk {
  int row0, n;       // rows of the step: row0 .. row0 + n
  int start;         // position of its first token
  int n_wanted;      // logits are wanted after its last n_wanted tokens
  int wanted0;       // where those rows begin among all wanted rows
  BlockTable global, local;  // of layers that see everything; of layers with chunked attention, where those have a pool
  const BlockTable& table(bool is_local) const { return is_local ? local : global; }
};

// All tokens of the step, or only those whose logits are wanted.
enum class Rows { ALL, WANTED };

class ImageKeys;  // image_ops.h

// Rows of a step that see the same images.
struct SeenRows {
  int row0, row1;
  std::vector<const ImageKeys*> images;
};

// Neighbouring rows that have the same adapter.
struct AdapterRows {
  int row0, row1, slot;
};

struct Step {
  std::vector<Chunk> chunks;
  std::vector<int32_t> tokens, positions, chunk_of;  // per row
  std::vector<int32_t> wanted;                       // row of each wanted row
  std::vector<const float*> given;                   // per row an embedding in place of the token's, or null; or empty
  std::vector<SeenRows> seen;
  std::vector<AdapterRows> adapters[2];              // among all rows, and among those that are wanted
  int rows(Rows r) const { return r == Rows::ALL ? (int)tokens.size() : (int)wanted.size(); }
};

// The forms in which a buffer's rows are kept beside float32.
enum Form { NO_FORM = 0, FORM_BF16 = 1, FORM_Q8 = 2 };

struct Buffer {
  int cols;
  Rows rows;
  Pages f32, bf16, q8;
  float* row(int i) const { return f32.as<float>() + (size_t)i * cols; }
  uint16_t* row_bf16(int i) const { return bf16.as<uint16_t>() + (size_t)i * cols; }
  QBlock* row_q8(int i) const { return q8.as<QBlock>() + (size_t)i * (cols / GROUP); }
  Input input() const { return {cols, f32.as<float>(), bf16.as<uint16_t>(), q8.as<QBlock>()}; }
};

// The next item of a list of work that threads share.
struct alignas(64) Cursor {
  std::atomic<int> next{0};
};

// One thread's view of an op in progress.
struct Worker {
  int thread, n_threads;
  uint8_t* scratch;  // SCRATCH bytes of this thread
  Cursor* cursors;   // one for each thread; only the first in steps of few tokens
  int next(int list) const { return cursors[list].next.fetch_add(1, std::memory_order_relaxed); }
};
constexpr size_t SCRATCH = LINEAR_SCRATCH > ATTEND_SCRATCH ? LINEAR_SCRATCH : ATTEND_SCRATCH;

class Op {
 public:
  virtual ~Op() = default;
  // Small enough that one thread does it while the others wait at the barrier they wait at anyway.
  virtual bool serial(const Step&) const { return false; }
  virtual void run(const Step&, const Worker&) = 0;
  // Called before the parallel op ahead of a serial one: fetch what run() will touch while memory has other work.
  virtual void prefetch(const Step&) const {}
  // Called on every thread that has done its part of the op before: fetch the first bytes of its part of this one, so
  // that memory is busy while threads wait for each other.
  virtual void approach(const Step&, const Worker&) const {}
};

struct PackedMatrix {
  Matrix m;
  std::shared_ptr<Arena> arena;  // owns m.data
};
using Weight = std::shared_ptr<PackedMatrix>;

// One matrix of an adapter (plan_adapters.h); no weights where the adapter leaves that matrix alone.
struct LowRank {
  Weight down, up;  // [rank, cols] and [rows, rank], the rank padded to whole tiles with zeros
  float scale = 0;
};

struct AdapterSite {
  int rows, cols;              // of the matrix that may be adapted
  std::vector<LowRank> slots;  // by the number of the adapter
};

struct AdapterBank {
  std::vector<AdapterSite> sites;
  int rank = 0, targets = 0;  // the largest rank, and the most matrices of one op
  Pages f32, bf16;            // scale * down x of the op in progress: [rows, targets * rank]
  size_t stride() const { return (size_t)targets * rank; }
};

// What happens to queries and keys before they meet, in this order; 0 where a step is left out.
struct QueryKeySteps {
  bool rotate;
  float norm_eps;                   // every head of both: RMS norm without weights
  double floor_scale, attn_scale;   // queries: times 1 + attn_scale * ln(floor((position + 1) / floor_scale) + 1)
};

struct CacheShape {
  CacheKind kind;
  int n_layers, n_blocks, n_kv_heads, head_dim;
  int n_local_blocks = 0;           // of the layers below, whose blocks are another pool
  std::vector<int> local_layers{};  // those with chunked attention, or none
  bool is_local(int layer) const { return std::find(local_layers.begin(), local_layers.end(), layer) != local_layers.end(); }
};

class AttendSchedule;  // plan_attend.h
class CrossSchedule;   // plan_images.h

class Plan {
 public:
  Plan(const Kernels& k, int n_threads, int max_tokens, int max_wanted, const CacheShape& cache);
  ~Plan();

  // Building. Buffers are named by the number that `buffer` returns. Ops go to the last list; a step runs one of them.
  int buffer(int cols, Rows rows);
  void begin_list() { lists_.emplace_back(); }
  void set_rotation(const std::vector<double>& frequencies, double factor);
  void embed(Weight table, Weight more, int out);  // more: of the tokens behind the table, or null
  void rms_norm(int x, std::vector<float> w, float eps, int out, int forms);
  void convert(int x, int forms);
  int forms_of(const std::vector<Weight>& w);  // in which matrices that are multiplied together want activations
  int site(int rows, int cols);  // a matrix that may have adapters
  void linear(int x, std::vector<Weight> w, std::vector<int> out, int residual, std::vector<int> sites = {});  // sites: of each weight, or -1
  void gated(int x, Weight gate, Weight up, int out);
  void store(int q, int k, int v, int layer, const QueryKeySteps& steps);
  void attend(int q, int layer, int n_heads, float scale, int reach, int out, int forms);
  void experts(int x, int scores, std::vector<Weight> w1, std::vector<Weight> w2, std::vector<Weight> w3, int n_active, int out);
  void cross_attend(int q, int layer, int n_heads, float scale, int out, int forms);
  void mask_rows(int x, int out);
  void head_norm(int x, std::vector<float> w, float eps, int out);  // every head of w.size() columns
  void add(int a, int b, int out);
  void add_scaled(int a, int b, float factor, int out);  // a + factor * b
  void swiglu(int gate, int up, int out);
  void hadamard(int x, int out);
  void select(int x, int out);

  // Puts one matrix of adapter `slot` in its place, or with null weights takes it away; not during a step.
  void set_adapter(int slot, int site, Weight down, Weight up, float scale);

  // Runs the plan; the values of buffer `result` [wanted rows, cols] are valid until the next step.
  const float* step(Step& step, int result, int list = 0);

  // A block of the cache as bytes, of all layers that share its pool: layer by layer, head by head, keys then values.
  size_t block_bytes(bool local) const;
  void read_block(int block, bool local, uint8_t* out) const;
  void write_block(int block, bool local, const uint8_t* data);

  int max_tokens() const { return max_tokens_; }
  int max_wanted() const { return max_wanted_; }
  const AdapterBank& adapters() const { return adapters_; }
  const CacheShape& cache() const { return cache_shape_; }
  const Buffer& at(int i) const { return *buffers_.at(i); }
  Pool& pool() { return pool_; }
  const Kernels& kernels() const { return k_; }
  int n_lists() const { return (int)lists_.size(); }
  int token_ids() const { return token_ids_; }          // rows of the tables of embeddings; 0 where there is none
  int embedding_cols() const { return embedding_cols_; }
  int local_reach() const { return local_reach_; }      // of attention in layers with blocks of their own
  int cross_layers() const { return cross_layers_; }    // of which an image needs keys and values
  std::vector<double>& op_seconds() { return op_seconds_; }  // filled while profiling
  bool profile = false;

 private:
  using Ops = std::vector<std::unique_ptr<Op>>;
  template <class Fn> void each_tile(int block, bool local, Fn fn) const;
  struct Slots { int n_active, role; std::unique_ptr<Buffer> buffer; };  // rows of tokens once per expert they are sent to

  std::unique_ptr<Buffer> make_buffer(int cols, Rows rows, int times) const;
  void want(int buffer, int forms);
  void check_forms(int x, const std::vector<Weight>& w);
  static void want(Buffer& buffer, int forms);
  AttendSchedule& schedule(Rows rows, int group, int reach, bool local);
  Buffer& slots(int cols, Rows rows, int n_active, int role);
  int advance(const Step& step, const Worker& worker, int i);
  void approach(const Step& step, const Worker& worker, int i) const;
  const Ops& ops() const { return lists_[running_]; }
  template <class T, class... Args> void emplace(Args&&... args) { lists_.back().push_back(std::make_unique<T>(std::forward<Args>(args)...)); }

  const Kernels& k_;
  const int max_tokens_, max_wanted_;
  const CacheShape cache_shape_;
  Pages cache_pages_;
  std::vector<CacheLayer> cache_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<Slots> slots_;
  AdapterBank adapters_;
  Buffer cos_, sin_;
  std::vector<std::unique_ptr<AttendSchedule>> schedules_;
  std::unique_ptr<CrossSchedule> cross_;
  std::vector<Ops> lists_{1};
  int running_ = 0, token_ids_ = 0, embedding_cols_ = 0, cross_layers_ = 0, local_reach_ = 0;
  std::vector<double> op_seconds_;
  Pages scratch_;
  Pool pool_;
  Barrier barrier_;
  std::vector<Cursor> cursors_;
  int next_ = 0;
};

}  // namespace puna
