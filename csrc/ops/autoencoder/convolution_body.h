// What blocks compute of convolutions, and of transposed ones, as products on tensor cores, see
// convolution_tiles.h: of one in a launch of its own (convolution.cu), or of some of them in a
// persistent kernel (persistent_layers.cu).
#pragma once

#include <cstdint>

#include "core/hd.h"
#include "ops/autoencoder/convolution_tiles.h"
#include "platform/cuda.h"

namespace asng::cuda {

// Of kernels of stride 2 transposed, for both rows and columns even and odd.
inline constexpr int kMostParities = 4;

using Tile256x160 = Tile<256, 160, 4, 2, 4, 1>;
using Tile256x96 = Tile<256, 96, 4, 2, 4, 1>;
using Tile128x96 = Tile<128, 96, 2, 2, 3, 2>;
using Tile128x64 = Tile<128, 64, 2, 2, 4, 2>;
using Tile128x32 = Tile<128, 32, 4, 1, 4, 2>;

template <class S>
ASNG_HD constexpr int shared_bytes() {
  return S::kStages * (S::kRows + S::kColumns) * kDepthBytes;
}
using Wgmma256x160 = WarpgroupTile<256, 160, 2, 4, 1>;
using Wgmma256x96 = WarpgroupTile<256, 96, 2, 4, 1>;
using Wgmma128x96 = WarpgroupTile<128, 96, 1, 3, 2>;
using Wgmma128x64 = WarpgroupTile<128, 64, 1, 4, 2>;

using ConvolutionTiles = TileList<Tile256x128, Tile256x160, Tile256x96, Tile128x128, Tile128x96,
                                  Tile128x64, Tile64x64, Tile128x32, Wgmma256x128, Wgmma256x160,
                                  Wgmma256x96, Wgmma128x128, Wgmma128x96, Wgmma128x64>;

// Pixels of the result: all, or those of a parity of their row and of their column, to which few
// taps belong. Row u and column v of them are pixel (u·spread + first_y, v·spread + first_x) of the
// result, and their taps begin at pixel (u·step + from_y, v·step + from_x) of what is read.
struct PixelClass {
  int first_tile = 0;  // among those of all classes
  int height = 0, width = 0;
  int first_y = 0, first_x = 0, from_y = 0, from_x = 0;
  // Taps, from (tap_y, tap_x) of the kernel on.
  int taps_y = 0, taps_x = 0, tap_y = 0, tap_x = 0;
};

struct ConvolutionCall {
  const void *x, *weight;
  void* y;
  const void *added, *mask;
  int batch, in_height, in_width, in_channels, out_height, out_width, out_channels;
  int kernel, step, spread, tap_step;
  // Weights of channel n of the result begin at n % 8 times the first number plus n / 8 times the
  // second one.
  int weights_pitch, eight_pitch;
  bool relu, rounds;
  float* sums;  // of parts, unless there is one alone
  int64_t values;
  int parts, row_tiles, column_tiles, classes;
  PixelClass of_class[kMostParities];
};

// Four or eight neighboring numbers, which other blocks of the same launch may have written.
template <int kCount>
__device__ __forceinline__ void load_neighbors(const float* from, float (&to)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const float4 four = __ldcg(reinterpret_cast<const float4*>(from + i));
    to[i] = four.x;
    to[i + 1] = four.y;
    to[i + 2] = four.z;
    to[i + 3] = four.w;
  }
}
__device__ __forceinline__ void widen_pair(unsigned pair, float* to) {
  to[0] = __uint_as_float(pair << 16);
  to[1] = __uint_as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ void load_neighbors(const __nv_bfloat16* from, float (&to)[4]) {
  const uint2 words = __ldcg(reinterpret_cast<const uint2*>(from));
  widen_pair(words.x, to);
  widen_pair(words.y, to + 2);
}
__device__ __forceinline__ void load_neighbors(const __nv_bfloat16* from, float (&to)[8]) {
  const uint4 words = __ldcg(reinterpret_cast<const uint4*>(from));
  widen_pair(words.x, to);
  widen_pair(words.y, to + 2);
  widen_pair(words.z, to + 4);
  widen_pair(words.w, to + 6);
}
template <int kCount>
__device__ __forceinline__ void store_neighbors(float* to, const float (&from)[kCount],
                                                bool rounds) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    float four[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      four[n] = from[i + n];
      if (rounds) four[n] = __uint_as_float(to_tf32(four[n]));
    }
    write_at_once(to + i, make_float4(four[0], four[1], four[2], four[3]));
  }
}
__device__ __forceinline__ unsigned narrow_pair(float low, float high) {
  return __bfloat16_as_ushort(__float2bfloat16(low)) |
         static_cast<unsigned>(__bfloat16_as_ushort(__float2bfloat16(high))) << 16;
}
__device__ __forceinline__ void store_neighbors(__nv_bfloat16* to, const float (&from)[4], bool) {
  write_at_once(to, make_uint2(narrow_pair(from[0], from[1]), narrow_pair(from[2], from[3])));
}
__device__ __forceinline__ void store_neighbors(__nv_bfloat16* to, const float (&from)[8], bool) {
  write_at_once(to, make_uint4(narrow_pair(from[0], from[1]), narrow_pair(from[2], from[3]),
                               narrow_pair(from[4], from[5]), narrow_pair(from[6], from[7])));
}

