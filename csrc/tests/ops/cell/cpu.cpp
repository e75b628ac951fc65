// Cells: gradients against differences; with and without memory for a backward pass, threads.

#include "ops/cell/cpu.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "tests/ops/cell/cpu_weights.h"
#include "tests/platform/threads.h"

namespace asng::cpu {
namespace {

template <class T>
struct Result {
  std::vector<T> y, grad_prev_prev, grad_prev, weights;

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

template <class T>
struct Example {
  CellShape s;
  std::vector<int32_t> inputs, operations;
  std::vector<T> weights, prev_prev, prev, probe;

  explicit Example(const CellShape& shape, unsigned seed = 4) : s(shape) {
    std::mt19937 generator(seed);
    std::normal_distribution<T> normal;
    const auto draw = [&](int64_t count, int64_t padded, int64_t channels) {
      std::vector<T> values(static_cast<size_t>(count));
      for (size_t i = 0; i < values.size(); ++i) {
        const T value = normal(generator);
        values[i] = static_cast<int64_t>(i) % padded < channels ? value : 0;
      }
      return values;
    };
    for (int64_t arch = 0; arch < s.archs; ++arch) {
      for (int32_t node = 0; node < s.nodes; ++node) {
        for (int e = 0; e < 2; ++e) {
          inputs.push_back(static_cast<int32_t>(generator() % static_cast<uint32_t>(node + 2)));
          operations.push_back(static_cast<int32_t>(generator() % kOperationCount));
        }
      }
    }
    CellWeights<T> none;
    weights = draw(split<T>(s, nullptr, none), 1, 1);
    prev_prev = draw(input_size(s, s.prev_prev), s.prev_prev.padded, s.prev_prev.channels);
    prev = draw(input_size(s, s.prev), s.prev.padded, s.prev.channels);
    probe = draw(s.archs * s.out_size(), s.padded, s.channels);
  }

  Result<T> run(bool save, int threads) const {
    test::thread_count = threads;
    Result<T> result;
    result.y.resize(probe.size());
    std::vector<T> saved(save ? static_cast<size_t>(s.saved().values()) : 0);
    Cell<T>(s, split(s, weights.data()), inputs.data(), operations.data())
        .forward(prev_prev.data(), prev.data(), result.y.data(), save ? saved.data() : nullptr);
    if (save) {
      result.grad_prev_prev.resize(prev_prev.size());
      result.grad_prev.resize(prev.size());
      result.weights.resize(weights.size());
      Cell<T>(s, split(s, weights.data()), inputs.data(), operations.data())
          .backward(prev_prev.data(), prev.data(), result.y.data(), probe.data(), saved.data(),
                    result.grad_prev_prev.data(), result.grad_prev.data(),
                    split(s, result.weights.data()));
    }
    test::thread_count = 1;
    return result;
  }
};

template <class Visit>
void for_each_shape(Visit visit) {
  for (const int64_t archs : {1, 2, 3}) {
    for (const bool shared : {false, true}) {
      for (const bool reduction : {false, true}) {
        for (const bool larger : {false, true}) {
          visit(make_shape(archs, shared, reduction, larger));
        }
      }
    }
  }
}

// `grads` against differences of the sum of y times probe, at some of `values`.
void check_differences(Example<double>& example, std::vector<double>& values,
                       const std::vector<double>& grads, int64_t padded, int64_t channels) {
  const auto loss = [&] {
    const std::vector<double> y = example.run(false, 1).y;
    return std::inner_product(y.begin(), y.end(), example.probe.begin(), 0.0);
  };
  const double step = 1e-6;
  for (size_t i = 0; i < values.size(); i += values.size() / 40 + 1) {
    if (static_cast<int64_t>(i) % padded >= channels) continue;
    const double before = values[i];
    values[i] = before + step;
    const double above = loss();
    values[i] = before - step;
    const double below = loss();
    values[i] = before;
    CHECK(std::fabs((above - below) / (2 * step) - grads[i]) <= 1e-4 * (1 + std::fabs(grads[i])));
  }
}

TEST_CASE("gradients of a cell are those of differences") {
  for_each_shape([](const CellShape& shape) {
    Example<double> example(shape);
    const Result<double> got = example.run(true, 1);
    check_differences(example, example.weights, got.weights, 1, 1);
    check_differences(example, example.prev_prev, got.grad_prev_prev, shape.prev_prev.padded,
                      shape.prev_prev.channels);
    check_differences(example, example.prev, got.grad_prev, shape.prev.padded, shape.prev.channels);
  });
}

TEST_CASE("a cell gives the same bits on any threads, and without memory for a backward pass") {
  for_each_shape([](const CellShape& shape) {
    const Example<float> example(shape);
    const Result<float> one = example.run(true, 1);
    for (const float value : one.weights) REQUIRE(std::isfinite(value));
    CHECK(example.run(true, 4) == one);
    CHECK(example.run(false, 1).y == one.y);
    CHECK(example.run(false, 3).y == one.y);
  });
}

TEST_CASE("memory is used again only when no node needs it") {
  for (unsigned seed = 0; seed < 60; ++seed) {
    CellShape shape = make_shape(2, seed % 2 == 0, seed % 3 == 0, false);
    shape.nodes = 5;
    const Example<float> example(shape, seed);
    const Result<float> saved = example.run(true, 2);
    CHECK(example.run(false, 2).y == saved.y);
    // Whatever lies in memory that is used again makes no difference.
    CHECK(example.run(true, 1) == saved);
  }
}

}  // namespace
}  // namespace asng::cpu
