// Tiles of images in shared memory: depthwise convolutions, and products with 1×1 weights.
#pragma once

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>

#include "kernels/cuda/dag.h"
#include "kernels/cuda/gemm.h"

namespace asng::cuda {

// Channels of a source that a projection holds at once, the distance of their pixels, and what it
// takes of shared memory in its forward pass: 128 pixels and the sums of groups of them.
inline constexpr int kSourceChunk = 32, kSourceRow = kSourceChunk + 4;
inline constexpr int kProjectValues = 128 * kSourceRow + 2048;

// Of a tile. With so few there are no products on the tensor cores.
inline constexpr int kFewestPixels = 8;

// Output pixels that a block works on at once, and how many channels of their input it holds.
struct Tile {
  int height, width, chunk;

  ASNG_HD int pixels() const { return height * width; }
};

// Places in dynamic shared memory, counted in values behind 3·padded sums in double precision, and
// multiples of 8 but for the taps and the groups.
struct TileLayout {
  Tile tile;
  int padded;
  int row;     // between the pixels of `depth` and of `grad`
  int source;  // input pixels of a chunk, with the margin that the kernel needs
  int taps;    // depthwise weights of a chunk
  int groups;  // sums of groups of four pixels, in a forward pass
  int grad;    // gradients, in a backward pass
  int taps_grad;
  int values;

