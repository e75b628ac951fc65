// Depthwise convolutions with K×K kernels, stride S and dilation D, forward and backward, of tiles
// in shared memory.
#pragma once

#include "kernels/cuda/tile.h"

namespace asng::cuda {

// The input that the windows of a tile's pixels see, `chunk` channels from `channel`;
// zeros beyond the edge.
template <int K, int S, int D, bool kRelu, class V>
__device__ void load_source(const State<V>& from, int padded, const Tile& t, const TilePlace& at,
                            int channel, int row, Compute<V>* to) {
  using T = Compute<V>;
  const int pieces = t.chunk / (4 * kWide<V>), piece = threadIdx.x % pieces * 4 * kWide<V>;
  constexpr int kExtent = (K - 1) * D + 1;
  const int columns = (t.width - 1) * S + kExtent, count = ((t.height - 1) * S + kExtent) * columns;
  const int step = kThreads / pieces;
  const V* image = from.x + static_cast<int64_t>(at.image) * from.height * from.width * padded;
  const int top = at.y * S - D * (K / 2), left = at.x * S - D * (K / 2);
  int place = threadIdx.x / pieces;
  int r = place / columns, c = place - r * columns;
  for (; place < count; place += step) {
    const int y = top + r, x = left + c;
    Vec4<T> v[kWide<V>] = {};
    if (y >= 0 && y < from.height && x >= 0 && x < from.width) {
      load_wide(image + (static_cast<int64_t>(y) * from.width + x) * padded + channel + piece, v);
#pragma unroll
      for (int i = 0; i < kWide<V>; ++i) {
        v[i] = affine_vec4(v[i], from.norm, padded, channel + piece + 4 * i);
        if (kRelu) v[i] = relu_vec4(v[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kWide<V>; ++i) store_vec4(to + place * row + piece + 4 * i, v[i]);
    for (c += step; c >= columns; c -= columns) ++r;
  }
}

// Depthwise weights (kernel elements, padded) of a chunk, in reverse order for the transposed
// convolution.
template <int K, bool kFlipped, class T>
__device__ void load_elements(const T* weight, int padded, int chunk, int channel, T* to) {
  for (int i = threadIdx.x; i < K * K * chunk; i += kThreads) {
    const int element = i / chunk, c = i - element * chunk;
    to[i] = weight[(kFlipped ? K * K - 1 - element : element) * padded + channel + c];
  }
}

// Calls emit(pixel of the tile, channel of the chunk, value) for four pixels in a row after one
// another, with the same channel.
template <int K, int S, int D, class T, class Emit>
__device__ void depthwise(const Tile& t, const T* source, int row, const T* elements, Emit emit) {
  const int quads = t.chunk / 4, across = t.width / 4;
  const int columns = (t.width - 1) * S + (K - 1) * D + 1;
  constexpr int kSpan = 3 * S + (K - 1) * D + 1;
  for (int item = threadIdx.x; item < t.pixels() / 4 * quads; item += kThreads) {
    const int run = item / quads, quad = (item - run * quads) * 4;
    const int y = run / across, x = (run - y * across) * 4;
    Vec4<T> sums[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) sums[p] = fill_vec4(T(0));
#pragma unroll 1
    for (int ky = 0; ky < K; ++ky) {
      const T* from = source + ((y * S + ky * D) * columns + x * S) * row + quad;
      Vec4<T> v[kSpan];
#pragma unroll
      for (int i = 0; i < kSpan; ++i) v[i] = load_vec4(from + i * row);
#pragma unroll
      for (int kx = 0; kx < K; ++kx) {
        const Vec4<T> w = load_vec4(elements + (ky * K + kx) * t.chunk + quad);
#pragma unroll
        for (int p = 0; p < 4; ++p) add_product(sums[p], v[p * S + kx * D], w);
      }
    }
    emit(y * t.width + x, quad, sums);
  }
}

// grad[kernel elements of a channel] += Σ over the tile of depth · source, for the channels of a
// chunk. `scratch` has room for 20·kThreads values.
template <int K, int S, int D, class T>
__device__ void depthwise_weight(const Tile& t, const T* source, int row, const T* depth,
                                 int depth_row, T* scratch, T* grad) {
  const int quads = t.chunk / 4, items = quads * K, groups = kThreads / items;
  const int group = threadIdx.x / items, item = threadIdx.x - group * items;
  const int ky = item / quads, quad = (item - ky * quads) * 4;
  const int across = t.width / 4, runs = t.pixels() / 4;
  const int columns = (t.width - 1) * S + (K - 1) * D + 1;
  constexpr int kSpan = 3 * S + (K - 1) * D + 1;
  Vec4<T> sums[K];
#pragma unroll
  for (int k = 0; k < K; ++k) sums[k] = fill_vec4(T(0));
  for (int run = group; group < groups && run < runs; run += groups) {
    const int y = run / across, x = (run - y * across) * 4;
    const T* from = source + ((y * S + ky * D) * columns + x * S) * row + quad;
    Vec4<T> v[kSpan];
#pragma unroll
    for (int i = 0; i < kSpan; ++i) v[i] = load_vec4(from + i * row);
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const Vec4<T> g = load_vec4(depth + (y * t.width + x + p) * depth_row + quad);
#pragma unroll
      for (int k = 0; k < K; ++k) add_product(sums[k], g, v[p * S + k * D]);
    }
  }
#pragma unroll
  for (int k = 0; k < K; ++k) store_vec4(scratch + threadIdx.x * 20 + k * 4, sums[k]);
  __syncthreads();
  for (int i = threadIdx.x; i < t.chunk * K * K; i += kThreads) {
    const int c = i / (K * K), element = i - c * K * K, y = element / K, x = element - y * K;
    const T* from = scratch + (y * quads + c / 4) * 20 + x * 4 + c % 4;
    T sum = 0;
    for (int g = 0; g < groups; ++g) sum += from[g * items * 20];
    grad[i] += sum;
  }
}

// ReLU and the depthwise convolution of all channels of a tile, to rows of shared memory. The last
// chunk of the input stays where the layout has it.
template <int K, int S, int D, class V>
__device__ void depthwise_tile(const State<V>& from, int padded, const TileLayout& l,
                               const TilePlace& at, const Compute<V>* weight, Compute<V>* shared) {
  using T = Compute<V>;
  const Tile& tile = l.tile;
  for (int channel = 0; channel < padded; channel += tile.chunk) {
    load_source<K, S, D, true>(from, padded, tile, at, channel, l.source_row(), shared + l.source);
    load_elements<K, false>(weight, padded, tile.chunk, channel, shared + l.elements);
    __syncthreads();
    depthwise<K, S, D>(tile, shared + l.source, l.source_row(), shared + l.elements,
                       [&](int pixel, int c, const Vec4<T>(&sums)[4]) {
                         T* to = shared + pixel * l.row + channel + c;
#pragma unroll
                         for (int p = 0; p < 4; ++p) store_vec4(to + p * l.row, sums[p]);
                       });
    __syncthreads();
  }
}

}  // namespace asng::cuda
