// Convolutions and their gradients as products on tensor cores. A block computes a tile of the
// result. What it multiplies passes through a ring of stages in shared memory, which cp.async
// fills: each stage has 128 bytes, in depth, of every row and column of the tile. Pieces of 16
// bytes stand there in an order in which no two lanes that read at the same time ask for the same
// bank.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "ops/autoencoder/convolution.h"
#include "platform/cuda.h"

namespace asng::cuda {

namespace {

constexpr int kPiece = 16, kDepthBytes = 128, kPieces = kDepthBytes / kPiece;
// Of kernels of stride 2 transposed, for both rows and columns even and odd.
constexpr int kMostParities = 4;
// What warps compute is cut into groups of as many columns.
constexpr int kGroup = 32;

// The tile of a block, and how its warps divide it among them.
template <int kTileRows, int kTileColumns, int kWarpsDown, int kWarpsAcross, int kDeepStages,
          int kBlocksTogether>
struct Tile {
  static constexpr int kRows = kTileRows, kColumns = kTileColumns, kStages = kDeepStages;
  static constexpr int kThreads = 32 * kWarpsDown * kWarpsAcross;
  static constexpr int kBlocks = kBlocksTogether;  // on a multiprocessor
  static constexpr int kAcross = kWarpsAcross;
  static constexpr int kWarpRows = kRows / kWarpsDown, kWarpColumns = kColumns / kWarpsAcross;
  static constexpr int kDown = kWarpRows / 16, kGroups = kWarpColumns / kGroup;
  static constexpr int kStageBytes = (kRows + kColumns) * kDepthBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  // Sums over pixels need rows and columns that threads divide among them, and of a pixel at least
  // eight pieces of each.
  static constexpr bool kSumsPixels = (kRows & (kRows - 1)) == 0 &&
                                      (kColumns & (kColumns - 1)) == 0 && kRows >= 64 &&
                                      kColumns >= 64 && kWarpRows % kGroup == 0;
  static_assert(kWarpColumns % kGroup == 0 && kWarpRows % 16 == 0);
};

using Tile256x128 = Tile<256, 128, 4, 2, 4, 1>;
using Tile128x128 = Tile<128, 128, 2, 2, 3, 2>;
using Tile128x96 = Tile<128, 96, 4, 1, 3, 2>;
using Tile128x64 = Tile<128, 64, 2, 2, 4, 2>;
using Tile64x64 = Tile<64, 64, 2, 2, 4, 3>;
using Tile128x32 = Tile<128, 32, 4, 1, 4, 2>;

// How fast tiles are, as a part of the fastest one's products in a time.
struct TileSpeed {
  int rows, columns, shared_bytes, blocks;
  bool sums_pixels;
  double speed;
};
template <class S>
constexpr TileSpeed tile_speed(double speed) {
  return {S::kRows, S::kColumns, S::kSharedBytes, S::kBlocks, S::kSumsPixels, speed};
}
constexpr TileSpeed kTiles[] = {tile_speed<Tile256x128>(1.0), tile_speed<Tile128x128>(0.95),
                                tile_speed<Tile128x96>(0.85), tile_speed<Tile128x64>(0.75),
                                tile_speed<Tile64x64>(0.55),  tile_speed<Tile128x32>(0.45)};
constexpr int kTileCount = static_cast<int>(std::size(kTiles));

template <class F>
void with_tile(int tile, F f) {
  switch (tile) {
    case 0:
      return f(Tile256x128());
    case 1:
      return f(Tile128x128());
    case 2:
      return f(Tile128x96());
    case 3:
      return f(Tile128x64());
    case 4:
      return f(Tile64x64());
    case 5:
      return f(Tile128x32());
    default:
      throw std::runtime_error("there is no such tile");
  }
}

template <class F>
void with_factor(Float type, F f) {
  switch (type) {
    case Float::kFloat32:
      return f(float());
    case Float::kBFloat16:
      return f(__nv_bfloat16());
    default:
      throw std::runtime_error("convolutions are for float32 and bfloat16");
  }
}

__device__ __forceinline__ void multiply(float, float (&c)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2]) {
  mma_tf32(c, a, b);
}
__device__ __forceinline__ void multiply(__nv_bfloat16, float (&c)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2]) {
  mma_bfloat16(c, a, b);
}

