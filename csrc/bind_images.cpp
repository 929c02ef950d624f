#include "bind_images.h"

#include <nanobind/stl/string.h>

#include <string>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

namespace puna {
namespace {

constexpr int MOST_LAYERS = 1 << 10, MOST_POSITIONS = 1 << 20;

std::string shape(const Matrix2& x) { return "[" + std::to_string(x.shape(0)) + ", " + std::to_string(x.shape(1)) + "]"; }

void check_same(const char* op, const Matrix2& a, const Matrix2& b) {
  check(a.shape(0) == b.shape(0) && a.shape(1) == b.shape(1), std::string(op) + ": " + shape(a) + " and " + shape(b) + " differ in shape");
}

// ImageOps over numpy arrays; every contract that a caller could break is checked here.
class PythonImageOps {
 public:
  explicit PythonImageOps(Plan& plan) : plan_(plan), ops_(plan.kernels(), plan.pool(), plan.cache().kind) {}

  OutFloats linear(const Weight& w, Matrix2 x, Floats bias) {
    const int stride = w->m.tiles() * TILE_ROWS;
    check((int)x.shape(1) == w->m.cols, "linear: x is " + shape(x) + ", the weight has " + std::to_string(w->m.cols) + " columns");
    check(bias.size() == 0 || (int)bias.size() == stride, "linear: the bias needs " + std::to_string(stride) + " values, got " + std::to_string(bias.size()));
    return make(x.shape(0), stride, [&](float* y) { ops_.linear(w->m, x.data(), (int)x.shape(0), bias.size() ? bias.data() : nullptr, y, stride); });
  }
  OutFloats layer_norm(Matrix2 x, Floats w, Floats bias, float eps) {
    const size_t n = x.shape(1);
    check(n % 16 == 0 && w.size() == n && bias.size() == n, "layer_norm: weights and biases for each of " + std::to_string(n) + " columns are needed, a multiple of 16");
    return make(x.shape(0), n, [&](float* y) { ops_.layer_norm(x.data(), w.data(), bias.data(), (int)x.shape(0), (int)n, eps, y); });
  }
  OutFloats gelu(Matrix2 x) {
    return make(x.shape(0), x.shape(1), [&](float* y) { ops_.gelu(x.data(), x.size(), y); });
  }
  OutFloats add(Matrix2 a, Matrix2 b, float factor) {
    check_same("add", a, b);
    return make(a.shape(0), a.shape(1), [&](float* y) { ops_.add(a.data(), b.data(), factor, a.size(), y); });
  }
  OutFloats rope(Matrix2 x, int heads, Matrix2 cos, Matrix2 sin) {
    check_same("rope", cos, sin);
    check(heads > 0 && cos.shape(0) == x.shape(0) && cos.shape(1) * 2 * heads == x.shape(1), "rope: an angle for each pair of a head is needed, x is " + shape(x));
    return make(x.shape(0), x.shape(1), [&](float* y) { ops_.rope(x.data(), (int)x.shape(0), heads, (int)x.shape(1) / heads, cos.data(), sin.data(), y); });
  }
  OutFloats attend(Matrix2 q, Matrix2 k, Matrix2 v, Ints order, int groups, int real, int heads, float scale) {
    check_same("attend", q, k);
    check_same("attend", q, v);
    const int rows = (int)q.shape(0);
    check(groups > 0 && rows > 0 && rows % groups == 0 && real > 0 && real <= rows / groups, "attend: rows are no whole number of groups with real rows in each");
    check(heads > 0 && q.shape(1) % heads == 0 && q.shape(1) / heads <= 256, "attend: heads must be whole and have at most 256 columns");
    check((int)order.size() == rows, "attend: the order needs a number for each row");
    std::vector<bool> taken(rows);
    for (int i = 0; i < rows; i++) {
      const int row = order.data()[i];
      check(row >= 0 && row < rows && !taken[row], "attend: the order must name every row once");
      taken[row] = true;
    }
    return make(rows, q.shape(1), [&](float* y) {
      ops_.attend(q.data(), k.data(), v.data(), {order.data(), rows, groups, real}, heads, (int)q.shape(1) / heads, scale, y);
    });
  }
  std::shared_ptr<ImageKeys> keys(int layers, int positions) {
    const CacheShape& c = plan_.cache();
    check(layers > 0 && layers <= MOST_LAYERS && positions > 0 && positions <= MOST_POSITIONS, "keys: from 1 to " + std::to_string(MOST_LAYERS) + " layers and " + std::to_string(MOST_POSITIONS) + " positions");
    return std::make_shared<ImageKeys>(c.kind, layers, c.n_kv_heads, c.head_dim, positions);
  }
  void fill(ImageKeys& keys, int layer, Matrix2 k, Matrix2 v) {
    check_same("fill", k, v);
    const CacheShape& c = plan_.cache();
    check(layer >= 0 && layer < keys.layers() && (int)k.shape(0) == keys.positions() && (int)k.shape(1) == c.n_kv_heads * c.head_dim, "fill: keys of shape " + shape(k) + " do not fit the image");
    nb::gil_scoped_release free;
    keys.fill(plan_.kernels(), plan_.pool(), layer, k.data(), v.data());
  }

