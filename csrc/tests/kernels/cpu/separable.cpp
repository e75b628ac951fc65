// A stage of a separable convolution, with dilation, against its definition.

#include "kernels/cpu/separable.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace asng::cpu {
namespace {

using Values = std::vector<double>;

constexpr int64_t kChannels = kChannelBlock, kImages = 2, kHeight = 7, kWidth = 6;

Values varied(int64_t count, double step) {
  Values values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = std::sin(step * static_cast<double>(i + 1));
  return values;
}

bool equal(const Values& a, const Values& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::abs(a[i] - b[i]) < 1e-12)) return false;
  }
  return a.size() == b.size();
}

// Calls visit(input, output, element) for every channel of every pair of pixels that a kernel
// element connects; these are positions in the input, the output and the depthwise weight.
template <class Visit>
void for_each_pair(const Shape& s, int64_t kernel, int64_t dilation, Visit visit) {
  const int64_t pad = dilation * (kernel / 2);
  for (int64_t out = 0; out < s.images * s.out_height * s.out_width; ++out) {
    const int64_t image = out / (s.out_height * s.out_width);
    const int64_t y = out / s.out_width % s.out_height, x = out % s.out_width;
    for (int64_t k = 0; k < kernel * kernel; ++k) {
      const int64_t sy = y * s.stride + k / kernel * dilation - pad;
      const int64_t sx = x * s.stride + k % kernel * dilation - pad;
      if (sy < 0 || sy >= s.height || sx < 0 || sx >= s.width) continue;
      const int64_t in = (image * s.height + sy) * s.width + sx;
      for (int64_t c = 0; c < s.channels; ++c) {
        visit(in * s.channels + c, out * s.channels + c, k * s.channels + c);
      }
    }
  }
}

template <int K, int D>
void check_stage(int64_t stride) {
  Shape s;
  s.images = kImages;
  s.height = kHeight;
  s.width = kWidth;
  s.out_height = (kHeight + stride - 1) / stride;
  s.out_width = (kWidth + stride - 1) / stride;
  s.channels = kChannels;
  s.stride = stride;
  const int64_t inputs = kImages * kHeight * kWidth * kChannels;
  const int64_t outputs = kImages * s.out_height * s.out_width * kChannels;
  const Values x = varied(inputs, 0.7), depthwise = varied(K * K * kChannels, 0.3);
  const Values pointwise = varied(kChannels * kChannels, 0.9), grad = varied(outputs, 1.1);
  Values flipped(depthwise.size()), transposed(pointwise.size());
  for (int64_t i = 0; i < K * K * kChannels; ++i) {
    flipped[(K * K - 1 - i / kChannels) * kChannels + i % kChannels] = depthwise[i];
  }
  for (int64_t i = 0; i < kChannels * kChannels; ++i) {
    transposed[i % kChannels * kChannels + i / kChannels] = pointwise[i];
  }

  Values rows(static_cast<size_t>(outputs)), z(rows.size()), row_grads(rows.size());
  for_each_pair(s, K, D, [&](int64_t in, int64_t out, int64_t element) {
    rows[out] += std::max(x[in], 0.0) * depthwise[element];
  });
  Values grad_x(x.size()), grad_depthwise(depthwise.size()), grad_pointwise(pointwise.size());
  for (int64_t i = 0; i < outputs; ++i) {
    const int64_t first = i / kChannels * kChannels, c = i % kChannels;
    for (int64_t k = 0; k < kChannels; ++k) {
      z[i] += rows[first + k] * pointwise[k * kChannels + c];
      row_grads[i] += grad[first + k] * pointwise[c * kChannels + k];
      grad_pointwise[c * kChannels + k] += grad[i] * rows[first + k];
    }
  }
  for_each_pair(s, K, D, [&](int64_t in, int64_t out, int64_t element) {
    if (x[in] > 0) grad_x[in] += row_grads[out] * depthwise[element];
    grad_depthwise[element] += std::max(x[in], 0.0) * row_grads[out];
  });

  Values made(z.size()), sum(kChannels), squares(kChannels);
  SeparableForward<double> forward;
  forward.shape = s;
  forward.x = x.data();
  forward.depthwise = depthwise.data();
  forward.pointwise = pointwise.data();
  forward.z = made.data();
  forward.sum = sum.data();
  forward.sum_squares = squares.data();
  baseline::separable_forward_of<double, K, D>(forward);
  CHECK(equal(made, z));

  const Values ones(kChannels, 1.0), zeros(kChannels);
  Values made_x(x.size()), made_depthwise(depthwise.size()), made_pointwise(pointwise.size());
  SeparableBackward<double> backward;
  backward.shape = s;
  backward.grad = grad.data();
  backward.z = z.data();
  backward.norm = {ones.data(), zeros.data(), zeros.data()};
  backward.x = x.data();
  backward.depthwise = depthwise.data();
  backward.flipped = flipped.data();
  backward.pointwise = transposed.data();
  backward.grad_x = made_x.data();
  backward.grad_depthwise = made_depthwise.data();
  backward.grad_pointwise = made_pointwise.data();
  baseline::separable_backward_of<double, K, D>(backward);
  CHECK(equal(made_x, grad_x));
  CHECK(equal(made_depthwise, grad_depthwise));
  CHECK(equal(made_pointwise, grad_pointwise));
}

TEST_CASE("a stage is what it is defined as") {
  for (const int64_t stride : {1, 2}) {
    check_stage<3, 1>(stride);
    check_stage<5, 1>(stride);
  }
}

TEST_CASE("a dilated stage is what it is defined as") {
  for (const int64_t stride : {1, 2}) {
    check_stage<3, 2>(stride);
    check_stage<3, 3>(stride);
  }
}

}  // namespace
}  // namespace asng::cpu
