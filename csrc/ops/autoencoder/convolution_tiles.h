// What products on tensor cores have in common, see convolution.cu and weight_gradient.cu. A block
// computes a tile of the result. What it multiplies passes through a ring of stages in shared
// memory, which cp.async fills: each stage has 128 bytes, in depth, of every row and column of the
// tile. Pieces of 16 bytes stand there in an order in which no two lanes that read at the same time
// ask for the same bank.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "core/hd.h"
#include "ops/autoencoder/convolution.h"
#include "ops/autoencoder/cuda_path.h"
#include "platform/cuda.h"
#include "platform/warpgroup.h"

namespace asng::cuda {

inline constexpr int kPiece = 16, kDepthBytes = 128, kPieces = kDepthBytes / kPiece;

// The tile of a block, and how its warps divide it among them.
template <int kTileRows, int kTileColumns, int kWarpsDown, int kWarpsAcross, int kDeepStages,
          int kBlocksTogether>
struct Tile {
  static constexpr int kRows = kTileRows, kColumns = kTileColumns, kStages = kDeepStages;
  static constexpr int kThreads = 32 * kWarpsDown * kWarpsAcross;
  static constexpr int kBlocks = kBlocksTogether;  // on a multiprocessor
  static constexpr bool kOfWarpgroups = false;
  static constexpr int kAcross = kWarpsAcross;
  static constexpr int kWarpRows = kRows / kWarpsDown, kWarpColumns = kColumns / kWarpsAcross;
  // Products of a warp, which are 16×8 each.
  static constexpr int kDown = kWarpRows / 16, kBeside = kWarpColumns / 8;
  static_assert(kWarpColumns % 16 == 0 && kWarpRows % 16 == 0);

  // Of a warp: where its products begin in the tile, which stand below each other.
  ASNG_HD static constexpr int row(int warp, int product) {
    return warp / kAcross * kWarpRows + product * 16;
  }
  ASNG_HD static constexpr int column(int warp) { return warp % kAcross * kWarpColumns; }
};

// The same, multiplied by warpgroups, each of which has some rows and all columns.
template <int kTileRows, int kTileColumns, int kWarpgroups, int kDeepStages, int kBlocksTogether>
struct WarpgroupTile {
  static constexpr int kRows = kTileRows, kColumns = kTileColumns, kStages = kDeepStages;
  static constexpr int kThreads = 128 * kWarpgroups;
  static constexpr int kBlocks = kBlocksTogether;
  static constexpr bool kOfWarpgroups = true;
  static constexpr int kGroupRows = kRows / kWarpgroups;
  // Products of a warpgroup, which are as wide as the tile, and of each 16×8 ones of a warp.
  static constexpr int kDown = kGroupRows / 64, kBeside = kColumns / 8;
  // A block alone on its multiprocessor multiplies a stage while it gets ready for the next one.
  static constexpr int kOpenStages = kBlocks == 1 ? 1 : 0;
  static_assert(kGroupRows % 64 == 0 && kColumns % 32 == 0 && kStages >= kOpenStages + 3);