// A warp's sums. Tiles of 16×8 stand below each other and side by side, four in a group. Lane
// 4·g + t has rows g and g + 8 of each, columns 2·t and 2·t + 1, as mma says.
template <class T, class S>
struct Sums {
  float of[S::kDown][4 * S::kGroups][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < S::kDown; ++i) {
#pragma unroll
      for (int j = 0; j < 4 * S::kGroups; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) of[i][j][k] = 0;
      }
    }
  }
};
template <class T, class S>
struct Factors {
  unsigned left[S::kDown][4], right[4 * S::kGroups][2];

  __device__ __forceinline__ void add_to(Sums<T, S>& sums) const {
#pragma unroll
    for (int i = 0; i < S::kDown; ++i) {
#pragma unroll
      for (int j = 0; j < 4 * S::kGroups; ++j) multiply(T(), sums.of[i][j], left[i], right[j]);
    }
  }
};

// Keeps the ring going: load(c, stage) starts to copy chunk c, and use(stage) multiplies it.
template <class S, class Load, class Use>
__device__ __forceinline__ void run_ring(int chunks, char* shared, Load load, Use use) {
#pragma unroll
  for (int c = 0; c < S::kStages - 1; ++c) {
    if (c < chunks) load(shared + c * S::kStageBytes);
    close_copies();
  }
  int filled = S::kStages - 1, used = 0;
#pragma unroll 1
  for (int c = 0; c < chunks; ++c) {
    wait_for_closed_copies<S::kStages - 2>();
    // This also says that all are done with the stage that is filled next.
    __syncthreads();
    if (c + S::kStages - 1 < chunks) load(shared + filled * S::kStageBytes);
    close_copies();
    use(shared + used * S::kStageBytes);
    filled = filled == S::kStages - 1 ? 0 : filled + 1;
    used = used == S::kStages - 1 ? 0 : used + 1;
  }
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

template <class T>
struct alignas(16) EightOf {
  T v[8];
};

__device__ __forceinline__ void load_eight(const float* from, float (&to)[8]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float4 four = *reinterpret_cast<const float4*>(from + 4 * half);
    to[4 * half] = four.x;
    to[4 * half + 1] = four.y;
    to[4 * half + 2] = four.z;
    to[4 * half + 3] = four.w;
  }
}
__device__ __forceinline__ void load_eight(const __nv_bfloat16* from, float (&to)[8]) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  const unsigned pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(pairs[i] << 16);
    to[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ void store_eight(float* to, const float (&from)[8], bool rounds) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float four[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      four[i] = from[4 * half + i];
      if (rounds) four[i] = __uint_as_float(to_tf32(four[i]));
    }
    write_at_once(to + 4 * half, make_float4(four[0], four[1], four[2], four[3]));
  }
}
__device__ __forceinline__ unsigned pair_of(float low, float high) {
  return __bfloat16_as_ushort(__float2bfloat16(low)) |
         static_cast<unsigned>(__bfloat16_as_ushort(__float2bfloat16(high))) << 16;
}
__device__ __forceinline__ void store_eight(__nv_bfloat16* to, const float (&from)[8], bool) {
  write_at_once(to, make_uint4(pair_of(from[0], from[1]), pair_of(from[2], from[3]),
                               pair_of(from[4], from[5]), pair_of(from[6], from[7])));
}

