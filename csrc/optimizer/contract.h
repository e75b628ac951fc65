// The tensors of asng::_asng_ask and asng::_asng_tell, checked.
#pragma once

#include <cmath>

#include "core/counters.h"
#include "core/step_size.h"
#include "platform/tensors.h"

namespace asng {

struct AsngState {
  static constexpr int64_t kMostInstances = 65535;  // as many rows as a grid has

  Tensor counters, theta, mean, variance, offsets;
  int64_t instances, categorical, gaussian, theta_size;

  AsngState(const Tensor& counters, const Tensor& theta, const Tensor& mean, const Tensor& variance,
            const Tensor& offsets, DeviceType device)
      : counters(counters), theta(theta), mean(mean), variance(variance), offsets(offsets) {
    STD_TORCH_CHECK(theta.dim() == 2 && mean.dim() == 2 && offsets.dim() == 1,
                    "theta, mean and offsets must have 2, 2 and 1 dimensions, got ", theta.dim(),
                    ", ", mean.dim(), " and ", offsets.dim());
    instances = theta.size(0);
    theta_size = theta.size(1);
    gaussian = mean.size(1);
    categorical = offsets.size(0) - 1;
    STD_TORCH_CHECK(instances > 0 && instances <= kMostInstances, "theta must have from 1 to ",
                    kMostInstances, " rows, got ", instances);
    STD_TORCH_CHECK(categorical >= 0 && categorical + gaussian > 0,
                    "offsets and mean must be of at least one variable, got shapes (",
                    offsets.size(0), ",) and (", mean.size(0), ", ", gaussian, ")");
    check(counters, "counters", ScalarType::Long, {instances, kCounters}, device);
    check(theta, "theta", ScalarType::Double, {instances, theta_size}, device);
    check(mean, "mean", ScalarType::Double, {instances, gaussian}, device);
    check(variance, "variance", ScalarType::Double, {instances, gaussian}, device);
    check(offsets, "offsets", ScalarType::Long, {categorical + 1}, device);
  }

  void check_population(int64_t population, int64_t least) const {
    STD_TORCH_CHECK(population >= least && population <= kLargestPopulation,
                    "population must be from ", least, " to ", kLargestPopulation, ", got ",
                    population);
  }

  int64_t n_theta() const { return theta_size - categorical + 2 * gaussian; }

  Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) const {
    return torch::stable::new_empty(theta, {sizes.data(), sizes.size()}, dtype);
  }
};

// The best sample so far of each instance.
struct AsngBest {
  Tensor loss, categorical, numerical;
};

// The evaluated samples; returns how many each instance has.
inline int64_t check_evaluations(const AsngState& state, const Tensor& s, const Tensor& step,
                                 const AsngBest& best, const Tensor& categorical,
                                 const Tensor& numerical, const Tensor& losses,
                                 const Tensor& margin, const Tensor& bounds, DeviceType device) {
  STD_TORCH_CHECK(losses.dim() == 2, "losses must have 2 dimensions, got ", losses.dim());
  const int64_t instances = state.instances, population = losses.size(1);
  state.check_population(population, 2);
  check(s, "s", ScalarType::Double, {instances, state.n_theta()}, device);
  check(step, "step", ScalarType::Double, {instances, 2}, device);
  check(best.loss, "best_loss", ScalarType::Double, {instances}, device);
  check(best.categorical, "best_categorical", ScalarType::Long, {instances, state.categorical},
        device);
  check(best.numerical, "best_numerical", ScalarType::Double, {instances, state.gaussian}, device);
  check(categorical, "categorical", ScalarType::Long, {instances, population, state.categorical},
        device);
  check(numerical, "numerical", ScalarType::Double, {instances, population, state.gaussian},
        device);
  check(losses, "losses", ScalarType::Double, {instances, population}, device);
  check(margin, "margin", ScalarType::Double, {state.categorical}, device);
  check(bounds, "bounds", ScalarType::Double, {4, state.gaussian}, device);
  return population;
}

inline StepSizeSettings step_size_settings(const AsngState& state, double alpha, double delta_init,
                                           double Delta_max) {
  return {alpha, delta_init, Delta_max, std::sqrt(static_cast<double>(state.n_theta()))};
}

}  // namespace asng
