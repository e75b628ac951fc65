// Checks of tensors of the stable ABI, whatever device they are on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

namespace asng {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string words(const std::vector<int64_t>& sizes) {
  std::string text = "(";
  for (size_t i = 0; i < sizes.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  }
  return text + ")";
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

}  // namespace asng
