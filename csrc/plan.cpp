#include "plan.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "pack.h"

namespace puna {
namespace {

constexpr int STREAM_TOKENS = 64;      // up to here reading the weights takes a good part of the time
constexpr int APPROACH_BYTES = 4096;    // of a thread's next weights to fetch before a barrier
constexpr int SERIAL_VALUES = 1 << 13; // row ops on fewer values than this are not worth a barrier
constexpr size_t TOKEN_BLOCK_BYTES = 448 * 1024;  // activations that stay in L2 while panels of weights pass by

double seconds_since(std::chrono::steady_clock::time_point t) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
}

struct Range { int begin, end; };

Range share(int total, const Worker& w) {
  return {(int)((int64_t)total * w.thread / w.n_threads), (int)((int64_t)total * (w.thread + 1) / w.n_threads)};
}

// Into the second-level cache, without waiting.
void fetch(const uint8_t* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

void fill_forms(const Kernels& k, const Buffer& b, int row, int forms) {
  if (forms & FORM_BF16) k.to_bf16(b.row(row), b.cols, b.row_bf16(row));
  if (forms & FORM_Q8) k.quantize(b.row(row), b.cols, b.row_q8(row));
}

// An op whose rows are shared out in equal runs.
class RowsOp : public Op {
 public:
  RowsOp(const Kernels& k, const Buffer& out, int cost) : k_(k), out_(out), cost_(cost) {}
  bool serial(const Step& s) const override { return (int64_t)s.rows(out_.rows) * out_.cols * cost_ < SERIAL_VALUES; }
  void run(const Step& s, const Worker& w) override {
    rows(s, share(s.rows(out_.rows), w));
  }
  virtual void rows(const Step& s, Range r) = 0;

 protected:
  const Kernels& k_;
  const Buffer& out_;
  const int cost_;
};

// An op that treats every row alike.
class RowOp : public RowsOp {
 public:
  using RowsOp::RowsOp;
  void rows(const Step& s, Range r) override {
    for (int i = r.begin; i < r.end; i++) row(s, i);
  }
  virtual void row(const Step& s, int i) = 0;
};

class RotationOp : public RowOp {
 public:
  RotationOp(const Kernels& k, const Buffer& cos, const Buffer& sin, std::vector<double> frequencies, double factor)
      : RowOp(k, cos, 32), sin_(sin), frequencies_(std::move(frequencies)), factor_(factor) {}
  void row(const Step& s, int i) override {
    float *c = out_.row(i), *d = sin_.row(i);
    for (double f : frequencies_) {
      const double angle = (double)s.positions[i] * f;
      *c++ = (float)(std::cos(angle) * factor_);
      *d++ = (float)(std::sin(angle) * factor_);
    }
  }

 private:
  const Buffer& sin_;
  const std::vector<double> frequencies_;
  const double factor_;
};

class EmbedOp : public RowOp {
 public:
  EmbedOp(const Kernels& k, Weight table, const Buffer& out) : RowOp(k, out, 16), table_(std::move(table)) {}
  void row(const Step& s, int i) override { k_.embed(table_->m, s.tokens[i], out_.row(i)); }

 private:
  const Weight table_;
};

class RmsNormOp : public RowOp {
 public:
  RmsNormOp(const Kernels& k, const Buffer& x, std::vector<float> w, float eps, const Buffer& out, int forms)
      : RowOp(k, out, 2), x_(x), w_(std::move(w)), eps_(eps), forms_(forms) {}
  void row(const Step&, int i) override {
    k_.rms_norm(x_.row(i), w_.data(), x_.cols, eps_, out_.row(i));
    fill_forms(k_, out_, i, forms_);
  }

 private:
  const Buffer& x_;
  const std::vector<float> w_;
  const float eps_;
  const int forms_;
};

class ConvertOp : public RowOp {
 public:
  ConvertOp(const Kernels& k, const Buffer& x, int forms) : RowOp(k, x, 1), forms_(forms) {}
  void row(const Step&, int i) override { fill_forms(k_, out_, i, forms_); }

 private:
  const int forms_;
};

class AddOp : public RowOp {
 public:
  AddOp(const Kernels& k, const Buffer& a, const Buffer& b, const Buffer& out) : RowOp(k, out, 1), a_(a), b_(b) {}
  void row(const Step&, int i) override { k_.add(a_.row(i), b_.row(i), out_.cols, out_.row(i)); }

 private:
  const Buffer &a_, &b_;
};

class SwigluOp : public RowOp {
 public:
  SwigluOp(const Kernels& k, const Buffer& gate, const Buffer& up, const Buffer& out) : RowOp(k, out, 2), gate_(gate), up_(up) {}
  void row(const Step&, int i) override { k_.swiglu(gate_.row(i), up_.row(i), out_.cols, out_.row(i)); }

 private:
  const Buffer &gate_, &up_;
};

class SelectOp : public RowOp {
 public:
  SelectOp(const Kernels& k, const Buffer& x, const Buffer& out) : RowOp(k, out, 1), x_(x) {}
  void row(const Step& s, int i) override { std::memcpy(out_.row(i), x_.row(s.wanted[i]), out_.cols * sizeof(float)); }

 private:
  const Buffer& x_;
};

// Rotates queries and keys; appends keys and values to the cache.
class RopeStoreOp : public RowsOp {
 public:
  RopeStoreOp(const Kernels& k, const Buffer& q, const Buffer& key, const Buffer& value, const CacheLayer& cache, const Buffer& cos, const Buffer& sin)
      : RowsOp(k, q, 4), key_(key), value_(value), cache_(cache), cos_(cos), sin_(sin) {}
  // Rows that go into one block of the cache are stored together.
  void rows(const Step& s, Range r) override {
    for (int i = r.begin, n; i < r.end; i += n) {
      const Chunk& c = s.chunks[s.chunk_of[i]];
      n = std::min({r.end, c.row0 + c.n, i + BLOCK_TOKENS - s.positions[i] % BLOCK_TOKENS}) - i;
      for (int j = i; j < i + n; j++) rotate(j);
      store(c, s.positions[i], i, n);
    }
  }
  void prefetch(const Step& s) const override {
    for (const Chunk& c : s.chunks) {
      const int at = c.start + c.n - 1;
      k_.cache_prefetch(cache_, c.blocks[at / BLOCK_TOKENS], at % BLOCK_TOKENS);
    }
  }

 private:
  void rotate(int i) {
    const int n = cache_.head_dim;
    k_.rope(out_.row(i), out_.cols / n, n, cos_.row(i), sin_.row(i), out_.row(i));
    if (cache_query_is_bf16(cache_.kind)) k_.to_bf16(out_.row(i), out_.cols, out_.row_bf16(i));
    k_.rope(key_.row(i), cache_.n_kv_heads, n, cos_.row(i), sin_.row(i), key_.row(i));
  }
  void store(const Chunk& c, int at, int row, int n) {
    const int block = c.blocks[at / BLOCK_TOKENS], slot = at % BLOCK_TOKENS;
    const bool last = row + n == c.row0 + c.n, opened_here = at - slot >= c.start;
    if (last && opened_here && slot + n < BLOCK_TOKENS) k_.cache_clear(cache_, block, c.n == 1 ? 0 : slot + n);
    k_.cache_write(cache_, block, slot, n, key_.row(row), key_.cols, value_.row(row), value_.cols);
  }

  const Buffer &key_, &value_;
  const CacheLayer& cache_;
  const Buffer &cos_, &sin_;
};

// y = x w^T for one or several matrices that read the same x; or one gated pair.
class LinearOp : public Op {
 public:
  struct Part {
    Weight w, up;
    const Buffer* out;
    size_t bytes() const { return w->m.tile_bytes * (up ? 2 : 1); }
  };
  LinearOp(const Kernels& k, const Buffer& x, std::vector<Part> parts, const Buffer* residual)
      : k_(k), x_(x), parts_(std::move(parts)), residual_(residual) {
    for (const Part& p : parts_) bytes_ += p.bytes() * p.w->m.tiles();
  }
  void run(const Step& s, const Worker& w) override {
    const int rows = s.rows(x_.rows);
    if (rows > STREAM_TOKENS) return share_out(rows, w);
    if (rows > 0) for_each_run(w, [&](const Part& p, int tile0, int tile1) { compute(p, 0, rows, tile0, tile1, w.scratch); });
  }
  void approach(const Step& s, const Worker& w) const override {
    const int rows = s.rows(x_.rows);
    if (rows == 0 || rows > STREAM_TOKENS) return;
    int left = APPROACH_BYTES;
    for_each_run(w, [&](const Part& p, int tile0, int tile1) {
      const int n = std::min<size_t>(left, (tile1 - tile0) * p.w->m.tile_bytes);
      fetch(p.w->m.tile(tile0), n);
      left -= n;
    });
  }

 private:
  void compute(const Part& p, int row0, int row1, int tile0, int tile1, uint8_t* scratch) const {
    const Output y{p.out->row(0), (size_t)p.out->cols, residual_ ? residual_->row(0) : nullptr};
    k_.linear(p.w->m, p.up ? &p.up->m : nullptr, x_.input(), row0, row1, tile0, tile1, y, scratch);
  }

  // Every thread reads one contiguous run of the weights: equal bytes, one stream. Calls fn(part, first tile, end tile).
  template <class Fn> void for_each_run(const Worker& w, Fn fn) const {
    const size_t begin = bytes_ * w.thread / w.n_threads, end = bytes_ * (w.thread + 1) / w.n_threads;
    size_t base = 0;
    for (const Part& p : parts_) {
      const int tiles = p.w->m.tiles();
      const auto tile_at = [&](size_t at) { return at <= base ? 0 : (int)std::min<size_t>(tiles, (at - base + p.bytes() - 1) / p.bytes()); };
      const int t0 = tile_at(begin), t1 = tile_at(end);
      if (t0 < t1) fn(p, t0, t1);
      base += p.bytes() * tiles;
    }
  }

  // Panels of two tiles times blocks of tokens. A block has a home: the thread whose row ops write and read these rows,
  // so that activations stay in its core's cache. Who is done at home helps elsewhere.
  void share_out(int rows, const Worker& w) const {
    int panels = 0;
    for (const Part& p : parts_) panels += (p.w->m.tiles() + 1) / 2;
    const int blocks = token_blocks(rows, panels, w.n_threads), queues = std::min(blocks, w.n_threads);
    for (int i = 0; i < queues; i++) {
      const int queue = (w.thread * queues / w.n_threads + i) % queues;
      const int first = blocks * queue / queues, items = (blocks * (queue + 1) / queues - first) * panels;
      for (int item; (item = w.next(queue)) < items;) {
        const int block = first + item / panels;
        compute_panel(item % panels, (int)((int64_t)rows * block / blocks), (int)((int64_t)rows * (block + 1) / blocks), w.scratch);
      }
    }
  }

  void compute_panel(int panel, int row0, int row1, uint8_t* scratch) const {
    const Part* p = parts_.data();
    while (panel >= (p->w->m.tiles() + 1) / 2) panel -= (p++->w->m.tiles() + 1) / 2;
    compute(*p, row0, row1, 2 * panel, std::min(p->w->m.tiles(), 2 * panel + 2), scratch);
  }

  // Enough blocks for L2 and for all threads, but none so small that unpacking the weights for it would show.
  int token_blocks(int rows, int panels, int n_threads) const {
    const size_t bytes = (size_t)rows * x_.cols * sizeof(QBlock) / GROUP;
    int n = (int)((bytes + TOKEN_BLOCK_BYTES - 1) / TOKEN_BLOCK_BYTES);
    n = std::max({n, std::min(rows / 96, n_threads), std::min(rows / 48, (4 * n_threads + panels - 1) / panels), 1});
    return n > n_threads ? (n + n_threads - 1) / n_threads * n_threads : n;
  }

  const Kernels& k_;
  const Buffer& x_;
  const std::vector<Part> parts_;
  const Buffer* residual_;
  size_t bytes_ = 0;
};

}  // namespace

// How the query rows of a step are cut into work, the same for all layers. An item is up to MAX_QUERY_ROWS query rows
// (token-major, then heads of a group) over all their spans; few rows over many spans are cut by span instead, their
// partial results merged afterwards.
class AttendSchedule {
 public:
  struct Item { int chunk, kv_head, first_row, rows, first_span, n_spans, partial; };
  struct Split { int first_partial, n_spans, rows; };  // of a chunk; n_spans 0: not split

