// Convolutions, and transposed ones, as products on tensor cores, see convolution_tiles.h.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "ops/autoencoder/convolution.h"
#include "ops/autoencoder/convolution_tiles.h"
#include "platform/cuda.h"

namespace asng::cuda {

namespace {

// Of kernels of stride 2 transposed, for both rows and columns even and odd.
constexpr int kMostParities = 4;

using Tile256x128 = Tile<256, 128, 4, 2, 4, 1>;
using Tile256x160 = Tile<256, 160, 4, 2, 4, 1>;
using Tile256x96 = Tile<256, 96, 4, 2, 4, 1>;
using Tile128x128 = Tile<128, 128, 2, 2, 3, 2>;
using Tile128x96 = Tile<128, 96, 2, 2, 3, 2>;
using Tile128x64 = Tile<128, 64, 2, 2, 4, 2>;
using Tile64x64 = Tile<64, 64, 2, 2, 4, 3>;
using Tile128x32 = Tile<128, 32, 4, 1, 4, 2>;

template <class S>
constexpr int shared_bytes() {
  return S::kStages * (S::kRows + S::kColumns) * kDepthBytes;
}
template <class S>
constexpr TileSpeed tile_speed(double speed) {
  return {S::kRows, S::kColumns, shared_bytes<S>(), S::kBlocks, speed};
}
constexpr TileSpeed kTiles[] = {tile_speed<Tile256x128>(1.0), tile_speed<Tile256x160>(1.0),
                                tile_speed<Tile256x96>(0.95), tile_speed<Tile128x128>(0.99),
                                tile_speed<Tile128x96>(0.9),  tile_speed<Tile128x64>(0.83),
                                tile_speed<Tile64x64>(0.66),  tile_speed<Tile128x32>(0.6)};
constexpr int kTileCount = static_cast<int>(std::size(kTiles));
template <class F>
void with_convolution_tile(int tile, F f) {
  with_tile<Tile256x128, Tile256x160, Tile256x96, Tile128x128, Tile128x96, Tile128x64, Tile64x64,
            Tile128x32>(tile, f);
}

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

// Four or eight neighboring numbers.
template <int kCount>
__device__ __forceinline__ void load_neighbors(const float* from, float (&to)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + i);
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
  const uint2 words = *reinterpret_cast<const uint2*>(from);
  widen_pair(words.x, to);
  widen_pair(words.y, to + 2);
}
__device__ __forceinline__ void load_neighbors(const __nv_bfloat16* from, float (&to)[8]) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
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

// Adds the parts of all sums.
constexpr int kAddingThreads = 256;
constexpr int kTapChannels = 8;
template <class T>
__global__ __launch_bounds__(kAddingThreads) void add_parts_kernel(const ConvolutionCall call) {
  wait_for_earlier_kernels();
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kAddingThreads + threadIdx.x) * 8;
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

// Adds for each pixel of the result what comes to it by each tap, of sums (pixels, taps, 8). The
// call is that of the convolution, whose stride is 1.
template <class T>
__global__ __launch_bounds__(kAddingThreads) void add_taps_kernel(const ConvolutionCall call) {
  wait_for_earlier_kernels();
  const int at = static_cast<int>(blockIdx.x) * kAddingThreads + static_cast<int>(threadIdx.x);
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
template <class T, class S>
__global__ __launch_bounds__(S::kThreads,
                             S::kBlocks) void convolution_kernel(const ConvolutionCall call) {
  constexpr int kDeep = kDepthBytes / sizeof(T), kWide = kPiece / sizeof(T);
  constexpr int kAtOnce = S::kThreads / kPieces;  // rows that all threads copy
  constexpr int kGroup = S::kBeside % 4 == 0 ? 4 : 2, kNeighbors = 2 * kGroup;
  constexpr int kMyRows = S::kRows / kAtOnce, kMyColumns = S::kColumns / kAtOnce;
  char* const shared = dynamic_shared<char>();
  const T* const x = static_cast<const T*>(call.x);
  const T* const weight = static_cast<const T*>(call.weight);
  const int tiles = call.row_tiles * call.column_tiles;
  const int part = static_cast<int>(blockIdx.x) / tiles;
  const int of_part = static_cast<int>(blockIdx.x) - part * tiles;
  const int tile = of_part / call.column_tiles;
  const int first_column = (of_part - tile * call.column_tiles) * S::kColumns;
  int which = 0;
  while (which + 1 < call.classes && tile >= call.of_class[which + 1].first_tile) ++which;
  const PixelClass& pixels = call.of_class[which];
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
      const bool there = is_tap &&
                         static_cast<unsigned>(y) < static_cast<unsigned>(call.in_height) &&
                         static_cast<unsigned>(x0) < static_cast<unsigned>(call.in_width);
      copy_async16(to + i * kAtOnce * kDepthBytes, x + (there ? offset[i] + from : 0), there);
    }
    const int tap =
        (pixels.tap_y + tap_y * call.tap_step) * call.kernel + pixels.tap_x + tap_x * call.tap_step;
    const int from_weight = weight_offset + tap * channels + channel;
#pragma unroll
    for (int i = 0; i < kMyColumns; ++i) {
      const int column = row + i * kAtOnce;
      const bool there = is_tap && first_column + column < call.out_channels;
      copy_async16(
          stage + (S::kRows + column) * kDepthBytes + (piece ^ column / kGroup % kPieces) * kPiece,
          weight + (there ? from_weight + i * (kAtOnce / 8) * call.eight_pitch : 0), there);
    }
    channel += kDeep;
    to_next_tap();
  };

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp / S::kAcross * S::kWarpRows;
  const int warp_column = warp % S::kAcross * S::kWarpColumns;
  // Where this lane's rows of matrices begin, see load_matrices, and the piece there.
  const int left = (warp_row + lane % 16) * kDepthBytes, left_piece = lane / 16 ^ lane % 8;
  const int right = (S::kRows + warp_column + kGroup * (lane % 8) + lane / 16) * kDepthBytes;
  const int right_piece = lane / 8 % 2 ^ lane % 8;
  Sums<T, S> sums;
  sums.clear();
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
  const auto use = [&](const char* stage) {
    add_stage<T, S>(sums, [&](Factors<T, S>& factors, int k) { read(factors, stage, k); });
  };
  wait_for_earlier_kernels();
  run_ring<S::kStages, (S::kRows + S::kColumns) * kDepthBytes>(
      min(chunks_of_part, all_chunks - first_chunk), shared, load, use);

#pragma unroll
  for (int i = 0; i < 2 * S::kDown; ++i) {
    const int at = first_row + warp_row + i * 8 + lane / 4;
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

// The classes of pixels of a result, by tiles of so many rows; returns the number of all tiles.
int add_classes(const ConvolutionShape& shape, bool transposed, int rows, ConvolutionCall& call) {
  const int stride = static_cast<int>(shape.stride), kernel = static_cast<int>(shape.kernel);
  const int padding = kernel / 2, parities = transposed ? stride : 1;
  int tiles = 0;
  call.classes = 0;
  // Tap k of a transposed convolution brings pixel i to i·stride + k - padding. So pixel
  // u·stride + parity comes, by tap k, from u + (parity + padding - k) / stride; the last tap is
  // the first one here.
  const auto along = [&](int parity, int64_t out, int& size, int& from, int& taps, int& tap) {
    if (!transposed) {
      size = static_cast<int>(out);
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
  for (int y = 0; y < parities; ++y) {
    for (int x = 0; x < parities; ++x) {
      PixelClass& of = call.of_class[call.classes];
      of = {.first_tile = tiles, .first_y = y, .first_x = x};
      along(y, call.out_height, of.height, of.from_y, of.taps_y, of.tap_y);
      along(x, call.out_width, of.width, of.from_x, of.taps_x, of.tap_x);
      if (of.height == 0 || of.width == 0) continue;
      if (of.taps_y == 0 || of.taps_x == 0) of.taps_y = of.taps_x = 0;
      tiles += up(static_cast<int64_t>(call.batch) * of.height * of.width, rows);
      ++call.classes;
    }
  }
  return tiles;
}

// All but pointers and tiles.
ConvolutionCall call_of(const ConvolutionShape& shape, bool transposed) {
  ConvolutionCall call = {};
  call.batch = static_cast<int>(shape.batch);
  call.kernel = static_cast<int>(shape.kernel);
  const int stride = static_cast<int>(shape.stride);
  call.in_height = static_cast<int>(shape.height);
  call.in_width = static_cast<int>(shape.width);
  call.in_channels = static_cast<int>(shape.channels);
  call.out_height = static_cast<int>(shape.small_height());
  call.out_width = static_cast<int>(shape.small_width());
  call.out_channels = static_cast<int>(shape.small_channels);
  call.step = stride;
  call.spread = call.tap_step = 1;
  if (transposed) {
    std::swap(call.in_height, call.out_height);
    std::swap(call.in_width, call.out_width);
    std::swap(call.in_channels, call.out_channels);
    call.step = 1;
    call.spread = stride;
    call.tap_step = -stride;
  }
  call.weights_pitch = call.kernel * call.kernel * call.in_channels;
  call.eight_pitch = 8 * call.weights_pitch;
  return call;
}

// Of a transposed convolution to 8 channels with stride 1, the products for all taps: as a 1×1
// convolution to 8 channels for each of them.
ConvolutionShape tap_shape(ConvolutionShape shape) {
  std::swap(shape.channels, shape.small_channels);
  shape.small_channels *= shape.kernel * shape.kernel;
  shape.kernel = 1;
  return shape;
}

int64_t values_of(const ConvolutionCall& call) {
  return static_cast<int64_t>(call.batch) * call.out_height * call.out_width * call.out_channels;
}

}  // namespace

int convolution_tile_count() { return kTileCount; }
std::pair<int, int> convolution_tile_size(int tile) {
  return {kTiles[tile].rows, kTiles[tile].columns};
}

bool convolution_fits(const ConvolutionShape& shape) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  const int64_t large = shape.batch * shape.height * shape.width * shape.channels;
  const int64_t small =
      shape.batch * shape.small_height() * shape.small_width() * shape.small_channels;
  const int64_t weight = shape.kernel * shape.kernel * shape.channels * shape.small_channels;
  // Also with what lies beyond the edges.
  return std::max(shape.height, shape.width) <= 16'000 && large <= kMost && small <= kMost &&
         weight <= kMost;
}

namespace {

struct Plan {
  Tiling tiling;
  double time = std::numeric_limits<double>::infinity();
};

Plan fastest(Float type, bool transposed, const ConvolutionShape& shape) {
  constexpr int kMostParts = 16, kMostRounds = 4;
  ConvolutionCall call = call_of(shape, transposed);
  const int64_t values = values_of(call);
  const int deep = kDepthBytes / (type == Float::kFloat32 ? 4 : 2);
  const std::size_t shared = largest_shared_bytes();
  const int multiprocessors = multiprocessor_count();
  Plan best;
  for (int i = 0; i < kTileCount; ++i) {
    const TileSpeed& tile = kTiles[i];
    if (tile.shared_bytes > static_cast<int64_t>(shared)) continue;
    const int64_t tiles = static_cast<int64_t>(add_classes(shape, transposed, tile.rows, call)) *
                          up(call.out_channels, tile.columns);
    int chunks = 0;
    for (int k = 0; k < call.classes; ++k) {
      const PixelClass& of = call.of_class[k];
      chunks = std::max(chunks, up(of.taps_y * of.taps_x * call.in_channels, deep));
    }
    for (int rounds = 0; rounds <= kMostRounds; ++rounds) {
      // One part, or as many as leave all multiprocessors work, once or several times.
      const int blocks = rounds * multiprocessors / static_cast<int>(tiles);
      const int parts = std::clamp(blocks, 1, std::min(kMostParts, std::max(chunks, 1)));
      const double more = parts == 1 ? 0 : kLaunch + kPerPart * static_cast<double>(parts * values);
      const double time =
          blocks_time(tile, tiles * parts, up(chunks, parts), multiprocessors) + more;
      if (time < best.time) best = {{i, parts}, time};
    }
  }
  return best;
}

}  // namespace

Tiling convolution_tiling(Float type, bool transposed, const ConvolutionShape& shape) {
  const Plan direct = fastest(type, transposed, shape);
  if (!transposed || shape.stride != 1 || shape.channels != kTapChannels || shape.kernel == 1 ||
      !convolution_fits(tap_shape(shape))) {
    return direct.tiling;
  }
  Plan by_taps = fastest(type, false, tap_shape(shape));
  if (by_taps.tiling.parts > 1) return direct.tiling;
  by_taps.tiling.by_taps = true;
  by_taps.time += kLaunch + kPerPart * static_cast<double>(
                                           convolution_parts(transposed, shape, by_taps.tiling));
  return direct.time < by_taps.time ? direct.tiling : by_taps.tiling;
}

int64_t convolution_parts(bool transposed, const ConvolutionShape& shape, Tiling tiling) {
  const int64_t values = values_of(call_of(shape, transposed));
  if (tiling.by_taps) return values * shape.kernel * shape.kernel;
  return tiling.parts > 1 ? tiling.parts * values : 0;
}

void convolve(Float type, const ConvolutionShape& shape, const Convolution& convolution,
              Tiling tiling, CudaStream stream) {
  ConvolutionCall end = call_of(shape, convolution.transposed);
  end.x = convolution.x;
  end.weight = convolution.weight;
  end.y = convolution.y;
  end.added = convolution.added;
  end.mask = convolution.mask;
  end.relu = convolution.relu;
  end.rounds = convolution.rounds;
  end.values = values_of(end);
  end.parts = tiling.parts;
  end.sums = tiling.parts > 1 || tiling.by_taps ? convolution.parts : nullptr;
  ConvolutionCall call = end;
  if (tiling.by_taps) {
    call = call_of(tap_shape(shape), false);
    call.x = convolution.x;
    call.weight = convolution.weight;
    call.sums = convolution.parts;
    call.parts = 1;
    call.weights_pitch = end.weights_pitch;
    call.eight_pitch = call.in_channels;
  }
  with_convolution_tile(tiling.tile, [&](auto tile) {
    using S = decltype(tile);
    call.column_tiles = up(call.out_channels, S::kColumns);
    call.row_tiles = tiling.by_taps ? add_classes(tap_shape(shape), false, S::kRows, call)
                                    : add_classes(shape, convolution.transposed, S::kRows, call);
    with_factor(type, [&](auto value) {
      using T = decltype(value);
      launch_early(convolution_kernel<T, S>,
                   static_cast<unsigned>(call.row_tiles * call.column_tiles * call.parts),
                   S::kThreads, shared_bytes<S>(), stream, call);
      if (tiling.by_taps) {
        launch_early(add_taps_kernel<T>,
                     static_cast<unsigned>(up(end.values, kTapChannels * kAddingThreads)),
                     kAddingThreads, 0, stream, end);
      } else if (tiling.parts > 1) {
        launch_early(add_parts_kernel<T>, static_cast<unsigned>(up(end.values, 8 * kAddingThreads)),
                     kAddingThreads, 0, stream, end);
      }
    });
  });
}

}  // namespace asng::cuda
