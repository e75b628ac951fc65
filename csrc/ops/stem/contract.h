// What the stem's operators take and give on every device; see library.cpp.
#pragma once

#include <vector>

#include "ops/feature_maps.h"
#include "ops/stem/shape.h"

namespace asng {

struct StemCall {
  StemShape shape;
  ScalarType dtype;  // of images and feature maps

  StemCall(const Tensor& images, const Tensor& weight, const Tensor& scale, const Tensor& bias,
           Backend backend) {
    dtype = check_images(images, "images", 4, backend);
    STD_TORCH_CHECK(weight.dim() == 4, "weight must have 4 dimensions, got ", weight.dim());
    shape.images = images.size(0);
    shape.height = images.size(1);
    shape.width = images.size(2);
    shape.in_channels = images.size(3);
    shape.channels = weight.size(0);
    shape.padded = padded_channels(shape.channels);
    STD_TORCH_CHECK(shape.channels > 0, "weight must not be empty");
    const ScalarType compute = compute_type(dtype);
    check_like(weight, "weight", compute,
               {shape.channels, shape.in_channels, kStemKernel, kStemKernel}, images);
    check_like(scale, "scale", compute, {shape.channels}, images);
    check_like(bias, "bias", compute, {shape.channels}, images);
  }

  std::vector<int64_t> out_sizes() const {
    return {1, shape.images, shape.height, shape.width, shape.padded};
  }
  int64_t saved_size() const { return saved_values(shape.saved(), dtype); }
  void check_backward(const Tensor& grad, const Tensor& saved, const Tensor& images) const {
    check_like(grad, "grad", dtype, out_sizes(), images);
    check_like(saved, "saved", compute_type(dtype), {saved_size()}, images);
  }
};

}  // namespace asng
