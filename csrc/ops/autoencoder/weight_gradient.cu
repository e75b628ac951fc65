// Gradients of the weights of convolutions as products on tensor cores, see convolution_tiles.h.
#include <algorithm>
#include <limits>
#include <stdexcept>

#include "ops/autoencoder/convolution.h"
#include "ops/autoencoder/weight_gradient_body.h"
#include "platform/cuda.h"

namespace asng::cuda {

namespace {

// Those of warpgroups are predicted, not measured.
constexpr double kSpeeds[] = {0.88, 0.88, 0.8, 0.7, 0.86, 0.5, 0.66, 1.5, 1.2, 0.9};
constexpr auto kTiles = speeds_of(GradientTiles(), kSpeeds, [](auto tile) {
  using S = decltype(tile);
  return S::kStages * stage_bytes<__nv_bfloat16, S>();
});
constexpr int kTileCount = static_cast<int>(std::size(kTiles)), kTilesOfWarps = 7;
static_assert(!kTiles[kTilesOfWarps - 1].of_warpgroups && kTiles[kTilesOfWarps].of_warpgroups);
// For persistent kernels alone.
constexpr int kNarrowTile = 6;

template <class T, class S>
__global__ __launch_bounds__(S::kThreads, S::kBlocks) void weight_gradient_kernel(
    const WeightGradientCall call) {
  if constexpr (!S::kOfWarpgroups || kMayMultiplyByWarpgroups) {
    add_products<T, S>(call, static_cast<int>(blockIdx.x), dynamic_shared<char>(),
                       [] { wait_for_earlier_kernels(); });
  }
}

}  // namespace

// Warpgroups cannot turn factors in TF32.
int gradient_tile_count(Float type) {
  return type == Float::kBFloat16 ? kTileCount : kTilesOfWarps;
}
std::pair<int, int> gradient_tile_size(int tile) {
  return {kTiles[tile].rows, kTiles[tile].columns};
}

Tiling weight_gradient_tiling(Float type, const ConvolutionShape& shape, Launches launches) {
  const std::size_t shared = largest_shared_bytes();
  const int multiprocessors = multiprocessor_count();
  const int64_t columns = shape.kernel * shape.kernel * shape.channels;
  const int64_t pixels = shape.batch * shape.small_height() * shape.small_width();
  const int chunks = up(pixels, kDepthBytes / (type == Float::kFloat32 ? 4 : 2));
  constexpr int kMostParts = 128, kMostRounds = 6;
  const double part_time = kPerPart * static_cast<double>(columns * shape.small_channels);
  const int count = allows_warpgroups() ? gradient_tile_count(type) : kTilesOfWarps;
  Tiling best;
  double best_time = std::numeric_limits<double>::infinity();
  const auto tiles_of = [&](const TileSpeed& tile) {
    return static_cast<int64_t>(up(shape.small_channels, tile.rows)) * up(columns, tile.columns);
  };
  for (int i = 0; i < count; ++i) {
    const TileSpeed& tile = kTiles[i];
    if (i == kNarrowTile || tile.shared_bytes > static_cast<int64_t>(shared)) continue;
    const int64_t tiles = tiles_of(tile);
    // As many parts as leave all multiprocessors about as much work, once or several times.
    for (int rounds = 1; rounds <= kMostRounds; ++rounds) {
      const int blocks = rounds * multiprocessors / static_cast<int>(tiles);
      const int wanted = std::clamp(blocks, 1, std::min(kMostParts, chunks));
      const int of_part = up(chunks, wanted), parts = up(chunks, of_part);
      const double time =
          blocks_time(tile, tiles * parts, of_part, multiprocessors) + parts * part_time;
      if (time < best_time) {
        best_time = time;
        best = {i, parts};
      }
    }
  }
  if (launches == Launches::kEach) return best;
  // Of the tiles whose blocks are alike the fastest one for as many parts.
  best_time = std::numeric_limits<double>::infinity();
  for (int i = 0; i < count; ++i) {
    const TileSpeed& tile = kTiles[i];
    if (tile.threads != kPersistentThreads) continue;
    const double time =
        blocks_time(tile, tiles_of(tile) * best.parts, up(chunks, best.parts), multiprocessors);
    if (time < best_time) {
      best_time = time;
      best.tile = i;
    }
  }
  return best;
}

void weight_gradient(Float type, const ConvolutionShape& shape, const void* small_map,
                     const void* large_map, float* parts, Tiling tiling, CudaStream stream) {
  WeightGradientCall call = gradient_call_of(
      static_cast<int>(shape.batch), static_cast<int>(shape.height), static_cast<int>(shape.width),
      static_cast<int>(shape.channels), static_cast<int>(shape.small_channels),
      static_cast<int>(shape.kernel), static_cast<int>(shape.stride));
  call.small_map = small_map;
  call.large_map = large_map;
  call.parts = parts;
  with_factor(type, [&](auto value) {
    using T = decltype(value);
    divide<T>(call, tiling.parts);
    if (up(call.chunks, call.chunks_of_part) != tiling.parts) {
      throw std::runtime_error("there are too many parts of a weight's gradient");
    }
    const bool found = with_tile(GradientTiles(), tiling.tile, [&](auto tile) {
      using S = decltype(tile);
      if (S::kOfWarpgroups) require_warpgroup_products();
      call.row_tiles = up(call.small_channels, S::kRows);
      call.column_tiles = up(call.kernel * call.kernel * call.channels, S::kColumns);
      if constexpr (!kMultipliesGradients<T, S>) {
        throw std::runtime_error("there is no such tile in TF32");
      } else {
        launch_early(weight_gradient_kernel<T, S>,
                     static_cast<unsigned>(call.row_tiles * call.column_tiles * tiling.parts),
                     S::kThreads, S::kStages * stage_bytes<T, S>(), stream, call);
      }
    });
    if (!found) throw std::runtime_error("there is no such tile");
  });
}

}  // namespace asng::cuda
