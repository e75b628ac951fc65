// Feature maps of the operators, and results in memory that the library keeps.
#pragma once

#include <cstring>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "platform/memory.h"
#include "platform/tensors.h"

namespace asng::cpu {

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

inline ScalarType check_images(const Tensor& t, const char* name, int64_t dim) {
  STD_TORCH_CHECK(t.dim() == dim, name, " must have ", dim, " dimensions, got ", t.dim());
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name,
                  " must be float32 or float64, got ", torch::headeronly::toString(dtype));
  check_tensor(t, name, dtype);
  for (int64_t i = 0; i < dim; ++i) {
    STD_TORCH_CHECK(t.size(i) > 0, name, " must not be empty: dimension ", i, " is 0");
  }
  STD_TORCH_CHECK(t.size(dim - 1) % kChannelBlock == 0, "the last dimension of ", name,
                  " must be a multiple of ", kChannelBlock, ", got ", t.size(dim - 1));
  return dtype;
}

// Calls f with a value of the C++ type of `dtype`.
template <class F>
inline void with_type(ScalarType dtype, F f) {
  dtype == ScalarType::Double ? f(double()) : f(float());
}

inline Tensor zeros_or_empty(const OptionalTensor& t, ScalarType dtype) {
  return t.has_value() ? zeros_like(*t) : new_tensor({0}, dtype, false);
}

}  // namespace asng::cpu
