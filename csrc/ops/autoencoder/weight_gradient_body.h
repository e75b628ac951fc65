// What blocks compute of gradients of the weights of convolutions, as products on tensor cores, see
// convolution_tiles.h: of one in a launch of its own (weight_gradient.cu), or of some of them in a
// persistent kernel (persistent_layers.cu).
#pragma once

#include <cstdint>

#include "core/hd.h"
#include "ops/autoencoder/convolution_tiles.h"
#include "platform/cuda.h"

namespace asng::cuda {

using Tile160x256 = Tile<160, 256, 2, 4, 4, 1>;
using Tile96x256 = Tile<96, 256, 2, 4, 4, 1>;
using Tile64x256 = Tile<64, 256, 2, 4, 4, 1>;
using Tile64x128 = Tile<64, 128, 2, 2, 4, 2>;

using Wgmma64x128 = WarpgroupTile<64, 128, 1, 4, 2>;

// Warpgroups take turned factors in bfloat16 alone.

using GradientTiles = TileList<Tile256x128, Tile160x256, Tile96x256, Tile64x256, Tile128x128,
                               Tile64x64, Tile64x128, Wgmma256x128, Wgmma128x128, Wgmma64x128>;
template <class T, class S>
inline constexpr bool kMultipliesGradients = !S::kOfWarpgroups || sizeof(T) == 2;

// What a stage has of a pixel: whole groups of pieces whose order is changed.
template <class T, int kWidth>
__host__ __device__ constexpr int row_bytes() {
  constexpr int kBytes = kWidth * static_cast<int>(sizeof(T)), kGroup = kPiece * kPieces;
  return (kBytes + kGroup - 1) / kGroup * kGroup;
}
template <class T, class S>
__host__ __device__ constexpr int stage_bytes() {
  return kDepthBytes / static_cast<int>(sizeof(T)) *
         (row_bytes<T, S::kRows>() + row_bytes<T, S::kColumns>());
}

struct WeightGradientCall {
  const void *small_map, *large_map;
  float* parts;
  int height, width, large_height, large_width;
  int pixels;  // of the smaller map, of all images
  int small_channels, channels, kernel, stride;
  int row_tiles, column_tiles, chunks, chunks_of_part;
};

// Factors of sums over pixels: a row of a stage has what the tile's rows, or columns, are of a
// pixel, and from there on come those of the next one.
template <class T>
struct PixelFactors;

// Lane 4·g + t reads pixels t and t + 4: of the tile's rows two neighbors, so that row n of a
// product is the tile's row 2·n, or 2·(n - 8) + 1.
template <>
struct PixelFactors<float> {
  // Of piece p of pixel q.
  __device__ static __forceinline__ int swizzled(int q, int p) { return p ^ q % 4 * 2; }
  __device__ static __forceinline__ int row(int g, int half) { return 2 * g + half; }

  // Number n of a pixel.
  template <int kWidth>
  __device__ static __forceinline__ const float* at(const char* stage, int q, int n) {
    return reinterpret_cast<const float*>(stage + q * row_bytes<float, kWidth>() +
                                          swizzled(q, n / 4) * kPiece) +
           n % 4;
  }
  template <class S>
  __device__ static __forceinline__ void read(Factors<float, S>& factors, const char* stage,
                                              int warp_row, int warp_column, int k) {
    const int lane = threadIdx.x % 32, q = k * 8 + lane % 4, g = lane / 4;
#pragma unroll
    for (int i = 0; i < S::kDown; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 two = *reinterpret_cast<const float2*>(
            at<S::kRows>(stage, q + 4 * half, warp_row + i * 16 + 2 * g));
        factors.left[i][2 * half] = __float_as_uint(two.x);
        factors.left[i][2 * half + 1] = __float_as_uint(two.y);
      }
    }
    stage += kDepthBytes / sizeof(float) * row_bytes<float, S::kRows>();
#pragma unroll
    for (int j = 0; j < S::kBeside; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        factors.right[j][half] =
            __float_as_uint(*at<S::kColumns>(stage, q + 4 * half, warp_column + j * 8 + g));
      }
    }
  }
};

template <>
struct PixelFactors<__nv_bfloat16> {
  __device__ static __forceinline__ int swizzled(int q, int p) { return p ^ q % 8; }
  __device__ static __forceinline__ int row(int g, int half) { return g + 8 * half; }

