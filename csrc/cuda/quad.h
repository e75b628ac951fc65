// Four neighbouring channels of a pixel: what a thread computes with at once. Loads and stores
// convert from and to the type that images are stored in: 16 bytes of floats, 8 of bfloat16.
#pragma once

#include "launch.h"
#include "storage.h"

#if !defined(ASNG_CUDA_ON_CPU)
#include <cuda_bf16.h>
#endif

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

// Neighbouring bfloat16 values that are read or written at once.
template <int kCount>
struct alignas(2 * kCount) Halves {
  BFloat16 v[kCount];
};

template <class T>
__device__ __forceinline__ T load1(const T* from) {
  return *from;
}
__device__ __forceinline__ float load1(const BFloat16* from) {
  return __uint_as_float(static_cast<unsigned>(from->bits) << 16);
}

template <class T>
__device__ __forceinline__ Quad<T> load4(const T* from) {
  return *reinterpret_cast<const Quad<T>*>(from);
}
__device__ __forceinline__ Quad<float> load4(const BFloat16* from) {
  const Halves<4> stored = *reinterpret_cast<const Halves<4>*>(from);
  Quad<float> value;
#pragma unroll
  for (int i = 0; i < 4; ++i) value.v[i] = load1(stored.v + i);
  return value;
}

template <class T>
__device__ __forceinline__ void store4(T* to, const Quad<T>& value) {
  *reinterpret_cast<Quad<T>*>(to) = value;
}

// Two values to the nearest bfloat16 each, ties to even.
__device__ __forceinline__ void to_halves(float first, float second, BFloat16* to) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  to[0].bits = __bfloat16_as_ushort(pair.x);
  to[1].bits = __bfloat16_as_ushort(pair.y);
}
__device__ __forceinline__ void store4(BFloat16* to, const Quad<float>& value) {
  Halves<4> stored;
  to_halves(value.v[0], value.v[1], stored.v);
  to_halves(value.v[2], value.v[3], stored.v + 2);
  *reinterpret_cast<Halves<4>*>(to) = stored;
}

// Stores the value; returns it as it will be read. Sums are taken of that, so that statistics are
// exactly those of what is stored.
template <class T>
__device__ __forceinline__ Quad<T> keep4(T* to, const Quad<T>& value) {
  store4(to, value);
  return value;
}
__device__ __forceinline__ Quad<float> keep4(BFloat16* to, const Quad<float>& value) {
  Halves<4> stored;
  to_halves(value.v[0], value.v[1], stored.v);
  to_halves(value.v[2], value.v[3], stored.v + 2);
  *reinterpret_cast<Halves<4>*>(to) = stored;
  Quad<float> kept;
#pragma unroll
  for (int i = 0; i < 4; ++i) kept.v[i] = load1(stored.v + i);
  return kept;
}

// Quads that make up an access of 16 bytes: passes that only read or write images take so many.
template <class V>
inline constexpr int kWide = sizeof(V) == 2 ? 2 : 1;

template <class T>
__device__ __forceinline__ void load_wide(const T* from, Quad<T> (&to)[1]) {
  to[0] = load4(from);
}
__device__ __forceinline__ void load_wide(const BFloat16* from, Quad<float> (&to)[2]) {
  const Halves<8> stored = *reinterpret_cast<const Halves<8>*>(from);
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i / 4].v[i % 4] = load1(stored.v + i);
}

template <class T>
__device__ __forceinline__ void store_wide(T* to, const Quad<T> (&value)[1]) {
  store4(to, value[0]);
}
__device__ __forceinline__ void store_wide(BFloat16* to, const Quad<float> (&value)[2]) {
  Halves<8> stored;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to_halves(value[i / 2].v[i % 2 * 2], value[i / 2].v[i % 2 * 2 + 1], stored.v + 2 * i);
  }
  *reinterpret_cast<Halves<8>*>(to) = stored;
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
