// Convolutions, and transposed ones, as products on tensor cores, see convolution_tiles.h.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "ops/autoencoder/convolution.h"
#include "ops/autoencoder/convolution_body.h"
#include "platform/cuda.h"

namespace asng::cuda {

namespace {

// Those of warpgroups are predicted, not measured: as fast as their factors can come from the
// second-level cache, of which the smallest tiles of warps have got 73 bytes a ns on an H200.
constexpr double kSpeeds[] = {1, 1, 0.95, 0.99, 0.9, 0.83, 0.66, 0.6, 1.8, 1.9, 1.6, 1.4, 1.2, 1};
constexpr auto kTiles = speeds_of(ConvolutionTiles(), kSpeeds,
                                  [](auto tile) { return shared_bytes<decltype(tile)>(); });
constexpr int kTileCount = static_cast<int>(std::size(kTiles));

template <class T, class S>
__global__ __launch_bounds__(S::kThreads,
                             S::kBlocks) void convolution_kernel(const ConvolutionCall call) {
  if constexpr (!S::kOfWarpgroups || kMayMultiplyByWarpgroups) {
    convolve_tile<T, S>(call, static_cast<int>(blockIdx.x), dynamic_shared<char>(),
                        [] { wait_for_earlier_kernels(); });
  }
}

constexpr int kAddingThreads = 256;
template <class T>
__global__ __launch_bounds__(kAddingThreads, 6) void add_parts_kernel(const ConvolutionCall call) {
  wait_for_earlier_kernels();
  add_parts<T, kAddingThreads>(call, blockIdx.x);
}
template <class T>
__global__ __launch_bounds__(kAddingThreads) void add_taps_kernel(const ConvolutionCall call) {
  wait_for_earlier_kernels();
  add_taps<T, kAddingThreads>(call, blockIdx.x);
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

int deep_of(Float type) { return kDepthBytes / (type == Float::kFloat32 ? 4 : 2); }

// Of a pixel, in the class that has the most.
int most_chunks(const ConvolutionCall& call, int deep) {
  int chunks = 0;
  for (int k = 0; k < call.classes; ++k) {
    const PixelClass& of = call.of_class[k];
    chunks = std::max(chunks, up(of.taps_y * of.taps_x * call.in_channels, deep));
  }
  return chunks;
}

Plan fastest(Float type, bool transposed, const Sizes& sizes) {
  constexpr int kMostParts = 16, kMostRounds = 4;
  ConvolutionCall call = call_of(sizes, transposed);
  const std::size_t shared = largest_shared_bytes();
  const int multiprocessors = multiprocessor_count();
  const bool warpgroups = allows_warpgroups();
  Plan best;
  for (int i = 0; i < kTileCount; ++i) {
    const TileSpeed& tile = kTiles[i];
    if (tile.shared_bytes > static_cast<int64_t>(shared)) continue;
    if (tile.of_warpgroups && !warpgroups) continue;
    const int64_t tiles =
        static_cast<int64_t>(add_classes(tile.rows, call)) * up(call.out_channels, tile.columns);
    const int chunks = most_chunks(call, deep_of(type));
    for (int rounds = 0; rounds <= kMostRounds; ++rounds) {
      // One part, or as many as leave all multiprocessors work, once or several times.
      const int blocks = rounds * multiprocessors / static_cast<int>(tiles);
      const int parts = std::clamp(blocks, 1, std::min(kMostParts, std::max(chunks, 1)));
      const double more =
          parts == 1 ? 0 : kLaunch + kPerPart * static_cast<double>(parts * call.values);
      const double time =
          blocks_time(tile, tiles * parts, up(chunks, parts), multiprocessors) + more;
      if (time < best.time) best = {{i, parts}, time};
    }
  }
  return best;
}

// Of the tiles for Launches::kPersistent the fastest one for so many parts.
int fastest_narrow(Float type, bool transposed, const Sizes& sizes, int parts) {
  ConvolutionCall call = call_of(sizes, transposed);
  const bool warpgroups = allows_warpgroups();
  int best = 0;
  double best_time = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kTileCount; ++i) {
    const TileSpeed& tile = kTiles[i];
    if (tile.threads != kPersistentThreads || (tile.of_warpgroups && !warpgroups)) continue;
    const int64_t tiles =
        static_cast<int64_t>(add_classes(tile.rows, call)) * up(call.out_channels, tile.columns);
    const double time = blocks_time(
        tile, tiles * parts, up(most_chunks(call, deep_of(type)), parts), multiprocessor_count());
    if (time < best_time) {
      best_time = time;
      best = i;
    }
  }
  return best;
}

Sizes sizes_of(const ConvolutionShape& shape) {
  return {static_cast<int>(shape.batch),          static_cast<int>(shape.height),
          static_cast<int>(shape.width),          static_cast<int>(shape.channels),
          static_cast<int>(shape.small_channels), static_cast<int>(shape.kernel),
          static_cast<int>(shape.stride)};
}

// Whether kernels can count the products for all taps.
bool taps_fit(ConvolutionShape shape) {
  std::swap(shape.channels, shape.small_channels);
  shape.small_channels *= shape.kernel * shape.kernel;
  shape.kernel = 1;
  return convolution_fits(shape);
}

}  // namespace

Tiling convolution_tiling(Float type, bool transposed, const ConvolutionShape& shape,
                          Launches launches) {
  const Sizes sizes = sizes_of(shape);
  const Plan direct = fastest(type, transposed, sizes);
  Tiling best = direct.tiling;
  if (transposed && shape.stride == 1 && shape.channels == kTapChannels && shape.kernel > 1 &&
      taps_fit(shape)) {
    Plan by_taps = fastest(type, false, sizes.of_taps());
    by_taps.tiling.by_taps = true;
    by_taps.time += kLaunch + kPerPart * static_cast<double>(
                                             convolution_parts(transposed, shape, by_taps.tiling));
    if (by_taps.tiling.parts == 1 && by_taps.time <= direct.time) best = by_taps.tiling;
  }
  if (launches == Launches::kPersistent) {
    best.tile = best.by_taps ? fastest_narrow(type, false, sizes.of_taps(), 1)
                             : fastest_narrow(type, transposed, sizes, best.parts);
  }
  return best;
}

int64_t convolution_parts(bool transposed, const ConvolutionShape& shape, Tiling tiling) {
  const int64_t values = call_of(sizes_of(shape), transposed).values;
  if (tiling.by_taps) return values * shape.kernel * shape.kernel;
  return tiling.parts > 1 ? tiling.parts * values : 0;
}

void convolve(Float type, const ConvolutionShape& shape, const Convolution& convolution,
              Tiling tiling, CudaStream stream) {
  const Sizes sizes = sizes_of(shape);
  ConvolutionCall end = call_of(sizes, convolution.transposed);
  end.x = convolution.x;
  end.weight = convolution.weight;
  end.y = convolution.y;
  end.added = convolution.added;
  end.mask = convolution.mask;
  end.relu = convolution.relu;
  end.rounds = convolution.rounds;
  end.parts = tiling.parts;
  end.sums = tiling.parts > 1 || tiling.by_taps ? convolution.parts : nullptr;
  ConvolutionCall call = end;
  if (tiling.by_taps) {
    call = call_of_taps(sizes);
    call.x = convolution.x;
    call.weight = convolution.weight;
    call.sums = convolution.parts;
    call.parts = 1;
  }
  const bool found = with_tile(ConvolutionTiles(), tiling.tile, [&](auto tile) {
    using S = decltype(tile);
    if (S::kOfWarpgroups) require_warpgroup_products();
    call.column_tiles = up(call.out_channels, S::kColumns);
    call.row_tiles = add_classes(S::kRows, call);
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
  if (!found) throw std::runtime_error("there is no such tile");
}

}  // namespace asng::cuda
