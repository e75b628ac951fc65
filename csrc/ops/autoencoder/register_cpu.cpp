// The layers of convolutional autoencoders on the CPU.

#include <limits>
#include <tuple>

#include "kernels/cpu/winograd.h"
#include "platform/cpu_tensors.h"

namespace asng::cpu {
namespace {

// Checks the two images and the weight of a layer; shapes are those of a convolution whose
// result is `low`.
struct CaeCall {
  ConvolutionShape shape;
  ScalarType dtype;

  CaeCall(const Tensor& known, bool known_is_high, const Tensor& weight, int64_t stride,
          int64_t height, int64_t width) {
    STD_TORCH_CHECK(known.dim() == 4 && weight.dim() == 4,
                    "images and weight must have 4 dimensions, got ", known.dim(), " and ",
                    weight.dim());
    dtype = known.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "images must be float32 or float64, got ", torch::headeronly::toString(dtype));
    STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == dtype,
                    "weight must be on the CPU and of the images' dtype");
    STD_TORCH_CHECK(stride == 1 || stride == 2, "stride must be 1 or 2, got ", stride);
    shape.kernel = weight.size(2);
    STD_TORCH_CHECK((shape.kernel == 3 || shape.kernel == 5) && weight.size(3) == shape.kernel,
                    "weight must have 3×3 or 5×5 taps, got ", weight.size(2), "×", weight.size(3));
    STD_TORCH_CHECK(weight.stride(3) == 1 && weight.stride(2) == shape.kernel,
                    "the taps of weight must lie next to each other");
    STD_TORCH_CHECK(known.numel() > 0 && weight.numel() > 0, "images and weight must not be empty");
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    STD_TORCH_CHECK(height > 0 && height <= kMost && width > 0 && width <= kMost,
                    "height and width must be from 1 to ", kMost, ", got ", height, " and ", width);
    shape.images = known.size(0);
    shape.height = height;
    shape.width = width;
    shape.stride = stride;
    shape.low_channels = weight.size(0);
    shape.high_channels = weight.size(1);
    shape.row_stride = weight.stride(0);
    shape.column_stride = weight.stride(1);
    check(known, "images", dtype, known_is_high ? high_sizes() : low_sizes());
  }

  std::vector<int64_t> high_sizes() const {
    return {shape.images, shape.height, shape.width, shape.high_channels};
  }
  std::vector<int64_t> low_sizes() const {
    return {shape.images, shape.low_height(), shape.low_width(), shape.low_channels};
  }
  std::vector<int64_t> weight_sizes() const {
    return {shape.low_channels, shape.high_channels, shape.kernel, shape.kernel};
  }
  Tensor empty(const std::vector<int64_t>& sizes) const { return new_tensor(sizes, dtype, false); }
};

template <class T>
const T* pointer(const OptionalTensor& t) {
  return t.has_value() ? t->const_data_ptr<T>() : nullptr;
}

Tensor cae_encode(Tensor x, Tensor weight, int64_t stride) {
  STD_TORCH_CHECK(x.dim() == 4, "images must have 4 dimensions, got ", x.dim());
  const CaeCall call(x, true, weight, stride, x.size(1), x.size(2));
  Tensor y = call.empty(call.low_sizes());
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    Winograd<T>(call.shape)
        .down(x.const_data_ptr<T>(), nullptr, weight.const_data_ptr<T>(), true,
              y.mutable_data_ptr<T>());
  });
  return y;
}

std::tuple<Tensor, Tensor> cae_encode_backward(Tensor grad, Tensor output, Tensor x, Tensor weight,
                                               int64_t stride, bool x_needs_grad) {
  STD_TORCH_CHECK(x.dim() == 4, "images must have 4 dimensions, got ", x.dim());
  const CaeCall call(x, true, weight, stride, x.size(1), x.size(2));
  grad = torch::stable::contiguous(grad);
  check(grad, "grad", call.dtype, call.low_sizes());
  check(output, "output", call.dtype, call.low_sizes());
  Tensor grad_x = call.empty(x_needs_grad ? call.high_sizes() : std::vector<int64_t>{0});
  Tensor grad_weight = call.empty(call.weight_sizes());
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    const Winograd<T> convolution(call.shape);
    const T *g = grad.const_data_ptr<T>(), *gate = output.const_data_ptr<T>();
    convolution.weight_gradient(x.const_data_ptr<T>(), nullptr, g, gate,
                                grad_weight.mutable_data_ptr<T>());
    if (x_needs_grad) {
      convolution.up(g, gate, weight.const_data_ptr<T>(), nullptr, false,
                     grad_x.mutable_data_ptr<T>());
    }
  });
  return {grad_x, grad_weight};
}

Tensor cae_decode(Tensor x, Tensor weight, OptionalTensor skipped, int64_t stride, int64_t height,
                  int64_t width, bool relu) {
  const CaeCall call(x, false, weight, stride, height, width);
  if (skipped.has_value()) check(*skipped, "skipped", call.dtype, call.high_sizes());
  Tensor y = call.empty(call.high_sizes());
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    Winograd<T>(call.shape)
        .up(x.const_data_ptr<T>(), nullptr, weight.const_data_ptr<T>(), pointer<T>(skipped), relu,
            y.mutable_data_ptr<T>());
  });
  return y;
}

std::tuple<Tensor, Tensor> cae_decode_backward(Tensor grad, OptionalTensor output, Tensor x,
                                               Tensor weight, int64_t stride, bool x_needs_grad) {
  STD_TORCH_CHECK(grad.dim() == 4, "grad must have 4 dimensions, got ", grad.dim());
  const CaeCall call(x, false, weight, stride, grad.size(1), grad.size(2));
  grad = torch::stable::contiguous(grad);
  check(grad, "grad", call.dtype, call.high_sizes());
  if (output.has_value()) check(*output, "output", call.dtype, call.high_sizes());
  Tensor grad_x = call.empty(x_needs_grad ? call.low_sizes() : std::vector<int64_t>{0});
  Tensor grad_weight = call.empty(call.weight_sizes());
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    const Winograd<T> convolution(call.shape);
    const T *g = grad.const_data_ptr<T>(), *gate = pointer<T>(output);
    convolution.weight_gradient(g, gate, x.const_data_ptr<T>(), nullptr,
                                grad_weight.mutable_data_ptr<T>());
    if (x_needs_grad) {
      convolution.down(g, gate, weight.const_data_ptr<T>(), false, grad_x.mutable_data_ptr<T>());
    }
  });
  return {grad_x, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, CPU, m) {
  m.impl("cae_encode", TORCH_BOX(&cae_encode));
  m.impl("_cae_encode_backward", TORCH_BOX(&cae_encode_backward));
  m.impl("cae_decode", TORCH_BOX(&cae_decode));
  m.impl("_cae_decode_backward", TORCH_BOX(&cae_decode_backward));
}

}  // namespace asng::cpu