  template <class S>
  __device__ static __forceinline__ void read(Factors<__nv_bfloat16, S>& factors, const char* stage,
                                              int warp_row, int warp_column, int k) {
    const int lane = threadIdx.x % 32;
    const int q = k * 16 + lane / 16 * 8 + lane % 8, p = warp_row / 8 + lane / 8 % 2;
#pragma unroll
    for (int i = 0; i < S::kDown; ++i) {
      load_turned_matrices(factors.left[i], stage + q * row_bytes<__nv_bfloat16, S::kRows>() +
                                                swizzled(q, p + 2 * i) * kPiece);
    }
    stage += kDepthBytes / sizeof(__nv_bfloat16) * row_bytes<__nv_bfloat16, S::kRows>();
    const int other_q = k * 16 + lane % 16, other_p = warp_column / 8 + lane / 16;
#pragma unroll
    for (int j = 0; j < S::kBeside / 2; ++j) {
      unsigned both[4];
      load_turned_matrices(both, stage + other_q * row_bytes<__nv_bfloat16, S::kColumns>() +
                                     swizzled(other_q, other_p + 2 * j) * kPiece);
      factors.set_right(j, both);
    }
  }
};

// Where in a stage, behind the factors before, the tile's piece `piece` of pixel q is. Warpgroups
// want slabs of 64 channels, one behind the other.
template <class T, class S, int kWidth>
__device__ __forceinline__ int place_of(int q, int piece) {
  if constexpr (S::kOfWarpgroups) {
    constexpr int kDeep = kDepthBytes / sizeof(T);
    return (piece / kPieces * kDeep + q) * kDepthBytes + (piece ^ q) % kPieces * kPiece;
  } else {
    return q * row_bytes<T, kWidth>() + PixelFactors<T>::swizzled(q, piece) * kPiece;
  }
}

