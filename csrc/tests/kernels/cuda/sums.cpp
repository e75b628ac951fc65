// Sums over the blocks of a launch: how many there are, their memory, and the sums themselves.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/cuda/launchers.h"
#include "kernels/cuda/norm.h"
#include "platform/grid_on_cpu/grid.h"
#include "tests/kernels/cuda/sum_samples.h"

namespace asng::test {
namespace {

using namespace asng::cuda;

TEST_CASE("CUDA: few sums have as many blocks as a large device runs, many have not too many") {
  for (int sums = 1; sums < 3000; ++sums) {
    const int blocks = sums * most_splits(sums);
    CHECK(blocks > 1000);
    CHECK(most_splits(sums) >= 256);
    CHECK((sums < 4 || most_splits(sums) == 256));
  }
}

TEST_CASE("CUDA: what many sums need is enough for fewer ones") {
  for (int sums = 1; sums <= 40; ++sums) {
    for (int fewer = 1; fewer <= sums; ++fewer) {
      for (int splits = 1; splits <= most_splits(fewer); ++splits) {
        const bool enough = fewer * counters_of(splits) <= sum_counters(sums) &&
                            int64_t{fewer} * splits * 3 * 16 <= partial_values(sums, 16);
        if (!enough) CHECK_MESSAGE(enough, sums, " sums, ", fewer, " of ", splits, " splits");
      }
    }
  }
}

// Behind what a launch needs there must be nothing but what was there.
void check_sums(int sums, int splits, int padded, std::vector<double>& got, bool integers) {
  std::mt19937 generator(static_cast<unsigned>(sums + splits + padded));
  const int columns = 3 * padded;
  std::vector<double> values(static_cast<size_t>(sums) * splits * columns);
  for (double& v : values) {
    v = integers ? static_cast<double>(generator() % 1000) : std::ldexp(generator(), -32);
  }
  constexpr size_t kBehind = 100;
  const size_t partials = static_cast<size_t>(partial_values(sums, padded));
  const size_t counters = static_cast<size_t>(sum_counters(sums));
  std::vector<double> memory(partials + kBehind, -1);
  std::vector<unsigned> counts(counters + kBehind, 0);
  std::fill(counts.begin() + counters, counts.end(), 7u);
  got.assign(static_cast<size_t>(sums) * columns, -1);
  sample_sums({sums, splits, padded, values.data(), memory.data(), counts.data(), got.data()},
              nullptr);
  CHECK(std::all_of(memory.begin() + partials, memory.end(), [](double x) { return x == -1; }));
  CHECK(std::all_of(counts.begin() + counters, counts.end(), [](unsigned x) { return x == 7; }));
  CHECK(std::all_of(counts.begin(), counts.begin() + counters, [](unsigned x) { return x == 0; }));
  if (!integers) return;
  for (int sum = 0; sum < sums; ++sum) {
    for (int j = 0; j < columns; ++j) {
      double expected = 0;
      for (int split = 0; split < splits; ++split) {
        expected += values[(static_cast<size_t>(sum) * splits + split) * columns + j];
      }
      if (got[sum * columns + j] != expected) CHECK(got[sum * columns + j] == expected);
    }
  }
}

TEST_CASE("CUDA: sums over blocks, of neighbors first") {
  for (const auto& [sums, padded] : {std::pair{1, 16}, {2, 48}, {3, 400}}) {
    for (const int splits : {1, 31, 32, 33, 100, most_splits(sums)}) {
      INFO(sums, " sums over ", splits, " blocks");
      std::vector<double> got, again;
      check_sums(sums, splits, padded, got, true);
      check_sums(sums, splits, padded, got, false);
      const cuda_on_cpu::Backward backward;
      check_sums(sums, splits, padded, again, false);
      CHECK(got == again);
    }
  }
}

cuda::DagShape images(int channels, int size) {
  cuda::DagShape s;
  s.archs = s.nodes = s.edges = s.inputs = 1;
  s.images = 512;
  s.channels = s.padded = channels;
  s.height = s.width = s.out_height = s.out_width = size;
  return s;
}

TEST_CASE("CUDA: gradients of weights have many splits, of all not much more than feature maps") {
  for (const auto& [channels, size] : {std::pair{16, 32}, {32, 16}, {64, 8}, {64, 32}}) {
    const cuda::DagShape s = images(channels, size);
    INFO(channels, " channels, ", size, " pixels");
    for (const int edges : {1, 2, 4, 16}) {
      const int splits = weight_split_count<float>(s, edges);
      const int64_t values = int64_t{splits} * s.slot_weights();
      CHECK(splits <= most_splits(edges));
      CHECK((splits * edges >= 1000 || 3 * values >= s.out_size()));
      CHECK(values <= 3 * s.out_size() / 2);
    }
  }
  CHECK(weight_split_count<float>(images(64, 32), 1) > 1000);
  CHECK(weight_split_count<float>(images(64, 32), 16) == 256);
}

}  // namespace
}  // namespace asng::test
