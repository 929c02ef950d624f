#include "plan.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "plan_adapters.h"
#include "plan_attend.h"
#include "plan_experts.h"
#include "plan_images.h"
#include "plan_ops.h"
#include "plan_rows.h"
#include "tile_scale.h"

namespace puna {
namespace {

double seconds_since(std::chrono::steady_clock::time_point t) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
}

// y = x w^T for one or several matrices that read the same x; or one gated pair.
class LinearOp : public Op {
 public:
  struct Target {
    Weight w, up;
    const Buffer* out;
    Part part() const { return {&w->m, up ? &up->m : nullptr}; }
  };
  LinearOp(const Kernels& k, const Buffer& x, std::vector<Target> targets, const Buffer* residual, std::shared_ptr<AdaptedLinear> adapted = nullptr)
      : k_(k), x_(x), targets_(std::move(targets)), residual_(residual), adapted_(std::move(adapted)) {
    for (const Target& t : targets_) bytes_ += t.part().bytes();
  }
  void run(const Step& s, const Worker& w) override {
    const int rows = s.rows(x_.rows);
    if (rows > STREAM_TOKENS) return share_out(s, rows, w);
    if (rows > 0) each_run(w, [&](const Target& t, int tile0, int tile1) { compute(s, t, 0, rows, tile0, tile1, w.scratch); });
  }
  void approach(const Step& s, const Worker& w) const override {
    const int rows = s.rows(x_.rows);
    if (rows == 0 || rows > STREAM_TOKENS) return;
    int left = APPROACH_BYTES;
    each_run(w, [&](const Target& t, int tile0, int tile1) {
      const int n = std::min<size_t>(left, (tile1 - tile0) * t.w->m.tile_bytes);
      fetch(t.w->m.tile(tile0), n);
      left -= n;
    });
  }

 private:
  void compute(const Step& s, const Target& t, int row0, int row1, int tile0, int tile1, uint8_t* scratch) const {
    const Output y{t.out->row(0), (size_t)t.out->cols, residual_ ? residual_->row(0) : nullptr};
    k_.linear(t.w->m, t.up ? &t.up->m : nullptr, x_.input(), row0, row1, tile0, tile1, y, scratch);
    if (adapted_) adapted_->add(s, (int)(&t - targets_.data()), row0, row1, tile0, tile1, y.y, y.stride, scratch);
  }

  template <class Fn> void each_run(const Worker& w, Fn fn) const {
    for_each_run((int)targets_.size(), bytes_, w, [&](int i) { return targets_[i].part(); },
                 [&](int i, int tile0, int tile1) { fn(targets_[i], tile0, tile1); });
  }

  // Panels of two tiles times blocks of tokens. A block has a home: the thread whose row ops write and read these rows,
  // so that activations stay in its core's cache. Who is done at home helps elsewhere.
  void share_out(const Step& s, int rows, const Worker& w) const {
    int panels = 0;
    for (const Target& t : targets_) panels += (t.w->m.tiles() + 1) / 2;
    const int blocks = token_blocks(rows, panels, w.n_threads), queues = std::min(blocks, w.n_threads);
    for (int i = 0; i < queues; i++) {
      const int queue = (w.thread * queues / w.n_threads + i) % queues;
      const int first = blocks * queue / queues, items = (blocks * (queue + 1) / queues - first) * panels;
      for (int item; (item = w.next(queue)) < items;) {
        const int block = first + item / panels;
        compute_panel(s, item % panels, (int)((int64_t)rows * block / blocks), (int)((int64_t)rows * (block + 1) / blocks), w.scratch);
      }
    }
  }

  void compute_panel(const Step& s, int panel, int row0, int row1, uint8_t* scratch) const {
    const Target* t = targets_.data();
    while (panel >= (t->w->m.tiles() + 1) / 2) panel -= (t++->w->m.tiles() + 1) / 2;
    compute(s, *t, row0, row1, 2 * panel, std::min(t->w->m.tiles(), 2 * panel + 2), scratch);
  }

  // Enough blocks for all threads, but none so small that unpacking the weights for it would show.
  static int token_blocks(int rows, int panels, int n_threads) {
    int n = (rows + TOKEN_BLOCK - 1) / TOKEN_BLOCK;
    n = std::max({n, std::min(rows / 96, n_threads), std::min(rows / 48, (4 * n_threads + panels - 1) / panels), 1});
    return n > n_threads ? (n + n_threads - 1) / n_threads * n_threads : n;
  }

