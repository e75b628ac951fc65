// One categorical variable with probabilities theta[0..size): the exponential family of
// section 2.4 in expectation parameters, with the one-hot vector as sufficient statistics.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/hd.h"
#include "core/utility.h"

namespace asng {

// Probabilities are read as at least this much under a root in a denominator, so that a category
// of probability 0 (possible only where the margin is 0) gives large but finite numbers.
constexpr double kProbabilityFloor = 1e-200;

// The category whose interval of the cumulative distribution holds `uniform`. Categories that
// rounding leaves uncovered at the upper end belong to the last one.
ASNG_HD inline std::int64_t sample_category(const double* theta, std::int64_t size,
                                            double uniform) {
  double cumulative = 0.0;
  std::int64_t category = 0;
  for (std::int64_t j = 0; j + 1 < size; ++j) {
    cumulative += theta[j];
    category += uniform >= cumulative;
  }
  return category;
}

// Adds G, sum_w weight (T(c) - theta) over the weighted samples, which is sum_w weight T(c) because
// weights sum to 0, to zeros. Sample k chose categories[k * stride]. Returns whether any component
// is not 0. With a category that does not exist G is 0: this only keeps memory safe.
ASNG_HD inline bool categorical_gradient(const Weighted* weighted, std::int64_t count,
                                         const std::int64_t* categories, std::int64_t stride,
                                         double canceled, std::int64_t size, double* gradient) {
  std::int64_t lowest = size;
  std::int64_t highest = -1;
  bool valid = true;
  for (std::int64_t w = 0; w < count; ++w) {
    const std::int64_t category = categories[weighted[w].sample * stride];
    if (static_cast<std::uint64_t>(category) >= static_cast<std::uint64_t>(size)) [[unlikely]] {
      valid = false;
      continue;
    }
    gradient[category] += weighted[w].weight;  // eq. (12)
    lowest = category < lowest ? category : lowest;
    highest = category > highest ? category : highest;
  }
  const double least = valid && lowest < highest ? canceled : HUGE_VAL;
  bool any = false;
  for (std::int64_t j = lowest; j <= highest; ++j) {
    const bool counts = std::fabs(gradient[j]) > least;
    gradient[j] = counts ? gradient[j] : 0.0;
    any |= counts;
  }
  return any;
}

// Writes F(theta)^(1/2) g to `root` (size - 1 components) for a natural gradient g (`size`
// components that sum to 0) and returns its squared Euclidean norm, which is ||g||_F^2.
//
// F = diag(1/theta) + 11^T/theta_K has the root R (R^T R = F) that acts in time linear in K:
//   (R g)_j = g_j / sqrt(theta_j) + sqrt(theta_j) sum_{k<K} g_k / (theta_K + sqrt(theta_K)).
ASNG_HD inline double categorical_fisher_root(const double* theta, const double* gradient,
                                              std::int64_t size, double* root) {
  const double theta_last = std::fmax(theta[size - 1], kProbabilityFloor);
  const double gradient_last = gradient[size - 1];
  // sum_{k<K} g_k = -g_K
  const double shared =
      gradient_last == 0.0 ? 0.0 : -gradient_last / (theta_last + std::sqrt(theta_last));
  double squared_norm = 0.0;
  for (std::int64_t j = 0; j + 1 < size; ++j) {
    const double scale = std::sqrt(theta[j] > kProbabilityFloor ? theta[j] : kProbabilityFloor);
    root[j] = gradient[j] / scale + scale * shared;
    squared_norm += root[j] * root[j];
  }
  return squared_norm;
}

// Forces theta to be a distribution with every probability at least `margin`: clips, takes the
// excess from each component in proportion to its distance from the margin, and renormalizes. If
// no component is above the margin, all become equal. Needs size * margin < 1.
ASNG_HD inline void project_categorical(double* theta, std::int64_t size, double margin) {
  double sum = 0.0;
  double room = 0.0;
  for (std::int64_t j = 0; j < size; ++j) {
    theta[j] = theta[j] > margin ? theta[j] : margin;
    sum += theta[j];
    room += theta[j] - margin;
  }
  if (!(room > 0.0)) {
    for (std::int64_t j = 0; j < size; ++j) {
      theta[j] = 1.0 / static_cast<double>(size);
    }
    return;
  }
  const double fraction = (sum - 1.0) / room;
  double total = 0.0;
  for (std::int64_t j = 0; j < size; ++j) {
    theta[j] -= fraction * (theta[j] - margin);
    total += theta[j];
  }
  const double scale = 1.0 / total;
  for (std::int64_t j = 0; j < size; ++j) {
    theta[j] *= scale;
  }
}

// theta += step * G, then the projection.
ASNG_HD inline void step_categorical(double* theta, const double* gradient, std::int64_t size,
                                     double step, double margin) {
  for (std::int64_t j = 0; j < size; ++j) {
    theta[j] += step * gradient[j];  // eq. (13)
  }
  project_categorical(theta, size, margin);
}

}  // namespace asng
