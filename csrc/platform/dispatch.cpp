// Chooses the instruction set, once.

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "kernels/cpu/kernels.h"
#include "platform/scratch.h"

namespace asng::cpu {

#define ASNG_DECLARE_TABLE(capability)                    \
  namespace capability {                                  \
  template <class T>                                      \
  const Kernels<T>& table();                              \
  extern template const Kernels<float>& table<float>();   \
  extern template const Kernels<double>& table<double>(); \
  }

ASNG_DECLARE_TABLE(baseline)
#ifdef ASNG_HAVE_X86
ASNG_DECLARE_TABLE(avx2)
ASNG_DECLARE_TABLE(avx512)
#endif

namespace {

enum class Capability { kBaseline, kAvx2, kAvx512 };

Capability choose() {
#ifdef ASNG_HAVE_X86
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

Capability chosen() {
  static const Capability capability = choose();
  return capability;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

}  // namespace

template <class T>
const Kernels<T>& kernels() {
#ifdef ASNG_HAVE_X86
  if (chosen() == Capability::kAvx512) return avx512::table<T>();
  if (chosen() == Capability::kAvx2) return avx2::table<T>();
#endif
  return baseline::table<T>();
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

const char* capability() {
  switch (chosen()) {
    case Capability::kAvx512:
      return "avx512";
    case Capability::kAvx2:
      return "avx2";
    default:
      return "default";
  }
}

void* scratch(size_t bytes) {
  static thread_local std::unique_ptr<void, Free> block;
  static thread_local size_t capacity = 0;
  if (bytes > capacity || block == nullptr) {
    const size_t rounded = (bytes + 4096) / 4096 * 4096;
    block.reset();
    capacity = 0;
    block.reset(std::aligned_alloc(64, rounded));
    if (block == nullptr) throw std::bad_alloc();
    capacity = rounded;
  }
  return block.get();
}

}  // namespace asng::cpu