  const Kernels& k_;
  const Buffer& x_;
  const std::vector<Target> targets_;
  const Buffer* residual_;
  const std::shared_ptr<AdaptedLinear> adapted_;
  size_t bytes_ = 0;
};

}  // namespace

namespace {

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
  size_t bytes = 0;
  for (int i = 0; i < cache.n_layers; i++) {
    cache_.push_back(cache_layer(cache.kind, cache.head_dim, cache.n_kv_heads, cache.is_local(i) ? cache.n_local_blocks : cache.n_blocks, nullptr));
    bytes += cache_.back().head_bytes() * cache.n_kv_heads;
  }
  cache_pages_ = Pages(bytes, false);  // large pages would take memory for blocks that nobody fills
  uint8_t* data = cache_pages_.data();
  for (CacheLayer& layer : cache_) {
    layer.data = data;
    data += layer.head_bytes() * cache.n_kv_heads;
  }
}

Plan::~Plan() = default;

// fn(tile, bytes) for each tile of a block, always in the same order.
template <class Fn> void Plan::each_tile(int block, bool local, Fn fn) const {
  for (int i = 0; i < cache_shape_.n_layers; i++) {
    const CacheLayer& layer = cache_[i];
    if (cache_shape_.is_local(i) != local) continue;
    for (int head = 0; head < layer.n_kv_heads; head++) {
      fn(layer.keys(block, head), layer.key_bytes);
      for (int column = 0; column < layer.head_dim; column += 32) fn(layer.values(block, head, column), layer.value_bytes);
    }
  }
}

size_t Plan::block_bytes(bool local) const {
  size_t bytes = 0;
  each_tile(0, local, [&](const uint8_t*, size_t n) { bytes += n; });
  return bytes;
}

void Plan::read_block(int block, bool local, uint8_t* out) const {
  each_tile(block, local, [&](const uint8_t* tile, size_t n) { out = std::copy_n(tile, n, out); });
}

void Plan::write_block(int block, bool local, const uint8_t* data) {
  each_tile(block, local, [&](uint8_t* tile, size_t n) {
    std::copy_n(data, n, tile);
    data += n;
  });
}

std::unique_ptr<Buffer> Plan::make_buffer(int cols, Rows rows, int times) const {
  auto b = std::make_unique<Buffer>();
  b->cols = padded(cols);
  b->rows = rows;
  b->f32 = Pages((size_t)(rows == Rows::ALL ? max_tokens_ : max_wanted_) * times * b->cols * sizeof(float));
  return b;
}

int Plan::buffer(int cols, Rows rows) {
  buffers_.push_back(make_buffer(cols, rows, 1));
  return (int)buffers_.size() - 1;
}

void Plan::want(int i, int forms) { want(*buffers_.at(i), forms); }