// What is done to eight neighboring sums, from number `at` of the result on.
template <class T>
__device__ __forceinline__ void finish_eight(const ConvolutionCall& call, int at,
                                             float (&value)[8]) {
  if (call.added != nullptr) {
    float other[8];
    load_eight(static_cast<const T*>(call.added) + at, other);
#pragma unroll
    for (int k = 0; k < 8; ++k) value[k] += other[k];
  }
  if (call.relu) {
#pragma unroll
    for (int k = 0; k < 8; ++k) value[k] = value[k] <= 0 ? 0 : value[k];
  }
  if (call.mask != nullptr) {
    float sign[8];
    load_eight(static_cast<const T*>(call.mask) + at, sign);
#pragma unroll
    for (int k = 0; k < 8; ++k) value[k] = sign[k] <= 0 ? 0 : value[k];
  }
  store_eight(static_cast<T*>(call.y) + at, value, call.rounds);
}

// Adds the parts of all sums.
constexpr int kAddingThreads = 256;
constexpr int kTapChannels = 8;
template <class T>
__global__ __launch_bounds__(kAddingThreads) void add_parts_kernel(const ConvolutionCall call) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kAddingThreads + threadIdx.x) * 8;
  if (at >= call.values) return;
  float value[8];
  load_eight(call.sums + at, value);
#pragma unroll 4
  for (int p = 1; p < call.parts; ++p) {
    float other[8];
    load_eight(call.sums + p * call.values + at, other);
#pragma unroll
    for (int k = 0; k < 8; ++k) value[k] += other[k];
  }
  finish_eight<T>(call, static_cast<int>(at), value);
}

// Adds for each pixel of the result what comes to it by each tap, of sums (pixels, taps, 8). The
// call is that of the convolution, whose stride is 1.
template <class T>
__global__ __launch_bounds__(kAddingThreads) void add_taps_kernel(const ConvolutionCall call) {
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
      load_eight(call.sums + from * kTapChannels, other);
#pragma unroll
      for (int k = 0; k < 8; ++k) value[k] += other[k];
    }
  }
  finish_eight<T>(call, at * kTapChannels, value);
}

// Rows of the product are pixels of the result, columns its channels, and the depth are the taps
// and the channels of what is read: a row of a stage is 128 bytes of a pixel, or of a channel's
// weights. Column n of tile j of a group is the group's column 4·n + j, so that a lane has eight
// neighbors.
template <class T, class S>
__global__ __launch_bounds__(S::kThreads,
                             S::kBlocks) void convolution_kernel(const ConvolutionCall call) {
  constexpr int kDeep = kDepthBytes / sizeof(T), kWide = kPiece / sizeof(T);
  constexpr int kAtOnce = S::kThreads / kPieces;  // rows that all threads copy
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
          stage + (S::kRows + column) * kDepthBytes + (piece ^ column / 4 % kPieces) * kPiece,
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
  const int right = (S::kRows + warp_column + 4 * (lane % 8) + lane / 16) * kDepthBytes;
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
    for (int j = 0; j < 2 * S::kGroups; ++j) {
      unsigned both[4];
      load_matrices(both, stage + right + (j / 2 * kGroup + j % 2 * 2) * kDepthBytes +
                              (right_piece ^ 2 * k) * kPiece);
      factors.right[2 * j][0] = both[0];
      factors.right[2 * j][1] = both[1];
      factors.right[2 * j + 1][0] = both[2];
      factors.right[2 * j + 1][1] = both[3];
    }
  };
  const auto use = [&](const char* stage) {
    Factors<T, S> factors[2];
    read(factors[0], stage, 0);
#pragma unroll
    for (int k = 0; k < kPieces / 2; ++k) {
      if (k + 1 < kPieces / 2) read(factors[(k + 1) % 2], stage, k + 1);
      factors[k % 2].add_to(sums);
    }
  };
  run_ring<S>(min(chunks_of_part, all_chunks - first_chunk), shared, load, use);

