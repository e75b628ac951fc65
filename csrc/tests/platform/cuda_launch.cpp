// Whether a device would accept every launch: grids, and shared memory against what a block may
// have, for all numbers of channels and batches around the sizes at which tiles change. Nothing
// runs.
#include <doctest/doctest.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cuda/tile.h"
#include "ops/cell/cuda.h"
#include "ops/stem/cuda.h"
#include "optimizer/cuda.h"
#include "platform/grid_on_cpu/grid.h"

namespace asng::test {
namespace {

using cuda::BFloat16;
using cuda::Compute;
using cuda_on_cpu::LaunchesOnly;

constexpr int kMostChannels = 512;
// Of a block: compute capability 8.6 and 8.9, 8.0, 9.0.
constexpr std::size_t kSmall = 99 * 1024, kMiddle = 163 * 1024;

struct Batch {
  int images, height, width;
};

// Tiles depend on images · height · width of the output, in powers of two, and on its width.
std::vector<Batch> batches() {
  std::vector<Batch> all = {{1, 1, 1}, {64, 8, 8}, {500, 16, 16}, {512, 32, 32}};
  for (const int width : {4, 8, 16}) {
    for (const int pixels : {1 << 13, 1 << 14, 1 << 15}) {
      all.push_back({pixels / width - 1, 1, width});
      all.push_back({pixels / width, 1, width});
    }
  }
  return all;
}

// Addresses that no kernel reads.
template <class T>
T* somewhere() {
  return reinterpret_cast<T*>(std::uintptr_t{1} << 20);
}

template <class T>
asng::OperationWeights<T> weights() {
  T* const w = somewhere<T>();
  return {{w, w}, {w, w}, w};
}

DagShape dag(const Batch& out, int channels, int stride) {
  DagShape s;
  s.archs = 2;
  s.nodes = 1;
  s.edges = 2;
  s.inputs = 2;
  s.images = out.images;
  s.channels = channels;
  s.padded = padded_channels(channels);
  s.out_height = out.height;
  s.out_width = out.width;
  s.height = stride * out.height;
  s.width = stride * out.width;
  s.reduction = stride == 2;
  return s;
}

template <class V>
void launch_node(const DagShape& s, bool tf32) {
  using T = Compute<V>;
  V* const images = somewhere<V>();
  T* const saved = somewhere<T>();
  void* const scratch = somewhere<void>();
  cuda::node_forward<V>(s, tf32, weights<const T>(), {}, images, images, saved, scratch, nullptr);
  cuda::node_backward<V>(s, tf32, weights<const T>(), {}, images, images, saved, images,
                         weights<T>(), scratch, nullptr);
}

// The prev_prev input is larger, and wider than the rest.
template <class V>
void launch_cell(const DagShape& s, bool tf32) {
  using T = Compute<V>;
  CellShape shape;
  shape.archs = s.archs;
  shape.nodes = s.nodes;
  shape.images = s.images;
  shape.channels = s.channels;
  shape.padded = s.padded;
  shape.prev = {s.archs, s.channels, s.padded, s.height, s.width};
  shape.prev_prev = {1, kMostChannels, kMostChannels, 2 * s.height, 2 * s.width};
  shape.out_height = s.out_height;
  shape.out_width = s.out_width;
  shape.reduction = s.reduction;
  shape.prev_prev_is_larger = true;
  V* const images = somewhere<V>();
  T* const w = somewhere<T>();
  void* const scratch = somewhere<void>();
  const CellWeights<const T> given = {w, w, weights<const T>(), w};
  cuda::cell_forward<V>(shape, tf32, given, {}, images, images, images, w, scratch, nullptr);
  cuda::cell_backward<V>(shape, tf32, given, {}, images, images, images, images, w, images, images,
                         {w, w, weights<T>(), w}, scratch, nullptr);
}

template <class V>
void launch_stem(const DagShape& s, bool tf32) {
  using T = Compute<V>;
  const StemShape shape = {s.images, s.height, s.width, 3, s.channels, s.padded};
  V* const images = somewhere<V>();
  T* const w = somewhere<T>();
  void* const scratch = somewhere<void>();
  cuda::stem_forward<V>(shape, tf32, w, w, w, images, images, w, scratch, nullptr);
  cuda::stem_backward<V>(shape, tf32, w, images, images, w, w, w, w, scratch, nullptr);
}

// The error of a launch, empty if there is none.
template <class V>
std::string refusal(const Batch& batch, int channels, int stride, bool tf32) {
  const DagShape s = dag(batch, channels, stride);
  try {
    launch_node<V>(s, tf32);
    if (batch.width > 8) {
      launch_cell<V>(s, tf32);
      launch_stem<V>(s, tf32);
    }
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

// The least number of channels that is refused; more than kMostChannels if none is.
template <class V>
int first_refused(std::size_t largest_shared, bool tf32 = false) {
  const LaunchesOnly device(largest_shared);
  const std::vector<Batch> all = batches();
  for (int channels = 1; channels <= kMostChannels; ++channels) {
    for (const int stride : {1, 2}) {
      for (const Batch& batch : all) {
        if (!refusal<V>(batch, channels, stride, tf32).empty()) return channels;
      }
    }
  }
  return kMostChannels + 1;
}

TEST_CASE("CUDA: all channels fit a device") {
  CHECK(first_refused<float>(cuda_on_cpu::kLargestShared) > kMostChannels);
  CHECK(first_refused<float>(cuda_on_cpu::kLargestShared, true) > kMostChannels);
  CHECK(first_refused<double>(cuda_on_cpu::kLargestShared) > kMostChannels);
  CHECK(first_refused<BFloat16>(cuda_on_cpu::kLargestShared) > kMostChannels);
}

// Of smaller devices all but the most channels in float64.
TEST_CASE("CUDA: channels fit smaller devices") {
  CHECK(first_refused<float>(kSmall) > kMostChannels);
  CHECK(first_refused<BFloat16>(kSmall) > kMostChannels);
  CHECK(first_refused<double>(kSmall) > 240);
  CHECK(first_refused<double>(kMiddle) > 448);
}

// Of compute capability 9.0, where 228 KiB are those of a multiprocessor, and 1 KiB of every block
// is not its own.
TEST_CASE("CUDA: tiles of up to 64 channels leave room for other blocks") {
  const auto blocks = [](std::size_t bytes) { return 228 * 1024 / (bytes + 1024); };
  for (const auto& [channels, size] : {std::pair{16, 32}, {32, 16}, {64, 8}, {64, 32}}) {
    INFO(channels, " channels, ", size, " pixels");
    const cuda::DagShape s(dag({512, size, size}, channels, 1), true);
    const auto values = static_cast<std::size_t>(cuda::tile_layout(s, 1, 4, true).values);
    CHECK(blocks(4 * values) >= (channels < 64 ? 4 : 3));
    CHECK(blocks(cuda::shared_bytes(cuda::tile_layout(s, 1, 4, false), 4)) >=
          (channels == 32 ? 3 : 4));
  }
}

TEST_CASE("CUDA: a refusal says what is needed") {
  const LaunchesOnly device(kSmall);
  const std::string error = refusal<double>({1, 8, 8}, 700, 1, false);
  CHECK(error.find("700 channels need ") == 0);
  CHECK(error.find("a block of this device has 101376") != std::string::npos);
}

TEST_CASE("CUDA: all populations fit a device") {
  const LaunchesOnly device(kSmall);
  for (std::int64_t population = 1; population <= kLargestPopulation; ++population) {
    for (const std::int64_t variables : {std::int64_t{1}, std::int64_t{100'000}}) {
      const cuda::OptimizerShape shape = {1, population, variables, 0, 5 * variables};
      cuda::tell(shape, {}, {}, {}, {}, cuda::tell_blocks(shape), nullptr);
    }
  }
}

}  // namespace
}  // namespace asng::test