  AttendSchedule(Rows rows, int group, int n_kv_heads, int head_dim)
      : rows(rows), group(group), n_kv_heads(n_kv_heads), head_dim(head_dim) {}

  void prepare(const Step& s) {
    items.clear();
    splits.assign(s.chunks.size(), {0, 0, 0});
    int partials = 0;
    for (int c = 0; c < (int)s.chunks.size(); c++) partials = add_items(s.chunks[c], c, partials);
    // Long items first: what is handed out last should be short.
    std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.n_spans * a.rows > b.n_spans * b.rows; });
    if ((int)partial_state.size() < partials) {
      partial_state.resize(partials);
      partial_out.resize((size_t)partials * head_dim);
    }
  }
  bool is_short() const { return items.empty() || items[0].n_spans * items[0].rows <= MAX_QUERY_ROWS; }  // the longest is first
  int first_token(const Chunk& c) const { return rows == Rows::ALL ? 0 : c.n - c.n_wanted; }

  const Rows rows;
  const int group, n_kv_heads, head_dim;
  std::vector<Item> items;
  std::vector<Split> splits;
  std::vector<SpanState> partial_state;
  std::vector<float> partial_out;

 private:
  int add_items(const Chunk& c, int index, int partials) {
    const int first = first_token(c) * group, end = c.n * group;
    if (first == end) return partials;
    const int spans = (c.start + c.n - 1) / SPAN + 1;
    const bool split = end - first <= MAX_QUERY_ROWS && spans > 1;
    if (split) splits[index] = {partials, spans, end - first};
    for (int kv = 0; kv < n_kv_heads; kv++) {
      for (int r = first; r < end; r += MAX_QUERY_ROWS) {
        const int n = std::min(MAX_QUERY_ROWS, end - r);
        if (!split) items.push_back({index, kv, r, n, 0, (c.start + (r + n - 1) / group) / SPAN + 1, -1});
        else for (int span = 0; span < spans; span++, partials += n) items.push_back({index, kv, r, n, span, 1, partials});
      }
    }
    return partials;
  }
};

