// Knows Python, as bind.cpp does: adapters of a plan, with the contracts that a caller could break.
#include "bind_adapters.h"

#include <string>

#include "pack.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace puna {
namespace {

constexpr int MOST_ADAPTERS = 4096;

void append(std::vector<AdapterRows>& runs, int row, int n, int slot) {
  if (n == 0) return;
  if (!runs.empty() && runs.back().row1 == row && runs.back().slot == slot) runs.back().row1 += n;
  else runs.push_back({row, row + n, slot});
}

void set_adapter(Plan& p, int slot, int site, Weight down, Weight up, float scale) {
  check(slot >= 0 && slot < MOST_ADAPTERS, "set_adapter: a slot must be from 0 to " + std::to_string(MOST_ADAPTERS - 1));
  check(site >= 0 && site < (int)p.adapters().sites.size(), "set_adapter: no such site");
  const AdapterSite& at = p.adapters().sites[site];
  check(!down == !up, "set_adapter: down and up are needed, or neither");
  check(!down || (down->m.cols == at.cols && up->m.rows == at.rows && down->m.rows == up->m.cols && down->m.rows % TILE_ROWS == 0),
        "set_adapter: matrices do not fit the site, or the rank is no multiple of " + std::to_string(TILE_ROWS));
  for (const Weight& w : {down, up})
    check(!w || format_of(w->m.kind).input != InputKind::Q8, "set_adapter: matrices must be F32, F16 or BF16");
  p.set_adapter(slot, site, std::move(down), std::move(up), scale);
}

}  // namespace

void check_sites(const Plan& plan, const std::vector<Weight>& w, const std::vector<int>& sites) {
  const auto& known = plan.adapters().sites;
  check(sites.empty() || sites.size() == w.size(), "linear: a site for each weight is needed, or none");
  for (size_t i = 0; i < sites.size(); i++)
    check(sites[i] < 0 || (sites[i] < (int)known.size() && w[i] && known[sites[i]].rows == w[i]->m.rows && known[sites[i]].cols == w[i]->m.cols),
          "linear: no site of the weight's shape");
}

void place_adapter(Step& step, int row, int n, int wanted, int slot) {
  check(slot < MOST_ADAPTERS, "step: no such adapter");
  append(step.adapters[0], row, n, slot);
  append(step.adapters[1], (int)step.wanted.size(), wanted, slot);
}

void bind_adapters(nb::class_<Plan>& plan) {
  plan.def("site", [](Plan& p, int rows, int cols) {
        check(rows > 0 && cols > 0, "site: a matrix has rows and columns");
        return p.site(rows, cols);
      }, "rows"_a, "cols"_a, "A matrix of that shape that may have adapters.")
      .def("set_adapter", &set_adapter, "slot"_a, "site"_a, "down"_a.none(), "up"_a.none(), "scale"_a);
}

}  // namespace puna