// What is done to neighboring sums, from number `at` of the result on.
template <class T, int kCount>
__device__ __forceinline__ void finish_neighbors(const ConvolutionCall& call, int at,
                                                 float (&value)[kCount]) {
  float other[kCount];
  if (call.added != nullptr) {
    load_neighbors(static_cast<const T*>(call.added) + at, other);
#pragma unroll
    for (int k = 0; k < kCount; ++k) value[k] += other[k];
  }
  if (call.relu) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) value[k] = value[k] <= 0 ? 0 : value[k];
  }
  if (call.mask != nullptr) {
    load_neighbors(static_cast<const T*>(call.mask) + at, other);
#pragma unroll
    for (int k = 0; k < kCount; ++k) value[k] = other[k] <= 0 ? 0 : value[k];
  }
  store_neighbors(static_cast<T*>(call.y) + at, value, call.rounds);
}

// Adds the parts of all sums, of 8 numbers of the result for each thread.
inline constexpr int kTapChannels = 8;
template <class T, int kThreads>
__device__ __forceinline__ void add_parts(const ConvolutionCall& call, unsigned block) {
  const int64_t at = (static_cast<int64_t>(block) * kThreads + threadIdx.x) * 8;
  if (at >= call.values) return;
  float value[8];
  load_neighbors(call.sums + at, value);
#pragma unroll 4
  for (int p = 1; p < call.parts; ++p) {
    float other[8];
    load_neighbors(call.sums + p * call.values + at, other);
#pragma unroll
    for (int k = 0; k < 8; ++k) value[k] += other[k];
  }
  finish_neighbors<T>(call, static_cast<int>(at), value);
}

// Adds for each pixel of the result, of which each thread has one, what comes to it by each tap, of
// sums (pixels, taps, 8). The call is that of the convolution, whose stride is 1.
template <class T, int kThreads>
__device__ __forceinline__ void add_taps(const ConvolutionCall& call, unsigned block) {
  const int at = static_cast<int>(block) * kThreads + static_cast<int>(threadIdx.x);
  if (at >= call.values / kTapChannels) return;
  const int down = at / call.out_width, x = at - down * call.out_width;
  const int y = down % call.out_height, padding = call.kernel / 2;
  const int taps = call.kernel * call.kernel;
  float value[8] = {};
  for (int tap_y = 0; tap_y < call.kernel; ++tap_y) {
    const int below = padding - tap_y;
    if (y + below < 0 || y + below >= call.out_height) continue;
#pragma unroll 3
    for (int tap_x = 0; tap_x < call.kernel; ++tap_x) {
      const int beside = padding - tap_x;
      if (x + beside < 0 || x + beside >= call.out_width) continue;
      const int64_t from = static_cast<int64_t>(at + below * call.out_width + beside) * taps +
                           tap_y * call.kernel + tap_x;
      float other[8];
      load_neighbors(call.sums + from * kTapChannels, other);
#pragma unroll
      for (int k = 0; k < 8; ++k) value[k] += other[k];
    }
  }
  finish_neighbors<T>(call, at * kTapChannels, value);
}

