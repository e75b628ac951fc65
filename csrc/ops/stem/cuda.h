// The stem on a CUDA device, on memory that the caller provides; see ops/cell/cuda.h.
#pragma once

#include <cstddef>

#include "ops/stem/shape.h"
#include "platform/bfloat16.h"
#include "platform/cuda_stream.h"

namespace asng::cuda {

template <class V>
size_t stem_scratch(const StemShape& shape, bool backward);
template <class V>
void stem_forward(const StemShape& shape, bool tf32, const Compute<V>* weight,
                  const Compute<V>* scale, const Compute<V>* bias, const V* x, V* y,
                  Compute<V>* saved, void* scratch, CudaStream stream);
template <class V>
void stem_backward(const StemShape& shape, bool tf32, const Compute<V>* scale, const V* x,
                   const V* grad_y, const Compute<V>* saved, Compute<V>* grad_weight,
                   Compute<V>* grad_scale, Compute<V>* grad_bias, void* scratch, CudaStream stream);

}  // namespace asng::cuda