  ASNG_HD int source_row() const { return tile.chunk + 4; }
  ASNG_HD size_t sums_bytes() const { return 3 * static_cast<size_t>(padded) * sizeof(double); }
};

// As choose_kernel, for products of a tile's pixels and a 1×1 weight: on the tensor cores if their
// sums fit into registers.
template <class V, class F>
auto choose_tile_kernel(const TileLayout& l, bool tf32, F f) {
  const int pixels = l.tile.pixels();
  const bool fits = pixels % kTile == 0 && pixels * l.padded <= kLargestProduct;
  return fits ? choose_kernel<V>(tf32, f) : f(std::false_type());
}

// A block's shared memory must fit; `channels` is what it depends on.
inline void check_shared(size_t bytes, int channels) {
  if (bytes > largest_shared_bytes()) {
    throw std::runtime_error(std::to_string(channels) + " channels need " + std::to_string(bytes) +
                             " bytes of shared memory, and a block of this device has " +
                             std::to_string(largest_shared_bytes()));
  }
}

inline size_t shared_bytes(const TileLayout& l, size_t value_bytes) {
  return l.sums_bytes() + static_cast<size_t>(l.values) * value_bytes;
}

// With so many pixels.
inline TileLayout tile_layout(const DagShape& s, int stride, size_t value_bytes, bool backward,
                              int pixels) {
  TileLayout l;
  l.tile.width = s.out_width > 8 && pixels >= 64 ? 16 : s.out_width > 4 && pixels >= 32 ? 8 : 4;
  l.tile.height = pixels / l.tile.width;
  const int height = (l.tile.height - 1) * stride + kMostKernel,
            width = (l.tile.width - 1) * stride + kMostKernel;
  // As many channels at once as there are threads for, four pixels and four channels each, if they
  // leave room for a second block beside this one. Tiles of the fewest pixels save all they can.
  l.tile.chunk = kChannelBlock;
  for (int chunk = 2 * kChannelBlock;
       pixels > kFewestPixels && s.padded % chunk == 0 && chunk * pixels <= 16 * kThreads;
       chunk *= 2) {
    if (height * width * chunk * value_bytes <= 24 * 1024) l.tile.chunk = chunk;
  }
  l.padded = s.padded;
  l.row = s.padded + 4;
  l.source = pixels * l.row;
  // A factorized reduction has its pixels and groups here instead; its backward pass begins at 0.
  const int source = (height * width * l.source_row() + 7) / 8 * 8;
  l.taps = l.source + (stride == 2 && !backward ? std::max(source, kProjectValues) : source);
  l.groups = l.grad = l.taps + kMostKernelElements * l.tile.chunk;
  if (backward) {
    l.taps_grad = l.grad + std::max(pixels * l.row, kThreads * 20);
    l.values = l.taps_grad + kMostKernelElements * s.padded;
  } else {
    l.taps_grad = l.values = l.groups + pixels / 4 * 2 * s.padded;
  }
  return l;
}

inline TileLayout tile_layout(const DagShape& s, int stride, size_t value_bytes, bool backward) {
  // About as many values in a tile whatever the number of channels.
  const int budget = value_bytes == 8 ? 1024 : 4096;
  int pixels = 128;
  while (pixels > 16 && pixels * s.padded > budget) pixels /= 2;
  // Small images are cut smaller, so that there are blocks for every multiprocessor.
  const int64_t all = static_cast<int64_t>(s.images) * s.out_height * s.out_width;
  while (pixels > 32 && all / pixels < kMaxParts) pixels /= 2;
  TileLayout l = tile_layout(s, stride, value_bytes, backward, pixels);
  // So are those of so many channels that a block would not have the room.
  const size_t bytes = shared_bytes(l, value_bytes);
  if (bytes > kPlainSharedBytes && bytes > largest_shared_bytes()) {
    l = tile_layout(s, stride, value_bytes, backward, kFewestPixels);
  }
  return l;
}

// Where a tile lies in the batch.
struct TilePlace {
  int image, y, x;
};

ASNG_HD inline int tiles_down(const Tile& t, int height) {
  return (height + t.height - 1) / t.height;
}
ASNG_HD inline int tiles_across(const Tile& t, int width) {
  return (width + t.width - 1) / t.width;
}
ASNG_HD inline int tile_count(const Tile& t, const DagShape& s) {
  return s.images * tiles_down(t, s.out_height) * tiles_across(t, s.out_width);
}

__device__ inline TilePlace tile_place(const Tile& t, const DagShape& s, int index) {
  const int across = tiles_across(t, s.out_width), down = tiles_down(t, s.out_height);
  const int image = index / (across * down), rest = index - image * across * down;
  return {image, rest / across * t.height, rest % across * t.width};
}

// Index of the output pixel that is number q of the tile, -1 outside of the image.
__device__ inline int64_t tile_pixel(const Tile& t, const DagShape& s, const TilePlace& at, int q) {
  const int y = at.y + q / t.width, x = at.x + q % t.width;
  if (y >= s.out_height || x >= s.out_width) return -1;
  return (static_cast<int64_t>(at.image) * s.out_height + y) * s.out_width + x;
}

// The input that K×K windows with stride S of a tile's pixels see, `chunk` channels from `channel`;
// zeros beyond the edge.
template <int K, int S, bool kRelu, class V>
__device__ void load_source(const State<V>& from, int padded, const Tile& t, const TilePlace& at,
                            int channel, int row, Compute<V>* to) {
  using T = Compute<V>;
  const int pieces = t.chunk / (4 * kWide<V>), piece = threadIdx.x % pieces * 4 * kWide<V>;
  const int columns = (t.width - 1) * S + K, count = ((t.height - 1) * S + K) * columns;
  const int step = kThreads / pieces;
  const V* image = from.x + static_cast<int64_t>(at.image) * from.height * from.width * padded;
  const int top = at.y * S - K / 2, left = at.x * S - K / 2;
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
        if (kRelu) v[i] = relu4(v[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kWide<V>; ++i) store_vec4(to + place * row + piece + 4 * i, v[i]);
    for (c += step; c >= columns; c -= columns) ++r;
  }
}

// Depthwise weights (taps, padded) of a chunk, in reverse order for the transposed convolution.
template <int K, bool kFlipped, class T>
__device__ void load_taps(const T* weight, int padded, int chunk, int channel, T* to) {
  for (int i = threadIdx.x; i < K * K * chunk; i += kThreads) {
    const int tap = i / chunk, c = i - tap * chunk;
    to[i] = weight[(kFlipped ? K * K - 1 - tap : tap) * padded + channel + c];
  }
}

// Calls emit(pixel of the tile, channel of the chunk, value) for four pixels in a row after one
// another, with the same channel.
template <int K, int S, class T, class Emit>
__device__ void depthwise(const Tile& t, const T* source, int row, const T* taps, Emit emit) {
  const int quads = t.chunk / 4, across = t.width / 4, columns = (t.width - 1) * S + K;
  constexpr int kSpan = 3 * S + K;
  for (int item = threadIdx.x; item < t.pixels() / 4 * quads; item += kThreads) {
    const int run = item / quads, quad = (item - run * quads) * 4;
    const int y = run / across, x = (run - y * across) * 4;
    Vec4<T> sums[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) sums[p] = fill_vec4(T(0));
#pragma unroll 1
    for (int ky = 0; ky < K; ++ky) {
      const T* from = source + ((y * S + ky) * columns + x * S) * row + quad;
      Vec4<T> v[kSpan];
#pragma unroll
      for (int i = 0; i < kSpan; ++i) v[i] = load_vec4(from + i * row);
#pragma unroll
      for (int kx = 0; kx < K; ++kx) {
        const Vec4<T> w = load_vec4(taps + (ky * K + kx) * t.chunk + quad);
#pragma unroll
        for (int p = 0; p < 4; ++p) add_product(sums[p], v[p * S + kx], w);
      }
    }
    emit(y * t.width + x, quad, sums);
  }
}

// sums[i] += Σ_k a[i · row + k] · b[k · b_row + 0…3], for four rows of a. `depth` is a multiple
// of 4.
template <class T>
__device__ __forceinline__ void multiply(const T* a, int row, const T* b, int b_row, int depth,
                                         Vec4<T> (&sums)[4]) {
  for (int k = 0; k < depth; k += 4) {
    Vec4<T> left[4], right[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      left[i] = load_vec4(a + i * row + k);
      right[i] = load_vec4(b + static_cast<int64_t>(k + i) * b_row);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[i].v[c] += left[i].v[j] * right[j].v[c];
      }
    }
  }
}

