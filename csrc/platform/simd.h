// SIMD vectors in the compiler's own vector types: one source for every instruction set.
//
// ASNG_CAPABILITY names the namespace and ASNG_VECTOR_BYTES the register size; both come from the
// build, which compiles kernels.cpp once per instruction set. Nothing here may be used by two of
// those compilations under one name, or the linker would keep only one of them: hence the
// namespace, and no calls to inline functions of the standard library in hot code.
#pragma once

#include <cstdint>

#include "platform/dispatch.h"

#ifndef ASNG_VECTOR_BYTES
#define ASNG_VECTOR_BYTES 16
#endif
#ifndef ASNG_CAPABILITY
#define ASNG_CAPABILITY baseline
#endif

// After the parameters of a lambda. Left to itself the compiler makes a function of one that is
// called at several places, and reads what it refers to again after every store.
#define ASNG_INLINE_LAMBDA __attribute__((always_inline))

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

template <int n>
struct Constant {
  static constexpr int value = n;
};

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

// The same to sums in double precision.
template <class T>
ASNG_INLINE void add_wide(double* p, Vec<T> v) {
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) p[lane] += static_cast<double>(v[lane]);
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

// Calls f with that number as a constant. Other numbers of channels, and double precision, go
// without a compilation of their own.
template <class T, class F>
ASNG_INLINE void with_channels(int64_t channels, F f) {
  if constexpr (sizeof(T) == 4) {
    if (channels == 16) return f(Constant<16>{});
    if (channels == 32) return f(Constant<32>{});
    if (channels == 64) return f(Constant<64>{});
  }
  f(Constant<0>{});
}

// Calls pass(c, N) with N a constant, for groups of N vectors of channels from channel c on: 4, 2
// or
// 1. Loops over pixels belong inside `pass`, and loops over its vectors inside those, so that
// memory is read in order for the usual numbers of channels.
template <class T, class Pass>
ASNG_INLINE void for_channels(int64_t channels, Pass pass) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t c = 0;
  if constexpr (kManyRegisters) {
    for (; c + 4 * lanes <= channels; c += 4 * lanes) pass(c, Constant<4>{});
  }
  for (; c + 2 * lanes <= channels; c += 2 * lanes) pass(c, Constant<2>{});
  for (; c < channels; c += lanes) pass(c, Constant<1>{});
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
