// What the layers of convolutional autoencoders take and give.
//
// A layer has an input (B, H, W, C), downsampled feature maps (B, ⌈H/stride⌉, ⌈W/stride⌉, C') and a
// weight (C', C, k, k). The encoder computes the downsampled feature maps from the input, the
// decoder the other way round, and each is the other's gradient. For the backward pass what a layer
// was given is saved, and its output where ReLU follows: see asng_ext/ops/autoencoder.py, which is
// also where the layers for CUDA devices are put together, from PyTorch's convolutions, whose
// checks these are there, and cuda.cu.
#pragma once

#include <limits>
#include <vector>

#include "kernels/cpu/winograd.h"
#include "platform/tensors.h"

namespace asng {

// A layer's shape, once the feature maps it was given, of either kind, and its weight are checked.
struct AutoencoderLayer {
  cpu::ConvolutionShape shape;
  ScalarType dtype;

  AutoencoderLayer(const Tensor& given, bool is_input, const Tensor& weight, int64_t stride,
                   int64_t height, int64_t width) {
    STD_TORCH_CHECK(given.dim() == 4 && weight.dim() == 4,
                    "feature maps and weight must have 4 dimensions, got ", given.dim(), " and ",
                    weight.dim());
    dtype = given.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "feature maps must be float32 or float64, got ",
                    torch::headeronly::toString(dtype));
    STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == dtype,
                    "weight must be on the CPU and of the feature maps' dtype");
    STD_TORCH_CHECK(stride == 1 || stride == 2, "stride must be 1 or 2, got ", stride);
    shape.kernel = weight.size(2);
    STD_TORCH_CHECK((shape.kernel == 3 || shape.kernel == 5) && weight.size(3) == shape.kernel,
                    "weight must have 3×3 or 5×5 kernels, got ", weight.size(2), "×",
                    weight.size(3));
    STD_TORCH_CHECK(weight.stride(3) == 1 && weight.stride(2) == shape.kernel,
                    "each kernel of weight must be contiguous");
    STD_TORCH_CHECK(given.numel() > 0 && weight.numel() > 0,
                    "feature maps and weight must not be empty");
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    STD_TORCH_CHECK(height > 0 && height <= kMost && width > 0 && width <= kMost,
                    "height and width must be from 1 to ", kMost, ", got ", height, " and ", width);
    shape.batch = given.size(0);
    shape.height = height;
    shape.width = width;
    shape.stride = stride;
    shape.downsampled_channels = weight.size(0);
    shape.input_channels = weight.size(1);
    shape.row_stride = weight.stride(0);
    shape.column_stride = weight.stride(1);
    check(given, "feature maps", dtype, is_input ? input_sizes() : downsampled_sizes());
  }

  std::vector<int64_t> input_sizes() const {
    return {shape.batch, shape.height, shape.width, shape.input_channels};
  }
  std::vector<int64_t> downsampled_sizes() const {
    return {shape.batch, shape.downsampled_height(), shape.downsampled_width(),
            shape.downsampled_channels};
  }
  std::vector<int64_t> weight_sizes() const {
    return {shape.downsampled_channels, shape.input_channels, shape.kernel, shape.kernel};
  }
};

}  // namespace asng
