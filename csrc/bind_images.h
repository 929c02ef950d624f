// The part of puna._native that has to do with images; bind.cpp calls it.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <tuple>
#include <vector>

#include "image_ops.h"
#include "plan.h"

namespace puna {

using Ints = nanobind::ndarray<const int32_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
using Floats = nanobind::ndarray<const float, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
using Matrix2 = nanobind::ndarray<const float, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
using OutFloats = nanobind::ndarray<nanobind::numpy, float, nanobind::ndim<2>>;

// Rows of a step with the rows of an encoded image that stand in their place.
using Given = std::tuple<Ints, Matrix2, Ints>;
// First row, end, and the images that they see.
using Seen = std::tuple<int, int, std::vector<std::shared_ptr<ImageKeys>>>;

void check(bool good, const std::string& message);  // std::invalid_argument
OutFloats own(int rows, int cols, float* data);
// A new array that `fill` has filled.
template <class Fn> OutFloats make_floats(int rows, int cols, Fn fill) {
  std::unique_ptr<float[]> data(new float[(size_t)rows * cols]);
  fill(data.get());
  return own(rows, cols, data.release());
}
void place_images(const Plan& plan, Step& step, const std::vector<Given>& given, const std::vector<Seen>& seen);
void bind_images(nanobind::module_& m);

}  // namespace puna