void Plan::want(Buffer& b, int forms) {
  if ((forms & FORM_Q8) && b.cols % GROUP) throw std::invalid_argument("a buffer of " + std::to_string(b.cols) + " columns has no groups of " + std::to_string(GROUP) + " for 8 bits");
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

void Plan::embed(Weight table, Weight more, int out) {
  token_ids_ = table->m.rows + (more ? more->m.rows : 0);
  embedding_cols_ = table->m.cols;
  emplace<EmbedOp>(k_, std::move(table), std::move(more), at(out));
}

void Plan::rms_norm(int x, std::vector<float> w, float eps, int out, int forms) {
  want(out, forms);
  emplace<RmsNormOp>(k_, at(x), std::move(w), eps, at(out), forms);
}

void Plan::convert(int x, int forms) {
  want(x, forms);
  emplace<ConvertOp>(k_, at(x), forms);
}

int Plan::forms_of(const std::vector<Weight>& w) {
  int forms = NO_FORM;
  for (const Weight& matrix : w) {
    switch (input_of(k_, pool_, matrix->m)) {
      case InputKind::BF16: forms |= FORM_BF16; break;
      case InputKind::Q8: forms |= FORM_Q8; break;
      case InputKind::F32: break;
    }
  }
  return forms;
}

int Plan::site(int rows, int cols) {
  adapters_.sites.push_back({rows, cols, {}});
  return (int)adapters_.sites.size() - 1;
}

void Plan::set_adapter(int slot, int site, Weight down, Weight up, float scale) {
  auto& slots = adapters_.sites.at(site).slots;
  if ((int)slots.size() <= slot) slots.resize(slot + 1);
  const int rank = down ? padded(down->m.rows) : 0;
  slots[slot] = {std::move(down), std::move(up), scale};
  if (rank <= adapters_.rank) return;
  adapters_.rank = rank;
  const size_t values = (size_t)std::max(max_tokens_, max_wanted_) * adapters_.stride();
  adapters_.f32 = Pages(values * sizeof(float));
  adapters_.bf16 = Pages(values * sizeof(uint16_t));
}

// An op before must fill the forms; at least they have to be there.
void Plan::check_forms(int x, const std::vector<Weight>& w) {
  const int forms = forms_of(w);
  const Buffer& b = at(x);
  if (((forms & FORM_BF16) && !b.bf16.data()) || ((forms & FORM_Q8) && !b.q8.data()))
    throw std::invalid_argument("a matrix is multiplied with a form of its input that no op before it fills; ask forms_of for it");
}

void Plan::linear(int x, std::vector<Weight> w, std::vector<int> out, int residual, std::vector<int> sites) {
  check_forms(x, w);
  std::shared_ptr<AdaptedLinear> adapted;
  if (!sites.empty()) {
    adapters_.targets = std::max(adapters_.targets, (int)sites.size());
    adapted = std::make_shared<AdaptedLinear>(k_, adapters_, at(x), std::move(sites));
    emplace<AdapterDownOp>(adapted);
  }
  std::vector<LinearOp::Target> targets;
  for (size_t i = 0; i < w.size(); i++) targets.push_back({std::move(w[i]), nullptr, &at(out[i])});
  emplace<LinearOp>(k_, at(x), std::move(targets), residual < 0 ? nullptr : &at(residual), std::move(adapted));
}

void Plan::gated(int x, Weight gate, Weight up, int out) {
  check_forms(x, {gate, up});
  emplace<LinearOp>(k_, at(x), std::vector<LinearOp::Target>{{std::move(gate), std::move(up), &at(out)}}, nullptr);
}

void Plan::store(int q, int k, int v, int layer, const QueryKeySteps& steps) {
  if (cache_query_is_bf16(cache_shape_.kind)) want(q, FORM_BF16);
  lists_.back().push_back(make_store(k_, at(q), at(k), at(v), cache_.at(layer), cache_shape_.is_local(layer), cos_, sin_, steps));
}

void Plan::attend(int q, int layer, int n_heads, float scale, int reach, int out, int forms) {
  want(out, forms);
  if (cache_query_is_bf16(cache_shape_.kind)) want(q, FORM_BF16);
  if (cache_shape_.is_local(layer)) local_reach_ = reach;
  AttendSchedule& schedule = this->schedule(at(out).rows, n_heads / cache_shape_.n_kv_heads, reach, cache_shape_.is_local(layer));
  lists_.back().push_back(make_attend(k_, schedule, at(q), cache_.at(layer), scale, at(out)));
  lists_.back().push_back(make_attend_merge(k_, schedule, at(out), forms));
}

AttendSchedule& Plan::schedule(Rows rows, int group, int reach, bool local) {
  for (auto& s : schedules_)
    if (s->rows == rows && s->group == group && s->reach == reach && s->local == local) return *s;
  const CacheShape& c = cache_shape_;
  return *schedules_.emplace_back(std::make_unique<AttendSchedule>(rows, group, reach, local, c.n_kv_heads, c.head_dim));
}

void Plan::experts(int x, int scores, std::vector<Weight> w1, std::vector<Weight> w2, std::vector<Weight> w3, int n_active, int out) {
  const Matrix &gate = w1.at(0)->m, &up = w3.at(0)->m;
  const Rows rows = at(x).rows;
  const bool gated = gate.kind == up.kind;
  Buffer& h = slots(gate.rows, rows, n_active, 1);
  const SlotBuffers buffers{slots(at(x).cols, rows, n_active, 0), h, gated ? h : slots(gate.rows, rows, n_active, 2)};
  const int x_forms = forms_of(w1) | forms_of(w3), h_forms = forms_of(w2);
  want(buffers.x, x_forms);
  want(buffers.h, h_forms);
  add_experts(lists_.back(), k_, at(x), at(scores), {std::move(w1), std::move(w2), std::move(w3), x_forms, h_forms}, n_active, buffers, at(out));
}

// One for all layers that are alike.
Buffer& Plan::slots(int cols, Rows rows, int n_active, int role) {
  for (Slots& s : slots_)
    if (s.buffer->cols == padded(cols) && s.buffer->rows == rows && s.n_active == n_active && s.role == role) return *s.buffer;
  return *slots_.emplace_back(Slots{n_active, role, make_buffer(cols, rows, n_active)}).buffer;
}

void Plan::cross_attend(int q, int layer, int n_heads, float scale, int out, int forms) {
  const CacheShape& c = cache_shape_;
  if (cache_query_is_bf16(c.kind)) convert(q, FORM_BF16);
  want(out, forms);
  cross_layers_ = std::max(cross_layers_, layer + 1);
  if (!cross_) cross_ = std::make_unique<CrossSchedule>(n_heads / c.n_kv_heads, c.n_kv_heads, c.head_dim);
  lists_.back().push_back(make_cross_attend(k_, *cross_, at(q), c.kind, layer, scale, at(out)));
  lists_.back().push_back(make_cross_merge(k_, *cross_, at(out), forms));
}

void Plan::mask_rows(int x, int out) { lists_.back().push_back(make_mask_rows(k_, at(x), at(out))); }
void Plan::head_norm(int x, std::vector<float> w, float eps, int out) { emplace<HeadNormOp>(k_, at(x), std::move(w), eps, at(out)); }
void Plan::add_scaled(int a, int b, float factor, int out) { emplace<AddScaledOp>(k_, at(a), at(b), factor, at(out)); }
void Plan::add(int a, int b, int out) { emplace<AddOp>(k_, at(a), at(b), at(out)); }
void Plan::swiglu(int gate, int up, int out) { emplace<SwigluOp>(k_, at(gate), at(up), at(out)); }
void Plan::hadamard(int x, int out) { emplace<HadamardOp>(k_, at(x), at(out)); }
void Plan::select(int x, int out) { emplace<SelectOp>(k_, at(x), at(out)); }

// Runs the serial ops from i on; returns the next op for all threads.
int Plan::advance(const Step& step, const Worker& worker, int i) {
  const Worker alone{0, 1, worker.scratch, worker.cursors};
  for (;; i++) {
    const int cursors = (int)step.tokens.size() > STREAM_TOKENS ? (int)cursors_.size() : 1;
    for (int c = 0; c < cursors; c++) cursors_[c].next.store(0, std::memory_order_relaxed);
    if (i == (int)ops().size()) return i;
    if (!ops()[i]->serial(step)) {
      if (i + 1 < (int)ops().size() && ops()[i + 1]->serial(step)) ops()[i + 1]->prefetch(step);
      return i;
    }
    const auto began = std::chrono::steady_clock::now();
    ops()[i]->run(step, alone);
    if (profile) op_seconds_[i] = seconds_since(began);
  }
}

// Up to the next op for all threads, each may fetch what it will need first.
void Plan::approach(const Step& step, const Worker& worker, int i) const {
  for (bool serial = true; serial && i < (int)ops().size(); i++) {
    ops()[i]->approach(step, worker);
    serial = ops()[i]->serial(step);
  }
}

const float* Plan::step(Step& step, int result, int list) {
  running_ = list;
  for (auto& s : schedules_) s->prepare(step);
  if (cross_) cross_->prepare(step);
  op_seconds_.assign(profile ? ops().size() : 0, 0.0);
  next_ = advance(step, {0, 1, scratch_.data(), cursors_.data()}, 0);
  pool_.run([&](int thread) {
    const Worker worker{thread, pool_.size(), scratch_.data() + SCRATCH * thread, cursors_.data()};
    for (int i = next_; i < (int)ops().size();) {
      const auto began = std::chrono::steady_clock::now();
      ops()[i]->run(step, worker);
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
