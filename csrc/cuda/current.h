// The device and the stream that an operator works on, for the operators of _C_cuda, which include
// torch but none of the toolkit's headers.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../tensors.h"
#include "stream.h"

namespace asng::cuda {

// While it lives, the tensor's device is the current one.
class Current {
 public:
  explicit Current(const Tensor& tensor) : guard_(tensor.get_device_index()) {
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

}  // namespace asng::cuda
