#include "plan_attend.h"

#include <cmath>
#include <limits>

#include "plan_ops.h"

namespace puna {
namespace {

// Makes queries and keys ready; appends keys and values to the cache.
class StoreOp : public RowsOp {
 public:
  StoreOp(const Kernels& k, const Buffer& q, const Buffer& key, const Buffer& value, const CacheLayer& cache, bool local, const Buffer& cos,
          const Buffer& sin, const QueryKeySteps& steps)
      : RowsOp(k, q, 4), key_(key), value_(value), cache_(cache), local_(local), cos_(cos), sin_(sin), steps_(steps), ones_(cache.head_dim, 1.0f) {}
  // Rows that go into one block of the cache are stored together.
  void rows(const Step& s, Range r) override {
    for (int i = r.begin, n; i < r.end; i += n) {
      const Chunk& c = s.chunks[s.chunk_of[i]];
      n = std::min({r.end, c.row0 + c.n, i + BLOCK_TOKENS - s.positions[i] % BLOCK_TOKENS}) - i;
      for (int j = i; j < i + n; j++) prepare(j, s.positions[j]);
      store(c, s.positions[i], i, n);  // a table's origin is the first position of a block
    }
  }
  void prefetch(const Step& s) const override {
    for (const Chunk& c : s.chunks) {
      const int at = c.start + c.n - 1;
      k_.cache_prefetch(cache_, block(c, at), at % BLOCK_TOKENS);
    }
  }

 private:
  int block(const Chunk& c, int position) const {
    const BlockTable& table = c.table(local_);
    return table.blocks[(position - table.origin) / BLOCK_TOKENS];
  }
  void prepare(int i, int position) {
    const int n = cache_.head_dim;
    float *q = out_.row(i), *key = key_.row(i);
    if (steps_.rotate) {
      k_.rope(q, out_.cols / n, n, cos_.row(i), sin_.row(i), q);
      k_.rope(key, cache_.n_kv_heads, n, cos_.row(i), sin_.row(i), key);
    }
    if (steps_.norm_eps > 0) {
      for (int at = 0; at < out_.cols; at += n) k_.rms_norm(q + at, ones_.data(), n, steps_.norm_eps, q + at);
      for (int h = 0; h < cache_.n_kv_heads; h++) k_.rms_norm(key + h * n, ones_.data(), n, steps_.norm_eps, key + h * n);
    }
    if (steps_.attn_scale > 0) k_.scale(q, temperature(position), out_.cols, q);
    if (cache_query_is_bf16(cache_.kind)) k_.to_bf16(q, out_.cols, out_.row_bf16(i));
  }
  float temperature(int position) const {
    return (float)(1 + steps_.attn_scale * std::log1p(std::floor((position + 1.0) / steps_.floor_scale)));
  }
  void store(const Chunk& c, int at, int row, int n) {
    const int block = this->block(c, at), slot = at % BLOCK_TOKENS;
    const bool last = row + n == c.row0 + c.n, opened_here = at - slot >= c.start;
    if (last && opened_here && slot + n < BLOCK_TOKENS) k_.cache_clear(cache_, block, c.n == 1 ? 0 : slot + n);
    k_.cache_write(cache_, block, slot, n, key_.row(row), key_.cols, value_.row(row), value_.cols);
  }

  const Buffer &key_, &value_;
  const CacheLayer& cache_;
  const bool local_;
  const Buffer &cos_, &sin_;
  const QueryKeySteps steps_;
  const std::vector<float> ones_;
};

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
    const Chunk& c = s.chunks[item.chunk];
    const int seen = schedule_.first_visible(schedule_.start(c) + item.first_row / schedule_.group);
    const int block = schedule_.table(c).blocks[std::max(item.first_span * SPAN, seen) / BLOCK_TOKENS];
    fetch(cache_.keys(block, item.kv_head), cache_.key_bytes);
    for (int column = 0; column < cache_.head_dim; column += 32) fetch(cache_.values(block, item.kv_head, column), cache_.value_bytes);
  }

