// The optimizer's operators on CUDA devices.

#include <tuple>

#include "../asng_tensors.h"
#include "current.h"
#include "optimizer.h"

namespace asng::cuda {
namespace {

static_assert(AsngSizes::kCounters == kCounters);

OptimizerShape shape_of(const AsngSizes& sizes, int64_t population) {
  return {sizes.problems, population, sizes.categorical, sizes.gaussian, sizes.theta_size};
}

OptimizerState state_of(const Tensor& counters, const Tensor& theta, const Tensor& mean,
                        const Tensor& variance) {
  return {counters.mutable_data_ptr<int64_t>(), theta.mutable_data_ptr<double>(),
          mean.mutable_data_ptr<double>(), variance.mutable_data_ptr<double>()};
}

std::tuple<Tensor, Tensor> asng_ask(Tensor counters, Tensor theta, Tensor mean, Tensor variance,
                                    Tensor offsets, int64_t population) {
  const AsngSizes sizes(counters, theta, mean, variance, offsets, DeviceType::CUDA);
  STD_TORCH_CHECK(population > 0, "population must be above 0, got ", population);
  Tensor categorical =
      new_samples(theta, {sizes.problems, population, sizes.categorical}, ScalarType::Long);
  Tensor numerical =
      new_samples(theta, {sizes.problems, population, sizes.gaussian}, ScalarType::Double);
  const Current current(theta);
  ask(shape_of(sizes, population), state_of(counters, theta, mean, variance),
      offsets.const_data_ptr<int64_t>(), categorical.mutable_data_ptr<int64_t>(),
      numerical.mutable_data_ptr<double>(), current.stream());
  return {categorical, numerical};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, CUDA, m) { m.impl("_asng_ask", TORCH_BOX(&asng_ask)); }

}  // namespace asng::cuda
