// The layers of convolutional autoencoders on the CPU, by Winograd convolution.

#include <tuple>

#include "kernels/cpu/winograd.h"
#include "ops/autoencoder/contract.h"
#include "platform/cpu_tensors.h"

namespace asng::cpu {
namespace {

template <class T>
const T* pointer(const OptionalTensor& t) {
  return t.has_value() ? t->const_data_ptr<T>() : nullptr;
}

AutoencoderLayer encoder(const Tensor& x, const Tensor& weight, int64_t stride) {
  STD_TORCH_CHECK(x.dim() == 4, "feature maps must have 4 dimensions, got ", x.dim());
  return AutoencoderLayer(x, true, weight, stride, x.size(1), x.size(2));
}

Tensor cae_encode(Tensor x, Tensor weight, int64_t stride) {
  const AutoencoderLayer layer = encoder(x, weight, stride);
  Tensor y = new_tensor(layer.downsampled_sizes(), layer.dtype, false);
  with_type(layer.dtype, [&](auto type) {
    using T = decltype(type);
    Winograd<T>(layer.shape)
        .down(x.const_data_ptr<T>(), nullptr, weight.const_data_ptr<T>(), true,
              y.mutable_data_ptr<T>());
  });
  return y;
}

// Gradients of what a layer was given, the input where it encodes, and of the weight. `output` is
// what it returned if ReLU was there.
std::tuple<Tensor, Tensor> backward(const AutoencoderLayer& layer, bool encodes, Tensor grad,
                                    const OptionalTensor& output, const Tensor& x,
                                    const Tensor& weight, bool x_needs_grad) {
  std::vector<int64_t> given = layer.input_sizes(), returned = layer.downsampled_sizes();
  if (!encodes) given.swap(returned);
  grad = torch::stable::contiguous(grad);
  check(grad, "grad", layer.dtype, returned);
  if (output.has_value()) check(*output, "output", layer.dtype, returned);
  Tensor grad_x = new_tensor(x_needs_grad ? given : std::vector<int64_t>{0}, layer.dtype, false);
  Tensor grad_weight = new_tensor(layer.weight_sizes(), layer.dtype, false);
  with_type(layer.dtype, [&](auto type) {
    using T = decltype(type);
    const Winograd<T> convolution(layer.shape);
    const T *from = x.const_data_ptr<T>(), *w = weight.const_data_ptr<T>();
    const T *g = grad.const_data_ptr<T>(), *mask = pointer<T>(output);
    T *to_x = grad_x.mutable_data_ptr<T>(), *to_weight = grad_weight.mutable_data_ptr<T>();
    if (encodes) {
      convolution.weight_gradient(from, nullptr, g, mask, to_weight);
      if (x_needs_grad) convolution.up(g, mask, w, nullptr, false, to_x);
    } else {
      convolution.weight_gradient(g, mask, from, nullptr, to_weight);
      if (x_needs_grad) convolution.down(g, mask, w, false, to_x);
    }
  });
  return {grad_x, grad_weight};
}

std::tuple<Tensor, Tensor> cae_encode_backward(Tensor grad, Tensor output, Tensor x, Tensor weight,
                                               int64_t stride, bool x_needs_grad) {
  return backward(encoder(x, weight, stride), true, grad, output, x, weight, x_needs_grad);
}

Tensor cae_decode(Tensor x, Tensor weight, OptionalTensor skipped, int64_t stride, int64_t height,
                  int64_t width, bool relu) {
  const AutoencoderLayer layer(x, false, weight, stride, height, width);
  if (skipped.has_value()) check(*skipped, "skipped", layer.dtype, layer.input_sizes());
  Tensor y = new_tensor(layer.input_sizes(), layer.dtype, false);
  with_type(layer.dtype, [&](auto type) {
    using T = decltype(type);
    Winograd<T>(layer.shape)
        .up(x.const_data_ptr<T>(), nullptr, weight.const_data_ptr<T>(), pointer<T>(skipped), relu,
            y.mutable_data_ptr<T>());
  });
  return y;
}

std::tuple<Tensor, Tensor> cae_decode_backward(Tensor grad, OptionalTensor output, Tensor x,
                                               Tensor weight, int64_t stride, bool x_needs_grad) {
  STD_TORCH_CHECK(grad.dim() == 4, "grad must have 4 dimensions, got ", grad.dim());
  const AutoencoderLayer layer(x, false, weight, stride, grad.size(1), grad.size(2));
  return backward(layer, false, grad, output, x, weight, x_needs_grad);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, CPU, m) {
  m.impl("cae_encode", TORCH_BOX(&cae_encode));
  m.impl("_cae_encode_backward", TORCH_BOX(&cae_encode_backward));
  m.impl("cae_decode", TORCH_BOX(&cae_decode));
  m.impl("_cae_decode_backward", TORCH_BOX(&cae_decode_backward));
}

}  // namespace asng::cpu