#pragma unroll
  for (int i = 0; i < 2 * S::kDown; ++i) {
    const int at = first_row + warp_row + i * 8 + lane / 4;
    if (at >= rows) continue;
    const int b = at / image, in_image = at - b * image;
    const int u = in_image / pixels.width, v = in_image - u * pixels.width;
    const int y = u * call.spread + pixels.first_y, x0 = v * call.spread + pixels.first_x;
    const int to = ((b * call.out_height + y) * call.out_width + x0) * call.out_channels;
#pragma unroll
    for (int j = 0; j < S::kGroups; ++j) {
      const int column = first_column + warp_column + j * kGroup + lane % 4 * 8;
      if (column >= call.out_channels) continue;
      float value[8];
#pragma unroll
      for (int k = 0; k < 8; ++k) value[k] = sums.of[i / 2][4 * j + k % 4][i % 2 * 2 + k / 4];
      if (call.sums != nullptr) {
        store_eight(call.sums + part * call.values + to + column, value, false);
      } else {
        finish_eight<T>(call, to + column, value);
      }
    }
  }
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
    return reinterpret_cast<const float*>(stage + q * kWidth * 4 + swizzled(q, n / 4) * kPiece) +
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
    stage += S::kRows * kDepthBytes;
#pragma unroll
    for (int j = 0; j < 4 * S::kGroups; ++j) {
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
      load_turned_matrices(factors.left[i],
                           stage + q * S::kRows * 2 + swizzled(q, p + 2 * i) * kPiece);
    }
    stage += S::kRows * kDepthBytes;
    const int other_q = k * 16 + lane % 16, other_p = warp_column / 8 + lane / 16;
#pragma unroll
    for (int j = 0; j < 2 * S::kGroups; ++j) {
      unsigned both[4];
      load_turned_matrices(
          both, stage + other_q * S::kColumns * 2 + swizzled(other_q, other_p + 2 * j) * kPiece);
      factors.right[2 * j][0] = both[0];
      factors.right[2 * j][1] = both[1];
      factors.right[2 * j + 1][0] = both[2];
      factors.right[2 * j + 1][1] = both[3];
    }
  }
};

