// The optimizer's operators on CUDA devices.

#include <tuple>

#include "optimizer/contract.h"
#include "optimizer/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

OptimizerShape shape_of(const AsngState& state, int64_t population) {
  return {state.instances, population, state.categorical, state.gaussian, state.theta_size};
}

// What drawing needs; the rest stays null.
OptimizerState pointers(const AsngState& state) {
  OptimizerState result{};
  result.counters = state.counters.mutable_data_ptr<int64_t>();
  result.theta = state.theta.mutable_data_ptr<double>();
  result.mean = state.mean.mutable_data_ptr<double>();
  result.variance = state.variance.mutable_data_ptr<double>();
  return result;
}

std::tuple<Tensor, Tensor> asng_ask(Tensor counters, Tensor theta, Tensor mean, Tensor variance,
                                    Tensor offsets, int64_t population) {
  const AsngState state(counters, theta, mean, variance, offsets, kDevice);
  state.check_population(population, 1);
  Tensor categorical = state.empty_rows({population, state.categorical}, ScalarType::Long);
  Tensor numerical = state.empty_rows({population, state.gaussian}, ScalarType::Double);
  const DeviceStreamGuard current(theta);
  ask(shape_of(state, population), pointers(state), offsets.const_data_ptr<int64_t>(),
      categorical.mutable_data_ptr<int64_t>(), numerical.mutable_data_ptr<double>(),
      current.stream());
  return {categorical, numerical};
}

Tensor asng_tell(Tensor counters, Tensor theta, Tensor mean, Tensor variance, Tensor s, Tensor step,
                 Tensor best_loss, Tensor best_categorical, Tensor best_numerical,
                 Tensor categorical, Tensor numerical, Tensor losses, Tensor offsets, Tensor margin,
                 Tensor bounds, double alpha, double delta_init, double delta_max,
                 double variance_ratio_min, bool maximize) {
  const AsngState state(counters, theta, mean, variance, offsets, kDevice);
  const int64_t population =
      check_evaluations(state, s, step, {best_loss, best_categorical, best_numerical}, categorical,
                        numerical, losses, margin, bounds);
  const DeviceStreamGuard current(theta);
  const OptimizerShape shape = shape_of(state, population);
  const int64_t blocks = tell_blocks(shape);
  const int64_t per_instance = Workspace::size_for(shape, blocks);
  std::optional<const Tensor> memory;
  if (per_instance > 0) memory.emplace(state.empty_rows({per_instance}, ScalarType::Double));
  Tensor moved = state.empty_rows({}, ScalarType::Bool);
  const bool single = losses.scalar_type() == ScalarType::Float;
  const Evaluations evaluations = {categorical.const_data_ptr<int64_t>(),
                                   numerical.const_data_ptr<double>(),
                                   single ? nullptr : losses.const_data_ptr<double>(),
                                   maximize,
                                   offsets.const_data_ptr<int64_t>(),
                                   margin.const_data_ptr<double>(),
                                   bounds.const_data_ptr<double>(),
                                   variance_ratio_min,
                                   moved.mutable_data_ptr<bool>(),
                                   single ? losses.const_data_ptr<float>() : nullptr};
  OptimizerState all = pointers(state);
  all.s = s.mutable_data_ptr<double>();
  all.step = step.mutable_data_ptr<double>();
  all.best_loss = best_loss.mutable_data_ptr<double>();
  all.best_categorical = best_categorical.mutable_data_ptr<int64_t>();
  all.best_gaussian = best_numerical.mutable_data_ptr<double>();
  tell(shape, all, evaluations, step_size_settings(state, alpha, delta_init, delta_max),
       {memory ? memory->mutable_data_ptr<double>() : nullptr, per_instance}, blocks,
       current.stream());
  return moved;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) {
  m.impl("_asng_ask", TORCH_BOX(&asng_ask));
  m.impl("_asng_tell", TORCH_BOX(&asng_tell));
}

}  // namespace asng::cuda
