// The part of puna._native that has to do with adapters; bind.cpp calls it.
#pragma once
#include "bind_images.h"

namespace puna {

// A site for each weight, of its shape, or -1; or no sites at all.
void check_sites(const Plan& plan, const std::vector<Weight>& w, const std::vector<int>& sites);
// The next chunk of the step, of n tokens and so many wanted rows, has the adapter in `slot`.
void place_adapter(Step& step, int row, int n, int wanted, int slot);
void bind_adapters(nanobind::class_<Plan>& plan);

}  // namespace puna
