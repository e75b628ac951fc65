// Depthwise convolutions with K×K kernels, stride S and dilation D, forward and backward, of tiles
// in shared memory.
#pragma once

#include "kernels/cuda/tile.h"

namespace asng::cuda {

// The input that the windows of a tile's pixels see, `chunk` channels from `channel`;
// zeros beyond the edge.
template <int K, int S, int D, bool kRelu, class V>
__device__ __forceinline__ void load_source(const State<V>& from, int padded, const Tile& t,
                                            const TilePlace& at, int channel, int row,
                                            Compute<V>* to) {
  using T = Compute<V>;
  // In bfloat16 the chunks of most tiles, which are half as many pieces, with one go.
  constexpr int kExtent = (K - 1) * D + 1, kAtOnce = sizeof(T) == 8 ? 4 : kWide<V> == 2 ? 5 : 8;
  const int log_pieces = t.log_chunk - (kWide<V> == 2 ? 3 : 2), step = kThreads >> log_pieces;
  const int piece = (threadIdx.x & ((1 << log_pieces) - 1)) * 4 * kWide<V>;
  const int columns = (t.width() - 1) * S + kExtent,
            count = ((t.height - 1) * S + kExtent) * columns;
  const V* image =
      kept(from.x + static_cast<int64_t>(at.image) * from.height * from.width * padded + channel +
           piece);
  const int top = at.y * S - D * (K / 2), left = at.x * S - D * (K / 2);
  const WideAffine<V> affine(from.norm, padded, channel + piece);
  constexpr Divisor kFour(3 * S + kExtent), kEight(7 * S + kExtent), kSixteen(15 * S + kExtent);
  const Divisor lines = t.log_width == 2 ? kFour : t.log_width == 3 ? kEight : kSixteen;
  to += (threadIdx.x >> log_pieces) * row + piece;
#pragma unroll 1
  for (int first = threadIdx.x >> log_pieces; first < count; first += kAtOnce * step) {
    Piece<V> loaded[kAtOnce];
    int pixels[kAtOnce];  // -1 beyond the edge
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int place = first + i * step, line = lines(place);
      const int y = top + line, x = left + place - line * columns;
      const bool inside = static_cast<unsigned>(y) < static_cast<unsigned>(from.height) &&
                          static_cast<unsigned>(x) < static_cast<unsigned>(from.width);
      pixels[i] = inside ? y * from.width + x : -1;
      // A load beyond the edge is of the first pixel instead, so that none waits for a branch.
      loaded[i] = load_piece(pixel_at(image, max(pixels[i], 0), padded));
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      Vec4<T> v[kWide<V>];
      unpack(loaded[i], v);
#pragma unroll
      for (int k = 0; k < kWide<V>; ++k) {
        Vec4<T> value = affine.shift[k];
        add_product(value, v[k], affine.scale[k]);
        if (kRelu) value = relu_vec4(value);
#pragma unroll
        for (int c = 0; c < 4; ++c) value.v[c] = pixels[i] < 0 ? T(0) : value.v[c];
        if (first + i * step < count) store_vec4(to + 4 * k, value);
      }
      to += step * row;
    }
  }
}

// Starts to copy depthwise weights (kernel elements, padded) of a chunk, in reverse order for the
// transposed convolution; see copy_async16.
template <int K, bool kFlipped, class T>
__device__ __forceinline__ void load_elements(const T* weight, int padded, const Tile& t,
                                              int channel, T* to) {
  constexpr int kValues = 16 / sizeof(T);
  const int log_pieces = t.log_chunk - (kValues == 4 ? 2 : 1);
  const int piece = (threadIdx.x & ((1 << log_pieces) - 1)) * kValues;
#pragma unroll 1
  for (int element = threadIdx.x >> log_pieces; element < K * K;
       element += kThreads >> log_pieces) {
    copy_async16(to + (element << t.log_chunk) + piece,
                 weight + (kFlipped ? K * K - 1 - element : element) * padded + channel + piece);
  }
}

