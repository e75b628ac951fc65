// The CUDA kernels of a node against those for the CPU.

#include <doctest/doctest.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "platform/grid_on_cpu/grid.h"
#include "tests/ops/cell/cuda_node_example.h"

namespace asng::test {
namespace {

template <class T>
void compare(const NodeCase& c, double tolerance) {
  NodeExample<T> example(c);
  const Tensors<T> expected = example.on_cpu(), got = example.on_cuda();
  CHECK(expected.size() == got.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = difference(got[i], expected[i]);
    INFO("tensor ", i, ": channels ", c.channels, ", ", c.height, "×", c.width, ", stride ",
         c.stride, ", λ ", c.archs, ", first operation ", c.operation[0]);
    CHECK(error <= tolerance);
  }
}

TEST_CASE("CUDA: operations are those of the CPU") {
  for (int operation = 0; operation < kOperationCount; ++operation) {
    for (const int stride : {1, 2}) {
      for (const int channels : {3, 16, 20, 32}) {
        const int archs = 1 + (operation + channels) % 3;
        compare<double>(single(operation, stride, archs, 5, 7, channels), 1e-10);
        compare<float>(single(operation, stride, archs, 6, 4, channels), 1e-4);
      }
    }
  }
}

TEST_CASE("CUDA: feature maps of any size") {
  for (const int stride : {1, 2}) {
    for (const auto& [height, width] :
         {std::pair{1, 1}, {1, 9}, {9, 1}, {2, 3}, {3, 19}, {17, 18}}) {
      for (const int operation : {0, 2, 3, 4}) {
        compare<double>(single(operation, stride, 2, height, width, 4), 1e-9);
      }
    }
  }
}

// More tiles than blocks share a sum, and tiles of every size.
TEST_CASE("CUDA: large batches") {
  for (const int channels : {16, 32, 64}) {
    for (const int stride : {1, 2}) {
      NodeCase c = single(kSeparable5, stride, 1, 9, 17, channels);
      c.images = 120 / stride;
      compare<float>(c, 1e-3);
    }
  }
}

TEST_CASE("CUDA: many channels") {
  for (const int stride : {1, 2}) {
    for (const int channels : {48, 64, 80, 130}) {
      for (const int operation : {0, 3, 4}) {
        NodeCase c = single(operation, stride, 1, 3, 5, channels);
        c.images = 1;
        channels < 100 ? compare<double>(c, 1e-9) : compare<float>(c, 1e-3);
      }
    }
    // Tiles that are smaller, because those of other numbers of channels would not fit.
    NodeCase c = single(kSeparable3, stride, 1, 3, 5, 490);
    c.images = 1;
    c.inputs = 1;
    compare<double>(c, 1e-9);
  }
}

TEST_CASE("CUDA: edges may share inputs and occur twice") {
  for (const int stride : {1, 2}) {
    compare<double>(mixed(stride), 1e-10);
    compare<float>(mixed(stride), 1e-4);
  }
}

TEST_CASE("CUDA: results do not depend on the order of threads and blocks") {
  for (const int stride : {1, 2}) {
    NodeCase c = mixed(stride);
    c.images = 5;
    NodeExample<float> example(c);
    const Tensors<float> forward = example.on_cuda();
    const cuda_on_cpu::Backward backward;
    CHECK(example.on_cuda() == forward);
  }
}

TEST_CASE("CUDA: without a backward pass gives the same") {
  for (const int stride : {1, 2}) {
    NodeExample<float> example(mixed(stride));
    CHECK(example.on_cuda(false)[0] == example.on_cuda()[0]);
  }
}

TEST_CASE("CUDA: too many channels are an error that says so") {
  NodeCase c = single(kSeparable3, 1, 1, 2, 2, 700);
  c.inputs = 1;
  c.input = {0};
  std::string error;
  try {
    NodeExample<double>(c).on_cuda();
  } catch (const std::runtime_error& thrown) {
    error = thrown.what();
  }
  CHECK(error.find("700 channels need ") == 0);
}

TEST_CASE("CUDA: an index out of range makes NaN of its node alone") {
  for (const int32_t bad : {-1, 3, 1 << 30}) {
    for (const bool of_operation : {false, true}) {
      NodeCase c = mixed(1);
      (of_operation ? c.operation : c.input)[4] = of_operation && bad == 3 ? 5 : bad;
      NodeExample<double> example(c), good(mixed(1));
      const Tensors<double> got = example.on_cuda(), expected = good.on_cuda();
      const size_t size = got[0].size() / 3;
      for (size_t i = 0; i < got[0].size(); ++i) {
        const bool real = static_cast<int>(i) % example.padded < c.channels;
        if (i / size == 1) {
          CHECK((real ? std::isnan(got[0][i]) : got[0][i] == 0));
        } else {
          CHECK(got[0][i] == expected[0][i]);
        }
      }
    }
  }
}

TEST_CASE("CUDA: pools pass NaN and take the first of equal maxima") {
  for (const int stride : {1, 2}) {
    NodeExample<double> example(single(kMaxPool, stride, 1, 7, 6, 16));
    for (double& value : example.bank) value = std::round(value);
    const Tensors<double> expected = example.on_cpu(), got = example.on_cuda();
    CHECK(got[0] == expected[0]);
    CHECK(difference(got[1], expected[1]) < 1e-14);
    example.bank[40] = std::numeric_limits<double>::quiet_NaN();
    const Tensors<double> with_nan = example.on_cpu(), nan_too = example.on_cuda();
    for (size_t i = 0; i < with_nan[0].size(); ++i) {
      CHECK(std::isnan(with_nan[0][i]) == std::isnan(nan_too[0][i]));
    }
  }
}

}  // namespace
}  // namespace asng::test
