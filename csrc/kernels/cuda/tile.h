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

struct PointwiseShape {
  int images = 0, out_height = 0, out_width = 0, padded = 0;

  ASNG_HD int pixels() const { return images * out_height * out_width; }
};

// Values that a block of a pointwise convolution multiplies at once, and holds the sums of.
ASNG_HD constexpr int pointwise_budget(int value_bytes) { return value_bytes == 8 ? 2048 : 4096; }

// Pixels that it works on at once, up to 64 columns of them, and channels of a source: as few
// pixels as leave work for every multiprocessor.
ASNG_HD inline int pointwise_pixels(const PointwiseShape& shape, int value_bytes) {
  int run = 256;
  while (run * (shape.padded < 64 ? shape.padded : 64) > pointwise_budget(value_bytes)) run /= 2;
  while (run > 2 * kTile && shape.pixels() / run < kManySplits) run /= 2;
  return run;
}
ASNG_HD inline int pointwise_chunk(int run, int value_bytes) {
  const int chunk = pointwise_budget(value_bytes) / run, most = value_bytes == 8 ? 32 : 64;
  return chunk > most ? most : chunk;
}
// What it takes of shared memory: the pixels, the sums of groups of four of them, and two parts of
// the weight, one of which is there before it is needed.
ASNG_HD inline int pointwise_values(const PointwiseShape& shape, int value_bytes) {
  const int run = pointwise_pixels(shape, value_bytes), chunk = pointwise_chunk(run, value_bytes);
  const int width = shape.padded < 64 ? shape.padded : 64;
  return run * (chunk + 4) + run / 2 * width + 2 * chunk * (width + 8);
}

// Of a tile. With this few there are no matmuls on the tensor cores.
inline constexpr int kFewestPixels = 8;

// Channels of a chunk: at most as there are threads for four of them and a line of a kernel each.
inline constexpr int kLogLeastChunk = 4, kLogMostChunk = 6;
static_assert(1 << kLogLeastChunk == kChannelBlock);
static_assert((1 << kLogMostChunk) / 4 * kMostExtent <= kThreads);

// Output pixels that a block works on at once, and how many channels of their input it holds.
// All three are powers of two.
struct Tile {
  int height, log_width, log_chunk;

  ASNG_HD int width() const { return 1 << log_width; }
  ASNG_HD int pixels() const { return height << log_width; }
  ASNG_HD int chunk() const { return 1 << log_chunk; }
};

// Places in dynamic shared memory, counted in values behind 3·padded sums in double precision, and
// multiples of 8 but for the kernel elements.
struct TileLayout {
  Tile tile;
  int padded;
  int row;       // between the pixels of `depth`, which come first, and of `grad`
  int source;    // input pixels of a chunk, with the padding that the kernel needs
  int elements;  // depthwise weights of a chunk
  // The 1×1 weight in rows of `weight_row()`; 0: so large that there is room for more blocks if it
  // is read where it lies.
  int weight;
  int grad;  // gradients, in a backward pass
  int elements_grad;
  int values;

  ASNG_HD int source_row() const { return tile.chunk() + 4; }
  ASNG_HD int weight_row() const { return padded + 8; }
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
  l.tile.log_width = s.out_width > 8 && pixels >= 128 ? 4 : s.out_width > 4 && pixels >= 32 ? 3 : 2;
  l.tile.height = pixels >> l.tile.log_width;
  const int height = (l.tile.height - 1) * stride + kMostExtent,
            width = (l.tile.width() - 1) * stride + kMostExtent;
  // As many channels at once as leave room for more blocks beside this one. Tiles of the fewest
  // pixels save all they can.
  l.tile.log_chunk = kLogLeastChunk;
  for (int log = kLogLeastChunk + 1;
       pixels > kFewestPixels && s.padded % (1 << log) == 0 && log <= kLogMostChunk; ++log) {
    if ((height * width << log) * value_bytes <= 32 * 1024) l.tile.log_chunk = log;
  }
  l.padded = s.padded;
  l.row = s.padded + 4;
  l.source = pixels * l.row;
  int source = (height * width * l.source_row() + 7) / 8 * 8;
  // In a forward pass there are later the sums of groups of four pixels, and a factorized
  // reduction's pixels and groups; its backward pass begins at 0.
  if (!backward) {
    source = std::max(source, pixels / 2 * s.padded);
    if (stride == 2) {
      const PointwiseShape shape = {s.images, s.out_height, s.out_width, s.padded};
      source = std::max(source, pointwise_values(shape, static_cast<int>(value_bytes)));
    }
  }
  l.elements = l.source + source;
  l.weight = l.grad = l.elements + kMostKernelElements * l.tile.chunk();
  const int weight = l.padded * l.weight_row();
  if (weight * value_bytes <= 8 * 1024 && pixels > kFewestPixels) {
    l.grad += weight;
  } else {
    l.weight = 0;
  }
  l.elements_grad = l.values = l.grad;
  if (backward) {
    // What lies before has room for the sums of OuterProduct.
    l.elements_grad = std::max(l.grad + pixels * l.row, 16 * kThreads);
    l.values = l.elements_grad + kMostKernelElements * s.padded;
  }
  return l;
}

