// The step of the weights on CUDA devices.

#include <vector>

#include "ops/sgd/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

void sgd_step_operator(std::vector<Tensor> weights, std::vector<Tensor> gradients,
                       std::vector<Tensor> velocities, Tensor learning_rate, double momentum,
                       double weight_decay, double max_norm) {
  STD_TORCH_CHECK(
      !weights.empty() && gradients.size() == weights.size() && velocities.size() == weights.size(),
      "there must be as many gradients and velocities as weights, and at least one, "
      "got ",
      weights.size(), " weights, ", gradients.size(), " gradients and ", velocities.size(),
      " velocities");
  const Tensor& first = weights[0];
  const ScalarType dtype = first.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "weights must be float32 or float64, got ", torch::headeronly::toString(dtype));
  check_tensor(first, "weights", dtype, kDevice);
  check_like(learning_rate, "learning_rate", ScalarType::Float, {}, first);
  for (size_t i = 0; i < weights.size(); ++i) {
    const auto sizes = weights[i].sizes();
    const std::vector<int64_t> expected(sizes.begin(), sizes.end());
    STD_TORCH_CHECK(weights[i].numel() < int64_t{1} << 40, "weights must have fewer elements");
    check_like(weights[i], "weights", dtype, expected, first);
    check_like(gradients[i], "gradients", dtype, expected, first);
    check_like(velocities[i], "velocities", dtype, expected, first);
  }
  const SgdSettings settings = {data<float>(learning_rate), momentum, weight_decay, max_norm};
  const DeviceStreamGuard current(first);
  const auto step = [&](auto type) {
    using T = decltype(type);
    std::vector<SgdTensor<T>> tensors;
    for (size_t i = 0; i < weights.size(); ++i) {
      tensors.push_back(
          {data<T>(weights[i]), data<T>(velocities[i]), data<T>(gradients[i]), weights[i].numel()});
    }
    const Tensor scratch = new_scratch(first, sgd_scratch(tensors) * sizeof(double));
    sgd_step(tensors, settings, data<double>(scratch), current.stream());
  };
  dtype == ScalarType::Double ? step(double()) : step(float());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) {
  m.impl("_sgd_step", TORCH_BOX(&sgd_step_operator));
}

}  // namespace asng::cuda
