#include "plan_images.h"

#include <cstring>
#include <limits>

#include "plan_ops.h"

namespace puna {
namespace {

int spans_of(const ImageKeys& image) { return (image.positions() + SPAN - 1) / SPAN; }

class CrossAttendOp : public Op {
 public:
  CrossAttendOp(const Kernels& k, CrossSchedule& schedule, const Buffer& q, CacheKind kind, int layer, float scale, const Buffer& out)
      : k_(k), schedule_(schedule), q_(q), bf16_(cache_query_is_bf16(kind)), layer_(layer), scale_log2_(scale * 1.4426950408889634f), out_(out) {}
  void run(const Step& s, const Worker& w) override {
    for (int i; (i = w.next(0)) < (int)schedule_.items.size();) attend(s.seen[schedule_.items[i].seen], schedule_.items[i], w.scratch);
  }

 private:
  void attend(const SeenRows& seen, const CrossSchedule::Item& item, uint8_t* scratch) {
    const int n = schedule_.head_dim, group = schedule_.group;
    const bool partial = item.partial >= 0;
    const void* q[MAX_QUERY_ROWS];
    float* out[MAX_QUERY_ROWS];
    SpanState fresh[MAX_QUERY_ROWS];
    SpanState* state = partial ? schedule_.partial_state.data() + item.partial : fresh;
    for (int r = 0; r < item.rows; r++) {
      const int row = seen.row0 + (item.first_row + r) / group, at = (item.kv_head * group + (item.first_row + r) % group) * n;
      q[r] = bf16_ ? (const void*)(q_.row_bf16(row) + at) : q_.row(row) + at;
      out[r] = partial ? schedule_.partial_out.data() + (size_t)(item.partial + r) * n : out_.row(row) + at;
      state[r] = {-std::numeric_limits<float>::infinity(), 0};
      std::fill_n(out[r], n, 0.0f);
    }
    const int first = std::max(item.image, 0), end = partial ? first + 1 : (int)seen.images.size();
    for (int i = first; i < end; i++) {
      const int first_span = partial ? item.first_span : 0, n_spans = partial ? item.n_spans : spans_of(*seen.images[i]);
      attend_image(*seen.images[i], item, first_span, n_spans, q, state, out, scratch);
    }
    if (!partial)
      for (int r = 0; r < item.rows; r++) k_.finish(state[r], out[r], n);
  }

  void attend_image(const ImageKeys& image, const CrossSchedule::Item& item, int first_span, int n_spans, const void* const* q, SpanState* state,
                    float* const* out, uint8_t* scratch) {
    const CacheLayer& c = image.layer(layer_);
    int first[MAX_QUERY_ROWS] = {}, last[MAX_QUERY_ROWS];
    std::fill_n(last, MAX_QUERY_ROWS, image.positions() - 1);
    k_.attend({&c, item.kv_head, image.blocks(), first_span, n_spans, item.rows, q, first, last, scale_log2_, state, out, scratch});
  }

  const Kernels& k_;
  CrossSchedule& schedule_;
  const Buffer& q_;
  const bool bf16_;
  const int layer_;
  const float scale_log2_;
  const Buffer& out_;
};

// The run of tokens that a row belongs to, or -1: it sees no image.
int seen_of(const Step& s, int row) {
  for (size_t i = 0; i < s.seen.size(); i++)
    if (row >= s.seen[i].row0 && row < s.seen[i].row1) return (int)i;
  return -1;
}

class CrossMergeOp : public RowOp {
 public:
  CrossMergeOp(const Kernels& k, const CrossSchedule& schedule, const Buffer& out, int forms) : RowOp(k, out, 2), schedule_(schedule), forms_(forms) {}
  void row(const Step& s, int i) override {
    const int seen = seen_of(s, i);
    if (seen < 0) std::fill_n(out_.row(i), out_.cols, 0.0f);
    else if (schedule_.splits[seen].n_spans) merge_heads(schedule_.splits[seen], i - s.seen[seen].row0, out_.row(i));
    fill_forms(k_, out_, i, forms_);
  }

 private:
  void merge_heads(const CrossSchedule::Split& split, int token, float* out) const {
    const int n = schedule_.head_dim, group = schedule_.group;
    for (int h = 0; h < schedule_.n_kv_heads * group; h++, out += n) {
      SpanState state{-std::numeric_limits<float>::infinity(), 0};
      std::fill_n(out, n, 0.0f);
      for (int span = 0; span < split.n_spans; span++) {
        const int at = split.first_partial + (h / group * split.n_spans + span) * split.rows + token * group + h % group;
        k_.merge(state, out, schedule_.partial_state[at], schedule_.partial_out.data() + (size_t)at * n, n);
      }
      k_.finish(state, out, n);
    }
  }

  const CrossSchedule& schedule_;
  const int forms_;
};

class MaskRowsOp : public RowOp {
 public:
  MaskRowsOp(const Kernels& k, const Buffer& x, const Buffer& out) : RowOp(k, out, 1), x_(x) {}
  void row(const Step& s, int i) override {
    if (seen_of(s, i) < 0) std::fill_n(out_.row(i), out_.cols, 0.0f);
    else std::memcpy(out_.row(i), x_.row(i), out_.cols * sizeof(float));
  }

 private:
  const Buffer& x_;
};

}  // namespace

void CrossSchedule::prepare(const Step& s) {
  items.clear();
  splits.assign(s.seen.size(), {0, 0, 0});
  int partials = 0;
  for (size_t i = 0; i < s.seen.size(); i++) partials = add_items(s.seen[i], (int)i, partials);
  if ((int)partial_state.size() < partials) {
    partial_state.resize(partials);
    partial_out.resize((size_t)partials * head_dim);
  }
}

int CrossSchedule::add_items(const SeenRows& seen, int index, int partials) {
  const int rows = (seen.row1 - seen.row0) * group;
  const bool split = rows <= MAX_QUERY_ROWS;
  if (split) {
    splits[index] = {partials, 0, rows};
    for (const ImageKeys* image : seen.images) splits[index].n_spans += spans_of(*image);
  }
  for (int kv = 0; kv < n_kv_heads; kv++) {
    if (!split) {
      for (int r = 0; r < rows; r += MAX_QUERY_ROWS) items.push_back({index, kv, r, std::min(MAX_QUERY_ROWS, rows - r), -1, 0, 0, -1});
      continue;
    }
    for (int image = 0; image < (int)seen.images.size(); image++)
      for (int span = 0; span < spans_of(*seen.images[image]); span++, partials += rows) items.push_back({index, kv, 0, rows, image, span, 1, partials});
  }
  return partials;
}

std::unique_ptr<Op> make_cross_attend(const Kernels& k, CrossSchedule& schedule, const Buffer& q, CacheKind kind, int layer, float scale, const Buffer& out) {
  return std::make_unique<CrossAttendOp>(k, schedule, q, kind, layer, scale, out);
}

std::unique_ptr<Op> make_cross_merge(const Kernels& k, const CrossSchedule& schedule, const Buffer& out, int forms) {
  return std::make_unique<CrossMergeOp>(k, schedule, out, forms);
}

std::unique_ptr<Op> make_mask_rows(const Kernels& k, const Buffer& x, const Buffer& out) { return std::make_unique<MaskRowsOp>(k, x, out); }

}  // namespace puna
