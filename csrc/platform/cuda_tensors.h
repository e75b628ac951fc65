// The device, the stream and the tensors of an operator of _C_cuda, for code that includes torch
// but none of the toolkit's headers. Memory for results is PyTorch's: what is allocated while a
// graph is captured belongs to the graph.
//
// With ASNG_CUDA_ON_CPU defined the same operators are for the CPU, where a launch runs the grid at
// once: a library for tests, which takes the place of the operators of _C.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <limits>

#include "platform/bfloat16.h"
#include "platform/cuda_stream.h"
#include "platform/tensors.h"

#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)  // torch 2.11 has another name for it
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace asng::cuda {

#if defined(ASNG_CUDA_ON_CPU)

// Where tensors must be, and the name of the dispatch key of its operators.
constexpr DeviceType kDevice = DeviceType::CPU;
#define ASNG_CUDA_KEY CPU

class DeviceStreamGuard {
 public:
  explicit DeviceStreamGuard(const Tensor&) {}
  CudaStream stream() const { return nullptr; }
};

#else

constexpr DeviceType kDevice = DeviceType::CUDA;
#define ASNG_CUDA_KEY CUDA

// While it lives, the tensor's device is the current one.
class DeviceStreamGuard {
 public:
  explicit DeviceStreamGuard(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<CudaStream>(stream);
  }

  // PyTorch's current stream of that device.
  CudaStream stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  CudaStream stream_ = nullptr;
};

#endif

inline constexpr Backend kBackend = {kDevice, true};

// Kernels read feature maps 16 bytes at a time.
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
inline std::vector<Tensor> new_like(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> all;
  for (const Tensor& t : tensors) all.push_back(new_like(t));
  return all;
}
inline Tensor new_scratch(const Tensor& like, size_t bytes) {
  const int64_t size = static_cast<int64_t>(bytes);
  return torch::stable::new_empty(like, {&size, 1}, ScalarType::Byte);
}

// Calls f with a value of the C++ type that feature maps of this dtype are stored as.
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
