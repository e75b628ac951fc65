// Checks of tensors of the stable ABI, whatever device they are on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace asng {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// What a library's operators are for.
struct Backend {
  DeviceType type;
  bool stores_bfloat16;  // whether feature maps may be bfloat16, with weights in float32
};

// The dtype of weights, and of what is computed, with feature maps of this one.
inline ScalarType compute_type(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 ? ScalarType::Float : dtype;
}

inline std::string words(const std::vector<int64_t>& sizes) {
  std::string text = "(";
  for (size_t i = 0; i < sizes.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  }
  return text + ")";
}

// The product of sizes, small enough that it does not overflow in what is computed from it.
inline int64_t checked_product(const std::vector<int64_t>& sizes) {
  constexpr int64_t kMost = int64_t{1} << 48;
  int64_t product = 1;
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(size >= 0 && (size == 0 || product <= kMost / size), "values of shape ",
                    words(sizes), " are more than ", kMost);
    product *= size;
  }
  return product;
}

inline void check_tensor(const Tensor& t, const char* name, ScalarType dtype,
                         DeviceType device = DeviceType::CPU) {
  STD_TORCH_CHECK(t.device().type() == device, name, " must be on ",
                  device == DeviceType::CPU ? "the CPU" : "a CUDA device");
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " must have dtype ",
                  torch::headeronly::toString(dtype), ", got ",
                  torch::headeronly::toString(t.scalar_type()));
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
}

inline void check(const Tensor& t, const char* name, ScalarType dtype,
                  const std::vector<int64_t>& expected, DeviceType device = DeviceType::CPU) {
  check_tensor(t, name, dtype, device);
  const auto sizes = t.sizes();
  const std::vector<int64_t> got(sizes.begin(), sizes.end());
  STD_TORCH_CHECK(got == expected, name, " must have shape ", words(expected), ", got ",
                  words(got));
}

inline void check_device(const Tensor& t, const char* name, const Tensor& like) {
  STD_TORCH_CHECK(t.get_device_index() == like.get_device_index(), name, " must be on device ",
                  like.get_device_index(), ", got ", t.get_device_index());
}

// On the device of `like`.
inline void check_like(const Tensor& t, const char* name, ScalarType dtype,
                       const std::vector<int64_t>& expected, const Tensor& like) {
  check(t, name, dtype, expected, like.device().type());
  check_device(t, name, like);
}

}  // namespace asng
