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

// Calls visit(low, high, weight) with the places of every product of a convolution.
template <class Visit>
void for_each_product(const ConvolutionShape& s, Visit visit) {
  const int64_t elements = s.kernel * s.kernel;
  for (int64_t n = 0; n < s.images; ++n) {
    for (int64_t y = 0; y < s.low_height(); ++y) {
      for (int64_t x = 0; x < s.low_width(); ++x) {
        for (int64_t t = 0; t < elements; ++t) {
          const int64_t hy = s.stride * y + t / s.kernel - s.kernel / 2;
          const int64_t hx = s.stride * x + t % s.kernel - s.kernel / 2;
          if (hy < 0 || hx < 0 || hy >= s.height || hx >= s.width) continue;
          for (int64_t o = 0; o < s.low_channels; ++o) {
            for (int64_t i = 0; i < s.high_channels; ++i) {
              visit(((n * s.low_height() + y) * s.low_width() + x) * s.low_channels + o,
                    ((n * s.height + hy) * s.width + hx) * s.high_channels + i,
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
  // A leading slice of a larger weight, one channel wider each way.
  s.column_stride = elements;
  s.row_stride = (s.high_channels + 1) * elements;
  const int64_t low_size = s.images * s.low_height() * s.low_width() * s.low_channels;
  const int64_t high_size = s.images * s.height * s.width * s.high_channels;
  const auto low = numbers(low_size, 1), high = numbers(high_size, 2);
  const auto low_gate = numbers(low_size, 3), high_gate = numbers(high_size, 4);
  const auto weight = numbers((s.low_channels + 1) * s.row_stride, 5);
  const auto gated = [](std::vector<double> x, const std::vector<double>& gate) {
    for (size_t i = 0; i < x.size(); ++i) x[i] = gate[i] > 0 ? x[i] : 0;
    return x;
  };
  const auto open_low = gated(low, low_gate), open_high = gated(high, high_gate);
  std::vector<double> down(low.size()), up(high), gradient(weight.size());
  for_each_product(s, [&](int64_t l, int64_t h, int64_t w) {
    down[l] += open_high[h] * weight[w];
    up[h] += open_low[l] * weight[w];
    gradient[w] += open_high[h] * open_low[l];
  });
  for (double& value : up) value = std::max(value, 0.0);
  std::vector<double> packed;
  for (int64_t o = 0; o < s.low_channels; ++o) {
    const auto row = gradient.begin() + o * s.row_stride;
    packed.insert(packed.end(), row, row + s.high_channels * elements);
  }

  const Winograd<double> tested(s);
  std::vector<double> got_down(low.size()), got_up(high.size()), got_gradient(packed.size());
  tested.down(high.data(), high_gate.data(), weight.data(), false, got_down.data());
  tested.up(low.data(), low_gate.data(), weight.data(), high.data(), true, got_up.data());
  tested.weight_gradient(high.data(), high_gate.data(), low.data(), low_gate.data(),
                         got_gradient.data());
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
