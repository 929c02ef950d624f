// What the ops of a plan share: rows and runs of weights dealt out to threads.
#pragma once
#include <algorithm>

#include "plan.h"

namespace puna {

constexpr int STREAM_TOKENS = 64;       // up to here reading the weights takes a good part of the time
constexpr int APPROACH_BYTES = 4096;    // of a thread's next weights to fetch before a barrier
constexpr int SERIAL_VALUES = 1 << 13;  // row ops on fewer values than this are not worth a barrier
constexpr int TOKEN_BLOCK = 256;        // tokens that share an unpacked panel of weights at most: fewer, and unpacking shows

struct Range { int begin, end; };

inline Range share(int total, const Worker& w) {
  return {(int)((int64_t)total * w.thread / w.n_threads), (int)((int64_t)total * (w.thread + 1) / w.n_threads)};
}

// Into the second-level cache, without waiting.
inline void fetch(const uint8_t* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

inline void fill_forms(const Kernels& k, const Buffer& b, int row, int forms) {
  if (forms & FORM_BF16) k.to_bf16(b.row(row), b.cols, b.row_bf16(row));
  if (forms & FORM_Q8) k.quantize(b.row(row), b.cols, b.row_q8(row));
}

// An op whose rows are shared out in equal runs. Each row of the buffer it is made for counts `times` times.
class RowsOp : public Op {
 public:
  RowsOp(const Kernels& k, const Buffer& out, int cost, int times = 1) : k_(k), out_(out), cost_(cost), times_(times) {}
  bool serial(const Step& s) const override { return (int64_t)n_rows(s) * out_.cols * cost_ < SERIAL_VALUES; }
  void run(const Step& s, const Worker& w) override { rows(s, share(n_rows(s), w)); }
  virtual void rows(const Step& s, Range r) = 0;

 protected:
  int n_rows(const Step& s) const { return s.rows(out_.rows) * times_; }
  const Kernels& k_;
  const Buffer& out_;
  const int cost_, times_;
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

// A matrix of a linear op, or a gated pair of them, as bytes to read.
struct Part {
  const Matrix* w;
  const Matrix* up;  // null where there is none
  int tiles() const { return w->tiles(); }
  size_t tile_bytes() const { return w->tile_bytes * (up ? 2 : 1); }
  size_t bytes() const { return tile_bytes() * tiles(); }
};

// Every thread reads one contiguous run of the weights: equal bytes, one stream. n parts, of which part(i) is one, hold
// `total` bytes; calls fn(i, first tile, end tile).
template <class GetPart, class Fn> void for_each_run(int n, size_t total, const Worker& w, GetPart part, Fn fn) {
  const size_t begin = total * w.thread / w.n_threads, end = total * (w.thread + 1) / w.n_threads;
  size_t base = 0;
  for (int i = 0; i < n; i++) {
    const Part p = part(i);
    const auto tile_at = [&](size_t at) { return at <= base ? 0 : (int)std::min<size_t>(p.tiles(), (at - base + p.tile_bytes() - 1) / p.tile_bytes()); };
    const int t0 = tile_at(begin), t1 = tile_at(end);
    if (t0 < t1) fn(i, t0, t1);
    base += p.bytes();
  }
}

}  // namespace puna
