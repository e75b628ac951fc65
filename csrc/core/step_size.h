// Adaptation of the trust-region radius delta = delta_init / Delta, the step size of ASNG
// (Algorithm 1, lines 6 to 8): ||s||^2 / gamma, held near alpha, estimates the signal-to-noise
// ratio of eq. (18), and with that eq. (17) holds over 1 / delta iterations, which improve J.
#pragma once

#include <cmath>

#include "core/hd.h"

namespace asng {

struct StepSizeSettings {
  double alpha;       // threshold of the signal-to-noise ratio
  double delta_init;  // delta_theta^0
  double Delta_max;   // upper bound of Delta
  double root_n;      // sqrt(n_theta)

  // delta is kept at or below sqrt(n_theta), that is beta <= 1: beyond, the accumulations below
  // stop being averages, and past beta = 2 they are not even real.
  ASNG_HD double Delta_min() const { return delta_init / root_n; }
  ASNG_HD double bounded(double Delta) const {
    return std::fmax(std::fmin(Delta, Delta_max), Delta_min());
  }
};

// s <- (1 - beta) s + sqrt(beta (2 - beta)) F^(1/2) G / ||G||_F, component by component: section
// 2.4 accumulates the normalized gradient.
struct Accumulation {
  double keep, add;

  ASNG_HD Accumulation(double beta, double norm)
      : keep(1.0 - beta), add(std::sqrt(beta * (2.0 - beta)) / norm) {}

  // One component (or several in a vector type) of s and of F^(1/2) G.
  template <typename T>
  ASNG_HD T operator()(const T& s, const T& root) const {
    return keep * s + add * root;  // eq. (19)
  }
};

struct StepSize {
  double gamma = 0.0;
  double Delta = 1.0;

  ASNG_HD double delta(const StepSizeSettings& settings) const {
    return settings.delta_init / Delta;
  }
  ASNG_HD double beta(const StepSizeSettings& settings) const {
    return std::fmin(delta(settings) / settings.root_n, 1.0);
  }
  // gamma and Delta after the accumulation s has been updated.
  ASNG_HD void adapt(const StepSizeSettings& settings, double beta, double squared_norm_of_s) {
    gamma = (1.0 - beta) * (1.0 - beta) * gamma + beta * (2.0 - beta);  // eq. (20)
    Delta = settings.bounded(
        Delta * std::exp(beta * (gamma - squared_norm_of_s / settings.alpha)));  // eq. (21)
  }
};

}  // namespace asng