namespace {

class AttendOp : public Op {
 public:
  AttendOp(const Kernels& k, AttendSchedule& schedule, const Buffer& q, const CacheLayer& cache, float scale, const Buffer& out)
      : k_(k), schedule_(schedule), q_(q), cache_(cache), scale_log2_(scale * 1.4426950408889634f), out_(out) {}
  bool serial(const Step&) const override { return schedule_.items.empty(); }
  void run(const Step& s, const Worker& w) override {
    const std::vector<AttendSchedule::Item>& items = schedule_.items;
    if (schedule_.is_short()) {  // a shared counter would cost as much as the work
      for (int i = w.thread; i < (int)items.size(); i += w.n_threads) attend(s, items[i], w.scratch);
      return;
    }
    for (int i; (i = w.next(0)) < (int)items.size();) attend(s, items[i], w.scratch);
  }
  // Items are handed out in order: these are this thread's, or will likely be.
  void approach(const Step& s, const Worker& w) const override {
    const int n = std::min((int)schedule_.items.size(), 2 * w.n_threads);
    for (int i = w.thread; i < n; i += w.n_threads) fetch_first_tile(s, schedule_.items[i]);
  }

 private:
  void fetch_first_tile(const Step& s, const AttendSchedule::Item& item) const {
    const int block = s.chunks[item.chunk].blocks[item.first_span * (SPAN / BLOCK_TOKENS)];
    fetch(cache_.keys(block, item.kv_head), cache_.key_bytes);
    for (int column = 0; column < cache_.head_dim; column += 32) fetch(cache_.values(block, item.kv_head, column), cache_.value_bytes);
  }

