// What finishes a layer of an autoencoder after its convolution.
#pragma once

#include <cstdint>

#include "platform/cuda_types.h"

namespace asng::cuda {

enum class Float { kFloat32, kFloat64, kBFloat16, kHalf };

// y ← y + skipped, unless that is null, then ReLU if `relu`; `count` numbers of a type. Half
// precision is computed in float32 and rounded once. NaN passes, as in PyTorch.
void finish_layer(Float type, void* y, const void* skipped, bool relu, int64_t count,
                  CudaStream stream);

}  // namespace asng::cuda
