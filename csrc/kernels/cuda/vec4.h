// Four neighboring channels of a pixel: what a thread computes with at once. Loads and writes
// convert from and to the type that feature maps are stored in: 16 bytes of floats, 8 of bfloat16.
#pragma once

#include "platform/bfloat16.h"
#include "platform/cuda.h"

namespace asng::cuda {

template <class T>
struct alignas(16) Vec4 {
  T v[4];

  __device__ Vec4& operator+=(const Vec4& other) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] += other.v[i];
    return *this;
  }
};

// Neighboring bfloat16 values that are read or written at once.
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
__device__ __forceinline__ Vec4<T> load_vec4(const T* from) {
  return *reinterpret_cast<const Vec4<T>*>(from);
}
__device__ __forceinline__ Vec4<float> load_vec4(const BFloat16* from) {
  const Halves<4> stored = *reinterpret_cast<const Halves<4>*>(from);
  Vec4<float> value;
#pragma unroll
  for (int i = 0; i < 4; ++i) value.v[i] = load1(stored.v + i);
  return value;
}

template <class T>
__device__ __forceinline__ void store_vec4(T* to, const Vec4<T>& value) {
  *reinterpret_cast<Vec4<T>*>(to) = value;
}

// To global memory, where store_vec4 is for shared memory.
__device__ __forceinline__ void write_vec4(float* to, const Vec4<float>& value) {
  write_at_once(to, make_float4(value.v[0], value.v[1], value.v[2], value.v[3]));
}
__device__ __forceinline__ void write_vec4(double* to, const Vec4<double>& value) {
  write_at_once(to, make_double2(value.v[0], value.v[1]));
  write_at_once(to + 2, make_double2(value.v[2], value.v[3]));
}

// Two values to the nearest bfloat16 each, ties to even, as they lie in memory.
__device__ __forceinline__ unsigned to_halves(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return __bfloat16_as_ushort(pair.x) | static_cast<unsigned>(__bfloat16_as_ushort(pair.y)) << 16;
}
__device__ __forceinline__ uint2 to_halves(const Vec4<float>& value) {
  return make_uint2(to_halves(value.v[0], value.v[1]), to_halves(value.v[2], value.v[3]));
}
__device__ __forceinline__ void write_vec4(BFloat16* to, const Vec4<float>& value) {
  write_at_once(to, to_halves(value));
}

// Writes the value; returns it as it will be read. Sums are taken of that, so that statistics are
// exactly those of what is stored.
template <class T>
__device__ __forceinline__ Vec4<T> store_rounded(T* to, const Vec4<T>& value) {
  write_vec4(to, value);
  return value;
}
__device__ __forceinline__ Vec4<float> store_rounded(BFloat16* to, const Vec4<float>& value) {
  const uint2 words = to_halves(value);
  write_at_once(to, words);
  return {{__uint_as_float(words.x << 16), __uint_as_float(words.x & 0xffff0000u),
           __uint_as_float(words.y << 16), __uint_as_float(words.y & 0xffff0000u)}};
}

// How many make up an access of 16 bytes, for passes that only read or write feature maps.
template <class V>
inline constexpr int kWide = sizeof(V) == 2 ? 2 : 1;

template <class T>
__device__ __forceinline__ void load_wide(const T* from, Vec4<T> (&to)[1]) {
  to[0] = load_vec4(from);
}
__device__ __forceinline__ void load_wide(const BFloat16* from, Vec4<float> (&to)[2]) {
  const Halves<8> stored = *reinterpret_cast<const Halves<8>*>(from);
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i / 4].v[i % 4] = load1(stored.v + i);
}

template <class T>
__device__ __forceinline__ void write_wide(T* to, const Vec4<T> (&value)[1]) {
  write_vec4(to, value[0]);
}
__device__ __forceinline__ void write_wide(BFloat16* to, const Vec4<float> (&value)[2]) {
  const uint2 first = to_halves(value[0]), second = to_halves(value[1]);
  write_at_once(to, make_uint4(first.x, first.y, second.x, second.y));
}

template <class T>
__device__ __forceinline__ Vec4<T> fill_vec4(T value) {
  return {{value, value, value, value}};
}

// to += a·b
template <class T>
__device__ __forceinline__ void add_product(Vec4<T>& to, const Vec4<T>& a, const Vec4<T>& b) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to.v[i] += a.v[i] * b.v[i];
}

// x·scale + shift; `norm` holds the scales of all `padded` channels and then the shifts, or is null
// for values that are to stay as they are.
template <class T>
__device__ __forceinline__ Vec4<T> affine_vec4(Vec4<T> x, const T* norm, int padded, int channel) {
  if (norm == nullptr) return x;
  const Vec4<T> scale = load_vec4(norm + channel), shift = load_vec4(norm + padded + channel);
#pragma unroll
  for (int i = 0; i < 4; ++i) x.v[i] = x.v[i] * scale.v[i] + shift.v[i];
  return x;
}

// NaN passes, as in PyTorch.
template <class T>
__device__ __forceinline__ Vec4<T> relu_vec4(Vec4<T> x) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x.v[i] = x.v[i] <= T(0) ? T(0) : x.v[i];
  return x;
}

}  // namespace asng::cuda
