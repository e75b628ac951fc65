// What finishes a layer of an autoencoder after its convolution, which is PyTorch's: see
// asng_ext/ops/autoencoder.py.
#pragma once

#include <cstdint>

#include "platform/bfloat16.h"
#include "platform/cuda_stream.h"

namespace asng::cuda {

enum class Float { kFloat32, kFloat64, kBFloat16, kHalf };

// y ← y + skipped, unless that is null, then ReLU if `relu`; `count` numbers of a type. Half
// precision is computed in float32 and rounded once. NaN passes, as in PyTorch.
void finish_layer(Float type, void* y, const void* skipped, bool relu, int64_t count,
                  CudaStream stream);

}  // namespace asng::cuda
