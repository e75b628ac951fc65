// What the layers of autoencoders need on CUDA devices beside PyTorch's convolutions; see
// asng_ext/ops/autoencoder.py.

#include "ops/autoencoder/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

Float float_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Float::kFloat32;
    case ScalarType::Double:
      return Float::kFloat64;
    case ScalarType::BFloat16:
      return Float::kBFloat16;
    case ScalarType::Half:
      return Float::kHalf;
    default:
      STD_TORCH_CHECK(false, "y must be float32, float64, bfloat16 or float16, got ",
                      torch::headeronly::toString(t.scalar_type()));
  }
}

void cae_finish(Tensor y, OptionalTensor skipped, bool relu) {
  const Float type = float_of(y);
  check_tensor(y, "y", y.scalar_type(), kDevice);
  if (skipped.has_value()) {
    const auto sizes = y.sizes();
    check_like(*skipped, "skipped", y.scalar_type(), {sizes.begin(), sizes.end()}, y);
  }
  const DeviceStreamGuard current(y);
  finish_layer(type, y.data_ptr(), skipped.has_value() ? skipped->data_ptr() : nullptr, relu,
               y.numel(), current.stream());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) { m.impl("_cae_finish", TORCH_BOX(&cae_finish)); }

}  // namespace asng::cuda