  void attend(const Step& s, const AttendSchedule::Item& item, uint8_t* scratch) {
    const Chunk& c = s.chunks[item.chunk];
    const int n = cache_.head_dim, group = schedule_.group, skipped = schedule_.first_token(c);
    const bool bf16 = cache_query_is_bf16(cache_.kind), partial = item.partial >= 0;
    const void* q[MAX_QUERY_ROWS];
    int first[MAX_QUERY_ROWS], last[MAX_QUERY_ROWS];
    float* out[MAX_QUERY_ROWS];
    SpanState fresh[MAX_QUERY_ROWS];
    SpanState* state = partial ? schedule_.partial_state.data() + item.partial : fresh;
    for (int r = 0; r < item.rows; r++) {
      const int token = (item.first_row + r) / group, at = (item.kv_head * group + (item.first_row + r) % group) * n;
      const int row = c.row0 + token, out_row = out_.rows == Rows::ALL ? row : c.wanted0 + token - skipped;
      q[r] = bf16 ? (const void*)(q_.row_bf16(row) + at) : q_.row(row) + at;
      last[r] = schedule_.start(c) + token;
      first[r] = schedule_.first_visible(last[r]);
      out[r] = partial ? schedule_.partial_out.data() + (size_t)(item.partial + r) * n : out_.row(out_row) + at;
      state[r] = {-std::numeric_limits<float>::infinity(), 0};
      std::fill_n(out[r], n, 0.0f);
    }
    k_.attend({&cache_, item.kv_head, schedule_.table(c).blocks, item.first_span, item.n_spans, item.rows, q, first, last, scale_log2_, state, out, scratch});
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

class AttendMergeOp : public RowOp {
 public:
  AttendMergeOp(const Kernels& k, const AttendSchedule& schedule, const Buffer& out, int forms)
      : RowOp(k, out, 2), schedule_(schedule), forms_(forms) {}
  void row(const Step& s, int i) override {
    const int row = out_.rows == Rows::ALL ? i : s.wanted[i];
    const AttendSchedule::Split& split = schedule_.splits[s.chunk_of[row]];
    if (split.n_spans) merge_heads(split, s.chunks[s.chunk_of[row]], row, out_.row(i));
    fill_forms(k_, out_, i, forms_);
  }

 private:
  void merge_heads(const AttendSchedule::Split& split, const Chunk& c, int row, float* out) const {
    const int n = schedule_.head_dim, group = schedule_.group, position = schedule_.start(c) + row - c.row0;
    const int token = row - c.row0 - schedule_.first_token(c);
    for (int h = 0; h < schedule_.n_kv_heads * group; h++, out += n) {
      SpanState state{-std::numeric_limits<float>::infinity(), 0};
      std::fill_n(out, n, 0.0f);
      for (int span = schedule_.first_visible(position) / SPAN; span <= position / SPAN; span++) {
        const int at = split.first_partial + (h / group * split.n_spans + span - split.first_span) * split.rows + token * group + h % group;
        k_.merge(state, out, schedule_.partial_state[at], schedule_.partial_out.data() + (size_t)at * n, n);
      }
      k_.finish(state, out, n);
    }
  }

  const AttendSchedule& schedule_;
  const int forms_;
};

}  // namespace

void AttendSchedule::prepare(const Step& s) {
  items.clear();
  splits.assign(s.chunks.size(), {0, 0, 0, 0});
  int partials = 0;
  for (int c = 0; c < (int)s.chunks.size(); c++) partials = add_items(s.chunks[c], c, partials);
  // Long items first: what is handed out last should be short.
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.n_spans * a.rows > b.n_spans * b.rows; });
  if ((int)partial_state.size() < partials) {
    partial_state.resize(partials);
    partial_out.resize((size_t)partials * head_dim);
  }
}

int AttendSchedule::add_items(const Chunk& c, int index, int partials) {
  const int first = first_token(c) * group, end = c.n * group;
  if (first == end) return partials;
  const int start = this->start(c), span0 = first_visible(start + first / group) / SPAN, spans = (start + c.n - 1) / SPAN + 1 - span0;
  const bool split = end - first <= MAX_QUERY_ROWS && spans > 1;
  if (split) splits[index] = {partials, span0, spans, end - first};
  for (int kv = 0; kv < n_kv_heads; kv++) {
    for (int r = first; r < end; r += MAX_QUERY_ROWS) {
      const int n = std::min(MAX_QUERY_ROWS, end - r);
      if (!split) {
        const int from = first_visible(start + r / group) / SPAN;
        items.push_back({index, kv, r, n, from, (start + (r + n - 1) / group) / SPAN + 1 - from, -1});
      } else {
        for (int span = 0; span < spans; span++, partials += n) items.push_back({index, kv, r, n, span0 + span, 1, partials});
      }
    }
  }
  return partials;
}

std::unique_ptr<Op> make_store(const Kernels& k, const Buffer& q, const Buffer& key, const Buffer& value, const CacheLayer& cache, bool local,
                               const Buffer& cos, const Buffer& sin, const QueryKeySteps& steps) {
  return std::make_unique<StoreOp>(k, q, key, value, cache, local, cos, sin, steps);
}

std::unique_ptr<Op> make_attend(const Kernels& k, AttendSchedule& schedule, const Buffer& q, const CacheLayer& cache, float scale, const Buffer& out) {
  return std::make_unique<AttendOp>(k, schedule, q, cache, scale, out);
}

std::unique_ptr<Op> make_attend_merge(const Kernels& k, const AttendSchedule& schedule, const Buffer& out, int forms) {
  return std::make_unique<AttendMergeOp>(k, schedule, out, forms);
}

}  // namespace puna
