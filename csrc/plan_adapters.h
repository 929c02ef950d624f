// Low-rank adapters beside the matrices of a plan: y += up (scale * (down x)) in the rows of a step that have one
// (Hu et al. 2021, arXiv 2106.09685). Included by plan.cpp only; plan.h has the bank of adapters.
//
// A site is a matrix that may have adapters, a slot one adapter in all sites. Both products are those of `linear`, row
// by row, so that a row's sum depends on nothing but the row; rows without an adapter are left as they are.
#pragma once
#include "pack.h"
#include "plan_ops.h"

namespace puna {
namespace {

// What one linear op needs to know: its sites, one for each of its matrices, -1 where a matrix has none.
class AdaptedLinear {
 public:
  AdaptedLinear(const Kernels& k, const AdapterBank& bank, const Buffer& x, std::vector<int> sites) : k_(k), bank_(bank), x_(x), sites_(std::move(sites)) {}
  const Buffer& x() const { return x_; }
  int targets() const { return (int)sites_.size(); }
  const std::vector<AdapterRows>& runs(const Step& s) const { return s.adapters[x_.rows == Rows::WANTED]; }

  // Bytes of `down` that a step reads.
  size_t bytes(const Step& s) const {
    size_t n = 0;
    for (const AdapterRows& run : runs(s))
      for (int i = 0; i < targets(); i++)
        if (const LowRank* a = at(i, run)) n += a->down->m.tile_bytes * a->down->m.tiles();
    return n;
  }

  // scale * down x of one matrix and some rows of a run.
  void down(const AdapterRows& run, int target, int row0, int row1, uint8_t* scratch) const {
    const LowRank* a = at(target, run);
    if (!a) return;
    const size_t stride = bank_.stride();
    float* h = bank_.f32.as<float>() + (size_t)target * bank_.rank;
    k_.linear(a->down->m, nullptr, x_.input(), row0, row1, 0, a->down->m.tiles(), {h, stride, nullptr}, scratch);
    const int n = a->down->m.tiles() * TILE_ROWS;
    for (int r = row0; r < row1; r++) {
      k_.scale(h + r * stride, a->scale, n, h + r * stride);
      if (format_of(a->up->m.kind).input == InputKind::BF16) k_.to_bf16(h + r * stride, n, bank_.bf16.as<uint16_t>() + r * stride + (size_t)target * bank_.rank);
    }
  }

  // y += up h in rows row0..row1 and tiles tile0..tile1 of one matrix.
  void add(const Step& s, int target, int row0, int row1, int tile0, int tile1, float* y, size_t y_stride, uint8_t* scratch) const {
    const size_t at_h = (size_t)target * bank_.rank;
    const Input h{(int)bank_.stride(), bank_.f32.as<float>() + at_h, bank_.bf16.as<uint16_t>() + at_h, nullptr};
    for (const AdapterRows& run : runs(s)) {
      const int r0 = std::max(row0, run.row0), r1 = std::min(row1, run.row1);
      const LowRank* a = r0 < r1 ? at(target, run) : nullptr;
      if (a) k_.linear(a->up->m, nullptr, h, r0, r1, tile0, tile1, {y, y_stride, y}, scratch);
    }
  }

 private:
  const LowRank* at(int target, const AdapterRows& run) const {
    if (sites_[target] < 0) return nullptr;
    const auto& slots = bank_.sites[sites_[target]].slots;
    return run.slot < (int)slots.size() && slots[run.slot].down ? &slots[run.slot] : nullptr;
  }

  const Kernels& k_;
  const AdapterBank& bank_;
  const Buffer& x_;
  const std::vector<int> sites_;
};

// down x of all matrices that read x, before the linear op that adds the rest. Small ones are not worth a barrier.
class AdapterDownOp : public Op {
 public:
  explicit AdapterDownOp(std::shared_ptr<AdaptedLinear> linear) : linear_(std::move(linear)) {}
  bool serial(const Step& s) const override {
    int rows = 0;
    for (const AdapterRows& run : linear_->runs(s)) rows += run.row1 - run.row0;
    return rows <= SERIAL_ROWS && linear_->bytes(s) <= SERIAL_BYTES;
  }
  void run(const Step& s, const Worker& w) override {
    int item = 0;
    for (const AdapterRows& run : linear_->runs(s))
      for (int row0 = run.row0; row0 < run.row1; row0 += ITEM_ROWS)
        for (int target = 0; target < linear_->targets(); target++)
          if (item++ % w.n_threads == w.thread) linear_->down(run, target, row0, std::min(run.row1, row0 + ITEM_ROWS), w.scratch);
  }

 private:
  static constexpr int ITEM_ROWS = 24, SERIAL_ROWS = 8;
  static constexpr size_t SERIAL_BYTES = 256 * 1024;
  const std::shared_ptr<AdaptedLinear> linear_;
};

}  // namespace
}  // namespace puna
