// The CUDA kernels of cells and of the stem against those for the CPU.

#include <doctest/doctest.h>

#include <cmath>

#include "platform/grid_on_cpu/grid.h"
#include "tests/ops/cell/cuda_example.h"

namespace asng::test {
namespace {

template <class T>
void compare(CellExample<T>& example, double tolerance) {
  const Tensors<T> expected = example.on_cpu(), got = example.on_cuda();
  CHECK(expected.size() == got.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = difference(got[i], expected[i]);
    INFO("tensor ", i, ": reduction ", example.c.reduction, ", larger ",
         example.c.prev_prev_is_larger, ", shared ", example.c.prev_prev_is_shared, " ",
         example.c.prev_is_shared);
    CHECK(error <= tolerance);
  }
}

TEST_CASE("CUDA: cells are those of the CPU") {
  unsigned seed = 0;
  for (const bool reduction : {false, true}) {
    for (const bool larger : {false, true}) {
      for (const int shared : {0, 1, 2}) {
        CellCase c;
        c.archs = 1 + static_cast<int>(seed % 3);
        c.reduction = reduction;
        c.prev_prev_is_larger = larger;
        c.prev_prev_is_shared = shared > 0;
        c.prev_is_shared = shared > 1;
        c.prev_prev_needs_grad = seed % 4 != 3;
        c.prev_needs_grad = seed % 5 != 4;
        c.seed = ++seed;
        CellExample<double> in_double(c);
        compare(in_double, 1e-9);
        c.channels = 16;
        CellExample<float> in_float(c);
        compare(in_float, 1e-3);
      }
    }
  }
}

TEST_CASE("CUDA: cells of five nodes and more channels") {
  CellCase c;
  c.nodes = 5;
  c.archs = 2;
  c.channels = 40;
  c.prev_prev_channels = 70;
  c.prev_channels = 48;
  c.height = 4;
  c.width = 3;
  CellExample<double> normal(c);
  compare(normal, 1e-9);
  c.reduction = c.prev_prev_is_larger = true;
  CellExample<double> reduction(c);
  compare(reduction, 1e-9);
}

TEST_CASE("CUDA: inputs that no node reads have a gradient of zeros") {
  for (const bool larger : {false, true}) {
    for (const bool shared : {false, true}) {
      CellCase c;
      c.prev_prev_is_larger = larger;
      c.prev_prev_is_shared = c.prev_is_shared = shared;
      CellExample<double> example(c);
      for (size_t i = 0; i < example.inputs.size(); ++i) {
        // All nodes are leaf. Only the second architecture reads the prev input.
        example.inputs[i] = i >= example.inputs.size() / 2 ? 1 : 0;
      }
      compare(example, 1e-9);
      example.inputs.assign(example.inputs.size(), 1);
      compare(example, 1e-9);
    }
  }
}

TEST_CASE("CUDA: cells do not depend on the order of threads and blocks") {
  for (const bool reduction : {false, true}) {
    CellCase c;
    c.images = 4;
    c.reduction = reduction;
    c.prev_prev_is_larger = !reduction;
    c.prev_is_shared = true;
    CellExample<float> example(c);
    const Tensors<float> forward = example.on_cuda();
    CHECK(example.on_cuda(false)[0] == forward[0]);
    const cuda_on_cpu::Backward backward;
    CHECK(example.on_cuda() == forward);
  }
}

TEST_CASE("CUDA: cells with an index out of range give NaN") {
  for (const int32_t bad : {-1, 3, 100}) {
    CellExample<double> example(CellCase{});
    example.inputs[2] = bad;  // node 1 has three states before it
    const Tensors<double> got = example.on_cuda();
    const size_t size = got[0].size() / 2;
    bool all = true, none = true;
    for (size_t i = 0; i < size; ++i) {
      if (static_cast<int>(i) % example.padded >= example.c.channels) continue;
      all = all && std::isnan(got[0][i]);
      none = none && !std::isnan(got[0][size + i]);
    }
    CHECK(all);
    CHECK(none);
  }
}

template <class T>
void compare_stem(const StemCase& c, double tolerance) {
  const StemExample<T> example(c);
  const Tensors<T> expected = example.on_cpu(), got = example.on_cuda();
  for (size_t i = 0; i < got.size(); ++i) CHECK(difference(got[i], expected[i]) <= tolerance);
}

TEST_CASE("CUDA: stems are those of the CPU") {
  for (const StemCase& c : {StemCase{3, 5, 6, 3, 20},
                            {2, 1, 1, 1, 3},
                            {1, 9, 2, 4, 48},
                            {2, 8, 8, 2, 100},
                            {5, 7, 7, 8, 16}}) {
    compare_stem<double>(c, 1e-10);
    compare_stem<float>(c, 1e-4);
  }
}

}  // namespace
}  // namespace asng::test
