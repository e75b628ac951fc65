// Results of the operators in memory that the library keeps.
#pragma once

#include <cstring>
#include <vector>

#include "platform/memory.h"
#include "platform/tensors.h"

namespace asng::cpu {

inline constexpr Backend kBackend = {DeviceType::CPU, false};

// Memory of the library, which gets it back with the tensor's end.
inline Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType dtype, bool zeros) {
  const size_t bytes =
      static_cast<size_t>(checked_product(sizes)) * (dtype == ScalarType::Double ? 8 : 4);
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  Block block = acquire(bytes);
  if (zeros) std::memset(block.get(), 0, bytes);
  const ReturnBlock give_back = block.get_deleter();
  return torch::stable::from_blob(
      block.release(), torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()),
      torch::headeronly::IntHeaderOnlyArrayRef(strides.data(), strides.size()),
      torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype,
      [give_back](void* data) { give_back(data); });
}

inline Tensor zeros_like(const Tensor& t) {
  const auto sizes = t.sizes();
  return new_tensor({sizes.begin(), sizes.end()}, t.scalar_type(), true);
}

inline Tensor uninitialized_like(const Tensor& t) {
  const auto sizes = t.sizes();
  return new_tensor({sizes.begin(), sizes.end()}, t.scalar_type(), false);
}

// Calls f with a value of the C++ type of `dtype`.
template <class F>
inline void with_type(ScalarType dtype, F f) {
  dtype == ScalarType::Double ? f(double()) : f(float());
}

}  // namespace asng::cpu