// Rows of the product are pixels of the result, columns its channels, and the depth are the taps
// and the channels of what is read: a row of a stage is 128 bytes of a pixel, or of a channel's
// weights. Columns are cut into groups of 16 or, if kGroup is 4, 32: column n of product j of a
// group is the group's column kGroup·n + j, so that a lane has neighbors.
// Calls wait() before the first access to maps and weights.
template <class T, class S, class Wait>
__device__ __forceinline__ void convolve_tile(const ConvolutionCall& call, int block, char* shared,
                                              Wait wait) {
  constexpr int kDeep = kDepthBytes / sizeof(T), kWide = kPiece / sizeof(T);
  constexpr int kAtOnce = S::kThreads / kPieces;  // rows that all threads copy
  constexpr int kGroup = S::kBeside % 4 == 0 ? 4 : 2, kNeighbors = 2 * kGroup;
  constexpr int kMyRows = S::kRows / kAtOnce, kMyColumns = S::kColumns / kAtOnce;
  const T* const x = static_cast<const T*>(call.x);
  const T* const weight = static_cast<const T*>(call.weight);
  const int tiles = call.row_tiles * call.column_tiles;
  const int part = block / tiles;
  const int of_part = block - part * tiles;
  const int tile = of_part / call.column_tiles;
  const int first_column = (of_part - tile * call.column_tiles) * S::kColumns;
  int which = 0;
  while (which + 1 < call.classes && tile >= call.of_class[which + 1].first_tile) ++which;
  const PixelClass& pixels = call.of_class[which];
  // What is read for every chunk, which would be read from memory again each time.
  const int in_height = call.in_height, in_width = call.in_width, kernel = call.kernel;
  const int out_channels = call.out_channels, tap_step = call.tap_step;
  const int eight_pitch = call.eight_pitch;
  const int first_row = (tile - pixels.first_tile) * S::kRows;
  const int image = pixels.height * pixels.width, rows = call.batch * image;
  const int channels = call.in_channels, in_row = call.in_width * channels;

  // This thread copies one piece of some rows, and of some columns: where they begin, and of pixels
  // also at which (y, x), in the halves of a word.
  const int piece = threadIdx.x % kPieces, row = threadIdx.x / kPieces;
  int offset[kMyRows], place[kMyRows];
#pragma unroll
  for (int i = 0; i < kMyRows; ++i) {
    const int at = first_row + row + i * kAtOnce;
    const int b = at / image, in_image = at - b * image;
    const int u = in_image / pixels.width, v = in_image - u * pixels.width;
    const int y0 = u * call.step + pixels.from_y, x0 = v * call.step + pixels.from_x;
    offset[i] = (b * call.in_height + y0) * in_row + x0 * channels;
    place[i] = at < rows ? y0 * 65536 + (x0 & 0xffff) : -0x7fff * 65536;
  }
  const int weight_offset =
      row % 8 * call.weights_pitch + (first_column + row) / 8 * call.eight_pitch;
  const int depth = pixels.taps_y * pixels.taps_x * channels;
  const int all_chunks = (depth + kDeep - 1) / kDeep;
  const int chunks_of_part = (all_chunks + call.parts - 1) / call.parts;
  const int first_chunk = part * chunks_of_part;
  // Of which tap, and from which channel on.
  const int first = first_chunk * kDeep, skipped = first / channels;
  int tap_y = pixels.taps_x == 0 ? 0 : skipped / pixels.taps_x;
  int tap_x = skipped - tap_y * pixels.taps_x, channel = first - skipped * channels + piece * kWide;
  const auto to_next_tap = [&] {
    while (channel >= channels) {
      channel -= channels;
      if (++tap_x == pixels.taps_x) {
        tap_x = 0;
        ++tap_y;
      }
    }
  };
  to_next_tap();
  char* const my_row = shared + row * kDepthBytes + (piece ^ row % kPieces) * kPiece;
  const auto load = [&](char* stage) {
    const bool is_tap = tap_y < pixels.taps_y;
    const int from = tap_y * in_row + tap_x * channels + channel;
    char* to = my_row + (stage - shared);
#pragma unroll
    for (int i = 0; i < kMyRows; ++i) {
      const int y = (place[i] >> 16) + tap_y, x0 = static_cast<short>(place[i]) + tap_x;
      const bool there = is_tap && static_cast<unsigned>(y) < static_cast<unsigned>(in_height) &&
                         static_cast<unsigned>(x0) < static_cast<unsigned>(in_width);
      copy_async16(to + i * kAtOnce * kDepthBytes, x + (there ? offset[i] + from : 0), there);
    }
    const int tap = (pixels.tap_y + tap_y * tap_step) * kernel + pixels.tap_x + tap_x * tap_step;
    const int from_weight = weight_offset + tap * channels + channel;
#pragma unroll
    for (int i = 0; i < kMyColumns; ++i) {
      const int column = row + i * kAtOnce;
      // Warpgroups read product j of a group of columns behind product j - 1.
      const int place = S::kOfWarpgroups ? column / (8 * kGroup) * 8 * kGroup +
                                               column % kGroup * 8 + column / kGroup % 8
                                         : column;
      const bool there = is_tap && first_column + column < out_channels;
      copy_async16(
          stage + (S::kRows + place) * kDepthBytes + (piece ^ column / kGroup % kPieces) * kPiece,
          weight + (there ? from_weight + i * (kAtOnce / 8) * eight_pitch : 0), there);
    }
    channel += kDeep;
    to_next_tap();
  };

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warp_column = S::column(warp);
  const int chunks = min(chunks_of_part, all_chunks - first_chunk);
  constexpr int kStageBytes = (S::kRows + S::kColumns) * kDepthBytes;
  Sums<T, S> sums;
  sums.clear();
  wait();
  if constexpr (S::kOfWarpgroups) {
    const int rows = S::group() * S::kGroupRows * kDepthBytes;
    run_ring_of_warpgroups<S, kStageBytes>(sums, chunks, shared, load, [&](const char* stage) {
      begin_stage<64 * kDepthBytes, 2 * kPiece>(
          sums, MatrixDescriptor<false>(stage + rows),
          MatrixDescriptor<false>(stage + S::kRows * kDepthBytes));
    });
  } else {
    // Where this lane's rows of matrices begin, see load_matrices, and the piece there.
    const int left = (S::row(warp, 0) + lane % 16) * kDepthBytes, left_piece = lane / 16 ^ lane % 8;
    const int right = (S::kRows + warp_column + kGroup * (lane % 8) + lane / 16) * kDepthBytes;
    const int right_piece = lane / 8 % 2 ^ lane % 8;
    const auto read = [&](Factors<T, S>& factors, const char* stage, int k) {
#pragma unroll
      for (int i = 0; i < S::kDown; ++i) {
        load_matrices(factors.left[i],
                      stage + left + i * 16 * kDepthBytes + (left_piece ^ 2 * k) * kPiece);
      }
#pragma unroll
      for (int j = 0; j < S::kBeside / 2; ++j) {
        const int column = 2 * j / kGroup * 8 * kGroup + 2 * j % kGroup;
        unsigned both[4];
        load_matrices(both, stage + right + column * kDepthBytes + (right_piece ^ 2 * k) * kPiece);
        factors.set_right(j, both);
      }
    };
    run_ring<S::kStages, kStageBytes>(chunks, shared, load, [&](const char* stage) {
      add_stage<T, S>(sums, [&](Factors<T, S>& factors, int k) { read(factors, stage, k); });
    });
  }

#pragma unroll
  for (int i = 0; i < 2 * S::kDown; ++i) {
    const int at = first_row + S::row(warp, i / 2) + i % 2 * 8 + lane / 4;
    if (at >= rows) continue;
    const int b = at / image, in_image = at - b * image;
    const int u = in_image / pixels.width, v = in_image - u * pixels.width;
    const int y = u * call.spread + pixels.first_y, x0 = v * call.spread + pixels.first_x;
    const int to = ((b * call.out_height + y) * call.out_width + x0) * call.out_channels;
#pragma unroll
    for (int j = 0; j < S::kBeside; j += kGroup) {
      const int column = first_column + warp_column + j * 8 + lane % 4 * kNeighbors;
      if (column >= call.out_channels) continue;
      float value[kNeighbors];
#pragma unroll
      for (int k = 0; k < kNeighbors; ++k) {
        value[k] = sums.of[i / 2][j + k % kGroup][i % 2 * 2 + k / kGroup];
      }
      if (call.sums != nullptr) {
        store_neighbors(call.sums + part * call.values + to + column, value, false);
      } else {
        finish_neighbors<T>(call, to + column, value);
      }
    }
  }
}

