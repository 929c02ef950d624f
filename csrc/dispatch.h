// Which compiled target runs on this CPU.
#pragma once
#include <string>
#include <vector>

#include "types.h"

namespace puna {

std::vector<std::string> available_targets();  // best last
// The best available target, or the named one; throws std::invalid_argument naming what is available.
const Kernels& choose_target(const std::string& name);

}  // namespace puna
