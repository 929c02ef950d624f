#include "plan_experts.h"

#include <cmath>

#include "pack.h"
#include "plan_ops.h"

namespace puna {
namespace {

// Which tokens of a step go to which experts.
struct Routing {
  Routing(int n_experts, int n_active) : n_experts(n_experts), n_active(n_active), first(n_experts + 1) {}
  const int n_experts, n_active;
  std::vector<int> first;    // slots of expert e: first[e] .. first[e + 1], tokens rising
  std::vector<int> row;      // of each slot
  std::vector<float> score;  // of each slot: what multiplies its input
  std::vector<int> slots;    // [rows][n_active], experts rising
  int count(int e) const { return first[e + 1] - first[e]; }
};

// The n_active experts of highest score, of equals the lower number, and the sigmoid of their scores.
class RouteOp : public Op {
 public:
  RouteOp(const Buffer& scores, std::shared_ptr<Routing> routing) : scores_(scores), routing_(std::move(routing)) {}
  bool serial(const Step&) const override { return true; }
  void run(const Step& s, const Worker&) override {
    Routing& r = *routing_;
    const int rows = s.rows(scores_.rows), n = rows * r.n_active;
    r.row.resize(n);
    r.score.resize(n);
    r.slots.resize(n);
    chosen_.resize(n);
    for (int i = 0; i < rows; i++) choose(scores_.row(i), chosen_.data() + (size_t)i * r.n_active);
    std::fill(r.first.begin(), r.first.end(), 0);
    for (int e : chosen_) r.first[e + 1]++;
    for (int e = 0; e < r.n_experts; e++) r.first[e + 1] += r.first[e];
    next_.assign(r.first.begin(), r.first.end() - 1);
    for (int i = 0; i < n; i++) {
      const int row = i / r.n_active, slot = next_[chosen_[i]]++;
      r.row[slot] = row;
      r.score[slot] = 1.0f / (1.0f + std::exp(-scores_.row(row)[chosen_[i]]));
      r.slots[i] = slot;
    }
  }

 private:
  void choose(const float* scores, int* chosen) const {
    const int n = routing_->n_active;
    for (int a = 0; a < n; a++) {
      int best = -1;
      for (int e = 0; e < routing_->n_experts; e++)
        if (std::find(chosen, chosen + a, e) == chosen + a && (best < 0 || scores[e] > scores[best])) best = e;
      chosen[a] = best;
    }
    std::sort(chosen, chosen + n);
  }

  const Buffer& scores_;
  const std::shared_ptr<Routing> routing_;
  std::vector<int> chosen_, next_;
};

// Inputs of the experts: the score times the token's row.
class GatherOp : public RowOp {
 public:
  GatherOp(const Kernels& k, const Buffer& x, std::shared_ptr<const Routing> routing, const Buffer& out, int forms)
      : RowOp(k, out, 2, routing->n_active), x_(x), routing_(std::move(routing)), forms_(forms) {}
  void row(const Step&, int slot) override {
    k_.scale(x_.row(routing_->row[slot]), routing_->score[slot], out_.cols, out_.row(slot));
    fill_forms(k_, out_, slot, forms_);
  }

 private:
  const Buffer& x_;
  const std::shared_ptr<const Routing> routing_;
  const int forms_;
};

// Every slot times a matrix of its expert, or a gated pair.
class ExpertLinearOp : public Op {
 public:
  ExpertLinearOp(const Kernels& k, std::shared_ptr<const Routing> routing, const Buffer& x, std::vector<Weight> w, std::vector<Weight> up, const Buffer& out)
      : k_(k), routing_(std::move(routing)), x_(x), w_(std::move(w)), up_(std::move(up)), out_(out) {}
  bool serial(const Step& s) const override { return s.rows(x_.rows) == 0; }
  void run(const Step& s, const Worker& w) override {
    if (s.rows(x_.rows) * routing_->n_active > STREAM_TOKENS) return share_out(w);
    each_run(w, [&](int e, int tile0, int tile1) { compute(e, routing_->first[e], routing_->first[e + 1], tile0, tile1, w.scratch); });
  }
  // Before this step's routing is known, the last one is as good a guess as any.
  void approach(const Step& s, const Worker& w) const override {
    if (s.rows(x_.rows) * routing_->n_active > STREAM_TOKENS) return;
    int left = APPROACH_BYTES;
    each_run(w, [&](int e, int tile0, int tile1) {
      const int n = std::min<size_t>(left, (tile1 - tile0) * w_[e]->m.tile_bytes);
      fetch(w_[e]->m.tile(tile0), n);
      left -= n;
    });
  }

 private:
  Part part(int e) const { return {&w_[e]->m, up_.empty() ? nullptr : &up_[e]->m}; }