// The classes of pixels of a result, by tiles of so many rows, of a call that has all but these;
// returns the number of all tiles.
ASNG_HD inline int add_classes(int rows, ConvolutionCall& call) {
  const bool transposed = call.tap_step < 0;
  const int stride = transposed ? call.spread : 1, kernel = call.kernel;
  const int padding = kernel / 2;
  int tiles = 0;
  call.classes = 0;
  // Tap k of a transposed convolution brings pixel i to i·stride + k - padding. So pixel
  // u·stride + parity comes, by tap k, from u + (parity + padding - k) / stride; the last tap is
  // the first one here.
  const auto along = [&](int parity, int out, int& size, int& from, int& taps, int& tap) {
    if (!transposed) {
      size = out;
      from = -padding;
      taps = kernel;
      tap = 0;
      return;
    }
    size = up(out - parity, stride);
    const int first = (parity + padding) % stride;
    taps = first < kernel ? up(kernel - first, stride) : 0;
    tap = first + (taps - 1) * stride;
    from = (parity + padding - tap) / stride;
  };
  for (int y = 0; y < stride; ++y) {
    for (int x = 0; x < stride; ++x) {
      PixelClass& of = call.of_class[call.classes];
      of = {};
      of.first_tile = tiles;
      of.first_y = y;
      of.first_x = x;
      along(y, call.out_height, of.height, of.from_y, of.taps_y, of.tap_y);
      along(x, call.out_width, of.width, of.from_x, of.taps_x, of.tap_x);
      if (of.height == 0 || of.width == 0) continue;
      if (of.taps_y == 0 || of.taps_x == 0) of.taps_y = of.taps_x = 0;
      tiles += up(call.batch * of.height * of.width, rows);
      ++call.classes;
    }
  }
  return tiles;
}