  void attend(const Step& s, const AttendSchedule::Item& item, uint8_t* scratch) {
    const Chunk& c = s.chunks[item.chunk];
    const int n = cache_.head_dim, group = schedule_.group, skipped = schedule_.first_token(c);
    const bool bf16 = cache_query_is_bf16(cache_.kind), partial = item.partial >= 0;
    const void* q[MAX_QUERY_ROWS];
    int last[MAX_QUERY_ROWS];
    float* out[MAX_QUERY_ROWS];
    SpanState fresh[MAX_QUERY_ROWS];
    SpanState* state = partial ? schedule_.partial_state.data() + item.partial : fresh;
    for (int r = 0; r < item.rows; r++) {
      const int token = (item.first_row + r) / group, at = (item.kv_head * group + (item.first_row + r) % group) * n;
      const int row = c.row0 + token, out_row = out_.rows == Rows::ALL ? row : c.wanted0 + token - skipped;
      q[r] = bf16 ? (const void*)(q_.row_bf16(row) + at) : q_.row(row) + at;
      last[r] = c.start + token;
      out[r] = partial ? schedule_.partial_out.data() + (size_t)(item.partial + r) * n : out_.row(out_row) + at;
      state[r] = {-std::numeric_limits<float>::infinity(), 0};
      std::fill_n(out[r], n, 0.0f);
    }
    k_.attend({&cache_, item.kv_head, c.blocks, item.first_span, item.n_spans, item.rows, q, last, scale_log2_, state, out, scratch});
    if (!partial)
      for (int r = 0; r < item.rows; r++) k_.finish(state[r], out[r], n);
  }

