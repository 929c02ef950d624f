// Attention as ops of a plan: what happens to queries and keys before it, the cache, and how work is shared out.
#pragma once
#include "plan.h"

namespace puna {

// How the query rows of a step are cut into work, the same for all layers of one chunk. An item is up to MAX_QUERY_ROWS
// query rows (token-major, then heads of a group) over all their spans; few rows over many spans are cut by span instead,
// their partial results merged afterwards. Spans before the first position that any row of an item sees are left out.
class AttendSchedule {
 public:
  struct Item { int chunk, kv_head, first_row, rows, first_span, n_spans, partial; };
  struct Split { int first_partial, first_span, n_spans, rows; };  // of a chunk; n_spans 0: not split

  // reach: positions of a chunk of attention, 0 where a token sees all that precede it. local: blocks are those of local
  // layers. Positions below count from the origin of the chunk's table, a multiple of reach.
  AttendSchedule(Rows rows, int group, int reach, bool local, int n_kv_heads, int head_dim)
      : rows(rows), group(group), reach(reach), local(local), n_kv_heads(n_kv_heads), head_dim(head_dim) {}

  void prepare(const Step& s);
  bool is_short() const { return items.empty() || items[0].n_spans * items[0].rows <= MAX_QUERY_ROWS; }  // the longest is first
  int first_token(const Chunk& c) const { return rows == Rows::ALL ? 0 : c.n - c.n_wanted; }
  const BlockTable& table(const Chunk& c) const { return c.table(local); }
  int start(const Chunk& c) const { return c.start - table(c).origin; }
  int first_visible(int position) const { return reach ? position / reach * reach : 0; }

  const Rows rows;
  const int group, reach;
  const bool local;
  const int n_kv_heads, head_dim;
  std::vector<Item> items;
  std::vector<Split> splits;
  std::vector<SpanState> partial_state;
  std::vector<float> partial_out;

 private:
  int add_items(const Chunk& c, int index, int partials);
};

std::unique_ptr<Op> make_store(const Kernels& k, const Buffer& q, const Buffer& key, const Buffer& value, const CacheLayer& cache, bool local,
                               const Buffer& cos, const Buffer& sin, const QueryKeySteps& steps);
std::unique_ptr<Op> make_attend(const Kernels& k, AttendSchedule& schedule, const Buffer& q, const CacheLayer& cache, float scale, const Buffer& out);
// Merges what attend cut by span, and fills the forms that the next op reads.
std::unique_ptr<Op> make_attend_merge(const Kernels& k, const AttendSchedule& schedule, const Buffer& out, int forms);

}  // namespace puna
