// The device and the stream that an operator works on, for the operators of _C_cuda, which include
// torch but none of the toolkit's headers.
//
// With ASNG_CUDA_ON_CPU defined the same operators are for the CPU, where a launch runs the grid at
// once: a library for tests, which takes the place of the operators of _C.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "platform/cuda_stream.h"
#include "platform/tensors.h"

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

}  // namespace asng::cuda
