// Tiles of feature maps in shared memory: how the output pixels of a batch are cut into tiles, and
// what a block keeps of one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>

#include "kernels/cuda/dag.h"
#include "kernels/cuda/gemm.h"

namespace asng::cuda {

// Channels of a source that a pointwise convolution holds at once, the distance of their pixels,
// and what it takes of shared memory in its forward pass: 128 pixels and the sums of groups of
// them.
inline constexpr int kSourceChunk = 32, kSourceRow = kSourceChunk + 4;
inline constexpr int kPointwiseValues = 128 * kSourceRow + 2048;

// Of a tile. With this few there are no matmuls on the tensor cores.
inline constexpr int kFewestPixels = 8;

// Output pixels that a block works on at once, and how many channels of their input it holds.
struct Tile {
  int height, width, chunk;

  ASNG_HD int pixels() const { return height * width; }
};

// Places in dynamic shared memory, counted in values behind 3·padded sums in double precision, and
// multiples of 8 but for the kernel elements and the groups.
struct TileLayout {
  Tile tile;
  int padded;
  int row;       // between the pixels of `depth` and of `grad`
  int source;    // input pixels of a chunk, with the padding that the kernel needs
  int elements;  // depthwise weights of a chunk
  int groups;    // sums of groups of four pixels, in a forward pass
  int grad;      // gradients, in a backward pass
  int elements_grad;
  int values;

  ASNG_HD int source_row() const { return tile.chunk + 4; }
  ASNG_HD size_t sums_bytes() const { return 3 * static_cast<size_t>(padded) * sizeof(double); }
};

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

// With a given number of pixels.
inline TileLayout tile_layout(const DagShape& s, int stride, size_t value_bytes, bool backward,
                              int pixels) {
  TileLayout l;
  l.tile.width = s.out_width > 8 && pixels >= 64 ? 16 : s.out_width > 4 && pixels >= 32 ? 8 : 4;
  l.tile.height = pixels / l.tile.width;
  const int height = (l.tile.height - 1) * stride + kMostExtent,
            width = (l.tile.width - 1) * stride + kMostExtent;
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
  l.elements = l.source + (stride == 2 && !backward ? std::max(source, kPointwiseValues) : source);
  l.groups = l.grad = l.elements + kMostKernelElements * l.tile.chunk;
  if (backward) {
    l.elements_grad = l.grad + std::max(pixels * l.row, kThreads * 20);
    l.values = l.elements_grad + kMostKernelElements * s.padded;
  } else {
    l.elements_grad = l.values = l.groups + pixels / 4 * 2 * s.padded;
  }
  return l;
}

inline TileLayout tile_layout(const DagShape& s, int stride, size_t value_bytes, bool backward) {
  // About as many values in a tile whatever the number of channels.
  const int budget = value_bytes == 8 ? 1024 : 4096;
  int pixels = 128;
  while (pixels > 16 && pixels * s.padded > budget) pixels /= 2;
  // Small feature maps are cut smaller, so that there are blocks for every multiprocessor.
  const int64_t all = static_cast<int64_t>(s.images) * s.out_height * s.out_width;
  while (pixels > 32 && all / pixels < kMaxSplits) pixels /= 2;
  TileLayout l = tile_layout(s, stride, value_bytes, backward, pixels);
  // So are those whose channels would leave a block without the room.
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

// Index of the output pixel that is number q of the tile, -1 outside of the feature map.
__device__ inline int64_t tile_pixel(const Tile& t, const DagShape& s, const TilePlace& at, int q) {
  const int y = at.y + q / t.width, x = at.x + q % t.width;
  if (y >= s.out_height || x >= s.out_width) return -1;
  return (static_cast<int64_t>(at.image) * s.out_height + y) * s.out_width + x;
}

// As choose_kernel, for matmuls of a tile's pixels and a 1×1 weight: on the tensor cores if their
// sums fit into registers.
template <class V, class F>
auto choose_tile_kernel(const TileLayout& l, bool tf32, F f) {
  const int pixels = l.tile.pixels();
  const bool fits = pixels % kTile == 0 && pixels * l.padded <= kLargestMatmul;
  return fits ? choose_kernel<V>(tf32, f) : f(std::false_type());
}

}  // namespace asng::cuda
