// The stem's operators on CUDA devices.

#include <tuple>

#include "ops/stem/contract.h"
#include "ops/stem/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

std::tuple<Tensor, Tensor> stem(Tensor images, Tensor weight, Tensor scale, Tensor bias,
                                bool tf32) {
  const StemCall call(images, weight, scale, bias, kBackend);
  check_limits(images, "images");
  const DeviceStreamGuard current(images);
  Tensor out = new_tensor(images, call.out_sizes());
  Tensor saved = new_saved(images, call.saved_size());
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    const Tensor scratch = new_scratch(images, stem_scratch<V>(call.shape, false));
    stem_forward<V>(call.shape, tf32, data<T>(weight), data<T>(scale), data<T>(bias),
                    data<V>(images), data<V>(out), data<T>(saved), scratch.data_ptr(),
                    current.stream());
  });
  return {out, saved};
}

std::tuple<Tensor, Tensor, Tensor> stem_backward_operator(Tensor grad, Tensor images, Tensor saved,
                                                          Tensor weight, Tensor scale, Tensor bias,
                                                          bool tf32) {
  const StemCall call(images, weight, scale, bias, kBackend);
  check_limits(images, "images");
  call.check_backward(grad, saved, images);
  check_aligned(grad, "grad");
  check_aligned(saved, "saved");
  const DeviceStreamGuard current(images);
  Tensor grad_weight = new_like(weight), grad_scale = new_like(scale), grad_bias = new_like(bias);
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    const Tensor scratch = new_scratch(images, stem_scratch<V>(call.shape, true));
    stem_backward<V>(call.shape, tf32, data<T>(scale), data<V>(images), data<V>(grad),
                     data<T>(saved), data<T>(grad_weight), data<T>(grad_scale), data<T>(grad_bias),
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
