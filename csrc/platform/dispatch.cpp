#include "platform/dispatch.h"

#include <cstdlib>
#include <cstring>

namespace asng {
namespace {

Capability choose() {
#if defined(ASNG_HAVE_X86)
  Capability best = Capability::kBaseline;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Capability::kAvx2;
  if (best == Capability::kAvx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    best = Capability::kAvx512;
  }
  // A lesser set can be asked for, to test it; a better one than there is cannot.
  const char* wanted = std::getenv("ASNG_CPU_CAPABILITY");
  if (wanted != nullptr && std::strcmp(wanted, "default") == 0) return Capability::kBaseline;
  if (wanted != nullptr && std::strcmp(wanted, "avx2") == 0 && best == Capability::kAvx512) {
    return Capability::kAvx2;
  }
  return best;
#else
  return Capability::kBaseline;
#endif
}

}  // namespace

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

}  // namespace asng