// Rows of the product are channels of the smaller map, columns are taps and channels of the larger
// one, and the depth are pixels. A part of the pixels is a block's.
template <class T, class S>
__global__ __launch_bounds__(S::kThreads, S::kBlocks) void weight_gradient_kernel(
    const WeightGradientCall call) {
  using Read = PixelFactors<T>;
  constexpr int kDeep = kDepthBytes / sizeof(T), kWide = kPiece / sizeof(T);
  constexpr int kRowPieces = S::kRows / kWide, kColumnPieces = S::kColumns / kWide;
  constexpr int kRowsAtOnce = S::kThreads / kRowPieces;  // pixels that all threads copy
  constexpr int kColumnsAtOnce = S::kThreads / kColumnPieces;
  constexpr int kRowSteps = kDeep / kRowsAtOnce, kColumnSteps = kDeep / kColumnsAtOnce;
  static_assert(kRowSteps * kRowsAtOnce == kDeep && kColumnSteps * kColumnsAtOnce == kDeep);
  char* const shared = dynamic_shared<char>();
  const T* const small_map = static_cast<const T*>(call.small_map);
  const T* const large_map = static_cast<const T*>(call.large_map);
  const int tiles = call.row_tiles * call.column_tiles;
  const int part = static_cast<int>(blockIdx.x) / tiles;
  const int tile = static_cast<int>(blockIdx.x) - part * tiles;
  const int first_row = tile % call.row_tiles * S::kRows;
  const int first_column = tile / call.row_tiles * S::kColumns;
  const int columns = call.kernel * call.kernel * call.channels;
  const int first_chunk = part * call.chunks_of_part;
  const int chunks = min(call.chunks_of_part, call.chunks - first_chunk);

  // This thread copies one piece of some neighboring pixels of either map.
  const int piece = threadIdx.x % kRowPieces, pixel = threadIdx.x / kRowPieces * kRowSteps;
  const int channel = first_row + piece * kWide;
  const bool is_row = channel < call.small_channels;
  int at = first_chunk * kDeep + pixel;
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
    y += over ? call.stride : 0;
    const bool all_over = y >= image_step + tap_y;
    y -= all_over ? image_step : 0;
    start += all_over ? large_image : 0;
  };
  const auto load = [&](char* stage) {
#pragma unroll
    for (int i = 0; i < kRowSteps; ++i) {
      const bool there = is_row && at + i < call.pixels;
      copy_async16(stage + (pixel + i) * S::kRows * static_cast<int>(sizeof(T)) +
                       Read::swizzled(pixel + i, piece) * kPiece,
                   small_map + (there ? (at + i) * call.small_channels + channel : 0), there);
    }
    at += kDeep;
    stage += S::kRows * kDepthBytes;
#pragma unroll
    for (int i = 0; i < kColumnSteps; ++i) {
      const bool there = is_column && other_at + i < call.pixels &&
                         static_cast<unsigned>(y) < static_cast<unsigned>(call.large_height) &&
                         static_cast<unsigned>(x) < static_cast<unsigned>(call.large_width);
      copy_async16(stage + (other_pixel + i) * S::kColumns * static_cast<int>(sizeof(T)) +
                       Read::swizzled(other_pixel + i, other_piece) * kPiece,
                   large_map + (there ? start + (y * call.large_width + x) * call.channels : 0),
                   there);
      x += call.stride;
      to_next_row();
    }
    other_at += kDeep;
    x += (kDeep - kColumnSteps) * call.stride;
    while (x >= row_step + tap_x) to_next_row();
  };

  const int warp = threadIdx.x / 32;
  const int warp_row = warp / S::kAcross * S::kWarpRows;
  const int warp_column = warp % S::kAcross * S::kWarpColumns;
  Sums<T, S> sums;
  sums.clear();
  const auto use = [&](const char* stage) {
    Factors<T, S> factors[2];
    Read::read(factors[0], stage, warp_row, warp_column, 0);
#pragma unroll
    for (int k = 0; k < kPieces / 2; ++k) {
      if (k + 1 < kPieces / 2) {
        Read::read(factors[(k + 1) % 2], stage, warp_row, warp_column, k + 1);
      }
      factors[k % 2].add_to(sums);
    }
  };
  run_ring<S>(chunks, shared, load, use);

  float* const to = call.parts + static_cast<int64_t>(part) * call.small_channels * columns;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < 2 * S::kDown; ++i) {
    const int r = first_row + warp_row + i / 2 * 16 + Read::row(g, i % 2);
#pragma unroll
    for (int j = 0; j < 4 * S::kGroups; ++j) {
      const int c = first_column + warp_column + j * 8 + 2 * t;
      if (r >= call.small_channels || c >= columns) continue;
      const float (&four)[4] = sums.of[i / 2][j];
      write_at_once(
          to + static_cast<int64_t>(r) * columns + c,
          make_uint2(__float_as_uint(four[i % 2 * 2]), __float_as_uint(four[i % 2 * 2 + 1])));
    }
  }
}

int up(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

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

// Predictions, in µs. A multiprocessor multiplies and adds for so many numbers of a tile and 128
// bytes of depth, whatever the type, and this is what it takes to write a float to memory and read
// it again, and to launch another kernel.
constexpr double kPerNumber = 3.7e-5, kPerPart = 2e-6, kLaunch = 3;
// A block alone on its multiprocessor is as fast as so many of them together, and some chunks pass
// before its first product is ready.
constexpr double kAlone = 1.6, kFirstChunks = 3;

double blocks_time(const TileSpeed& tile, int64_t blocks, int chunks, int multiprocessors) {
  const double in_a_row =
      std::max<double>(up(blocks, multiprocessors), tile.blocks > 1 ? kAlone : 1);
  return in_a_row * (chunks + kFirstChunks) * kPerNumber * tile.rows * tile.columns / tile.speed;
}

}  // namespace

