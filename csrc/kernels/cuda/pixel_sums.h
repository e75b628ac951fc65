// Passes over all pixels of a batch that take sums per channel on the way.
#pragma once

#include "kernels/cuda/norm.h"

namespace asng::cuda {

// Calls visit(pixel, channel, sums) for this block's share of the pixels and all their channels,
// which adds to the three sums, and adds those to `totals` (3, padded). `shared` has room for
// 12·kThreads values.
template <class T, class Visit>
__device__ void sum_pixels(int pixels, int padded, int part, int parts, T* shared, double* totals,
                           Visit visit) {
  const int quads = padded / 4, width = min(quads, kThreads), slots = kThreads / width;
  const int lane = threadIdx.x % width, slot = threadIdx.x / width;
  for (int first = 0; first < quads; first += width) {
    const int quad = first + lane;
    if (slot < slots && quad < quads) {
      Vec4<T> sums[3] = {fill_vec4(T(0)), fill_vec4(T(0)), fill_vec4(T(0))};
      for (int pixel = part * slots + slot; pixel < pixels; pixel += parts * slots) {
        visit(pixel, quad * 4, sums);
      }
#pragma unroll
      for (int k = 0; k < 3; ++k) store_vec4(shared + ((slot * 3 + k) * width + lane) * 4, sums[k]);
    }
    __syncthreads();
    const int columns = min(width, quads - first) * 4;
    for (int j = threadIdx.x; j < 3 * columns; j += kThreads) {
      const int k = j / columns, c = j - k * columns;
      double sum = 0;
      for (int s = 0; s < slots; ++s)
        sum += static_cast<double>(shared[(s * 3 + k) * width * 4 + c]);
      totals[k * padded + first * 4 + c] += sum;
    }
    __syncthreads();
  }
}

inline size_t pixel_sums_bytes(int padded, size_t value_bytes) {
  return 3 * static_cast<size_t>(padded) * sizeof(double) + 12 * kThreads * value_bytes;
}

inline int pixel_parts(int64_t pixels, int padded) {
  const int slots = padded / 4 < kThreads ? kThreads / (padded / 4) : 1;
  const int64_t parts = (pixels + slots - 1) / slots;
  return static_cast<int>(parts < kMaxParts ? parts : kMaxParts);
}

// Adds Σ g and Σ g·normalized to the totals.
template <class V, class T>
__device__ void sum_gradient(const V* g, const V* z, const T* norm, int pixels, int padded,
                             int part, int parts, T* shared, double* totals) {
  sum_pixels(pixels, padded, part, parts, shared, totals, [&](int pixel, int c, Vec4<T>(&sums)[3]) {
    const int64_t at = static_cast<int64_t>(pixel) * padded + c;
    const Vec4<T> grad = load_vec4(g + at);
    sums[0] += grad;
    add_product(sums[1], grad, affine_vec4(load_vec4(z + at), norm, padded, c));
  });
}

}  // namespace asng::cuda
