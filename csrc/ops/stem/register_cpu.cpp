// The stem's operators on the CPU. Their last argument allows TF32, which a CPU has no use for.

#include <tuple>

#include "ops/stem/contract.h"
#include "ops/stem/cpu.h"
#include "platform/cpu_tensors.h"

namespace asng::cpu {
namespace {

std::tuple<Tensor, Tensor> stem(Tensor images, Tensor weight, Tensor scale, Tensor bias, bool) {
  const StemCall call(images, weight, scale, bias, kBackend);
  Tensor out = new_tensor(call.out_sizes(), call.dtype, false);
  Tensor saved = new_tensor({call.saved_size()}, call.dtype, false);
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
  const StemCall call(images, weight, scale, bias, kBackend);
  call.check_backward(grad, saved, images);
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
