// Adam (Kingma and Ba, 2015) on the natural gradient divided by its Fisher norm (section 3.1).
#pragma once

#include <cmath>
#include <cstdint>

#include "core/hd.h"

namespace asng {

// Added to the norm of the natural gradient, and to the root of the second moment.
constexpr double kAdamNormOffset = 1e-9;
constexpr double kAdamEpsilon = 1e-8;

struct AdamSettings {
  double step_size;
  double beta1;
  double beta2;
};

// The factors of one step; `updates` counts it and all before it.
struct AdamStep {
  double step_size, beta1, beta2;
  double unbias1, unbias2;  // 1 / (1 - beta^updates)

  ASNG_HD AdamStep(const AdamSettings& settings, std::uint64_t updates)
      : step_size(settings.step_size),
        beta1(settings.beta1),
        beta2(settings.beta2),
        unbias1(1.0 / (1.0 - std::pow(settings.beta1, static_cast<double>(updates)))),
        unbias2(1.0 / (1.0 - std::pow(settings.beta2, static_cast<double>(updates)))) {}

  // The two moments of one parameter (or of several in a vector type) after `gradient`.
  template <typename T>
  ASNG_HD void accumulate(const T& gradient, T& first, T& second) const {
    first = beta1 * first + (1.0 - beta1) * gradient;
    second = beta2 * second + (1.0 - beta2) * (gradient * gradient);
  }
  // By how much the parameter moves.
  ASNG_HD double move(double first, double second) const {
    return step_size * (first * unbias1) / (std::sqrt(second * unbias2) + kAdamEpsilon);
  }
};

}  // namespace asng
