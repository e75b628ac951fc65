// The head and its loss on CUDA devices.

#include <tuple>

#include "ops/feature_maps.h"
#include "ops/head/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

struct HeadCall {
  HeadShape shape;
  ScalarType dtype;  // of the features

  HeadCall(const Tensor& features, const Tensor& weight, const Tensor& bias) {
    dtype = check_feature_maps(features, "features", 5, kBackend);
    check_limits(features, "features");
    check_aligned(features, "features");
    STD_TORCH_CHECK(weight.dim() == 2 && weight.numel() > 0,
                    "weight must have 2 dimensions and not be empty");
    const int64_t classes = weight.size(0), channels = weight.size(1), padded = features.size(4);
    STD_TORCH_CHECK(channels <= padded, "weight must have at most ", padded, " columns, got ",
                    channels);
    STD_TORCH_CHECK(classes <= 16384 && padded <= 16384,
                    "there must be at most 16384 classes and channels, got ", classes, " and ",
                    padded);
    check_like(weight, "weight", compute_type(dtype), {classes, channels}, features);
    check_like(bias, "bias", compute_type(dtype), {classes}, features);
    shape.archs = static_cast<int>(features.size(0));
    shape.images = static_cast<int>(features.size(1));
    shape.pixels = static_cast<int>(features.size(2) * features.size(3));
    shape.channels = static_cast<int>(channels);
    shape.padded = static_cast<int>(padded);
    shape.classes = static_cast<int>(classes);
    STD_TORCH_CHECK(features.size(0) * features.size(1) < int64_t{1} << 24,
                    "features must be of fewer images");
  }
};

std::tuple<Tensor, Tensor, Tensor> head(Tensor features, Tensor weight, Tensor bias,
                                        Tensor labels) {
  const HeadCall call(features, weight, bias);
  check_like(labels, "labels", ScalarType::Long, {call.shape.images}, features);
  const DeviceStreamGuard current(features);
  Tensor losses = new_tensor(bias, {call.shape.archs});
  Tensor accuracy = torch::stable::new_empty(bias, {}, ScalarType::Float);
  Tensor saved = new_saved(features, call.shape.saved());
  Tensor scratch = new_saved(features, call.shape.scratch());
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    head_forward<V>(call.shape, data<V>(features), data<T>(weight), data<T>(bias),
                    data<int64_t>(labels), data<T>(losses), data<float>(accuracy), data<T>(saved),
                    data<T>(scratch), current.stream());
  });
  return {losses, accuracy, saved};
}

std::tuple<Tensor, Tensor, Tensor> head_backward_operator(Tensor grad, Tensor features,
                                                          Tensor saved, Tensor weight,
                                                          Tensor bias) {
  const HeadCall call(features, weight, bias);
  const ScalarType compute = compute_type(call.dtype);
  check_like(grad, "grad", compute, {call.shape.archs}, features);
  check_like(saved, "saved", compute, {call.shape.saved()}, features);
  const DeviceStreamGuard current(features);
  Tensor grad_features = new_like(features), grad_weight = new_like(weight);
  Tensor grad_bias = new_like(bias);
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    head_backward<V>(call.shape, data<T>(grad), data<T>(weight), data<T>(saved),
                     data<V>(grad_features), data<T>(grad_weight), data<T>(grad_bias),
                     current.stream());
  });
  return {grad_features, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) {
  m.impl("head", TORCH_BOX(&head));
  m.impl("_head_backward", TORCH_BOX(&head_backward_operator));
}

}  // namespace asng::cuda
