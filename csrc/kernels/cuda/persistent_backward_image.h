// Images of nodes and inputs in shared memory, as stages of a backward pass need them.
#pragma once

#include "kernels/cuda/persistent_backward_plan.h"

namespace asng::cuda::gradients_of_nodes {

// Images of C channels in shared memory, and how they are divided up. Rows of an image as large as
// the nodes' are kPitch pixels apart, and around it are kBorder pixels of zeros; one that is read
// with stride 2 has rows of 2·kWidth pixels and no border. Channels lie in such an order that eight
// of four neighboring pixels, or four pairs of them, are in different banks. A warp works on 16
// channels, of which a lane has two, and on tiles of 4×4 pixels, of which a lane has a column;
// kTurns warps share the pixels.
template <int C>
struct Cut {
  static constexpr int kWidth = 512 / C, kBorder = 2, kPitch = kWidth + 2 * kBorder;
  static constexpr int kRow = C + 4;  // of a weight
  static constexpr int kGroups = C / 16, kTurns = kCellWarps / kGroups;
  static constexpr int kQuads = C / 4, kStep = kCellThreads / kQuads;

  // What follows from a thread's number is computed where it is needed: kept over all rounds it
  // would take more registers than there are.
  static __device__ __forceinline__ int thread() { return opaque(threadIdx.x); }
  static __device__ __forceinline__ int lane() { return thread() % 32; }
  static __device__ __forceinline__ int group() { return thread() / 32 % kGroups * 16; }
  static __device__ __forceinline__ int turn() { return thread() / 32 / kGroups; }
  // The lane's first channel.
  static __device__ __forceinline__ int channel() { return group() + lane() / 4 * 2; }

  // Where channel c of a row's pixel is. Pixels that are a multiple of 4 apart have the same order.
  static __device__ __forceinline__ int place(int column, int c) {
    const int order = C == 16 ? (column >> 1 & 1) * 8 : (column & 3) * 8;
    return column * C + (c ^ order);
  }

  // A thread's four channels where it has those of every kStep-th pixel, and the first of these.
  static __device__ __forceinline__ int own_channel() { return thread() % kQuads * 4; }
  static __device__ __forceinline__ int own_pixel() { return thread() / kQuads; }
};
static_assert(kMostExtent / 2 <= Cut<16>::kBorder);

__device__ __forceinline__ float2 load_pair(const float* from) {
  return *reinterpret_cast<const float2*>(from);
}
__device__ __forceinline__ float2 load_pair(const BFloat16* from) {
  const unsigned word = *reinterpret_cast<const unsigned*>(from);
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
__device__ __forceinline__ void store_pair(float* to, const float2& v) {
  *reinterpret_cast<float2*>(to) = v;
}
// To global memory; returns the values as they will be read.
__device__ __forceinline__ float2 write_pair(float* to, const float2& v) {
  write_at_once(to, make_uint2(__float_as_uint(v.x), __float_as_uint(v.y)));
  return v;
}
__device__ __forceinline__ float2 write_pair(BFloat16* to, const float2& v) {
  const unsigned word = to_halves(v.x, v.y);
  *reinterpret_cast<unsigned*>(to) = word;
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
__device__ __forceinline__ void add_product(float2& to, const float2& a, const float2& b) {
  to.x += a.x * b.x;
  to.y += a.y * b.y;
}

// Rows of tiles.
ASNG_HD inline int tiled(int height) { return (height + 3) / 4 * 4; }

// Zeros around an image, and in what tiles have more rows.
template <int C>
__device__ __forceinline__ void fill_border(int height, int width, float* to) {
  constexpr int kBorder = Cut<C>::kBorder, kRowValues = Cut<C>::kPitch * C;
  const int below = tiled(height) - height + kBorder;
  const Vec4<float> zeros = fill_vec4(0.0f);
  // Four pixels of each row: two on the left, two on the right.
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < (tiled(height) + 2u * kBorder) * C; i += kCellThreads) {
    const unsigned pixel = i % C / Cut<C>::kQuads, c = i % Cut<C>::kQuads * 4;
    const unsigned column = pixel < kBorder ? pixel : width + pixel;
    store_vec4(to + i / C * kRowValues + column * C + c, zeros);
  }
#pragma unroll 1
  for (int row = 0; row < kBorder + below; ++row) {
    float* at = to + (row < kBorder ? row : height + row) * kRowValues + kBorder * C;
#pragma unroll 1
    for (int i = threadIdx.x; i < width * Cut<C>::kQuads; i += kCellThreads) {
      store_vec4(at + i * 4, zeros);
    }
  }
}

// Where the pixels of an image of this width are in shared memory.
template <int C>
struct Rows {
  int width;
  unsigned per_row;
  int pitch = Cut<C>::kPitch, border = Cut<C>::kBorder;

  // Of the source of a stage.
  template <class V>
  static __device__ __forceinline__ Rows source(const Stage<V>& stage) {
    return stage.stride == 1 ? Rows{stage.width, stage.per_row}
                             : Rows{stage.width, stage.per_row, 2 * Cut<C>::kWidth, 0};
  }
  __device__ __forceinline__ int row_of(int pixel) const {
    return static_cast<int>(multiply_high(pixel, per_row));
  }
  __device__ __forceinline__ int place(int pixel, int c) const {
    const int y = row_of(pixel), x = pixel - y * width;
    return (y + border) * pitch * C + Cut<C>::place(x + border, c);
  }
};

__device__ __forceinline__ void start_copy(const float* from, float* to) { copy_async16(to, from); }
__device__ __forceinline__ void start_copy(const BFloat16* from, float* to) {
  copy_async8(to, from);
}

// Starts to copy an image as it is; every thread those values that it will work on, each four of
// them to where as many floats will be.
template <int C, class V>
__device__ __forceinline__ void start_image(const V* from, int pixels, const Rows<C>& rows,
                                            float* to) {
  const int c = Cut<C>::own_channel();
#pragma unroll 2
  for (int pixel = Cut<C>::own_pixel(); pixel < pixels; pixel += Cut<C>::kStep) {
    start_copy(from + pixel * C + c, to + rows.place(pixel, c));
  }
}

}  // namespace asng::cuda::gradients_of_nodes
