// One Gaussian variable. The parameters of the family are theta = (mu, mu^2 + sigma^2) (section
// 2.4); they are kept as (mu, sigma^2), because mu^2 + sigma^2 - mu^2 cancels badly.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/hd.h"
#include "core/utility.h"

namespace asng {

// Natural gradient of one variable in a form free of cancellation:
//   mean  = sum_k w_k (x_k - mu)                 (the first component of G)
//   spread = sum_k w_k ((x_k - mu)^2 - sigma^2)  (the second is 2 mu mean + spread)
struct GaussianGradient {
  double mean;
  double spread;
};

// Of the weighted samples; sample k drew draws[k * stride]. What rounding left of 0 is 0.
ASNG_HD inline GaussianGradient gaussian_gradient(const Weighted* weighted, std::int64_t count,
                                                  const double* draws, std::int64_t stride,
                                                  double mean, double variance) {
  GaussianGradient gradient{0.0, 0.0};
  double mean_size = 0.0;
  double spread_size = 0.0;
  for (std::int64_t w = 0; w < count; ++w) {
    const double weight = weighted[w].weight;
    const double offset = draws[weighted[w].sample * stride] - mean;
    const double spread = offset * offset - variance;
    gradient.mean += weight * offset;    // eq. (12)
    gradient.spread += weight * spread;  // eq. (12)
    mean_size += std::fabs(weight * offset);
    spread_size += std::fabs(weight * spread);
  }
  if (std::fabs(gradient.mean) <= kCanceledUtility * mean_size) gradient.mean = 0.0;
  if (std::fabs(gradient.spread) <= kCanceledUtility * spread_size) gradient.spread = 0.0;
  return gradient;
}

// Writes the two components of F^(1/2) G and returns the squared norm ||G||_F^2.
//
// For a symmetric positive definite 2x2 matrix, F^(1/2) = (F + d I) / sqrt(tr F + 2 d) with
// d = sqrt(det F), and F = [4 mu^2 + 2 sigma^2, -2 mu; -2 mu, 1] / (2 sigma^4).
ASNG_HD inline double gaussian_fisher_root(double mean, double variance,
                                           const GaussianGradient& gradient, double& root_first,
                                           double& root_second) {
  const double dual_mean = gradient.mean / variance;
  const double dual_spread = gradient.spread / (2.0 * variance * variance);
  const double root_det = 1.0 / (std::sqrt(2.0 * variance) * variance);
  const double trace = 1.0 / variance + (2.0 * mean * mean + 0.5) / (variance * variance);  // tr F
  const double scale = 1.0 / std::sqrt(trace + 2.0 * root_det);
  const double second = 2.0 * mean * gradient.mean + gradient.spread;
  root_first = (dual_mean - 2.0 * mean * dual_spread + root_det * gradient.mean) * scale;
  root_second = (dual_spread + root_det * second) * scale;
  return gradient.mean * dual_mean + gradient.spread * dual_spread;
}

// theta += step * G (eq. (13)), then mu is clipped to [low, high] and sigma to [std_min, std_max].
//
// With variance_ratio_min = 0 this is the paper's projection: clipping mu leaves the second moment
// mu^2 + sigma^2 as it is, so that sigma^2 grows or shrinks with the distance of the bound from 0,
// and a large step can take all of sigma^2 at once. Otherwise clipping mu shortens its step and
// does nothing else, and sigma^2 is multiplied by no less than variance_ratio_min.
ASNG_HD inline void step_gaussian(double& mean, double& variance, const GaussianGradient& gradient,
                                  double step, double low, double high, double std_min,
                                  double std_max, double variance_ratio_min) {
  const double shift = step * gradient.mean;
  const double moved = mean + shift;
  const double clipped = std::fmin(std::fmax(moved, low), high);
  if (variance_ratio_min > 0.0) {
    const double made = clipped - mean;
    variance =
        std::fmax(variance + step * gradient.spread - made * made, variance_ratio_min * variance);
  } else {
    variance += step * gradient.spread - shift * shift + (moved - clipped) * (moved + clipped);
  }
  variance = std::fmin(std::fmax(variance, std_min * std_min), std_max * std_max);
  mean = clipped;
}

}  // namespace asng
