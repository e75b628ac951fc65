// The CUDA kernels with feature maps stored as bfloat16, and with products in TF32, against those
// for the CPU in float64, on the same numbers.
//
// Bounds. A value that is stored is off by at most kStored = 2⁻⁸ of itself, and a difference is
// taken relative to the norm of all values; linear maps and normalizations of random feature maps
// pass relative errors on as they are, and errors of one image after another are independent, so
// that they add up in squares. So a forward pass that stores n feature maps in a row is off by
// √n·kStored. Gradients are off by as much again, and where an error δ of ReLU's argument turns its
// sign: that befalls δ/π of normally distributed arguments, which is 2δ/π of those that ReLU lets
// pass, and the square root of it in the norm. Maxima that change hands are bounded in the same
// way. A factor of a product that is rounded to TF32 is off by at most 2⁻¹¹ of itself, a product of
// two by kRounded = 2⁻¹⁰; products in a row are to that what feature maps are to kStored. With
// feature maps in bfloat16 products are in TF32, too, which adds little to their error.
#include <doctest/doctest.h>

#include <cmath>

#include "platform/grid_on_cpu/grid.h"
#include "tests/ops/cell/cuda_example.h"
#include "tests/ops/cell/cuda_node_example.h"

namespace asng::test {
namespace {

using cuda::BFloat16;

constexpr double kStored = 1.0 / 256, kRounded = 1.0 / 1024;

struct Bounds {
  double forward, backward;
};

// Of a pass that errs so often in a row, with `kinks` ReLUs and maxima among that.
Bounds bounds(double error, int times, int kinks) {
  const double forward = std::sqrt(times) * error;
  return {forward, 2 * forward + std::sqrt(kinks * 2 * forward / M_PI)};
}

template <class T>
void round(std::vector<T>& values) {
  values = converted<T>(converted<BFloat16>(values));
}

// The first tensor is the output.
void check(const Tensors<float>& got, const Tensors<double>& expected, const Bounds& bounds,
           const char* what, int number) {
  CHECK(got.size() == expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = difference(converted<double>(got[i]), expected[i]);
    const double bound = i == 0 ? bounds.forward : bounds.backward;
    INFO(what, " ", number, ", tensor ", i);
    CHECK(error <= bound);
  }
}

NodeExample<float> rounded(const NodeCase& c) {
  NodeExample<float> example(c);
  round(example.bank);
  round(example.probe);
  return example;
}

TEST_CASE("CUDA: bfloat16 operations are those of the CPU") {
  for (int operation = 0; operation < kOperationCount; ++operation) {
    for (const int stride : {1, 2}) {
      for (const int channels : {3, 20, 48}) {
        NodeCase c = single(operation, stride, 1 + (operation + channels) % 3, 9, 11, channels);
        c.images = channels < 16 ? 24 : 2;  // so that no sign counts for much
        NodeExample<float> example = rounded(c);
        // Halves of a convolution, a factorized reduction, or nothing, and then the node.
        const bool separable = operation >= kSeparable3;
        const bool reduces = operation == kIdentity && stride == 2;
        const int images = separable ? 3 : reduces ? 2 : 1;
        const int kinks = separable ? 2 : reduces ? 1 : 0;
        check(example.on_cuda<BFloat16>(), NodeExample<double>(example).on_cpu(),
              bounds(kStored, images, kinks), "operation", operation);
      }
    }
  }
}

TEST_CASE("CUDA: bfloat16 copies are exact") {
  for (const int operation : {kIdentity, kMaxPool}) {
    NodeExample<float> example = rounded(single(operation, 1, 2, 5, 7, 20));
    const Tensors<float> got = example.on_cuda<BFloat16>(), expected = example.on_cuda();
    CHECK(got[0] == expected[0]);
    if (operation == kIdentity) CHECK(got[1] == expected[1]);
  }
}

TEST_CASE("CUDA: bfloat16 large batches and many channels") {
  for (const int channels : {16, 64, 130, 256}) {
    for (const int stride : {1, 2}) {
      const int operation = stride == 1 ? kSeparable3 : kIdentity;
      NodeCase c = single(operation, stride, 1, 6, 7, channels);
      c.images = channels > 100 ? 1 : 12;
      NodeExample<float> example = rounded(c);
      check(example.on_cuda<BFloat16>(), NodeExample<double>(example).on_cpu(),
            stride == 1 ? bounds(kStored, 3, 2) : bounds(kStored, 2, 1), "channels", channels);
    }
  }
}

CellCase cell_case(unsigned seed) {
  CellCase c;
  c.archs = 1 + static_cast<int>(seed / 2 % 3);
  c.reduction = seed % 2 == 1;
  c.prev_prev_is_larger = seed / 2 % 2 == 1;
  c.prev_prev_is_shared = seed % 3 > 0;
  c.prev_is_shared = seed % 3 > 1;
  c.images = 4;
  c.height = 9;
  c.width = 7;
  c.channels = seed % 4 == 0 ? 16 : 20;
  c.seed = seed + 1;
  return c;
}

CellExample<float> rounded(const CellCase& c) {
  CellExample<float> example(c);
  round(example.prev_prev);
  round(example.prev);
  round(example.probe);
  return example;
}

// Input, three nodes of three feature maps each, output; a ReLU in front of each but the nodes.
// And the products: of the input, of both halves in three nodes, of the output.
constexpr int kCellImages = 11, kCellKinks = 8, kCellProducts = 8;

TEST_CASE("CUDA: bfloat16 cells are those of the CPU") {
  for (unsigned seed = 0; seed < 6; ++seed) {
    CellExample<float> example = rounded(cell_case(seed));
    check(example.on_cuda<BFloat16>(), CellExample<double>(example).on_cpu(),
          bounds(kStored, kCellImages, kCellKinks), "cell", static_cast<int>(seed));
  }
}

TEST_CASE("CUDA: bfloat16 results do not depend on the order of threads and blocks") {
  for (unsigned seed = 0; seed < 2; ++seed) {
    CellExample<float> example = rounded(cell_case(seed));
    const Tensors<float> forward = example.on_cuda<BFloat16>();
    CHECK(example.on_cuda<BFloat16>(false)[0] == forward[0]);
    const cuda_on_cpu::Backward backward;
    CHECK(example.on_cuda<BFloat16>() == forward);
  }
  NodeExample<float> example = rounded(mixed(2));
  const Tensors<float> forward = example.on_cuda<BFloat16>();
  const cuda_on_cpu::Backward backward;
  CHECK(example.on_cuda<BFloat16>() == forward);
}

// What is kept of the statistics is not rounded: one pixel alone is its own mean, and a constant
// image has no variance.
TEST_CASE("CUDA: bfloat16 statistics are those of what is stored") {
  NodeCase c = single(kSeparable3, 1, 1, 1, 1, 16);
  c.images = 1;
  const Tensors<float> got = rounded(c).on_cuda<BFloat16>();
  for (const float value : got[0]) CHECK(std::fabs(value - 0.0f) <= 1e-3);
}

TEST_CASE("CUDA: bfloat16 stems are those of the CPU") {
  for (const StemCase& c :
       {StemCase{3, 5, 6, 3, 20}, {1, 9, 2, 4, 48}, {2, 8, 8, 2, 100}, {5, 7, 7, 8, 16}}) {
    StemExample<float> example(c);
    round(example.x);
    round(example.probe);
    check(example.on_cuda<BFloat16>(), StemExample<double>(example).on_cpu(), bounds(kStored, 2, 0),
          "stem of channels", c.channels);
  }
}

TEST_CASE("CUDA: TF32 operations are those of the CPU") {
  for (int operation = 0; operation < kOperationCount; ++operation) {
    for (const int stride : {1, 2}) {
      for (const int channels : {3, 20, 48}) {
        NodeCase c = single(operation, stride, 1 + (operation + channels) % 3, 9, 11, channels);
        c.images = channels < 16 ? 24 : 2;
        const Tensors<float> exact = NodeExample<float>(c).on_cuda();
        c.tf32 = true;
        NodeExample<float> example(c);
        const bool separable = operation >= kSeparable3;
        const bool reduces = operation == kIdentity && stride == 2;
        const int products = separable ? 2 : reduces ? 1 : 0;
        const Tensors<float> got = example.on_cuda();
        CHECK((got == exact) == (products == 0));
        // What does not multiply is exact in float32.
        check(got, NodeExample<double>(example).on_cpu(),
              products == 0 ? Bounds{1e-6, 1e-6} : bounds(kRounded, products, products),
              "operation", operation);
      }
    }
  }
}

TEST_CASE("CUDA: TF32 large batches and many channels") {
  for (const int channels : {16, 64, 130, 256}) {
    for (const int stride : {1, 2}) {
      const int operation = stride == 1 ? kSeparable3 : kIdentity;
      NodeCase c = single(operation, stride, 1, 6, 7, channels);
      c.images = channels > 100 ? 1 : 12;
      c.tf32 = true;
      NodeExample<float> example(c);
      check(example.on_cuda(), NodeExample<double>(example).on_cpu(),
            bounds(kRounded, 2 / stride, 2 / stride), "channels", channels);
    }
  }
}

// More channels than the warps of a block can keep the sums of are multiplied without them.
TEST_CASE("CUDA: TF32 leaves very many channels alone") {
  NodeCase c = single(kSeparable3, 1, 1, 2, 3, 260);
  c.inputs = 1;
  const Tensors<float> exact = NodeExample<float>(c).on_cuda();
  c.tf32 = true;
  CHECK(NodeExample<float>(c).on_cuda() == exact);
}

TEST_CASE("CUDA: TF32 is not for float64") {
  for (const int stride : {1, 2}) {
    NodeCase c = mixed(stride);
    const Tensors<double> exact = NodeExample<double>(c).on_cuda();
    c.tf32 = true;
    CHECK(NodeExample<double>(c).on_cuda() == exact);
  }
}

TEST_CASE("CUDA: TF32 cells are those of the CPU") {
  for (unsigned seed = 0; seed < 6; ++seed) {
    CellCase c = cell_case(seed);
    c.tf32 = true;
    CellExample<float> example(c);
    check(example.on_cuda(), CellExample<double>(example).on_cpu(),
          bounds(kRounded, kCellProducts, kCellKinks), "cell", static_cast<int>(seed));
  }
}

TEST_CASE("CUDA: TF32 results do not depend on the order of threads and blocks") {
  for (unsigned seed = 0; seed < 2; ++seed) {
    CellCase c = cell_case(seed);
    c.tf32 = true;
    CellExample<float> example(c);
    const Tensors<float> forward = example.on_cuda();
    CHECK(example.on_cuda(false)[0] == forward[0]);
    const cuda_on_cpu::Backward backward;
    CHECK(example.on_cuda() == forward);
  }
}

TEST_CASE("CUDA: TF32 stems are those of the CPU") {
  for (const StemCase& c : {StemCase{3, 5, 6, 3, 20, true},
                            {1, 9, 2, 4, 48, true},
                            {2, 8, 8, 2, 100, true},
                            {5, 7, 7, 8, 16, true}}) {
    StemExample<float> example(c);
    check(example.on_cuda(), StemExample<double>(example).on_cpu(), bounds(kRounded, 1, 0),
          "stem of channels", c.channels);
  }
}

}  // namespace
}  // namespace asng::test