  const Kernels& k_;
  AttendSchedule& schedule_;
  const Buffer& q_;
  const CacheLayer& cache_;
  const float scale_log2_;
  const Buffer& out_;
};

// Merges what AttendOp cut by span, and fills the forms that the next op reads.
class AttendMergeOp : public RowOp {
 public:
  AttendMergeOp(const Kernels& k, const AttendSchedule& schedule, const Buffer& out, int forms)
      : RowOp(k, out, 2), schedule_(schedule), forms_(forms) {}
  void row(const Step& s, int i) override {
    const int row = out_.rows == Rows::ALL ? i : s.wanted[i];
    const AttendSchedule::Split& split = schedule_.splits[s.chunk_of[row]];
    if (split.n_spans) merge_heads(split, s.chunks[s.chunk_of[row]], row, s.positions[row], out_.row(i));
    fill_forms(k_, out_, i, forms_);
  }

 private:
  void merge_heads(const AttendSchedule::Split& split, const Chunk& c, int row, int position, float* out) const {
    const int n = schedule_.head_dim, group = schedule_.group;
    const int token = row - c.row0 - schedule_.first_token(c);
    for (int h = 0; h < schedule_.n_kv_heads * group; h++, out += n) {
      SpanState state{-std::numeric_limits<float>::infinity(), 0};
      std::fill_n(out, n, 0.0f);
      for (int span = 0; span <= position / SPAN; span++) {
        const int at = split.first_partial + (h / group * split.n_spans + span) * split.rows + token * group + h % group;
        k_.merge(state, out, schedule_.partial_state[at], schedule_.partial_out.data() + (size_t)at * n, n);
      }
      k_.finish(state, out, n);
    }
  }

