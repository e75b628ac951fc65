// The stem against a convolution and a normalization written out, and on several threads.

#include "ops/stem/cpu.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/platform/threads.h"

namespace asng::cpu {
namespace {

struct Result {
  std::vector<double> y, grad_weight, grad_scale, grad_bias;

  bool operator==(const Result& other) const {
    return y == other.y && grad_weight == other.grad_weight && grad_scale == other.grad_scale &&
           grad_bias == other.grad_bias;
  }
};

struct Example {
  StemShape shape;
  std::vector<double> images, weight, scale, bias, probe;

  Example(int64_t in_channels, int64_t channels, int64_t height, int64_t width) {
    shape = {3, height, width, in_channels, channels, padded_channels(channels)};
    std::mt19937 generator(2);
    std::normal_distribution<double> normal;
    const auto draw = [&](int64_t count) {
      std::vector<double> values(static_cast<size_t>(count));
      for (double& value : values) value = normal(generator);
      return values;
    };
    images = draw(3 * height * width * in_channels);
    weight = draw(channels * in_channels * 9);
    scale = draw(channels);
    bias = draw(channels);
    probe = draw(shape.out_size());
  }

  Result run(int threads) const {
    test::thread_count = threads;
    Result r;
    r.y.resize(static_cast<size_t>(shape.out_size()));
    r.grad_weight.resize(weight.size());
    r.grad_scale.resize(scale.size());
    r.grad_bias.resize(bias.size());
    std::vector<double> saved(static_cast<size_t>(shape.saved().values()));
    Stem<double>(shape, weight.data())
        .forward(images.data(), scale.data(), bias.data(), r.y.data(), saved.data());
    Stem<double>(shape, weight.data())
        .backward(images.data(), scale.data(), probe.data(), saved.data(), r.grad_weight.data(),
                  r.grad_scale.data(), r.grad_bias.data());
    test::thread_count = 1;
    return r;
  }

  // (pixels, channels) of the convolution.
  std::vector<double> convolved() const {
    const int64_t height = shape.height, width = shape.width, in = shape.in_channels;
    std::vector<double> z;
    for (int64_t b = 0; b < shape.images; ++b) {
      for (int64_t y = 0; y < height; ++y) {
        for (int64_t x = 0; x < width; ++x) {
          for (int64_t o = 0; o < shape.channels; ++o) {
            double sum = 0;
            for (int64_t k = 0; k < 9; ++k) {
              const int64_t sy = y + k / 3 - 1, sx = x + k % 3 - 1;
              if (sy < 0 || sy >= height || sx < 0 || sx >= width) continue;
              for (int64_t c = 0; c < in; ++c) {
                sum += images[static_cast<size_t>(((b * height + sy) * width + sx) * in + c)] *
                       weight[static_cast<size_t>((o * in + c) * 9 + k)];
              }
            }
            z.push_back(sum);
          }
        }
      }
    }
    return z;
  }

  double loss() const {
    const std::vector<double> z = convolved();
    const int64_t channels = shape.channels;
    const int64_t pixels = static_cast<int64_t>(z.size()) / channels;
    double total = 0;
    for (int64_t c = 0; c < channels; ++c) {
      double mean = 0, square = 0;
      for (int64_t p = 0; p < pixels; ++p) mean += z[static_cast<size_t>(p * channels + c)];
      mean /= static_cast<double>(pixels);
      for (int64_t p = 0; p < pixels; ++p) {
        square += std::pow(z[static_cast<size_t>(p * channels + c)] - mean, 2);
      }
      const double rstd = 1 / std::sqrt(square / static_cast<double>(pixels) + 1e-5);
      for (int64_t p = 0; p < pixels; ++p) {
        const double value = (z[static_cast<size_t>(p * channels + c)] - mean) * rstd *
                                 scale[static_cast<size_t>(c)] +
                             bias[static_cast<size_t>(c)];
        total += value * probe[static_cast<size_t>(p * shape.padded + c)];
      }
    }
    return total;
  }
};

TEST_CASE("the stem is a convolution and a normalization") {
  for (const int64_t in_channels : {1, 3, 5}) {
    Example example(in_channels, 18, 5, 4);
    const Result got = example.run(1);
    double total = 0;
    for (size_t i = 0; i < got.y.size(); ++i) {
      const bool real = static_cast<int64_t>(i) % example.shape.padded < example.shape.channels;
      if (!real) CHECK(got.y[i] == 0);
      total += got.y[i] * example.probe[i];
    }
    CHECK(std::abs(total - example.loss()) < 1e-9 * (1 + std::abs(total)));
    const auto slope = [&](double& value) {
      const double before = value, step = 1e-5;
      value = before + step;
      const double above = example.loss();
      value = before - step;
      const double below = example.loss();
      value = before;
      return (above - below) / (2 * step);
    };
    for (size_t i = 0; i < example.weight.size(); i += 7) {
      CHECK(std::abs(slope(example.weight[i]) - got.grad_weight[i]) < 1e-5);
    }
    for (size_t i = 0; i < example.scale.size(); ++i) {
      CHECK(std::abs(slope(example.scale[i]) - got.grad_scale[i]) < 1e-5);
      CHECK(std::abs(slope(example.bias[i]) - got.grad_bias[i]) < 1e-5);
    }
  }
}

TEST_CASE("the stem gives the same bits on any threads") {
  const Example example(3, 20, 7, 6);
  CHECK(example.run(1) == example.run(3));
}

}  // namespace
}  // namespace asng::cpu
