// SIMD vectors in the compiler's own vector types: one source for every instruction set.
//
// ASNG_CAPABILITY names the namespace and ASNG_VECTOR_BYTES the register size; both come from the
// build, which compiles kernels.cpp once per instruction set. Nothing here may be used by two of
// those compilations under one name, or the linker would keep only one of them: hence the
// namespace, and no calls to inline functions of the standard library in hot code.
#pragma once

#include <cstdint>

#ifndef ASNG_VECTOR_BYTES
#define ASNG_VECTOR_BYTES 16
#endif
#ifndef ASNG_CAPABILITY
#define ASNG_CAPABILITY baseline
#endif

#define ASNG_INLINE inline __attribute__((always_inline))

namespace asng::cpu::ASNG_CAPABILITY {

template <class T>
struct VectorType {
  typedef T aligned __attribute__((vector_size(ASNG_VECTOR_BYTES)));
  typedef T loose __attribute__((vector_size(ASNG_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};

template <class T>
using Vec = typename VectorType<T>::aligned;

template <class T>
inline constexpr int64_t kLanes = ASNG_VECTOR_BYTES / sizeof(T);

// Registers decide how many accumulators a block of a product may have.
inline constexpr bool kManyRegisters = ASNG_VECTOR_BYTES == 64;

template <class T>
ASNG_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorType<T>::loose*>(p);
}

template <class T>
ASNG_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VectorType<T>::loose*>(p) = v;
}

template <class T>
ASNG_INLINE Vec<T> relu(Vec<T> v) {
  const Vec<T> zero = {};
  return v < zero ? zero : v;  // keeps NaN
}

template <class T>
ASNG_INLINE void add_to(T* p, Vec<T> v) {
  store<T>(p, load(p) + v);
}

template <class T>
ASNG_INLINE void fill_with(T* p, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i) p[i] = value;
}

// A number of channels known to the compiler makes every address a constant offset. C is that
// number, or 0 if it is not among the usual ones and comes at run time.
template <int C>
ASNG_INLINE constexpr int64_t channels_of(int64_t channels) {
  return C == 0 ? channels : C;
}

// Asks for a value that will be read later, so that it comes while others are worked on. Any
// address will do. Such requests must be spread over the arithmetic: a burst of them has to wait
// itself.
template <class T>
ASNG_INLINE void prefetch(const T* p) {
  __builtin_prefetch(p, 0, 2);
}

// Adds a tile's sums to totals in double precision and clears them.
template <class T>
ASNG_INLINE void flush(T* tile, double* total, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    total[c] += static_cast<double>(tile[c]);
    tile[c] = 0;
  }
}

}  // namespace asng::cpu::ASNG_CAPABILITY