  void compute(int e, int row0, int row1, int tile0, int tile1, uint8_t* scratch) const {
    const Part p = part(e);
    k_.linear(*p.w, p.up, x_.input(), row0, row1, tile0, tile1, {out_.row(0), (size_t)out_.cols, nullptr}, scratch);
  }

  // The matrices of the chosen experts, one after the other, in equal bytes.
  template <class Fn> void each_run(const Worker& w, Fn fn) const {
    const int n_experts = routing_->n_experts;
    std::vector<int> active;
    for (int e = 0; e < n_experts; e++)
      if (routing_->count(e)) active.push_back(e);
    for_each_run((int)active.size(), part(0).bytes() * active.size(), w, [&](int i) { return part(active[i]); },
                 [&](int i, int tile0, int tile1) { fn(active[i], tile0, tile1); });
  }

  // Panels of two tiles times blocks of an expert's tokens, all panels of a block one after the other.
  void share_out(const Worker& w) const {
    const int tiles = w_[0]->m.tiles(), panels = (tiles + 1) / 2;
    int e = 0, before = 0;  // items of the experts before e
    for (int item; e < routing_->n_experts;) {
      item = w.next(0);
      while (e < routing_->n_experts && item - before >= token_blocks(e) * panels) before += token_blocks(e++) * panels;
      if (e == routing_->n_experts) return;
      const int64_t n = routing_->count(e), blocks = token_blocks(e), block = (item - before) / panels, panel = (item - before) % panels;
      const int row0 = routing_->first[e];
      compute(e, row0 + (int)(n * block / blocks), row0 + (int)(n * (block + 1) / blocks), 2 * (int)panel, std::min(tiles, 2 * (int)panel + 2), w.scratch);
    }
  }

  int token_blocks(int e) const { return ((int)routing_->count(e) + TOKEN_BLOCK - 1) / TOKEN_BLOCK; }

  const Kernels& k_;
  const std::shared_ptr<const Routing> routing_;
  const Buffer& x_;
  const std::vector<Weight> w_, up_;
  const Buffer& out_;
};

// Hidden values in the form that the second matrix reads, gated first where the first op could not do it.
class HiddenOp : public RowOp {
 public:
  HiddenOp(const Kernels& k, const SlotBuffers& slots, int n_active, int forms)
      : RowOp(k, slots.h, 2, n_active), up_(slots.up), forms_(forms) {}
  void row(const Step&, int i) override {
    if (&up_ != &out_) k_.swiglu(out_.row(i), up_.row(i), out_.cols, out_.row(i));
    fill_forms(k_, out_, i, forms_);
  }

 private:
  const Buffer& up_;
  const int forms_;
};

class CombineOp : public RowOp {
 public:
  CombineOp(const Kernels& k, std::shared_ptr<const Routing> routing, const Buffer& y, const Buffer& out)
      : RowOp(k, out, routing->n_active), routing_(std::move(routing)), y_(y) {}
  void row(const Step&, int i) override {
    const int* slots = routing_->slots.data() + (size_t)i * routing_->n_active;
    std::copy_n(y_.row(slots[0]), out_.cols, out_.row(i));
    for (int a = 1; a < routing_->n_active; a++) k_.add(out_.row(i), y_.row(slots[a]), out_.cols, out_.row(i));
  }

 private:
  const std::shared_ptr<const Routing> routing_;
  const Buffer& y_;
};

}  // namespace

void add_experts(std::vector<std::unique_ptr<Op>>& ops, const Kernels& k, const Buffer& x, const Buffer& scores, ExpertWeights weights,
                 int n_active, const SlotBuffers& slots, const Buffer& out) {
  const auto routing = std::make_shared<Routing>((int)weights.w1.size(), n_active);
  const bool together = &slots.up == &slots.h;
  const auto linear = [&](const Buffer& in, std::vector<Weight>& w, std::vector<Weight> up, const Buffer& to) {
    ops.push_back(std::make_unique<ExpertLinearOp>(k, routing, in, std::move(w), std::move(up), to));
  };
  ops.push_back(std::make_unique<RouteOp>(scores, routing));
  ops.push_back(std::make_unique<GatherOp>(k, x, routing, slots.x, weights.x_forms));
  linear(slots.x, weights.w1, together ? std::move(weights.w3) : std::vector<Weight>{}, slots.h);
  if (!together) linear(slots.x, weights.w3, {}, slots.up);
  if (weights.h_forms || !together) ops.push_back(std::make_unique<HiddenOp>(k, slots, n_active, weights.h_forms));
  linear(slots.h, weights.w2, {}, slots.x);
  ops.push_back(std::make_unique<CombineOp>(k, routing, slots.x, out));
}

}  // namespace puna
