// Four neighbouring channels of a pixel: what a thread reads and writes at once, 16 bytes of
// floats.
#pragma once

#include "launch.h"

namespace asng::cuda {

template <class T>
struct alignas(16) Quad {
  T v[4];

  __device__ Quad& operator+=(const Quad& other) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] += other.v[i];
    return *this;
  }
};

template <class T>
__device__ __forceinline__ Quad<T> load4(const T* from) {
  return *reinterpret_cast<const Quad<T>*>(from);
}

template <class T>
__device__ __forceinline__ void store4(T* to, const Quad<T>& value) {
  *reinterpret_cast<Quad<T>*>(to) = value;
}

template <class T>
__device__ __forceinline__ Quad<T> fill4(T value) {
  return {{value, value, value, value}};
}

// to += a·b
template <class T>
__device__ __forceinline__ void add_product(Quad<T>& to, const Quad<T>& a, const Quad<T>& b) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to.v[i] += a.v[i] * b.v[i];
}

// x·scale + shift; `norm` holds the scales of all `padded` channels and then the shifts, or is null
// for values that are as they should be.
template <class T>
__device__ __forceinline__ Quad<T> affine4(Quad<T> x, const T* norm, int padded, int channel) {
  if (norm == nullptr) return x;
  const Quad<T> scale = load4(norm + channel), shift = load4(norm + padded + channel);
#pragma unroll
  for (int i = 0; i < 4; ++i) x.v[i] = x.v[i] * scale.v[i] + shift.v[i];
  return x;
}

// NaN passes, as in PyTorch.
template <class T>
__device__ __forceinline__ Quad<T> relu4(Quad<T> x) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x.v[i] = x.v[i] <= T(0) ? T(0) : x.v[i];
  return x;
}

}  // namespace asng::cuda
