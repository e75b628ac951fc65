// The optimizer's operators on the CPU, by csrc/optimizer/cpu_update.h. They are what the operators
// for CUDA are compared with; asng_ext.ASNG on the CPU has no use for tensors.

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <tuple>
#include <vector>

#include "optimizer/contract.h"
#include "optimizer/cpu_sample.h"
#include "optimizer/cpu_update.h"

namespace asng::cpu {
namespace {

host::Layout layout_of(const AsngState& state, const Tensor* bounds,
                       double variance_ratio_min = 0.0) {
  const int64_t* offsets = state.offsets.const_data_ptr<int64_t>();
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < state.categorical; ++i) {
    STD_TORCH_CHECK(offsets[i] < offsets[i + 1], "offsets must ascend");
    sizes.push_back(offsets[i + 1] - offsets[i]);
  }
  STD_TORCH_CHECK(offsets[0] == 0 && offsets[state.categorical] == state.theta_size,
                  "offsets must go from 0 to ", state.theta_size);
  const auto count = static_cast<size_t>(state.gaussian);
  const std::vector<double> zeros(3 * count);
  const std::span<const double> rows(
      bounds == nullptr ? zeros.data() : bounds->const_data_ptr<double>(), 3 * count);
  host::Layout layout(sizes, 0, rows.first(count), rows.subspan(count, count), rows.last(count));
  layout.variance_ratio_min = variance_ratio_min;
  return layout;
}

host::Parameters parameters_of(const AsngState& state, int64_t problem) {
  return {state.theta.mutable_data_ptr<double>() + problem * state.theta_size,
          state.mean.mutable_data_ptr<double>() + problem * state.gaussian,
          state.variance.mutable_data_ptr<double>() + problem * state.gaussian};
}

std::tuple<Tensor, Tensor> asng_ask(Tensor counters, Tensor theta, Tensor mean, Tensor variance,
                                    Tensor offsets, int64_t population) {
  const AsngState state(counters, theta, mean, variance, offsets, DeviceType::CPU);
  state.check_population(population, 1);
  Tensor categorical =
      state.empty({state.problems, population, state.categorical}, ScalarType::Long);
  Tensor numerical = state.empty({state.problems, population, state.gaussian}, ScalarType::Double);
  const host::Layout layout = layout_of(state, nullptr);
  for (int64_t p = 0; p < state.problems; ++p) {
    int64_t* counter = counters.mutable_data_ptr<int64_t>() + p * AsngState::kCounters;
    host::draw_samples(layout, parameters_of(state, p), static_cast<uint64_t>(counter[0]),
                       static_cast<uint64_t>(counter[1]), population,
                       categorical.mutable_data_ptr<int64_t>() + p * population * state.categorical,
                       numerical.mutable_data_ptr<double>() + p * population * state.gaussian);
    ++counter[1];
  }
  return {categorical, numerical};
}

Tensor asng_tell(Tensor counters, Tensor theta, Tensor mean, Tensor variance, Tensor s, Tensor step,
                 Tensor best_loss, Tensor best_categorical, Tensor best_numerical,
                 Tensor categorical, Tensor numerical, Tensor losses, Tensor offsets, Tensor margin,
                 Tensor bounds, double alpha, double delta_init, double delta_max,
                 double variance_ratio_min, bool maximize) {
  const AsngState state(counters, theta, mean, variance, offsets, DeviceType::CPU);
  const int64_t population =
      check_evaluations(state, s, step, {best_loss, best_categorical, best_numerical}, categorical,
                        numerical, losses, margin, bounds, DeviceType::CPU);
  const host::Layout layout = layout_of(state, &bounds, variance_ratio_min);
  const int64_t* categories = categorical.const_data_ptr<int64_t>();
  for (int64_t k = 0; k < categorical.numel(); ++k) {
    const int64_t size = layout.sizes[static_cast<size_t>(k % state.categorical)];
    STD_TORCH_CHECK(categories[k] >= 0 && categories[k] < size, "categorical must be in [0, ", size,
                    ") in column ", k % state.categorical, ", got ", categories[k]);
  }
  const StepSizeSettings settings = step_size_settings(state, alpha, delta_init, delta_max);
  Tensor moved = state.empty({state.problems}, ScalarType::Bool);
  host::Update update(layout);
  std::vector<double> row(static_cast<size_t>(population));
  for (int64_t p = 0; p < state.problems; ++p) {
    for (int64_t k = 0; k < population; ++k) {
      const double loss = losses.const_data_ptr<double>()[p * population + k];
      row[static_cast<size_t>(k)] = !std::isfinite(loss) ? std::numeric_limits<double>::infinity()
                                    : maximize           ? -loss
                                                         : loss;
    }
    const int64_t* evaluated_categories = categories + p * population * state.categorical;
    const double* evaluated_numbers =
        numerical.const_data_ptr<double>() + p * population * state.gaussian;
    int64_t* counter = counters.mutable_data_ptr<int64_t>() + p * AsngState::kCounters;
    ++counter[2];
    counter[3] += population;
    double& smallest = best_loss.mutable_data_ptr<double>()[p];
    const int64_t k = std::min_element(row.begin(), row.end()) - row.begin();
    if (row[static_cast<size_t>(k)] < smallest) {
      smallest = row[static_cast<size_t>(k)];
      counter[5] = counter[2];
      std::copy_n(evaluated_categories + k * state.categorical, state.categorical,
                  best_categorical.mutable_data_ptr<int64_t>() + p * state.categorical);
      std::copy_n(evaluated_numbers + k * state.gaussian, state.gaussian,
                  best_numerical.mutable_data_ptr<double>() + p * state.gaussian);
    }
    const host::Parameters parameters = parameters_of(state, p);
    const double norm = update.natural_gradient(
        layout, parameters, {population, evaluated_categories, evaluated_numbers, row.data()});
    const bool moves = norm > 0.0 && std::isfinite(norm);
    moved.mutable_data_ptr<bool>()[p] = moves;
    if (!moves) continue;
    counter[4] = counter[2];
    double* gamma_and_Delta = step.mutable_data_ptr<double>() + 2 * p;
    StepSize adapted;
    adapted.gamma = gamma_and_Delta[0];
    adapted.Delta = gamma_and_Delta[1];
    const double beta = adapted.beta(settings);
    update.move(layout, parameters, adapted.delta(settings) / norm,
                {margin.const_data_ptr<double>(), static_cast<size_t>(state.categorical)});
    adapted.adapt(
        settings, beta,
        update.accumulate(layout, s.mutable_data_ptr<double>() + p * state.n_theta(), beta, norm));
    gamma_and_Delta[0] = adapted.gamma;
    gamma_and_Delta[1] = adapted.Delta;
  }
  return moved;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, CPU, m) {
  m.impl("_asng_ask", TORCH_BOX(&asng_ask));
  m.impl("_asng_tell", TORCH_BOX(&asng_tell));
}

}  // namespace asng::cpu
