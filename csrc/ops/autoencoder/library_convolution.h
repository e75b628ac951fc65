// PyTorch's convolutions, which on CUDA devices are cuDNN's, and its views of the layouts in which
// they and our own take feature maps and weights. To call the convolutions from here takes the host
// a fraction of the time.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "platform/cuda_tensors.h"

namespace asng::cuda {

inline Tensor view(const Tensor& t, int64_t offset, const std::array<int64_t, 4>& sizes,
                   const std::array<int64_t, 4>& strides) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(t.get(), 4, sizes.data(), strides.data(), offset, &handle));
  return Tensor(handle);
}

// What lies from the beginning of `t` on as (A, height, width, channels).
inline Tensor channels_last(const Tensor& t, const std::vector<int64_t>& sizes) {
  const int64_t row = sizes[2] * sizes[3];
  return view(t, 0, {sizes[0], sizes[1], sizes[2], sizes[3]}, {sizes[1] * row, row, sizes[3], 1});
}

// The same from `offset` on, as PyTorch's convolutions take it: (A, channels, height, width).
inline Tensor as_images(const Tensor& t, const std::vector<int64_t>& sizes, int64_t offset = 0) {
  const int64_t row = sizes[2] * sizes[3];
  return view(t, offset, {sizes[0], sizes[3], sizes[1], sizes[2]},
              {sizes[1] * row, 1, row, sizes[3]});
}

// What PyTorch gave, as as_images() has it: as it is unless that was not its choice.
inline Tensor dense(const Tensor& t) {
  const int64_t size = t.size(0), channels = t.size(1), height = t.size(2), width = t.size(3);
  // Strides of dimensions of size 1 mean nothing.
  const bool fits = (channels == 1 || t.stride(1) == 1) &&
                    (width == 1 || t.stride(3) == channels) &&
                    (height == 1 || t.stride(2) == width * channels) &&
                    (size == 1 || t.stride(0) == height * width * channels);
  if (fits) return t;
  const std::vector<int64_t> sizes = {size, height, width, channels};
  Tensor copy = as_images(new_tensor(t, sizes), sizes);
  return torch::stable::copy_(copy, t);
}

// A convolution, or a transposed one, of images and weights as as_images() makes them.
struct LibraryConvolution {
  int64_t stride, padding;
  bool transposed;
  std::vector<int64_t> output_padding = {0, 0};

  Tensor result(const Tensor& x, const Tensor& weight) const {
    using torch::stable::detail::from;
    std::array<StableIValue, 9> stack = {from(x), from(weight), from(std::nullopt)};
    put_options(&stack[3]);
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
    return dense(torch::stable::detail::to<Tensor>(stack[0]));
  }

  // Of x or of the weight.
  Tensor gradient(const Tensor& grad, const Tensor& x, const Tensor& weight, bool of_weight) const {
    using torch::stable::detail::from, torch::stable::detail::to;
    std::array<StableIValue, 11> stack = {from(grad), from(x), from(weight), from(std::nullopt)};
    put_options(&stack[4]);
    const std::array<bool, 3> needed = {!of_weight, of_weight, false};
    stack[10] = from(torch::headeronly::HeaderOnlyArrayRef<bool>(needed.data(), needed.size()));
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
    // Those that are nothing have to be freed, too.
    const std::array<Tensor, 3> all = {to<Tensor>(stack[0]), to<Tensor>(stack[1]),
                                       to<Tensor>(stack[2])};
    return dense(all[of_weight ? 1 : 0]);
  }

 private:
  // Stride, padding, dilation, transposed, output padding, groups.
  void put_options(StableIValue* to) const {
    using torch::stable::detail::from;
    to[0] = from(std::vector<int64_t>{stride, stride});
    to[1] = from(std::vector<int64_t>{padding, padding});
    to[2] = from(std::vector<int64_t>{1, 1});
    to[3] = from(transposed);
    to[4] = from(output_padding);
    to[5] = from(int64_t{1});
  }
};

}  // namespace asng::cuda
