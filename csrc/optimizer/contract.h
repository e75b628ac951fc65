// The tensors of asng::_asng_ask and asng::_asng_tell, checked in the same way on every device.
#pragma once

#include <cmath>

#include "core/step_size.h"
#include "platform/tensors.h"

namespace asng {

struct AsngState {
  // Columns of `counters`, as they are listed in library.cpp.
  static constexpr int64_t kCounters = 8;
  static constexpr int64_t kMost = 65535;  // optimizers, and samples of each

  Tensor counters, theta, mean, variance, offsets;
  int64_t problems, categorical, gaussian, theta_size;

  AsngState(const Tensor& counters, const Tensor& theta, const Tensor& mean, const Tensor& variance,
            const Tensor& offsets, DeviceType device)
      : counters(counters), theta(theta), mean(mean), variance(variance), offsets(offsets) {
    STD_TORCH_CHECK(theta.dim() == 2 && mean.dim() == 2 && offsets.dim() == 1,
                    "theta, mean and offsets must have 2, 2 and 1 dimensions, got ", theta.dim(),
                    ", ", mean.dim(), " and ", offsets.dim());
    problems = theta.size(0);
    theta_size = theta.size(1);
    gaussian = mean.size(1);
    categorical = offsets.size(0) - 1;
    STD_TORCH_CHECK(problems > 0 && problems <= kMost, "theta must have from 1 to ", kMost,
                    " rows, got ", problems);
    STD_TORCH_CHECK(categorical >= 0 && categorical + gaussian > 0,
                    "offsets and mean must be of at least one variable, got shapes (",
                    offsets.size(0), ",) and (", mean.size(0), ", ", gaussian, ")");
    check(counters, "counters", ScalarType::Long, {problems, kCounters}, device);
    check(theta, "theta", ScalarType::Double, {problems, theta_size}, device);
    check(mean, "mean", ScalarType::Double, {problems, gaussian}, device);
    check(variance, "variance", ScalarType::Double, {problems, gaussian}, device);
    check(offsets, "offsets", ScalarType::Long, {categorical + 1}, device);
  }

  void check_population(int64_t population, int64_t least) const {
    STD_TORCH_CHECK(population >= least && population <= kMost, "population must be from ", least,
                    " to ", kMost, ", got ", population);
  }

  int64_t n_theta() const { return theta_size - categorical + 2 * gaussian; }

  Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) const {
    return torch::stable::new_empty(theta, {sizes.data(), sizes.size()}, dtype);
  }
};

// The best sample so far of each problem.
struct AsngBest {
  Tensor loss, categorical, numerical;
};

// What is told; returns the number of samples of each problem.
inline int64_t check_evaluations(const AsngState& state, const Tensor& s, const Tensor& step,
                                 const AsngBest& best, const Tensor& categorical,
                                 const Tensor& numerical, const Tensor& losses,
                                 const Tensor& margin, const Tensor& bounds, DeviceType device) {
  STD_TORCH_CHECK(losses.dim() == 2, "losses must have 2 dimensions, got ", losses.dim());
  const int64_t problems = state.problems, population = losses.size(1);
  state.check_population(population, 2);
  check(s, "s", ScalarType::Double, {problems, state.n_theta()}, device);
  check(step, "step", ScalarType::Double, {problems, 2}, device);
  check(best.loss, "best_loss", ScalarType::Double, {problems}, device);
  check(best.categorical, "best_categorical", ScalarType::Long, {problems, state.categorical},
        device);
  check(best.numerical, "best_numerical", ScalarType::Double, {problems, state.gaussian}, device);
  check(categorical, "categorical", ScalarType::Long, {problems, population, state.categorical},
        device);
  check(numerical, "numerical", ScalarType::Double, {problems, population, state.gaussian}, device);
  check(losses, "losses", ScalarType::Double, {problems, population}, device);
  check(margin, "margin", ScalarType::Double, {state.categorical}, device);
  check(bounds, "bounds", ScalarType::Double, {4, state.gaussian}, device);
  return population;
}

inline StepSizeSettings step_size_settings(const AsngState& state, double alpha, double delta_init,
                                           double Delta_max) {
  return {alpha, delta_init, Delta_max, std::sqrt(static_cast<double>(state.n_theta()))};
}

}  // namespace asng