// Patches of a tile's pixels, four in a row and two rows (one of doubles), and four channels, of
// which each thread has some: calls emit(first pixel of a row, channel of the chunk, sums of that
// row) for every row. Shared memory is what limits this, so a load is used for as much as possible,
// even where that leaves threads without a patch.
template <int K, int S, int D, class T, class Emit>
__device__ __forceinline__ void depthwise(const Tile& t, const T* source, int row,
                                          const T* elements, Emit emit) {
  constexpr int kRows = sizeof(T) == 8 ? 1 : 2, kSpan = 3 * S + (K - 1) * D + 1;
  const int log_quads = t.log_chunk - 2, log_across = t.log_width - 2;
  const int columns = (t.width() - 1) * S + (K - 1) * D + 1;
  const int quad = (threadIdx.x & ((1 << log_quads) - 1)) * 4, count = t.pixels() / (4 * kRows);
  elements += quad;
#pragma unroll 1
  for (int patch = threadIdx.x >> log_quads; patch < count; patch += kThreads >> log_quads) {
    const int y = (patch >> log_across) * kRows, x = (patch & ((1 << log_across) - 1)) * 4;
    const T* from = source + (y * S * columns + x * S) * row + quad;
    Vec4<T> sums[kRows][4], weights[K] = {};
#pragma unroll
    for (int p = 0; p < 4 * kRows; ++p) sums[p / 4][p % 4] = fill_vec4(T(0));
#pragma unroll 1
    for (int line = 0; line < (kRows - 1) * S + (K - 1) * D + 1; ++line, from += columns * row) {
      Vec4<T> v[kSpan];
#pragma unroll
      for (int i = 0; i < kSpan; ++i) v[i] = load_vec4(from + i * row);
      // The second row goes first: its weights may be those that the first one had a line before.
#pragma unroll
      for (int r = kRows - 1; r >= 0; --r) {
        const int below = line - r * S;
        if (below < 0 || below > (K - 1) * D || below % D != 0) continue;
        const T* at = elements + (below / D * K << t.log_chunk);
#pragma unroll
        for (int kx = 0; kx < K; ++kx) {
          if (r == 0 || S * D > 1) weights[kx] = load_vec4(at + (kx << t.log_chunk));
#pragma unroll
          for (int p = 0; p < 4; ++p) add_product(sums[r][p], v[p * S + kx * D], weights[kx]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) emit(((y + r) << t.log_width) + x, quad, sums[r]);
  }
}

// grad[kernel elements, channels] += Σ over the tile of depth · source, for the channels of a
// chunk, in (kernel elements, padded). A warp has up to two lines of the kernel, which read the
// same line of the source for neighboring rows of `depth`, so that each is loaded once; where warps
// are left, two divide the pixels between them, and the sums of the second lie behind those of the
// first.
template <int K, int S, int D, class T>
__device__ __forceinline__ void depthwise_weight(const Tile& t, const T* source, int row,
                                                 const T* depth, int depth_row, int padded,
                                                 T* grad) {
  constexpr bool kPairs = D == 1;
  constexpr int kItems = kPairs ? (K + 1) / 2 : K, kSpan = 3 * S + (K - 1) * D + 1;
  constexpr int kSets = kWarps / kItems;
  static_assert(kSets == 1 || (kSets == 2 && 2 * K * K <= kMostKernelElements));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, item = warp % kItems;
  const int set = warp / kItems, ky = kPairs ? item / S * 2 * S + item % S : item;
  if (set >= kSets) return;
  const bool second = kPairs && ky + S < K;
  const int log_quads = t.log_chunk - 2, log_across = t.log_width - 2;
  const int quad = (lane & ((1 << log_quads) - 1)) * 4;
  const int groups = kSets * 32 >> log_quads, group = (set * 32 + lane) >> log_quads;
  const int columns = (t.width() - 1) * S + (K - 1) * D + 1;
  // Parts of four columns and some rows.
  int rows = 1;
  while (rows < t.height && t.pixels() / (4 * rows) > groups) rows *= 2;
  const int parts = t.pixels() / (4 * rows);
  Vec4<T> sums[2][K];
#pragma unroll
  for (int k = 0; k < 2 * K; ++k) sums[k / K][k % K] = fill_vec4(T(0));
#pragma unroll 1
  for (int part = group; part < parts; part += groups) {
    const int y = (part >> log_across) * rows, x = (part & ((1 << log_across) - 1)) * 4;
    const T* from = source + ((y * S + ky * D) * columns + x * S) * row + quad;
    const T* at = depth + ((y << t.log_width) + x) * depth_row + quad;
    Vec4<T> above[4] = {};  // the row of `depth` before
#pragma unroll 1
    for (int line = 0; line < rows + second; ++line) {
      Vec4<T> v[kSpan];
#pragma unroll
      for (int i = 0; i < kSpan; ++i) v[i] = load_vec4(from + i * row);
      from += S * columns * row;
      if (line > 0) {
#pragma unroll
        for (int p = 0; p < 4; ++p) {
#pragma unroll
          for (int k = 0; k < K; ++k) add_product(sums[1][k], above[p], v[p * S + k * D]);
        }
      }
      if (line == rows) break;
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        above[p] = load_vec4(at + p * depth_row);
#pragma unroll
        for (int k = 0; k < K; ++k) add_product(sums[0][k], above[p], v[p * S + k * D]);
      }
      at += depth_row << t.log_width;
    }
  }
  // Of the lanes with the same channels.
#pragma unroll 1
  for (int lanes = 1 << log_quads; lanes < 32; lanes *= 2) {
#pragma unroll
    for (int k = 0; k < 2 * K; ++k) {
      Vec4<T>& sum = sums[k / K][k % K];
#pragma unroll
      for (int i = 0; i < 4; ++i) sum.v[i] += __shfl_xor_sync(0xffffffffu, sum.v[i], lanes);
    }
  }
  if (lane >> log_quads != 0) return;
  grad += (set * K + ky) * K * padded + quad;
#pragma unroll
  for (int k = 0; k < 2 * K; ++k) {
    if (k >= K && !second) continue;
    T* to = grad + (k / K * S * K + k % K) * padded;
    sums[k / K][k % K] += load_vec4(to);
    store_vec4(to, sums[k / K][k % K]);
  }
}

// As Window, with a stride.
template <int K, int S, int D>
struct StridedWindow : Window<K, D> {
  static constexpr int stride = S;
};

// ReLU and the depthwise convolution of all channels of a tile, as a factor in rows of shared
// memory. Before that is written, before(StridedWindow, channel) is called for every chunk of
// the input, which then is where the layout has it; all threads must be past what they read of the
// rows when one returns from there.
template <int K, int S, int D, bool kTensorCores, class V, class Before>
__device__ __forceinline__ void depthwise_tile(const State<V>& from, int padded,
                                               const TileLayout& l, const TilePlace& at,
                                               const Compute<V>* weight, Compute<V>* shared,
                                               const Before& before) {
  using T = Compute<V>;
  const Tile& tile = l.tile;
#pragma unroll 1
  for (int channel = 0; channel < padded; channel += tile.chunk()) {
    load_elements<K, false>(weight, padded, tile, channel, shared + l.elements);
    load_source<K, S, D, true>(from, padded, tile, at, channel, l.source_row(), shared + l.source);
    wait_for_copies();
    __syncthreads();
    before(StridedWindow<K, S, D>(), channel);
    depthwise<K, S, D>(tile, shared + l.source, l.source_row(), shared + l.elements,
                       [&](int pixel, int c, const Vec4<T>(&sums)[4]) {
                         T* to = shared + pixel * l.row + channel + c;
#pragma unroll
                         for (int p = 0; p < 4; ++p) {
                           store_vec4(to + p * l.row, as_factor<kTensorCores>(sums[p]));
                         }
                       });
    __syncthreads();
  }
}

// The same of separable convolution `separable`.
template <bool kTensorCores, class V, class Before>
__device__ __forceinline__ void depthwise_tile(int separable, bool strided, const State<V>& from,
                                               int padded, const TileLayout& l, const TilePlace& at,
                                               const Compute<V>* weight, Compute<V>* shared,
                                               const Before& before) {
  with_window(separable, [&](auto w) {
    strided ? depthwise_tile<w.kernel, 2, w.dilation, kTensorCores>(from, padded, l, at, weight,
                                                                    shared, before)
            : depthwise_tile<w.kernel, 1, w.dilation, kTensorCores>(from, padded, l, at, weight,
                                                                    shared, before);
  });
}

}  // namespace asng::cuda