 private:
  template <class Fn> OutFloats make(size_t rows, size_t cols, Fn fn) {
    return make_floats((int)rows, (int)cols, [&](float* y) {
      nb::gil_scoped_release free;
      fn(y);
    });
  }

  Plan& plan_;
  ImageOps ops_;
};

}  // namespace

void place_images(const Plan& plan, Step& step, const std::vector<Given>& given, const std::vector<Seen>& seen) {
  const int n = (int)step.tokens.size();
  for (const auto& [rows, image, parts] : given) {
    check(rows.size() == parts.size(), "step: rows and parts of an image differ in number");
    check((int)image.shape(1) == plan.embedding_cols(), "step: an image of " + std::to_string(image.shape(1)) + " columns, embeddings have " + std::to_string(plan.embedding_cols()));
    step.given.resize(n, nullptr);
    for (size_t i = 0; i < rows.size(); i++) {
      const int row = rows.data()[i], part = parts.data()[i];
      check(row >= 0 && row < n && part >= 0 && part < (int)image.shape(0), "step: no such row of an image");
      step.given[row] = image.data() + (size_t)part * image.shape(1);
    }
  }
  const CacheShape& c = plan.cache();
  for (const auto& [row0, row1, images] : seen) {
    check(row0 >= 0 && row0 < row1 && row1 <= n && !images.empty(), "step: no such rows that see images");
    step.seen.push_back({row0, row1, {}});
    for (const auto& image : images) {
      check(image != nullptr, "step: keys of an image are missing");
      const CacheLayer& layer = image->layer(0);
      check(layer.kind == c.kind && layer.n_kv_heads == c.n_kv_heads && layer.head_dim == c.head_dim && image->layers() >= plan.cross_layers(), "step: keys of an image of another model");
      step.seen.back().images.push_back(image.get());
    }
  }
}

void bind_images(nb::module_& m) {
  nb::class_<ImageKeys>(m, "ImageKeys").def_prop_ro("nbytes", &ImageKeys::bytes).def_prop_ro("layers", &ImageKeys::layers);
  nb::class_<PythonImageOps>(m, "ImageOps")
      .def(nb::init<Plan&>(), "plan"_a, nb::keep_alive<1, 2>())
      .def("linear", &PythonImageOps::linear)
      .def("layer_norm", &PythonImageOps::layer_norm)
      .def("gelu", &PythonImageOps::gelu)
      .def("add", &PythonImageOps::add)
      .def("rope", &PythonImageOps::rope)
      .def("attend", &PythonImageOps::attend)
      .def("keys", &PythonImageOps::keys)
      .def("fill", &PythonImageOps::fill);
}

}  // namespace puna
