#include "kernels/cpu/winograd.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/platform/threads.h"

namespace asng::cpu {
namespace {

std::vector<double> numbers(int64_t count, uint32_t seed) {
  std::vector<double> values(static_cast<size_t>(count));
  for (double& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = seed / 4294967296.0 - 0.5;
  }
  return values;
}

// Calls visit(downsampled, input, weight) with the places of every product of a convolution.
template <class Visit>
void for_each_product(const ConvolutionShape& s, Visit visit) {
  const int64_t elements = s.kernel * s.kernel;
  for (int64_t n = 0; n < s.batch; ++n) {
    for (int64_t y = 0; y < s.downsampled_height(); ++y) {
      for (int64_t x = 0; x < s.downsampled_width(); ++x) {
        for (int64_t t = 0; t < elements; ++t) {
          const int64_t hy = s.stride * y + t / s.kernel - s.kernel / 2;
          const int64_t hx = s.stride * x + t % s.kernel - s.kernel / 2;
          if (hy < 0 || hx < 0 || hy >= s.height || hx >= s.width) continue;
          for (int64_t o = 0; o < s.downsampled_channels; ++o) {
            for (int64_t i = 0; i < s.input_channels; ++i) {
              visit(((n * s.downsampled_height() + y) * s.downsampled_width() + x) *
                            s.downsampled_channels +
                        o,
                    ((n * s.height + hy) * s.width + hx) * s.input_channels + i,
                    o * s.row_stride + i * s.column_stride + t);
            }
          }
        }
      }
    }
  }
}

double difference(const std::vector<double>& a, const std::vector<double>& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(a[i] - b[i]));
  return most;
}

void compare(ConvolutionShape s) {
  const int64_t elements = s.kernel * s.kernel;
  // A leading slice of a weight that is one channel wider each way.
  s.column_stride = elements;
  s.row_stride = (s.input_channels + 1) * elements;
  const int64_t downsampled_size =
      s.batch * s.downsampled_height() * s.downsampled_width() * s.downsampled_channels;
  const int64_t input_size = s.batch * s.height * s.width * s.input_channels;
  const auto downsampled = numbers(downsampled_size, 1), input = numbers(input_size, 2);
  const auto downsampled_mask = numbers(downsampled_size, 3), input_mask = numbers(input_size, 4);
  const auto weight = numbers((s.downsampled_channels + 1) * s.row_stride, 5);
  const auto masked = [](std::vector<double> x, const std::vector<double>& mask) {
    for (size_t i = 0; i < x.size(); ++i) x[i] = mask[i] > 0 ? x[i] : 0;
    return x;
  };
  const auto masked_downsampled = masked(downsampled, downsampled_mask),
             masked_input = masked(input, input_mask);
  std::vector<double> down(downsampled.size()), up(input), gradient(weight.size());
  for_each_product(s, [&](int64_t l, int64_t h, int64_t w) {
    down[l] += masked_input[h] * weight[w];
    up[h] += masked_downsampled[l] * weight[w];
    gradient[w] += masked_input[h] * masked_downsampled[l];
  });
  for (double& value : up) value = std::max(value, 0.0);
  std::vector<double> packed;
  for (int64_t o = 0; o < s.downsampled_channels; ++o) {
    const auto row = gradient.begin() + o * s.row_stride;
    packed.insert(packed.end(), row, row + s.input_channels * elements);
  }

  const Winograd<double> tested(s);
  std::vector<double> got_down(downsampled.size()), got_up(input.size()),
      got_gradient(packed.size());
  tested.down(input.data(), input_mask.data(), weight.data(), false, got_down.data());
  tested.up(downsampled.data(), downsampled_mask.data(), weight.data(), input.data(), true,
            got_up.data());
  tested.weight_gradient(input.data(), input_mask.data(), downsampled.data(),
                         downsampled_mask.data(), got_gradient.data());
  CHECK(difference(got_down, down) < 1e-11);
  CHECK(difference(got_up, up) < 1e-11);
  CHECK(difference(got_gradient, packed) < 1e-10);
}

TEST_CASE("Winograd convolution is convolution") {
  for (int threads : {1, 2}) {
    asng::test::thread_count = threads;
    for (int64_t kernel : {3, 5}) {
      for (int64_t stride : {1, 2}) {
        compare({1, 1, 1, 1, 1, kernel, stride, 0, 0});
        compare({2, 9, 7, 3, 17, kernel, stride, 0, 0});
        compare({1, 13, 22, 20, 5, kernel, stride, 0, 0});
      }
    }
  }
  asng::test::thread_count = 1;
}

}  // namespace
}  // namespace asng::cpu
