// The optimizer's operators on CUDA devices.

#include <tuple>

#include "optimizer/contract.h"
#include "optimizer/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

OptimizerShape shape_of(const AsngState& state, int64_t population) {
  return {state.instances, population,       state.categorical,
          state.gaussian,  state.theta_size, state.largest};
}

// What follows one after another in a row of the state.
OptimizerState parts_of(const AsngState& state) {
  double* next = state.state.mutable_data_ptr<double>();
  const int64_t width = state.state.size(state.state.dim() - 1);
  const auto part = [&](int64_t size) {
    const Rows<double> rows{next, width};
    next += size;
    return rows;
  };
  const auto integers = [&](int64_t size) {
    return Rows<int64_t>{reinterpret_cast<int64_t*>(part(size).first), width};
  };
  OptimizerState result;
  result.counters = integers(kCounters);
  result.step = part(2);
  result.best_loss = part(1);
  result.theta = part(state.theta_size);
  result.mean = part(state.gaussian);
  result.variance = part(state.gaussian);
  result.s = part(state.n_theta());
  result.best_categorical = integers(state.categorical);
  result.best_gaussian = part(state.gaussian);
  return result;
}

struct Space {
  const int64_t* offsets;
  const double *margin, *bounds;

  Space(const AsngState& state, const Tensor& space) {
    const double* all = space.const_data_ptr<double>();
    offsets = reinterpret_cast<const int64_t*>(all);
    margin = all + state.categorical + 1;
    bounds = margin + state.categorical;
  }
};

std::tuple<Tensor, OptionalTensor> asng_ask(Tensor state, Tensor space, int64_t gaussian,
                                            int64_t largest, int64_t population) {
  const AsngState all(state, space, gaussian, largest, kDevice);
  all.check_population(population, 1);
  Tensor categorical = all.empty_rows({population, all.categorical}, ScalarType::Long);
  OptionalTensor numerical;
  if (gaussian > 0) numerical = all.empty_rows({population, gaussian}, ScalarType::Double);
  const DeviceStreamGuard current(state);
  ask(shape_of(all, population), parts_of(all), Space(all, space).offsets,
      categorical.mutable_data_ptr<int64_t>(),
      numerical ? numerical->mutable_data_ptr<double>() : nullptr, current.stream());
  return {categorical, numerical};
}

Tensor asng_tell(Tensor state, Tensor space, int64_t gaussian, int64_t largest, Tensor categorical,
                 OptionalTensor numerical, Tensor losses, double alpha, double delta_init,
                 double delta_max, double variance_ratio_min, bool maximize) {
  const AsngState all(state, space, gaussian, largest, kDevice);
  const int64_t population = check_evaluations(all, categorical, numerical, losses);
  const DeviceStreamGuard current(state);
  const OptimizerShape shape = shape_of(all, population);
  const int64_t blocks = tell_blocks(shape);
  const int64_t per_instance = Workspace::size_for(shape, blocks);
  std::optional<const Tensor> memory;
  if (per_instance > 0) memory.emplace(all.empty_rows({per_instance}, ScalarType::Double));
  Tensor moved = all.empty_rows({}, ScalarType::Bool);
  const bool single = losses.scalar_type() == ScalarType::Float;
  const Space of(all, space);
  const Evaluations evaluations = {categorical.const_data_ptr<int64_t>(),
                                   numerical ? numerical->const_data_ptr<double>() : nullptr,
                                   single ? nullptr : losses.const_data_ptr<double>(),
                                   maximize,
                                   of.offsets,
                                   of.margin,
                                   of.bounds,
                                   variance_ratio_min,
                                   moved.mutable_data_ptr<bool>(),
                                   single ? losses.const_data_ptr<float>() : nullptr};
  tell(shape, parts_of(all), evaluations, step_size_settings(all, alpha, delta_init, delta_max),
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
