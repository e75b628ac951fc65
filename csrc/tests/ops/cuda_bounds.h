// How near what the CUDA kernels compute must be to what those for the CPU do in float64, and
// checks of that.
//
// A value that is stored is off by at most kStored = 2⁻⁸ of itself, and a difference is
// taken relative to the norm of all values; linear maps and normalizations of random feature maps
// pass relative errors on as they are, and errors of one feature map after another are independent,
// so that they accumulate in squares. So a forward pass that stores n feature maps in a row is off
// by √n·kStored. Gradients are off by as much again, and where an error δ of ReLU's argument turns
// its sign: that befalls δ/π of normally distributed arguments, which is 2δ/π of those that ReLU
// lets pass, and the square root of it in the norm. Maxima that change hands are bounded in the
// same way. A factor of a product that is rounded to TF32 is off by at most 2⁻¹¹ of itself, a
// product of two by kRounded = 2⁻¹⁰; products in a row are to that what feature maps are to
// kStored. With feature maps in bfloat16 products are in TF32, too, which adds little to their
// error.
#pragma once

#include <doctest/doctest.h>

#include <cmath>

#include "platform/grid_on_cpu/grid.h"
#include "tests/ops/cuda_example.h"
#include "tests/platform/sanitized.h"

namespace asng::test {

using cuda::BFloat16;

inline constexpr int kIdentity = operation_number(Form::kIdentity);
inline constexpr int kMaxPool = operation_number(Form::kMaxPool);
inline constexpr int kSeparable3 = operation_number(Form::kSeparable, 0);
inline constexpr int kSeparable5 = operation_number(Form::kSeparable, 1);

inline constexpr double kStored = 1.0 / 256, kRounded = 1.0 / 1024, kSingle = 1e-6;

// What a forward pass has in a row: feature maps that it stores, ReLUs among that, and products.
struct Depth {
  int maps, kinks, products;
};
// Input, three nodes of three feature maps each, output; a ReLU in front of each but the nodes. And
// the products: of the input, of both stages in three nodes, of the output.
inline constexpr Depth kCell = {11, 8, 8}, kStem = {2, 0, 1};
// The three nodes alone.
inline constexpr Depth kMixture = {9, 6, 6};

inline Depth depth_of(int operation, int64_t stride) {
  if (operation >= kSeparable3) return {3, 2, 2};
  return operation == kIdentity && stride == 2 ? Depth{2, 1, 1} : Depth{1, 0, 0};
}

struct Bounds {
  double forward, backward;
};
inline constexpr Bounds kDouble = {1e-9, 1e-9};

inline Bounds bounds(double error, int times, int kinks) {
  const double forward = std::sqrt(times) * error;
  return {forward, 2 * forward + std::sqrt(kinks * 2 * forward / M_PI)};
}

// ‖a − b‖ / (‖b‖ + 1e-3) is at most `bound`; not if one holds a NaN.
inline bool near(const std::vector<double>& a, const std::vector<double>& b, double bound) {
  double distance = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    distance += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return a.size() == b.size() && std::sqrt(distance) <= bound * (std::sqrt(norm) + 1e-3);
}

// The first tensor is the output.
inline void compare(const char* what, const Tensors& got, const Tensors& expected,
                    const Bounds& bounds) {
  CHECK(got.size() == expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    INFO(what, ", tensor ", i);
    CHECK(near(got[i], expected[i], i == 0 ? bounds.forward : bounds.backward));
  }
}

// Of feature maps too small for bounds: a sign counts for much there.
template <class Shape>
void check_small(const Example<Shape>& e) {
  compare("float64", on_cuda<double>(e), on_cpu<double>(e), kDouble);
  for (const Tensors& got : {on_cuda<float>(e), on_cuda<float>(e, true), on_cuda<BFloat16>(e)}) {
    for (const std::vector<double>& values : got) {
      CHECK(std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); }));
    }
  }
}

// Returns what it found in float64, float32, TF32 and bfloat16.
template <class Shape>
std::vector<Tensors> check(const Example<Shape>& e, const Depth& depth) {
  const Tensors expected = on_cpu<double>(e), exact = on_cuda<double>(e),
                single = on_cuda<float>(e);
  compare("float64", exact, expected, kDouble);
  compare("float32", single, expected, bounds(kSingle, depth.maps, depth.kinks));
  const Tensors tf32 = on_cuda<float>(e, true);
  CHECK((tf32 == single) == (depth.products == 0));
  if (depth.products > 0) {
    compare("TF32", tf32, expected, bounds(kRounded, depth.products, depth.kinks));
  }
  const Tensors stored = on_cuda<BFloat16>(e);
  compare("bfloat16", stored, expected, bounds(kStored, depth.maps, depth.kinks));
  return {exact, single, tf32, stored};
}

// As check(), and the same bits whatever the order of threads and blocks, and without a backward
// pass. Sanitizers see no more in another order.
template <class Shape>
void check_bits(const Example<Shape>& e, const Depth& depth) {
  const std::vector<Tensors> forward = check(e, depth);
  const auto run = [&](bool save) {
    return std::vector<Tensors>{on_cuda<double>(e, false, save), on_cuda<float>(e, false, save),
                                on_cuda<float>(e, true, save), on_cuda<BFloat16>(e, false, save)};
  };
  const std::vector<Tensors> unsaved = run(false);
  for (size_t i = 0; i < forward.size(); ++i) CHECK(unsaved[i][0] == forward[i][0]);
  if (kSanitized) return;
  const cuda_on_cpu::Backward backward;
  CHECK(run(true) == forward);
}

// The output of `bad` is NaN in one architecture, and elsewhere that of `good`.
template <class V = double, class Shape>
void check_nan(const Example<Shape>& bad, const Example<Shape>& good, size_t arch) {
  const Tensors got = on_cuda<V>(bad), expected = on_cuda<V>(good);
  const size_t size = static_cast<size_t>(good.shape.out_size());
  for (size_t i = 0; i < got[0].size(); ++i) {
    const bool real = static_cast<int64_t>(i) % good.shape.padded < good.shape.channels;
    if (real) CHECK((i / size == arch ? std::isnan(got[0][i]) : got[0][i] == expected[0][i]));
  }
}

}  // namespace asng::test