inline TileLayout tile_layout(const DagShape& s, int stride, size_t value_bytes, bool backward) {
  // About as many values in a tile whatever the number of channels.
  const int budget = value_bytes == 8 ? 1024 : 4096;
  int pixels = stride == 1 && !backward ? 256 : backward && s.padded > 16 ? 64 : 128;
  while (pixels > kTile && pixels * s.padded > budget) pixels /= 2;
  // Small feature maps are cut smaller, so that there are blocks for every multiprocessor.
  const int64_t all = static_cast<int64_t>(s.images) * s.out_height * s.out_width;
  while (pixels > 2 * kTile && all / pixels < kManySplits) pixels /= 2;
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
  return (width + t.width() - 1) >> t.log_width;
}
ASNG_HD inline int tile_count(const Tile& t, const DagShape& s) {
  return s.images * tiles_down(t, s.out_height) * tiles_across(t, s.out_width);
}

__device__ inline TilePlace tile_place(const Tile& t, const DagShape& s, unsigned index) {
  const unsigned across = tiles_across(t, s.out_width), down = tiles_down(t, s.out_height);
  const unsigned line = index / across, image = line / down;
  return {static_cast<int>(image), static_cast<int>(line - image * down) * t.height,
          static_cast<int>(index - line * across) << t.log_width};
}

// Index of the output pixel that is number q of the tile, -1 outside of the feature map.
__device__ inline int tile_pixel(const Tile& t, const DagShape& s, const TilePlace& at, int q) {
  const int y = at.y + (q >> t.log_width), x = at.x + (q & (t.width() - 1));
  if (y >= s.out_height || x >= s.out_width) return -1;
  return (at.image * s.out_height + y) * s.out_width + x;
}

// Starts to bring near what a block is about to read of feature maps: at the pixels of a tile,
// where they are the output with `stride`.
template <class V>
__device__ __forceinline__ void prefetch_tile(const V* images, int height, int width, int padded,
                                              int stride, const Tile& t, const TilePlace& at) {
  constexpr int kLine = 128 / sizeof(V);
  const int top = at.y * stride, left = at.x * stride;
  const int rows = min(t.height * stride, height - top);
  const int lines = (min(t.width() * stride, width - left) * padded + kLine - 1) / kLine;
  images += ((static_cast<int64_t>(at.image) * height + top) * width + left) * padded;
  for (int i = threadIdx.x; i < rows * lines; i += kThreads) {
    const int row = i / lines;
    prefetch(images + static_cast<int64_t>(row) * width * padded + (i - row * lines) * kLine);
  }
}

// Divides numbers below 2¹⁶ without a division each.
struct Divisor {
  unsigned divisor, inverse;

  ASNG_HD constexpr explicit Divisor(unsigned by)
      : divisor(by), inverse(0xffffffffu / divisor + 1) {}
  __device__ __forceinline__ int operator()(int x) const {
    return divisor == 1 ? x : static_cast<int>(multiply_high(static_cast<unsigned>(x), inverse));
  }
};

// Calls visit(slot, step, quad) for this thread's four of the channels: it is thread `slot` of
// `step` that have the same. There are `quads` times four channels.
template <class Visit>
__device__ __forceinline__ void each_quad(int quads, Visit visit) {
  for (int first = 0; first < quads; first += kThreads) {
    const unsigned width = min(quads - first, kThreads), slot = threadIdx.x / width;
    const int step = kThreads / width, lane = threadIdx.x - slot * width;
    if (static_cast<int>(slot) < step) visit(static_cast<int>(slot), step, (first + lane) * 4);
  }
}

// Starts to copy `rows` rows of up to 4·kThreads columns from global to shared memory; see
// copy_async16.
template <class T>
__device__ __forceinline__ void copy_rows(const T* from, int from_row, int rows, int columns,
                                          int to_row, T* to) {
  constexpr int kValues = 16 / sizeof(T);
  const unsigned pieces = columns / kValues, first = threadIdx.x / pieces;
  const int step = kThreads / pieces, piece = (threadIdx.x - first * pieces) * kValues;
#pragma unroll 1
  for (int r = static_cast<int>(first) < step ? first : rows; r < rows; r += step) {
    copy_async16(to + r * to_row + piece, from + static_cast<int64_t>(r) * from_row + piece);
  }
}

// The 1×1 weight (padded, padded), to where the layout has it.
template <class T>
__device__ __forceinline__ void load_weight(const TileLayout& l, const T* weight, T* shared) {
  if (l.weight == 0) return;
  copy_rows(weight, l.padded, l.padded, l.padded, l.weight_row(), shared + l.weight);
}

// += rows of shared memory · the 1×1 weight
template <class Matmul, class T>
__device__ __forceinline__ void multiply_weight(Matmul& matmul, const TileLayout& l, const T* rows,
                                                const T* weight, const T* shared) {
  if (l.weight == 0) {
    matmul.add(rows, l.row, weight, l.padded, l.padded);
  } else {
    matmul.add(rows, l.row, shared + l.weight, l.weight_row(), l.padded);
  }
}

// As choose_kernel, for matmuls of a tile's pixels and a 1×1 weight.
template <class V, class F>
auto choose_tile_kernel(const TileLayout& l, bool tf32, F f) {
  return l.tile.pixels() % kTile == 0 ? choose_kernel<V>(tf32, f) : f(std::false_type());
}

}  // namespace asng::cuda
