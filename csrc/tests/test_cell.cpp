// Cells: with and without memory for a backward pass, shared and own inputs, threads.

#include <cstdint>
#include <random>
#include <vector>

#include "ops/cell/cpu.h"
#include "tests/cell_weights.h"
#include "tests/check.h"
#include "tests/threads.h"

namespace asng::cpu {
namespace {

struct Result {
  std::vector<float> y, grad_prev_prev, grad_prev, weights;

  bool operator==(const Result& other) const {
    return y == other.y && grad_prev_prev == other.grad_prev_prev && grad_prev == other.grad_prev &&
           weights == other.weights;
  }
};

CellShape make_shape(int64_t archs, bool shared, bool reduction, bool prev_prev_is_larger) {
  CellShape s;
  s.archs = archs;
  s.nodes = 3;
  s.images = 5;
  s.channels = 6;
  s.padded = padded_channels(s.channels);
  s.prev = {shared ? 1 : archs, 4, padded_channels(4), 7, 6};
  s.prev_prev = {shared ? 1 : archs, 20, padded_channels(20), 7, 6};
  if (prev_prev_is_larger) {
    s.prev_prev.height = 13;
    s.prev_prev.width = 12;
  }
  s.reduction = reduction;
  s.prev_prev_is_larger = prev_prev_is_larger;
  s.out_height = reduction ? 4 : 7;
  s.out_width = reduction ? 3 : 6;
  return s;
}

int64_t input_size(const CellShape& s, const CellInput& input) {
  return input.archs * s.images * input.height * input.width * input.padded;
}

constexpr size_t kWeights = 20000;

Result run(const CellShape& s, bool save, int threads, unsigned seed = 4) {
  test::thread_count = threads;
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  const auto draw = [&](int64_t count, int64_t padded, int64_t channels) {
    std::vector<float> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i) {
      const float value = normal(generator);
      values[i] = static_cast<int64_t>(i) % padded < channels ? value : 0;
    }
    return values;
  };
  std::vector<int32_t> inputs, operations;
  for (int64_t arch = 0; arch < s.archs; ++arch) {
    for (int32_t node = 0; node < s.nodes; ++node) {
      for (int e = 0; e < 2; ++e) {
        inputs.push_back(static_cast<int32_t>(generator() % static_cast<uint32_t>(node + 2)));
        operations.push_back(static_cast<int32_t>(generator() % kOperationCount));
      }
    }
  }
  const std::vector<float> weights = draw(kWeights, 1, 1);
  const std::vector<float> prev_prev =
      draw(input_size(s, s.prev_prev), s.prev_prev.padded, s.prev_prev.channels);
  const std::vector<float> prev = draw(input_size(s, s.prev), s.prev.padded, s.prev.channels);
  const std::vector<float> probe = draw(s.archs * s.out_size(), s.padded, s.channels);

  Result result;
  result.y.resize(probe.size());
  std::vector<float> saved(save ? static_cast<size_t>(s.saved().values()) : 0);
  Cell<float>(s, split(s, weights.data()), inputs.data(), operations.data())
      .forward(prev_prev.data(), prev.data(), result.y.data(), save ? saved.data() : nullptr);
  if (save) {
    result.grad_prev_prev.resize(prev_prev.size());
    result.grad_prev.resize(prev.size());
    result.weights.resize(kWeights);
    Cell<float>(s, split(s, weights.data()), inputs.data(), operations.data())
        .backward(prev_prev.data(), prev.data(), result.y.data(), probe.data(), saved.data(),
                  result.grad_prev_prev.data(), result.grad_prev.data(),
                  split(s, result.weights.data()));
  }
  test::thread_count = 1;
  return result;
}

TEST(cells_give_the_same_bits_on_any_threads) {
  for (const int64_t archs : {1, 2, 3}) {
    for (const bool shared : {false, true}) {
      for (const bool reduction : {false, true}) {
        for (const bool larger : {false, true}) {
          const CellShape shape = make_shape(archs, shared, reduction, larger);
          const Result one = run(shape, true, 1);
          for (const float value : one.weights) CHECK(std::isfinite(value));
          CHECK(run(shape, true, 4) == one);
          CHECK(run(shape, false, 1).y == one.y);
          CHECK(run(shape, false, 3).y == one.y);
        }
      }
    }
  }
}

TEST(places_serve_again_only_when_nobody_needs_them) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    CellShape shape = make_shape(2, seed % 2 == 0, seed % 3 == 0, false);
    shape.nodes = 5;
    const Result saved = run(shape, true, 2, seed);
    CHECK(run(shape, false, 2, seed).y == saved.y);
    // Whatever lies in memory that is used again makes no difference.
    CHECK(run(shape, true, 1, seed) == saved);
  }
}

}  // namespace
}  // namespace asng::cpu