  ASNG_HD static constexpr int row(int warp, int product) {
    return warp / 4 * kGroupRows + product * 64 + warp % 4 * 16;
  }
  // This thread's warpgroup, as a number that compilers see to be the same for a whole warp.
  __device__ static __forceinline__ int group() {
    if constexpr (kWarpgroups == 1) {
      return 0;
    } else {
      return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
    }
  }
  ASNG_HD static constexpr int column(int) { return 0; }
};

// Those that products of both kinds have.
using Tile256x128 = Tile<256, 128, 4, 2, 4, 1>;
using Tile128x128 = Tile<128, 128, 2, 2, 3, 2>;
using Tile64x64 = Tile<64, 64, 2, 2, 4, 3>;
using Wgmma256x128 = WarpgroupTile<256, 128, 2, 4, 1>;
using Wgmma128x128 = WarpgroupTile<128, 128, 1, 3, 2>;

template <class... Tiles>
struct TileList {};

ASNG_HD inline int up(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// What is known of a tile to predict times, in µs.
struct TileSpeed {
  int rows, columns, threads, shared_bytes, blocks;
  double speed;  // that of the fastest tile of warps is 1
  bool of_warpgroups = false;
};
template <class... Tiles, std::size_t kCount, class Bytes>
constexpr std::array<TileSpeed, kCount> speeds_of(TileList<Tiles...>,
                                                  const double (&speeds)[kCount], Bytes bytes) {
  static_assert(sizeof...(Tiles) == kCount);
  std::array<TileSpeed, kCount> all = {TileSpeed{Tiles::kRows, Tiles::kColumns, Tiles::kThreads,
                                                 bytes(Tiles()), Tiles::kBlocks, 0,
                                                 Tiles::kOfWarpgroups}...};
  for (std::size_t i = 0; i < kCount; ++i) all[i].speed = speeds[i];
  return all;
}
// Whether tiles of warpgroups may be used; an error if they were chosen and cannot be.
inline bool allows_warpgroups() {
  if (tensor_cores_choice() == TensorCores::kMma) return false;
  require_warpgroup_products();
  return true;
}
// A multiprocessor multiplies and adds for so many numbers of a tile and 128 bytes of depth,
// whatever the type, and this is what it takes to write a float to memory and read it again, and to
// launch another kernel.
inline constexpr double kPerNumber = 4.1e-5, kPerPart = 2e-6, kLaunch = 3;
// A block alone on its multiprocessor is as fast as so many of them together, and some chunks pass
// before its first product is ready.
inline constexpr double kAlone = 1.6, kFirstChunks = 3;

inline double blocks_time(const TileSpeed& tile, int64_t blocks, int chunks, int multiprocessors) {
  const double in_a_row =
      std::max<double>(up(blocks, multiprocessors), tile.blocks > 1 ? kAlone : 1);
  return in_a_row * (chunks + kFirstChunks) * kPerNumber * tile.rows * tile.columns / tile.speed;
}

// Calls f with a value of the type of a factor.
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

// Calls f with tile number `tile` of a list, and says whether there is one.
#pragma nv_exec_check_disable
template <class First, class... Others, class F>
ASNG_HD bool with_tile(TileList<First, Others...>, int tile, F f) {
  if (tile == 0) {
    f(First());
    return true;
  }
  if constexpr (sizeof...(Others) > 0) {
    return with_tile(TileList<Others...>(), tile - 1, f);
  } else {
    return false;
  }
}
// Unless it is none of a persistent kernel's.
template <class Tiles, class F>
ASNG_HD void with_persistent_tile(Tiles tiles, int tile, F f) {
  with_tile(tiles, tile, [&](auto shape) {
    if constexpr (decltype(shape)::kThreads == kPersistentThreads) f(shape);
  });
}

__device__ __forceinline__ void multiply(float, float (&c)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2]) {
  mma_tf32(c, a, b);
}
__device__ __forceinline__ void multiply(__nv_bfloat16, float (&c)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2]) {
  mma_bfloat16(c, a, b);
}

// A warp's sums, of products that stand below each other and side by side. Lane 4·g + t has rows g
// and g + 8 of each, columns 2·t and 2·t + 1, as mma says.
template <class T, class S>
struct Sums {
  float of[S::kDown][S::kBeside][4];

  template <class F>
  __device__ __forceinline__ void each(F f) {
#pragma unroll
    for (int i = 0; i < S::kDown; ++i) {
#pragma unroll
      for (int j = 0; j < S::kBeside; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) f(of[i][j][k]);
      }
    }
  }
  __device__ __forceinline__ void clear() {
    each([](float& sum) { sum = 0; });
  }
  // See platform/warpgroup.h.
  __device__ __forceinline__ void fence_operands() {
    each([](float& sum) { fence_operand(sum); });
  }
};
template <class T, class S>
struct Factors {
  unsigned left[S::kDown][4], right[S::kBeside][2];