// Rows of the product are channels of the smaller map, columns are taps and channels of the larger
// one, and the depth are pixels. A part of the pixels is a block's.
// Calls wait() before the first access to maps.
template <class T, class S, class Wait>
__device__ __forceinline__ void add_products(const WeightGradientCall& call, int block,
                                             char* shared, Wait wait) {
  using Read = PixelFactors<T>;
  constexpr int kDeep = kDepthBytes / sizeof(T), kWide = kPiece / sizeof(T);
  constexpr int kRowPieces = S::kRows / kWide, kColumnPieces = S::kColumns / kWide;
  constexpr int kColumnsAtOnce = S::kThreads / kColumnPieces;
  constexpr int kRowSteps = kDeep * kRowPieces / S::kThreads;
  constexpr int kColumnSteps = kDeep / kColumnsAtOnce;
  static_assert(kRowSteps * S::kThreads == kDeep * kRowPieces &&
                kColumnSteps * kColumnsAtOnce == kDeep);
  const T* const small_map = static_cast<const T*>(call.small_map);
  const T* const large_map = static_cast<const T*>(call.large_map);
  const int tiles = call.row_tiles * call.column_tiles;
  const int part = block / tiles;
  const int tile = block - part * tiles;
  const int first_row = tile % call.row_tiles * S::kRows;
  const int first_column = tile / call.row_tiles * S::kColumns;
  const int columns = call.kernel * call.kernel * call.channels;
  const int first_chunk = part * call.chunks_of_part;
  const int chunks = min(call.chunks_of_part, call.chunks - first_chunk);

  // What is read for every chunk, which would be read from memory again each time.
  const int pixels = call.pixels, small_channels = call.small_channels;
  const int large_height = call.large_height, large_width = call.large_width;
  const int channels = call.channels, stride = call.stride;

  // This thread copies some pieces of the smaller map: from where, and to where in a stage.
  int from[kRowSteps], to_row[kRowSteps], of_pixel[kRowSteps];
#pragma unroll
  for (int i = 0; i < kRowSteps; ++i) {
    const int n = static_cast<int>(threadIdx.x) + i * S::kThreads;
    const int q = n / kRowPieces, piece = n - q * kRowPieces;
    const int channel = first_row + piece * kWide;
    from[i] = (first_chunk * kDeep + q) * small_channels + channel;
    of_pixel[i] = channel < call.small_channels ? first_chunk * kDeep + q : call.pixels;
    to_row[i] = place_of<T, S, S::kRows>(q, piece);
  }
  // And of the larger map one piece of some neighboring pixels.
  // The tap of the piece of the larger map is the same for all pixels.
  const int other_piece = threadIdx.x % kColumnPieces;
  const int other_pixel = threadIdx.x / kColumnPieces * kColumnSteps;
  const int column = first_column + other_piece * kWide, tap = column / call.channels;
  const bool is_column = column < columns;
  const int tap_y = tap / call.kernel - call.kernel / 2;
  const int tap_x = tap % call.kernel - call.kernel / 2;
  const int image = call.height * call.width;
  const int large_image = call.large_height * call.large_width * call.channels;
  int other_at = first_chunk * kDeep + other_pixel;
  const int in_image = other_at % image;
  int y = in_image / call.width * call.stride + tap_y;
  int x = in_image % call.width * call.stride + tap_x;
  int start = other_at / image * large_image + column - tap * call.channels;
  const int row_step = call.width * call.stride, image_step = call.height * call.stride;
  const auto to_next_row = [&] {
    const bool over = x >= row_step + tap_x;
    x -= over ? row_step : 0;
    y += over ? stride : 0;
    const bool all_over = y >= image_step + tap_y;
    y -= all_over ? image_step : 0;
    start += all_over ? large_image : 0;
  };
  const auto load = [&](char* stage) {
#pragma unroll
    for (int i = 0; i < kRowSteps; ++i) {
      const bool there = of_pixel[i] < pixels;
      copy_async16(stage + to_row[i], small_map + (there ? from[i] : 0), there);
      of_pixel[i] += kDeep;
      from[i] += kDeep * small_channels;
    }
    stage += kDeep * row_bytes<T, S::kRows>();
#pragma unroll
    for (int i = 0; i < kColumnSteps; ++i) {
      const bool there = is_column && other_at + i < pixels &&
                         static_cast<unsigned>(y) < static_cast<unsigned>(large_height) &&
                         static_cast<unsigned>(x) < static_cast<unsigned>(large_width);
      copy_async16(stage + place_of<T, S, S::kColumns>(other_pixel + i, other_piece),
                   large_map + (there ? start + (y * large_width + x) * channels : 0), there);
      x += stride;
      to_next_row();
    }
    other_at += kDeep;
    x += (kDeep - kColumnSteps) * stride;
    while (x >= row_step + tap_x) to_next_row();
  };

  const int warp = threadIdx.x / 32, warp_column = S::column(warp);
  Sums<T, S> sums;
  sums.clear();
  wait();
  if constexpr (S::kOfWarpgroups) {
    constexpr int kSlab = kDeep * kDepthBytes;
    const int rows = S::group() * S::kDown * kSlab;
    const auto begin = [&](const char* stage) {
      // 32 bytes of depth are 16 pixels.
      begin_stage<kSlab, 16 * kDepthBytes>(
          sums, MatrixDescriptor<true>(stage + rows, kSlab),
          MatrixDescriptor<true>(stage + S::kRows / 64 * kSlab, kSlab));
    };
    run_ring_of_warpgroups<S, stage_bytes<T, S>()>(sums, chunks, shared, load, begin);
  } else {
    run_ring<S::kStages, stage_bytes<T, S>()>(chunks, shared, load, [&](const char* stage) {
      add_stage<T, S>(sums, [&](Factors<T, S>& factors, int k) {
        Read::read(factors, stage, S::row(warp, 0), warp_column, k);
      });
    });
  }

  float* const to = call.parts + static_cast<int64_t>(part) * call.small_channels * columns;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < 2 * S::kDown; ++i) {
    const int r = first_row + S::row(warp, i / 2) + Read::row(g, i % 2);
#pragma unroll
    for (int j = 0; j < S::kBeside; ++j) {
      const int c = first_column + warp_column + j * 8 + 2 * t;
      if (r >= call.small_channels || c >= columns) continue;
      const float (&four)[4] = sums.of[i / 2][j];
      write_at_once(
          to + static_cast<int64_t>(r) * columns + c,
          make_uint2(__float_as_uint(four[i % 2 * 2]), __float_as_uint(four[i % 2 * 2 + 1])));
    }
  }
}

// All but pointers, chunks and tiles.
ASNG_HD inline WeightGradientCall gradient_call_of(int batch, int height, int width, int channels,
                                                   int small_channels, int kernel, int stride) {
  WeightGradientCall call = {};
  call.height = up(height, stride);
  call.width = up(width, stride);
  call.large_height = height;
  call.large_width = width;
  call.pixels = batch * call.height * call.width;
  call.small_channels = small_channels;
  call.channels = channels;
  call.kernel = kernel;
  call.stride = stride;
  return call;
}

// Into so many parts, or fewer if some would have no chunk.
template <class T>
ASNG_HD void divide(WeightGradientCall& call, int parts) {
  call.chunks = up(call.pixels, kDepthBytes / sizeof(T));
  call.chunks_of_part = up(call.chunks, parts);
}

}  // namespace asng::cuda
