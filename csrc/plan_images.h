// What the tokens of a step have to do with images, as ops of a plan: cross-attention to their keys and values.
#pragma once
#include "image_ops.h"
#include "plan.h"

namespace puna {

// How the query rows that see images are cut into work, the same for all cross-attention layers. As in AttendSchedule an
// item is up to MAX_QUERY_ROWS query rows; few of them are cut by span of each image, and merged afterwards.
class CrossSchedule {
 public:
  struct Item { int seen, kv_head, first_row, rows, image, first_span, n_spans, partial; };  // image -1: all of them
  struct Split { int first_partial, n_spans, rows; };  // of a run of tokens; n_spans 0: not split

  CrossSchedule(int group, int n_kv_heads, int head_dim) : group(group), n_kv_heads(n_kv_heads), head_dim(head_dim) {}
  void prepare(const Step& s);

  const int group, n_kv_heads, head_dim;
  std::vector<Item> items;
  std::vector<Split> splits;
  std::vector<SpanState> partial_state;
  std::vector<float> partial_out;

 private:
  int add_items(const SeenRows& seen, int index, int partials);
};

std::unique_ptr<Op> make_cross_attend(const Kernels& k, CrossSchedule& schedule, const Buffer& q, CacheKind kind, int layer, float scale, const Buffer& out);
// Merges what was cut by span, puts zeros where a token sees no image, and fills the forms that the next op reads.
std::unique_ptr<Op> make_cross_merge(const Kernels& k, const CrossSchedule& schedule, const Buffer& out, int forms);
// Zero in the rows of tokens that see no image, x elsewhere.
std::unique_ptr<Op> make_mask_rows(const Kernels& k, const Buffer& x, const Buffer& out);

}  // namespace puna
