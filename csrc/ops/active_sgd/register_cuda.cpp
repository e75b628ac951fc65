// The steps of weights of which leading slices are in use, on CUDA devices.

#include <tuple>
#include <utility>
#include <vector>

#include "ops/active_sgd/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

// (rows, columns, …) of a slice: rows, and how many numbers a row has.
std::pair<int, int> box(const Tensor& t) {
  return {static_cast<int>(t.size(0)), static_cast<int>(t.numel() / t.size(0))};
}

// A slice, contiguous, that is the beginning of `whole`.
void check_slice(const Tensor& t, const char* name, const Tensor& whole, const char* of) {
  check_tensor(t, name, whole.scalar_type(), kDevice);
  check_device(t, name, whole);
  bool fits = t.dim() == whole.dim() && t.numel() > 0;
  for (int64_t i = 0; fits && i < t.dim(); ++i) {
    fits = i < 2 ? t.size(i) <= whole.size(i) : t.size(i) == whole.size(i);
  }
  STD_TORCH_CHECK(fits, name, " must be leading slices of ", of, " that are not empty");
}

// Without gradients.
template <class T>
std::vector<ActiveWeight<T>> active_weights(const std::vector<Tensor>& weights,
                                            const std::vector<Tensor>& velocities) {
  STD_TORCH_CHECK(!weights.empty() && velocities.size() == weights.size(),
                  "there must be as many velocities as weights, and at least one, got ",
                  weights.size(), " weights and ", velocities.size(), " velocities");
  std::vector<ActiveWeight<T>> all;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor &weight = weights[i], &velocity = velocities[i];
    check_tensor(weight, "weights", weights[0].scalar_type(), kDevice);
    check_device(weight, "weights", weights[0]);
    STD_TORCH_CHECK(weight.dim() >= 2 && weight.numel() > 0 &&
                        weight.numel() < std::numeric_limits<int32_t>::max(),
                    "weights must have 2 dimensions or more and from 1 to 2³¹ elements");
    check_slice(velocity, "velocities", weight, "weights");
    const auto [rows, run] = box(velocity);
    all.push_back({data<T>(weight), data<T>(velocity), nullptr, weight.numel() / weight.size(0),
                   rows, run, 0, 0, T(0), T(0)});
  }
  return all;
}

// Calls f with a value of the weights' type.
template <class F>
void with_weights(const std::vector<Tensor>& weights, F f) {
  STD_TORCH_CHECK(!weights.empty(), "there must be a weight");
  const ScalarType dtype = weights[0].scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "weights must be float32 or float64, got ", torch::headeronly::toString(dtype));
  dtype == ScalarType::Double ? f(double()) : f(float());
}

void active_sgd_step_operator(std::vector<Tensor> weights, std::vector<Tensor> gradients,
                              std::vector<Tensor> velocities, double learning_rate, double momentum,
                              double max_norm) {
  STD_TORCH_CHECK(gradients.size() == weights.size(),
                  "there must be as many gradients as weights, got ", gradients.size(),
                  " gradients and ", weights.size(), " weights");
  with_weights(weights, [&](auto type) {
    using T = decltype(type);
    std::vector<ActiveWeight<T>> all = active_weights<T>(weights, velocities);
    for (size_t i = 0; i < all.size(); ++i) {
      check_slice(gradients[i], "gradients", velocities[i], "velocities");
      std::tie(all[i].gradient_rows, all[i].gradient_run) = box(gradients[i]);
      all[i].gradient = data<T>(gradients[i]);
    }
    const DeviceStreamGuard current(weights[0]);
    const Tensor scratch = new_scratch(weights[0], active_sgd_scratch(all) * sizeof(double));
    active_sgd_step(all, {learning_rate, momentum, max_norm}, data<double>(scratch),
                    current.stream());
  });
}

void active_sgd_catch_up_operator(std::vector<Tensor> weights, std::vector<Tensor> velocities,
                                  std::vector<double> distances, std::vector<double> factors) {
  STD_TORCH_CHECK(distances.size() == weights.size() && factors.size() == weights.size(),
                  "there must be as many distances and factors as weights, got ", distances.size(),
                  " and ", factors.size(), " for ", weights.size(), " weights");
  with_weights(weights, [&](auto type) {
    using T = decltype(type);
    std::vector<ActiveWeight<T>> all = active_weights<T>(weights, velocities);
    for (size_t i = 0; i < all.size(); ++i) {
      all[i].distance = static_cast<T>(distances[i]);
      all[i].factor = static_cast<T>(factors[i]);
    }
    const DeviceStreamGuard current(weights[0]);
    active_sgd_catch_up(all, current.stream());
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) {
  m.impl("_active_sgd_step", TORCH_BOX(&active_sgd_step_operator));
  m.impl("_active_sgd_catch_up", TORCH_BOX(&active_sgd_catch_up_operator));
}

}  // namespace asng::cuda