  __device__ __forceinline__ void set_right(int pair, const unsigned (&both)[4]) {
    right[2 * pair][0] = both[0];
    right[2 * pair][1] = both[1];
    right[2 * pair + 1][0] = both[2];
    right[2 * pair + 1][1] = both[3];
  }
  __device__ __forceinline__ void add_to(Sums<T, S>& sums) const {
#pragma unroll
    for (int i = 0; i < S::kDown; ++i) {
#pragma unroll
      for (int j = 0; j < S::kBeside; ++j) multiply(T(), sums.of[i][j], left[i], right[j]);
    }
  }
};

// Adds the products of a stage: read(factors, k) reads those of 32 bytes of its depth. While they
// are multiplied, the next ones are on their way, if registers are left for them.
template <class T, class S, class Read>
__device__ __forceinline__ void add_stage(Sums<T, S>& sums, Read read) {
  constexpr int kSteps = kPieces / 2;
  constexpr int kKept = S::kDown * S::kBeside <= 32 ? 2 : 1;
  Factors<T, S> factors[kKept];
  if (kKept > 1) read(factors[0], 0);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    if (kKept == 1) {
      read(factors[0], k);
    } else if (k + 1 < kSteps) {
      read(factors[(k + 1) % kKept], k + 1);
    }
    factors[k % kKept].add_to(sums);
  }
}

// Keeps the ring going: load(stage) starts to copy the next chunk, and use(stage) multiplies one.
template <int kStages, int kStageBytes, class Load, class Use>
__device__ __forceinline__ void run_ring(int chunks, char* shared, Load load, Use use) {
#pragma unroll
  for (int c = 0; c < kStages - 1; ++c) {
    if (c < chunks) load(shared + c * kStageBytes);
    close_copies();
  }
  int filled = kStages - 1, used = 0;
#pragma unroll 1
  for (int c = 0; c < chunks; ++c) {
    wait_for_closed_copies<kStages - 2>();
    // This also says that all are done with the stage that is filled next.
    __syncthreads();
    if (c + kStages - 1 < chunks) load(shared + filled * kStageBytes);
    close_copies();
    use(shared + used * kStageBytes);
    filled = filled == kStages - 1 ? 0 : filled + 1;
    used = used == kStages - 1 ? 0 : used + 1;
  }
}

// Begins the products of a stage: those of a warpgroup's rows, of which 64 lie kBlockBytes behind
// the last, and of the columns, both kStepBytes behind for the next 32 bytes of their depth.
template <int kBlockBytes, int kStepBytes, class T, class S, class Matrix>
__device__ __forceinline__ void begin_stage(Sums<T, S>& sums, Matrix rows, Matrix columns) {
  begin_products();
#pragma unroll
  for (int k = 0; k < kPieces / 2; ++k) {
#pragma unroll
    for (int i = 0; i < S::kDown; ++i) {
      multiply_matrices(T(), sums.of[i], rows.behind(i * kBlockBytes + k * kStepBytes),
                        columns.behind(k * kStepBytes));
    }
  }
  close_products();
}

// As run_ring, where begin(stage) only begins to multiply a chunk; all are done in the end.
template <class S, int kStageBytes, class T, class Load, class Begin>
__device__ __forceinline__ void run_ring_of_warpgroups(Sums<T, S>& sums, int chunks, char* shared,
                                                       Load load, Begin begin) {
  constexpr int kStages = S::kStages, kAhead = kStages - 1 - S::kOpenStages;
#pragma unroll
  for (int c = 0; c < kAhead; ++c) {
    if (c < chunks) load(shared + c * kStageBytes);
    close_copies();
  }
  int filled = kAhead, used = 0;
  sums.fence_operands();
#pragma unroll 1
  for (int c = 0; c < chunks; ++c) {
    wait_for_closed_copies<kAhead - 1>();
    fence_async_proxy();
    // This also says that all are done with the stage that is filled next.
    __syncthreads();
    begin(shared + used * kStageBytes);
    if (c + kAhead < chunks) load(shared + filled * kStageBytes);
    close_copies();
    wait_for_closed_products<S::kOpenStages>();
    filled = filled == kStages - 1 ? 0 : filled + 1;
    used = used == kStages - 1 ? 0 : used + 1;
  }
  wait_for_closed_products<0>();
  sums.fence_operands();
}

}  // namespace asng::cuda
