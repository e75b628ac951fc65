// Several numbers at a time, in the vector types of GCC and Clang: code is written once over
// Lanes<Width> and compiled for several instruction sets.
//
// Beside simd.h, because the toy problem needs the opposite: the same bits with every instruction
// set. So no multiplication fuses with an addition, sums have a fixed number of parts, and one
// compilation holds all widths, as functions with target attributes, where the standard library may
// be called without a second copy of its functions for another instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "platform/dispatch.h"

// Vectors are passed between functions only where they are inlined, so no binary interface matters.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace asng::host {

// Arrays are filled up to multiples of this, the most that is done at a time.
constexpr std::int64_t kLanes = 8;

template <typename T>
struct CacheLineAllocator {
  using value_type = T;
  CacheLineAllocator() = default;
  template <typename U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}
  T* allocate(std::size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64}));
  }
  void deallocate(T* memory, std::size_t) { ::operator delete(memory, std::align_val_t{64}); }
  template <typename U>
  bool operator==(const CacheLineAllocator<U>&) const {
    return true;
  }
};
using LaneVector = std::vector<double, CacheLineAllocator<double>>;

template <int Width>
struct Lanes {
  typedef double Real __attribute__((vector_size(8 * Width)));
  typedef std::int64_t Mask __attribute__((vector_size(8 * Width)));  // -1 true, 0 false
  typedef std::uint64_t Bits __attribute__((vector_size(8 * Width)));

  static ASNG_INLINE Real all(double value) { return Real{} + value; }
  static ASNG_INLINE Bits all_bits(std::uint64_t value) { return Bits{} + value; }

  static ASNG_INLINE Real load(const double* from) {
    Real result;
    std::memcpy(&result, from, sizeof result);
    return result;
  }
  static ASNG_INLINE void store(double* to, Real values) {
    std::memcpy(to, &values, sizeof values);
  }

  // `value` where the mask is set, 0 elsewhere.
  static ASNG_INLINE Real masked(Mask mask, Real value) { return (Real)((Mask)value & mask); }
  static ASNG_INLINE Real larger(Real a, Real b) { return a > b ? a : b; }
  static ASNG_INLINE Real absolute(Real a) {
    return (Real)((Bits)a & all_bits(0x7fffffffffffffffull));
  }
  static ASNG_INLINE Real square_root(Real a) {
    double values[Width];
    store(values, a);
    for (double& value : values) {
      value = __builtin_sqrt(value);
    }
    return load(values);
  }

  // 32-bit words as numbers in [0, 2^32).
  static ASNG_INLINE Real from_words(const std::uint32_t* words) {
    // Signed conversion is what every instruction set has.
    double values[Width];
    for (int lane = 0; lane < Width; ++lane) {
      values[lane] = static_cast<std::int32_t>(words[lane] ^ 0x80000000u);
    }
    return load(values) + 0x1p31;
  }
};

// A sum in eight interleaved parts, whatever the width: always the same bits.
template <int Width>
class LaneSum {
 public:
  using Real = typename Lanes<Width>::Real;

  // `position`: of the first of the terms.
  ASNG_INLINE void add(std::int64_t position, Real terms) {
    parts_[position / Width % (kLanes / Width)] += terms;
  }
  ASNG_INLINE double total() const {
    double a[kLanes];
    std::memcpy(a, parts_, sizeof a);
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
  }

 private:
  Real parts_[kLanes / Width] = {};
};

}  // namespace asng::host
