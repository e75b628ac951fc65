// Checks of tensors on a CUDA device, and memory for results, which is
// PyTorch's: what is allocated while a graph is captured belongs to the graph.
#pragma once

#include <limits>
#include <optional>

#include "platform/bfloat16.h"
#include "platform/cuda_device.h"
#include "platform/tensors.h"

namespace asng::cuda {

using OptionalTensor = std::optional<Tensor>;

inline constexpr Backend kBackend = {kDevice, true};

// Kernels read images 16 bytes at a time.
inline void check_aligned(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0, name,
                  " must begin at a multiple of 16 bytes");
}

// Of feature maps or images (…, B, H, W, C): as large as kernels can count.
inline void check_limits(const Tensor& t, const char* name) {
  const int64_t dim = t.dim();
  for (int64_t i = 0; i < dim; ++i) {
    STD_TORCH_CHECK(t.size(i) <= 65535, name, " must have at most 65535 in dimension ", i, ", got ",
                    t.size(i));
  }
  STD_TORCH_CHECK(
      t.size(dim - 4) * t.size(dim - 3) * t.size(dim - 2) < std::numeric_limits<int32_t>::max() / 4,
      name, " must have fewer pixels");
}

inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()});
}
inline Tensor new_saved(const Tensor& like, int64_t size) {
  return torch::stable::new_empty(like, {&size, 1}, compute_type(like.scalar_type()));
}
inline Tensor new_like(const Tensor& t) {
  const auto sizes = t.sizes();
  return new_tensor(t, {sizes.begin(), sizes.end()});
}
inline Tensor new_scratch(const Tensor& like, size_t bytes) {
  const int64_t size = static_cast<int64_t>(bytes);
  return torch::stable::new_empty(like, {&size, 1}, ScalarType::Byte);
}

// Calls f with a value of the C++ type that images of this dtype are stored as.
template <class F>
void with_type(ScalarType dtype, F f) {
  if (dtype == ScalarType::Double) return f(double());
  dtype == ScalarType::BFloat16 ? f(BFloat16()) : f(float());
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

}  // namespace asng::cuda
