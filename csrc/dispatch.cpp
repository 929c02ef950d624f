#include "dispatch.h"

#include <stdexcept>

namespace puna {

namespace scalar { extern const Kernels kernels; }
#if defined(__x86_64__)
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace avx512bf16 { extern const Kernels kernels; }
#endif

namespace {

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> found = {&scalar::kernels};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  if (avx2) found.push_back(&avx2::kernels);
  if (avx512) found.push_back(&avx512::kernels);
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi")) found.push_back(&avx512bf16::kernels);
#endif
  return found;
}

}  // namespace

std::vector<std::string> available_targets() {
  std::vector<std::string> names;
  for (const Kernels* k : available()) names.push_back(k->name);
  return names;
}

const Kernels& choose_target(const std::string& name) {
  const auto found = available();
  if (name.empty()) return *found.back();
  std::string list;
  for (const Kernels* k : found) {
    if (name == k->name) return *k;
    list += (list.empty() ? "" : ", ") + std::string(k->name);
  }
  throw std::invalid_argument("CPU target '" + name + "' is not available on this machine; available: " + list);
}

}  // namespace puna
