// The stem's operators on the CPU; see operators.cpp for their last argument.

#include <tuple>

#include "ops/stem/cpu.h"
#include "platform/cpu_tensors.h"

namespace asng::cpu {
namespace {

struct StemCall {
  StemShape shape;
  ScalarType dtype;

  StemCall(const Tensor& images, const Tensor& weight, const Tensor& scale, const Tensor& bias) {
    STD_TORCH_CHECK(images.dim() == 4 && weight.dim() == 4,
                    "images and weight must have 4 dimensions, got ", images.dim(), " and ",
                    weight.dim());
    dtype = images.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "images must be float32 or float64, got ", torch::headeronly::toString(dtype));
    check_tensor(images, "images", dtype);
    STD_TORCH_CHECK(images.numel() > 0, "images must not be empty");
    shape.images = images.size(0);
    shape.height = images.size(1);
    shape.width = images.size(2);
    shape.in_channels = images.size(3);
    shape.channels = weight.size(0);
    shape.padded = padded_channels(shape.channels);
    STD_TORCH_CHECK(shape.channels > 0, "weight must not be empty");
    check(weight, "weight", dtype, {shape.channels, shape.in_channels, 3, 3});
    check(scale, "scale", dtype, {shape.channels});
    check(bias, "bias", dtype, {shape.channels});
  }

  std::vector<int64_t> out_sizes() const {
    return {1, shape.images, shape.height, shape.width, shape.padded};
  }
};

std::tuple<Tensor, Tensor> stem(Tensor images, Tensor weight, Tensor scale, Tensor bias, bool) {
  const StemCall call(images, weight, scale, bias);
  Tensor out = new_tensor(call.out_sizes(), call.dtype, false);
  Tensor saved = new_tensor({call.shape.saved_size()}, call.dtype, false);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    Stem<T>(call.shape, weight.const_data_ptr<T>())
        .forward(images.const_data_ptr<T>(), scale.const_data_ptr<T>(), bias.const_data_ptr<T>(),
                 out.mutable_data_ptr<T>(), saved.mutable_data_ptr<T>());
  });
  return {out, saved};
}

std::tuple<Tensor, Tensor, Tensor> stem_backward(Tensor grad, Tensor images, Tensor saved,
                                                 Tensor weight, Tensor scale, Tensor bias, bool) {
  const StemCall call(images, weight, scale, bias);
  check(grad, "grad", call.dtype, call.out_sizes());
  check(saved, "saved", call.dtype, {call.shape.saved_size()});
  Tensor grad_weight = zeros_like(weight), grad_scale = zeros_like(scale);
  Tensor grad_bias = zeros_like(bias);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    Stem<T>(call.shape, weight.const_data_ptr<T>())
        .backward(images.const_data_ptr<T>(), scale.const_data_ptr<T>(), grad.const_data_ptr<T>(),
                  static_cast<T*>(saved.data_ptr()), grad_weight.mutable_data_ptr<T>(),
                  grad_scale.mutable_data_ptr<T>(), grad_bias.mutable_data_ptr<T>());
  });
  return {grad_weight, grad_scale, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, CPU, m) {
  m.impl("stem", TORCH_BOX(&stem));
  m.impl("_stem_backward", TORCH_BOX(&stem_backward));
}

}  // namespace asng::cpu
