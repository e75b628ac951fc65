// The choice of the instruction set, once for everything that is compiled for several: the kernels
// on the CPU (simd.h) and the toy problem (lanes.h). ASNG_HAVE_X86 comes from the build, where
// there is more than the baseline.
#pragma once

// For functions that such compilations share under one name: the linker keeps one of them, so they
// have to become part of what is compiled for an instruction set.
#define ASNG_INLINE inline __attribute__((always_inline))

namespace asng {

// In ascending order.
enum class Capability { kBaseline, kAvx2, kAvx512 };

// The best one of this processor, or the lesser one that ASNG_CPU_CAPABILITY names ("default",
// "avx2"). It is chosen when it is first asked for.
Capability capability();

}  // namespace asng

#if defined(ASNG_HAVE_X86)
#define ASNG_IF_X86(...) __VA_ARGS__
#else
#define ASNG_IF_X86(...)
#endif

#define ASNG_DECLARE_TABLE(Table, table, set)           \
  namespace set {                                       \
  template <class T>                                    \
  const Table<T>& table();                              \
  extern template const Table<float>& table<float>();   \
  extern template const Table<double>& table<double>(); \
  }

// Defines table<T>(), the `Table` of kernels of the chosen instruction set: table<T>() in the
// namespace that is called like it.
#define ASNG_DISPATCH(Table, table)                                                 \
  ASNG_DECLARE_TABLE(Table, table, baseline)                                        \
  ASNG_IF_X86(ASNG_DECLARE_TABLE(Table, table, avx2))                               \
  ASNG_IF_X86(ASNG_DECLARE_TABLE(Table, table, avx512))                             \
  template <class T>                                                                \
  const Table<T>& table() {                                                         \
    ASNG_IF_X86(if (capability() == Capability::kAvx512) return avx512::table<T>(); \
                if (capability() == Capability::kAvx2) return avx2::table<T>();)    \
    return baseline::table<T>();                                                    \
  }                                                                                 \
  template const Table<float>& table<float>();                                      \
  template const Table<double>& table<double>();
