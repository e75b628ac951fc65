// The operators on the CPU give the same bits on any threads, and without memory for a backward
// pass. python_tests/ops compares them with their definitions.

#include <doctest/doctest.h>

#include <chrono>
#include <cstdlib>
#include <string>

#include "tests/ops/example.h"

namespace asng::test {

// Cells one after the other: the first reads `maps` twice.
struct StackShape {
  std::vector<CellShape> cells;

  struct Saved {
    int64_t count;
    int64_t values() const { return count; }
  };
  Saved saved() const { return {cpu::CellStack<double>::saved_size(cells)}; }
};

template <class T>
void run(const Example<StackShape>& e, Buffers<T>& b) {
  std::vector<CellWeights<const T>> weights;
  std::vector<CellWeights<T>> grads;
  std::vector<const int32_t*> inputs, operations;
  size_t choices = 0;
  for (size_t i = 0; i < e.shape.cells.size(); ++i) {
    weights.push_back(pointers<CellWeights<const T>>(b.weights, i * kCellWeights));
    grads.push_back(pointers<CellWeights<T>>(b.grads, i * kCellWeights));
    inputs.push_back(e.inputs.data() + choices);
    operations.push_back(e.operations.data() + choices);
    choices += static_cast<size_t>(e.shape.cells[i].archs * e.shape.cells[i].nodes * 2);
  }
  const T* x = b.maps[0].data();
  cpu::CellStack<T> stack(e.shape.cells, weights, inputs, operations);
  stack.forward(x, x, b.out.data(), or_null(b.saved));
  if (b.saved.empty()) return;
  T* grad = b.grad_maps[0].data();
  stack.backward(x, x, b.out.data(), b.probe.data(), b.saved.data(), grad, grad, grads);
}

// The coefficients come after the weights.
namespace {

// Normal, reduction, normal, normal. The second cell reads only its prev_prev input in the first
// architecture, the third only its prev one.
Example<StackShape> stack_example(int64_t archs, bool shared) {
  Example<StackShape> stack;
  CellShape s;
  s.archs = archs;
  s.nodes = 3;
  s.images = 4;
  s.prev_prev = s.prev = {shared ? 1 : archs, 5, 0, 7, 6};
  for (int i = 0; i < 4; ++i) {
    s.channels = i == 0 ? 4 : 6;
    s.reduction = i == 1;
    Example<CellShape> cell = cell_example(s, static_cast<unsigned>(i));
    if (i == 1 || i == 2) std::fill_n(cell.inputs.begin(), 2 * s.nodes, i - 1);
    stack.shape.cells.push_back(cell.shape);
    if (i == 0) stack.maps = {cell.maps[0]};
    stack.inputs.insert(stack.inputs.end(), cell.inputs.begin(), cell.inputs.end());
    stack.operations.insert(stack.operations.end(), cell.operations.begin(), cell.operations.end());
    stack.weights.insert(stack.weights.end(), cell.weights.begin(), cell.weights.end());
    stack.probe = cell.probe;
    s.prev_prev = s.prev;
    s.prev = {archs, s.channels, 0, cell.shape.out_height, cell.shape.out_width};
    s.prev_prev_is_larger = s.reduction;
  }
  return stack;
}

template <class T, class Shape>
void check_bits(const Example<Shape>& e) {
  const Tensors one = on_cpu<T>(e);
  for (const std::vector<double>& values : one) {
    CHECK(std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); }));
  }
  CHECK(on_cpu<T>(e, 4) == one);
  CHECK(on_cpu<T>(e, 1, false)[0] == one[0]);
  CHECK(on_cpu<T>(e, 3, false)[0] == one[0]);
}

template <class Shape>
void check(const Example<Shape>& e) {
  check_bits<float>(e);
  check_bits<double>(e);
}

TEST_CASE("nodes give the same bits on any threads") {
  for (const int64_t stride : {1, 2}) {
    for (const int64_t channels : {5, 16, 32, 64, 80}) check(mixed(stride, channels));
    for (const int64_t height : {1, 2, 17}) {
      for (const int64_t width : {1, 9, 33}) {
        for (int operation = 0; operation < kOperationCount; ++operation) {
          check(single(operation, stride, 1, height, width, 2));
        }
      }
    }
  }
}

TEST_CASE("cells give the same bits on any threads") {
  for (unsigned kind = 0; kind < kCellKinds; ++kind) check(cell_of_kind(kind, 6));
}

// In the 60 that are drawn, memory serves again only when no node needs it.
TEST_CASE("cells of five nodes give the same bits on any threads") {
  for (unsigned seed = 0; seed < 60; ++seed) {
    CellShape s = cell_of_kind(2 * (seed % 3), 6).shape;
    s.nodes = 5;
    s.archs = 2;
    s.prev_prev.archs = s.prev.archs = 1 + seed % 2;
    s.reduction = seed % 3 == 0;
    check_bits<float>(cell_example(s, seed));
  }
}

TEST_CASE("stacks of cells give the same bits on any threads") {
  for (const int64_t archs : {1, 2, 3}) {
    for (const bool shared : {false, true}) check(stack_example(archs, shared));
  }
}

TEST_CASE("mixtures give the same bits on any threads") {
  unsigned seed = 0;
  for (const int64_t stride : {1, 2}) {
    for (const int64_t nodes : {1, 2, 5}) {
      for (const int64_t channels : {2, 5, 16, 33}) {
        check(mixture_example(nodes, stride, 5, channels, 7, 6, ++seed));
      }
    }
    check(mixture_example(3, stride, 1, 16, 1, 9, ++seed));
    check(mixture_example(3, stride, 9, 16, 33, 18, ++seed));
  }
}

// For as long as ASNG_FUZZ_SECONDS says; the sanitizers look for memory that is not theirs.
TEST_CASE("cells and stems of any shape give the same bits on any threads") {
  using Clock = std::chrono::steady_clock;
  const char* const given = std::getenv("ASNG_FUZZ_SECONDS");
  const std::chrono::duration<double> seconds(given == nullptr ? 1.0 : std::stod(given));
  const Clock::time_point begin = Clock::now();
  for (unsigned seed = 0; Clock::now() - begin < seconds; ++seed) {
    CAPTURE(seed);
    Draw draw(seed);
    // Mostly few channels, and at times more than the registers of a multiplication hold.
    const auto channels = [&] { return 1 + draw.below(draw.below(4) == 0 ? 100 : 24); };
    CellShape s;
    s.archs = 1 + draw.below(4);
    s.nodes = 1 + draw.below(5);
    s.images = 1 + draw.below(6);
    s.channels = channels();
    s.reduction = draw.below(2) == 1;
    s.prev_prev_is_larger = draw.below(2) == 1;
    s.prev_prev = {draw.below(2) == 1 ? 1 : s.archs, channels()};
    s.prev = {draw.below(2) == 1 ? 1 : s.archs, channels(), 0, 1 + draw.below(18),
              1 + draw.below(18)};
    const Example<CellShape> cell = cell_example(s, seed);
    const auto stem = stem_example(1 + draw.below(4), 1 + draw.below(18), 1 + draw.below(18),
                                   1 + draw.below(6), channels());
    if (seed % 2 == 0) {
      check_bits<float>(cell);
      check_bits<float>(stem);
    } else {
      check_bits<double>(cell);
      check_bits<double>(stem);
    }
  }
}

TEST_CASE("stems give the same bits on any threads") {
  for (const int64_t in_channels : {1, 3, 5}) check(stem_example(3, 7, 6, in_channels, 20));
}

}  // namespace
}  // namespace asng::test
