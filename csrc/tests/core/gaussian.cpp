#include "core/gaussian.h"

#include <doctest/doctest.h>

#include <cmath>
#include <initializer_list>

using asng::GaussianGradient;

TEST_CASE("the Fisher root applied twice is the Fisher matrix of a Gaussian") {
  for (double mean : {0.0, -2.0, 0.3, 150.0}) {
    for (double variance : {0.0625, 1.0, 30.0}) {
      const double first = 0.7, second = -0.4;
      double once[2], twice[2];
      const auto centered = [&](double a, double b) {
        return GaussianGradient{a, b - 2 * mean * a};
      };
      const double norm =
          asng::gaussian_fisher_root(mean, variance, centered(first, second), once[0], once[1]);
      asng::gaussian_fisher_root(mean, variance, centered(once[0], once[1]), twice[0], twice[1]);
      const double quartic = 2 * variance * variance;
      const double expected_first =
          ((4 * mean * mean + 2 * variance) * first - 2 * mean * second) / quartic;
      const double expected_second = (second - 2 * mean * first) / quartic;
      const double scale = std::fabs(expected_first) + std::fabs(expected_second);
      CHECK(std::fabs(twice[0] - expected_first) <= 1e-9 * scale);
      CHECK(std::fabs(twice[1] - expected_second) <= 1e-9 * scale);
      CHECK(std::fabs(norm - (first * expected_first + second * expected_second)) <=
            1e-9 * scale * (std::fabs(first) + std::fabs(second)));
      CHECK(std::fabs(norm - (once[0] * once[0] + once[1] * once[1])) <= 1e-6 * norm);
    }
  }
}

TEST_CASE("a step keeps mean and spread in their ranges") {
  for (double ratio : {0.0, 0.5}) {
    for (double step : {-1e3, -1.0, 0.0, 0.5, 1e3}) {
      double mean = 1.0, variance = 4.0;
      asng::step_gaussian(mean, variance, {0.5, -0.7}, step, -3.0, 5.0, 0.25, 4.0, ratio);
      CHECK(mean >= -3.0);
      CHECK(mean <= 5.0);
      CHECK(variance >= (ratio > 0.0 ? 2.0 : 0.0625));
      CHECK(variance <= 16.0);
    }
  }
}

TEST_CASE("with a least ratio of variances a step is the same wherever zero is") {
  for (double gradient : {-0.5, 0.5}) {
    for (double step : {0.5, 2.0, 9.0}) {
      double mean = 1.0, variance = 4.0, moved_mean = 101.0, moved_variance = 4.0;
      asng::step_gaussian(mean, variance, {gradient, -0.1}, step, 0.0, 2.0, 0.25, 8.0, 0.5);
      asng::step_gaussian(moved_mean, moved_variance, {gradient, -0.1}, step, 100.0, 102.0, 0.25,
                          8.0, 0.5);
      CHECK(std::fabs(moved_mean - (mean + 100.0)) <= 1e-12);
      CHECK(std::fabs(moved_variance - variance) <= 1e-12);
    }
  }
}

TEST_CASE("a step inside the ranges moves both moments along the gradient") {
  double mean = 2.0, variance = 1.5;
  const GaussianGradient gradient{0.3, 0.2};
  const double step = 0.1;
  asng::step_gaussian(mean, variance, gradient, step, -10.0, 10.0, 0.1, 10.0, 0.0);
  CHECK(std::fabs(mean - (2.0 + step * 0.3)) <= 1e-15);
  const double second = 2.0 * 2.0 + 1.5 + step * (2 * 2.0 * 0.3 + 0.2);
  CHECK(std::fabs(mean * mean + variance - second) <= 1e-12);
}