// A convolution's sizes, in which kernels count.
struct Sizes {
  int batch, height, width, channels, small_channels, kernel, stride;

  // Of a transposed convolution to 8 channels with stride 1, the products for all taps: as a 1×1
  // convolution to 8 channels for each of them.
  ASNG_HD Sizes of_taps() const {
    return {batch, height, width, small_channels, channels * kernel * kernel, 1, stride};
  }
};

// All but pointers, parts and tiles.
ASNG_HD inline ConvolutionCall call_of(const Sizes& sizes, bool transposed) {
  ConvolutionCall call = {};
  const int small_height = up(sizes.height, sizes.stride);
  const int small_width = up(sizes.width, sizes.stride);
  call.batch = sizes.batch;
  call.kernel = sizes.kernel;
  call.in_height = transposed ? small_height : sizes.height;
  call.in_width = transposed ? small_width : sizes.width;
  call.in_channels = transposed ? sizes.small_channels : sizes.channels;
  call.out_height = transposed ? sizes.height : small_height;
  call.out_width = transposed ? sizes.width : small_width;
  call.out_channels = transposed ? sizes.channels : sizes.small_channels;
  call.step = transposed ? 1 : sizes.stride;
  call.spread = transposed ? sizes.stride : 1;
  call.tap_step = transposed ? -sizes.stride : 1;
  call.weights_pitch = call.kernel * call.kernel * call.in_channels;
  call.eight_pitch = 8 * call.weights_pitch;
  call.values =
      static_cast<int64_t>(call.batch) * call.out_height * call.out_width * call.out_channels;
  return call;
}

// Of that for the products of all taps, whose weights are those of the convolution itself.
ASNG_HD inline ConvolutionCall call_of_taps(const Sizes& sizes) {
  ConvolutionCall call = call_of(sizes.of_taps(), false);
  call.weights_pitch = sizes.kernel * sizes.kernel * call.in_channels;
  call.eight_pitch = call.in_channels;
  return call;
}

}  // namespace asng::cuda
