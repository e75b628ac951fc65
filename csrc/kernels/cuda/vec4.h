// Four neighboring channels of a pixel: what a thread computes with at once. Loads and writes
// convert from and to the type that feature maps are stored in: 16 bytes of floats, 8 of bfloat16.
#pragma once

#include <cstdint>
#include <type_traits>

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

template <class T>
__device__ __forceinline__ T load1(const T* from) {
  return *from;
}
__device__ __forceinline__ float load1(const BFloat16* from) {
  return __uint_as_float(static_cast<unsigned>(from->bits) << 16);
}

// Four neighboring bfloat16 values.
__device__ __forceinline__ Vec4<float> unpack(unsigned first, unsigned second) {
  return {{__uint_as_float(first << 16), __uint_as_float(first & 0xffff0000u),
           __uint_as_float(second << 16), __uint_as_float(second & 0xffff0000u)}};
}

template <class T>
__device__ __forceinline__ Vec4<T> load_vec4(const T* from) {
  return *reinterpret_cast<const Vec4<T>*>(from);
}
__device__ __forceinline__ Vec4<float> load_vec4(const BFloat16* from) {
  const uint2 words = *reinterpret_cast<const uint2*>(from);
  return unpack(words.x, words.y);
}

// To shared memory.
__device__ __forceinline__ void store_vec4(float* to, const Vec4<float>& value) {
  store_shared(to, value.v[0], value.v[1], value.v[2], value.v[3]);
}
__device__ __forceinline__ void store_vec4(double* to, const Vec4<double>& value) {
  store_shared(to, value.v[0], value.v[1]);
  store_shared(to + 2, value.v[2], value.v[3]);
}

// To global memory.
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
  return unpack(words.x, words.y);
}

// How many make up an access of 16 bytes, for passes that only read or write feature maps.
template <class V>
inline constexpr int kWide = sizeof(V) == 2 ? 2 : 1;

// They as they lie in memory: loads of several pieces, then what their values are needed for, are
// all on their way at the same time.
template <class V>
using Piece = std::conditional_t<sizeof(V) == 2, uint4, Vec4<V>>;

// Where pixel `pixel` lies, of `values` values each: one multiplication.
template <class V>
__device__ __forceinline__ const V* pixel_at(const V* images, int pixel, int values) {
  return reinterpret_cast<const V*>(
      reinterpret_cast<const char*>(images) +
      static_cast<uint64_t>(static_cast<unsigned>(pixel)) *
          (static_cast<unsigned>(values) * static_cast<unsigned>(sizeof(V))));
}

// Of global memory that nobody writes while the kernel runs.
__device__ __forceinline__ Vec4<float> read_vec4(const float* from) {
  const float4 v = __ldg(reinterpret_cast<const float4*>(from));
  return {{v.x, v.y, v.z, v.w}};
}
__device__ __forceinline__ Vec4<double> read_vec4(const double* from) {
  const double2 first = __ldg(reinterpret_cast<const double2*>(from)),
                second = __ldg(reinterpret_cast<const double2*>(from) + 1);
  return {{first.x, first.y, second.x, second.y}};
}
__device__ __forceinline__ Vec4<float> read_vec4(const BFloat16* from) {
  const uint2 words = __ldg(reinterpret_cast<const uint2*>(from));
  return unpack(words.x, words.y);
}
template <class T>
__device__ __forceinline__ Vec4<T> load_piece(const T* from) {
  return read_vec4(from);
}
__device__ __forceinline__ uint4 load_piece(const BFloat16* from) {
  return __ldg(reinterpret_cast<const uint4*>(from));
}
template <class T>
__device__ __forceinline__ void unpack(const Vec4<T>& piece, Vec4<T> (&to)[1]) {
  to[0] = piece;
}
__device__ __forceinline__ void unpack(const uint4& piece, Vec4<float> (&to)[2]) {
  to[0] = unpack(piece.x, piece.y);
  to[1] = unpack(piece.z, piece.w);
}

template <class T>
__device__ __forceinline__ void set_value(Vec4<T>& piece, int i, const T& value) {
  piece.v[i] = value;
}
__device__ __forceinline__ void set_value(uint4& piece, int i, const BFloat16& value) {
  unsigned& word = i < 2 ? piece.x : i < 4 ? piece.y : i < 6 ? piece.z : piece.w;
  const unsigned bits = value.bits;
  word = i % 2 == 0 ? bits : word | bits << 16;
}

template <class V>
__device__ __forceinline__ void load_wide(const V* from, Vec4<Compute<V>> (&to)[kWide<V>]) {
  unpack(*reinterpret_cast<const Piece<V>*>(from), to);
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

// The same with the scales and shifts of a piece's channels in registers.
template <class V>
struct WideAffine {
  Vec4<Compute<V>> scale[kWide<V>], shift[kWide<V>];

  __device__ WideAffine(const Compute<V>* norm, int padded, int channel) {
    using T = Compute<V>;
#pragma unroll
    for (int i = 0; i < kWide<V>; ++i) {
      scale[i] = norm == nullptr ? fill_vec4(T(1)) : read_vec4(norm + channel + 4 * i);
      shift[i] = norm == nullptr ? fill_vec4(T(0)) : read_vec4(norm + padded + channel + 4 * i);
    }
  }
};

// NaN passes, as in PyTorch.
template <class T>
__device__ __forceinline__ Vec4<T> relu_vec4(Vec4<T> x) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x.v[i] = x.v[i] <= T(0) ? T(0) : x.v[i];
  return x;
}

}  // namespace asng::cuda
