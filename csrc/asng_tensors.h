// The tensors that hold the state of P optimizers (asng_ext/optimizers/_tensors.py), checked; the
// operators over them are the same on every device.
#pragma once

#include <array>

#include "tensors.h"

namespace asng {

struct AsngSizes {
  int64_t problems, categorical, gaussian, theta_size;

  AsngSizes(const Tensor& counters, const Tensor& theta, const Tensor& mean, const Tensor& variance,
            const Tensor& offsets, DeviceType device) {
    STD_TORCH_CHECK(theta.dim() == 2 && mean.dim() == 2 && offsets.dim() == 1,
                    "theta, mean and offsets must have 2, 2 and 1 dimensions, got ", theta.dim(),
                    ", ", mean.dim(), " and ", offsets.dim());
    problems = theta.size(0);
    theta_size = theta.size(1);
    gaussian = mean.size(1);
    categorical = offsets.size(0) - 1;
    STD_TORCH_CHECK(problems > 0 && problems <= 65535, "theta must have from 1 to 65535 rows, got ",
                    problems);
    check(counters, "counters", ScalarType::Long, {problems, kCounters}, device);
    check(theta, "theta", ScalarType::Double, {problems, theta_size}, device);
    check(mean, "mean", ScalarType::Double, {problems, gaussian}, device);
    check(variance, "variance", ScalarType::Double, {problems, gaussian}, device);
    check(offsets, "offsets", ScalarType::Long, {categorical + 1}, device);
  }

  int64_t n_theta() const { return theta_size - categorical + 2 * gaussian; }

  // Columns of `counters`: the seed, the populations drawn and told, and two for the launches.
  static constexpr int64_t kCounters = 5;
};

inline Tensor new_samples(const Tensor& like, std::array<int64_t, 3> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, dtype);
}

}  // namespace asng