int tile_count() { return kTileCount; }
std::pair<int, int> tile_size(int tile) { return {kTiles[tile].rows, kTiles[tile].columns}; }

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
  constexpr int kMostParts = 16;
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
    for (int parts = 1; parts <= std::min(kMostParts, std::max(chunks, 1)); ++parts) {
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
  with_tile(tiling.tile, [&](auto tile) {
    using S = decltype(tile);
    call.column_tiles = up(call.out_channels, S::kColumns);
    call.row_tiles = tiling.by_taps ? add_classes(tap_shape(shape), false, S::kRows, call)
                                    : add_classes(shape, convolution.transposed, S::kRows, call);
    with_factor(type, [&](auto value) {
      using T = decltype(value);
      launch(convolution_kernel<T, S>,
             static_cast<unsigned>(call.row_tiles * call.column_tiles * call.parts), S::kThreads,
             S::kSharedBytes, stream, call);
      if (tiling.by_taps) {
        launch(add_taps_kernel<T>,
               static_cast<unsigned>(up(end.values, kTapChannels * kAddingThreads)), kAddingThreads,
               0, stream, end);
      } else if (tiling.parts > 1) {
        launch(add_parts_kernel<T>, static_cast<unsigned>(up(end.values, 8 * kAddingThreads)),
               kAddingThreads, 0, stream, end);
      }
    });
  });
}

Tiling weight_gradient_tiling(Float type, const ConvolutionShape& shape) {
  const std::size_t shared = largest_shared_bytes();
  const int multiprocessors = multiprocessor_count();
  const int64_t columns = shape.kernel * shape.kernel * shape.channels;
  const int64_t pixels = shape.batch * shape.small_height() * shape.small_width();
  const int chunks = up(pixels, kDepthBytes / (type == Float::kFloat32 ? 4 : 2));
  constexpr int kMostParts = 64;
  const double part_time = kPerPart * static_cast<double>(columns * shape.small_channels);
  Tiling best;
  double best_time = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kTileCount; ++i) {
    const TileSpeed& tile = kTiles[i];
    if (!tile.sums_pixels || tile.shared_bytes > static_cast<int64_t>(shared)) continue;
    const int64_t tiles =
        static_cast<int64_t>(up(shape.small_channels, tile.rows)) * up(columns, tile.columns);
    for (int wanted = 1; wanted <= std::min(kMostParts, chunks); ++wanted) {
      const int of_part = up(chunks, wanted), parts = up(chunks, of_part);
      const double time =
          blocks_time(tile, tiles * parts, of_part, multiprocessors) + parts * part_time;
      if (time < best_time) {
        best_time = time;
        best = {i, parts};
      }
    }
  }
  return best;
}

void weight_gradient(Float type, const ConvolutionShape& shape, const void* small_map,
                     const void* large_map, float* parts, Tiling tiling, CudaStream stream) {
  WeightGradientCall call = {};
  call.small_map = small_map;
  call.large_map = large_map;
  call.parts = parts;
  call.height = static_cast<int>(shape.small_height());
  call.width = static_cast<int>(shape.small_width());
  call.large_height = static_cast<int>(shape.height);
  call.large_width = static_cast<int>(shape.width);
  call.pixels = static_cast<int>(shape.batch) * call.height * call.width;
  call.small_channels = static_cast<int>(shape.small_channels);
  call.channels = static_cast<int>(shape.channels);
  call.kernel = static_cast<int>(shape.kernel);
  call.stride = static_cast<int>(shape.stride);
  with_factor(type, [&](auto value) {
    using T = decltype(value);
    call.chunks = up(call.pixels, kDepthBytes / sizeof(T));
    call.chunks_of_part = up(call.chunks, tiling.parts);
    if (up(call.chunks, call.chunks_of_part) != tiling.parts) {
      throw std::runtime_error("there are too many parts of a weight's gradient");
    }
    with_tile(tiling.tile, [&](auto tile) {
      using S = decltype(tile);
      if constexpr (S::kSumsPixels) {
        call.row_tiles = up(call.small_channels, S::kRows);
        call.column_tiles = up(call.kernel * call.kernel * call.channels, S::kColumns);
        launch(weight_gradient_kernel<T, S>,
               static_cast<unsigned>(call.row_tiles * call.column_tiles * tiling.parts),
               S::kThreads, S::kSharedBytes, stream, call);
      } else {
        throw std::runtime_error("a tile is not for sums over pixels");
      }
    });
  });
}

}  // namespace asng::cuda