  const AttendSchedule& schedule_;
  const int forms_;
};

int padded(int cols) { return (cols + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS; }

}  // namespace

CacheLayer cache_layer(CacheKind kind, int head_dim, int n_kv_heads, int n_blocks, uint8_t* data) {
  const size_t key = (size_t)head_dim * BLOCK_TOKENS, value = 32 * BLOCK_TOKENS;
  CacheLayer c{kind, head_dim, n_kv_heads, n_blocks, 2 * key, 2 * value, data};
  if (kind == CacheKind::F32) c.key_bytes = 4 * key, c.value_bytes = 4 * value;
  if (kind == CacheKind::Q8_0) c.key_bytes = key + key / GROUP * 2, c.value_bytes = value + value / GROUP * 2;
  return c;
}

Plan::Plan(const Kernels& k, int n_threads, int max_tokens, int max_wanted, const CacheShape& cache)
    : k_(k), max_tokens_(max_tokens), max_wanted_(max_wanted), cache_shape_(cache), scratch_(SCRATCH * n_threads), pool_(n_threads), barrier_(n_threads), cursors_(n_threads) {
  const CacheLayer shape = cache_layer(cache.kind, cache.head_dim, cache.n_kv_heads, cache.n_blocks, nullptr);
  const size_t layer = shape.head_bytes() * cache.n_kv_heads;
  cache_pages_ = Pages(layer * cache.n_layers, false);  // large pages would take memory for blocks that nobody fills
  for (int i = 0; i < cache.n_layers; i++) {
    cache_.push_back(shape);
    cache_.back().data = cache_pages_.data() + layer * i;
  }
}

Plan::~Plan() = default;

int Plan::buffer(int cols, Rows rows) {
  auto b = std::make_unique<Buffer>();
  b->cols = padded(cols);
  b->rows = rows;
  b->f32 = Pages((size_t)(rows == Rows::ALL ? max_tokens_ : max_wanted_) * b->cols * sizeof(float));
  buffers_.push_back(std::move(b));
  return (int)buffers_.size() - 1;
}

void Plan::want(int i, int forms) {
  Buffer& b = *buffers_.at(i);
  const size_t values = b.f32.size() / sizeof(float);
  if ((forms & FORM_BF16) && !b.bf16.data()) b.bf16 = Pages(values * sizeof(uint16_t));
  if ((forms & FORM_Q8) && !b.q8.data()) b.q8 = Pages(values / GROUP * sizeof(QBlock));
}

void Plan::set_rotation(const std::vector<double>& frequencies, double factor) {
  for (Buffer* b : {&cos_, &sin_}) {
    b->cols = (int)frequencies.size();
    b->rows = Rows::ALL;
    b->f32 = Pages(((size_t)max_tokens_ * b->cols + 16) * sizeof(float));
  }
  emplace<RotationOp>(k_, cos_, sin_, frequencies, factor);
}

void Plan::embed(Weight table, int out) { emplace<EmbedOp>(k_, std::move(table), at(out)); }

void Plan::rms_norm(int x, std::vector<float> w, float eps, int out, int forms) {
  want(out, forms);
  emplace<RmsNormOp>(k_, at(x), std::move(w), eps, at(out), forms);
}

void Plan::convert(int x, int forms) {
  want(x, forms);
  emplace<ConvertOp>(k_, at(x), forms);
}

void Plan::linear(int x, std::vector<Weight> w, std::vector<int> out, int residual) {
  std::vector<LinearOp::Part> parts;
  for (size_t i = 0; i < w.size(); i++) parts.push_back({std::move(w[i]), nullptr, &at(out[i])});
  emplace<LinearOp>(k_, at(x), std::move(parts), residual < 0 ? nullptr : &at(residual));
}

void Plan::gated(int x, Weight gate, Weight up, int out) {
  emplace<LinearOp>(k_, at(x), std::vector<LinearOp::Part>{{std::move(gate), std::move(up), &at(out)}}, nullptr);
}

void Plan::rope_store(int q, int k, int v, int layer) {
  if (cache_query_is_bf16(cache_shape_.kind)) want(q, FORM_BF16);
  emplace<RopeStoreOp>(k_, at(q), at(k), at(v), cache_.at(layer), cos_, sin_);
}

void Plan::attend(int q, int layer, int n_heads, float scale, int out, int forms) {
  want(out, forms);
  AttendSchedule& schedule = this->schedule(at(out).rows, n_heads / cache_shape_.n_kv_heads);
  emplace<AttendOp>(k_, schedule, at(q), cache_.at(layer), scale, at(out));
  emplace<AttendMergeOp>(k_, schedule, at(out), forms);
}

AttendSchedule& Plan::schedule(Rows rows, int group) {
  for (auto& s : schedules_)
    if (s->rows == rows && s->group == group) return *s;
  return *schedules_.emplace_back(std::make_unique<AttendSchedule>(rows, group, cache_shape_.n_kv_heads, cache_shape_.head_dim));
}

void Plan::add(int a, int b, int out) { emplace<AddOp>(k_, at(a), at(b), at(out)); }
void Plan::swiglu(int gate, int up, int out) { emplace<SwigluOp>(k_, at(gate), at(up), at(out)); }
void Plan::select(int x, int out) { emplace<SelectOp>(k_, at(x), at(out)); }

// Runs the serial ops from i on; returns the next op for all threads.
int Plan::advance(const Step& step, const Worker& worker, int i) {
  const Worker alone{0, 1, worker.scratch, worker.cursors};
  for (;; i++) {
    const int cursors = (int)step.tokens.size() > STREAM_TOKENS ? (int)cursors_.size() : 1;
    for (int c = 0; c < cursors; c++) cursors_[c].next.store(0, std::memory_order_relaxed);
    if (i == (int)ops_.size()) return i;
    if (!ops_[i]->serial(step)) {
      if (i + 1 < (int)ops_.size() && ops_[i + 1]->serial(step)) ops_[i + 1]->prefetch(step);
      return i;
    }
    const auto began = std::chrono::steady_clock::now();
    ops_[i]->run(step, alone);
    if (profile) op_seconds_[i] = seconds_since(began);
  }
}

// Up to the next op for all threads, each may fetch what it will need first.
void Plan::approach(const Step& step, const Worker& worker, int i) const {
  for (bool serial = true; serial && i < (int)ops_.size(); i++) {
    ops_[i]->approach(step, worker);
    serial = ops_[i]->serial(step);
  }
}

const float* Plan::step(Step& step, int result) {
  for (auto& s : schedules_) s->prepare(step);
  op_seconds_.assign(profile ? ops_.size() : 0, 0.0);
  next_ = advance(step, {0, 1, scratch_.data(), cursors_.data()}, 0);
  pool_.run([&](int thread) {
    const Worker worker{thread, pool_.size(), scratch_.data() + SCRATCH * thread, cursors_.data()};
    for (int i = next_; i < (int)ops_.size();) {
      const auto began = std::chrono::steady_clock::now();
      ops_[i]->run(step, worker);
      approach(step, worker, i + 1);
      barrier_.wait([&] {
        if (profile) op_seconds_[i] = seconds_since(began);
        next_ = advance(step, worker, i + 1);
      });
      i = next_;
    }
  });
  return at(result).row(0);
}

}  // namespace puna