// A matrix of sums over pixels, Σ left(pixel, row) · right(pixel, column), in blocks of 4×4. Every
// thread keeps some blocks in registers while the pixels pass by; where there are fewer blocks than
// threads, groups of threads share the pixels. Matrices too large for that are kept in `memory`.
template <class T>
class OuterProduct {
 public:
  __device__ OuterProduct(int rows, int columns)
      : across_(columns / 4), count_(rows / 4 * across_) {
    groups_ = count_ < kThreads ? kThreads / count_ : 1;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums_[s][i] = fill_vec4(T(0));
    }
  }

  // Adds `pixels` pixels; rows and columns of a pixel lie `row` values apart from those of the
  // last. `memory` is (rows, memory_row), where this block alone writes; `first` says that nothing
  // was written there yet.
  __device__ void add(const T* left, int left_row, const T* right, int right_row, int pixels,
                      T* memory, int memory_row, bool first) {
    const int t = threadIdx.x;
    if (groups_ > 1) {
      if (t < groups_ * count_) {
        const int group = t / count_;
        add_block(t - group * count_, left, left_row, right, right_row, group, groups_, pixels,
                  sums_[0]);
      }
      return;
    }
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int block = t + s * kThreads;
      if (block < count_) {
        add_block(block, left, left_row, right, right_row, 0, 1, pixels, sums_[s]);
      }
    }
    for (int block = t + kSlots * kThreads; block < count_; block += kThreads) {
      Vec4<T> sums[4];
      T* to = place(block, memory, memory_row);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[i] = first ? fill_vec4(T(0)) : load_vec4(to + i * memory_row);
      add_block(block, left, left_row, right, right_row, 0, 1, pixels, sums);
#pragma unroll
      for (int i = 0; i < 4; ++i) write4(to + i * memory_row, sums[i]);
    }
  }

  // Writes the matrix to `memory`; `shared` has room for 16·kThreads values, and `added` says
  // whether there were any pixels. To be called by all threads.
  __device__ void finish(T* memory, int memory_row, T* shared, bool added) const {
    const int t = threadIdx.x;
    for (int block = t + kSlots * kThreads; !added && block < count_; block += kThreads) {
      for (int i = 0; i < 4; ++i) {
        write4(place(block, memory, memory_row) + i * memory_row, fill_vec4(T(0)));
      }
    }
    if (groups_ == 1) {
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        const int block = t + s * kThreads;
        if (block < count_) {
          T* to = place(block, memory, memory_row);
#pragma unroll
          for (int i = 0; i < 4; ++i) write4(to + i * memory_row, sums_[s][i]);
        }
      }
      return;
    }
    if (t < groups_ * count_) {
#pragma unroll
      for (int i = 0; i < 4; ++i) store_vec4(shared + t * 16 + i * 4, sums_[0][i]);
    }
    __syncthreads();
    for (int item = t; item < count_ * 4; item += kThreads) {
      const int block = item / 4, i = item - block * 4;
      Vec4<T> sum = fill_vec4(T(0));
      for (int g = 0; g < groups_; ++g)
        sum += load_vec4(shared + (g * count_ + block) * 16 + i * 4);
      write4(place(block, memory, memory_row) + i * memory_row, sum);
    }
  }

 private:
  static constexpr int kSlots = 2;

  __device__ T* place(int block, T* memory, int memory_row) const {
    const int down = block / across_;
    return memory + static_cast<int64_t>(down) * 4 * memory_row + (block - down * across_) * 4;
  }

  __device__ void add_block(int block, const T* left, int left_row, const T* right, int right_row,
                            int first, int step, int pixels, Vec4<T> (&sums)[4]) const {
    const int down = block / across_, across = block - down * across_;
    left += down * 4;
    right += across * 4;
#pragma unroll 2
    for (int p = first; p < pixels; p += step) {
      const Vec4<T> a = load_vec4(left + p * left_row), b = load_vec4(right + p * right_row);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i].v[j] += a.v[i] * b.v[j];
      }
    }
  }

  Vec4<T> sums_[kSlots][4];
  int across_, count_, groups_;
};

// Sums over pixels on the tensor cores or not.
template <bool kTensorCores, class T>
using PixelProduct = std::conditional_t<kTensorCores, TileOuterProduct, OuterProduct<T>>;

}  // namespace asng::cuda
