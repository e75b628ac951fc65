// The stem's operators on CUDA devices.

#include <tuple>

#include "ops/cell/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

struct StemCall {
  StemShape shape;
  ScalarType dtype;  // of the images

  StemCall(const Tensor& images, const Tensor& weight, const Tensor& scale, const Tensor& bias,
           bool tf32) {
    STD_TORCH_CHECK(images.dim() == 4 && weight.dim() == 4,
                    "images and weight must have 4 dimensions, got ", images.dim(), " and ",
                    weight.dim());
    dtype = check_float(images, "images");
    shape.images = narrow(images.size(0));
    shape.height = narrow(images.size(1));
    shape.width = narrow(images.size(2));
    shape.in_channels = narrow(images.size(3));
    shape.channels = narrow(weight.size(0));
    shape.padded = padded_channels(shape.channels);
    shape.tf32 = tf32;
    STD_TORCH_CHECK(shape.channels > 0, "weight must not be empty");
    STD_TORCH_CHECK(
        images.size(0) * images.size(1) * images.size(2) < std::numeric_limits<int32_t>::max() / 4,
        "images must have fewer pixels");
    const ScalarType compute = compute_type(dtype);
    check_like(weight, "weight", compute, {shape.channels, shape.in_channels, 3, 3}, images);
    check_like(scale, "scale", compute, {shape.channels}, images);
    check_like(bias, "bias", compute, {shape.channels}, images);
  }

  std::vector<int64_t> out_sizes() const {
    return {1, shape.images, shape.height, shape.width, shape.padded};
  }
  int64_t saved_size() const {
    int64_t size = 0;
    with_type(dtype, [&](auto type) { size = shape.saved_size<decltype(type)>(); });
    return size;
  }
};

std::tuple<Tensor, Tensor> stem(Tensor images, Tensor weight, Tensor scale, Tensor bias,
                                bool tf32) {
  const StemCall call(images, weight, scale, bias, tf32);
  const DeviceStreamGuard current(images);
  Tensor out = new_tensor(images, call.out_sizes());
  Tensor saved = new_saved(images, call.saved_size());
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    const Tensor scratch = new_scratch(images, stem_scratch<V>(call.shape, false));
    stem_forward<V>(call.shape, data<T>(weight), data<T>(scale), data<T>(bias), data<V>(images),
                    data<V>(out), data<T>(saved), scratch.data_ptr(), current.stream());
  });
  return {out, saved};
}

std::tuple<Tensor, Tensor, Tensor> stem_backward_operator(Tensor grad, Tensor images, Tensor saved,
                                                          Tensor weight, Tensor scale, Tensor bias,
                                                          bool tf32) {
  const StemCall call(images, weight, scale, bias, tf32);
  check_like(grad, "grad", call.dtype, call.out_sizes(), images);
  check_aligned(grad, "grad");
  check_like(saved, "saved", compute_type(call.dtype), {call.saved_size()}, images);
  check_aligned(saved, "saved");
  const DeviceStreamGuard current(images);
  Tensor grad_weight = new_like(weight), grad_scale = new_like(scale), grad_bias = new_like(bias);
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    const Tensor scratch = new_scratch(images, stem_scratch<V>(call.shape, true));
    stem_backward<V>(call.shape, data<T>(scale), data<V>(images), data<V>(grad), data<T>(saved),
                     data<T>(grad_weight), data<T>(grad_scale), data<T>(grad_bias),
                     scratch.data_ptr(), current.stream());
  });
  return {grad_weight, grad_scale, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) {
  m.impl("stem", TORCH_BOX(&stem));
  m.impl("_stem_backward", TORCH_BOX(&stem_backward_operator));
}

}  // namespace asng::cuda
