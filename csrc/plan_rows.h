// Ops of a plan that treat every row alike: norms, sums, gates, rows chosen. Included by plan.cpp only.
#pragma once
#include <cmath>
#include <cstring>

#include "plan_ops.h"

namespace puna {
namespace {

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
  EmbedOp(const Kernels& k, Weight table, Weight more, const Buffer& out) : RowOp(k, out, 16), table_(std::move(table)), more_(std::move(more)) {}
  void row(const Step& s, int i) override {
    const int token = s.tokens[i], behind = token - table_->m.rows;
    if (!s.given.empty() && s.given[i]) std::copy_n(s.given[i], table_->m.cols, out_.row(i));
    else if (behind < 0) k_.embed(table_->m, token, out_.row(i));
    else k_.embed(more_->m, behind, out_.row(i));
  }

 private:
  const Weight table_, more_;
};

class HeadNormOp : public RowOp {
 public:
  HeadNormOp(const Kernels& k, const Buffer& x, std::vector<float> w, float eps, const Buffer& out) : RowOp(k, out, 2), x_(x), w_(std::move(w)), eps_(eps) {}
  void row(const Step&, int i) override {
    const int n = (int)w_.size();
    for (int at = 0; at < out_.cols; at += n) k_.rms_norm(x_.row(i) + at, w_.data(), n, eps_, out_.row(i) + at);
  }

 private:
  const Buffer& x_;
  const std::vector<float> w_;
  const float eps_;
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

class AddScaledOp : public RowOp {
 public:
  AddScaledOp(const Kernels& k, const Buffer& a, const Buffer& b, float factor, const Buffer& out) : RowOp(k, out, 1), a_(a), b_(b), factor_(factor) {}
  void row(const Step&, int i) override { k_.add_scaled(a_.row(i), b_.row(i), factor_, out_.cols, out_.row(i)); }

 private:
  const Buffer &a_, &b_;
  const float factor_;
};

class SwigluOp : public RowOp {
 public:
  SwigluOp(const Kernels& k, const Buffer& gate, const Buffer& up, const Buffer& out) : RowOp(k, out, 2), gate_(gate), up_(up) {}
  void row(const Step&, int i) override { k_.swiglu(gate_.row(i), up_.row(i), out_.cols, out_.row(i)); }

 private:
  const Buffer &gate_, &up_;
};

class HadamardOp : public RowOp {
 public:
  HadamardOp(const Kernels& k, const Buffer& x, const Buffer& out) : RowOp(k, out, 4), x_(x) {}
  void row(const Step&, int i) override { k_.hadamard(x_.row(i), out_.cols, out_.row(i)); }

 private:
  const Buffer& x_;
};

class SelectOp : public RowOp {
 public:
  SelectOp(const Kernels& k, const Buffer& x, const Buffer& out) : RowOp(k, out, 1), x_(x) {}
  void row(const Step& s, int i) override { std::memcpy(out_.row(i), x_.row(s.wanted[i]), out_.cols * sizeof(float)); }

 private:
  const Buffer& x_;
};

}  // namespace
}  // namespace puna
