#include "dispatch.h"

#include <stdexcept>

#if defined(PUNA_HAS_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace puna {

namespace scalar { extern const Kernels kernels; }
#if defined(__x86_64__)
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace avx512bf16 { extern const Kernels kernels; }
#if defined(PUNA_HAS_AMX)
namespace amx { extern const Kernels kernels; }
#endif
#endif

namespace {

// Whether the processor has tiles of bf16 and halves, and the system lets this process use them: it has to be asked,
// since their state is 8 KiB of every thread, and of its signal stack (Linux: Documentation/arch/x86/xstate.rst).
bool may_use_amx() {
#if defined(PUNA_HAS_AMX) && defined(__linux__)
  constexpr unsigned BF16 = 1u << 22, F16 = 1u << 23, TILE = 1u << 24, ALL = BF16 | F16 | TILE;
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & ALL) != ALL) return false;
  static const bool granted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  return granted;
#else
  return false;
#endif
}

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> found = {&scalar::kernels};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  if (avx2) found.push_back(&avx2::kernels);
  if (avx512) found.push_back(&avx512::kernels);
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi")) {
    found.push_back(&avx512bf16::kernels);
#if defined(PUNA_HAS_AMX)
    if (may_use_amx()) found.push_back(&amx::kernels);
#endif
  }
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
  if (name.empty()) {  // tiles are for many tokens at once: who wants them says so
    const bool has_tiles = found.back()->weight_range;
    return *found[found.size() - 1 - has_tiles];
  }
  std::string list;
  for (const Kernels* k : found) {
    if (name == k->name) return *k;
    list += (list.empty() ? "" : ", ") + std::string(k->name);
  }
  throw std::invalid_argument("CPU target '" + name + "' is not available on this machine; available: " + list);
}

}  // namespace puna
