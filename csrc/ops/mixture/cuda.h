// Mixtures on a CUDA device, on memory that the caller provides. All pointers in lists are the
// device's; what the lists hold is needed during the call alone. Feature maps, and their gradients,
// are of the stored type V, the rest of Compute<V>. Every function throws std::runtime_error if a
// launch fails; kernels run later, and nothing synchronizes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/mixture/shape.h"
#include "platform/bfloat16.h"
#include "platform/cuda_stream.h"

namespace asng::cuda {

// What both passes of a mixture are given. `inputs` are feature maps, one for each of the dag's;
// `weights` come in the order of MixtureShape::weights().
template <class V>
struct MixtureArguments {
  using T = Compute<V>;

  bool tf32 = false;
  std::vector<const V*> inputs;
  const T* coefficients = nullptr;
  std::vector<const T*> weights;
};

// `saved` is what the shape's saved_on_cuda() says, then its maxima, or null if there will be no
// backward pass; `scratch` has as many bytes as mixture_scratch says and is aligned to 256. `nodes`
// (nodes, images, out_height, out_width, padded) is the result.
template <class V>
size_t mixture_scratch(const MixtureShape& shape, bool save, bool backward);
template <class V>
void mixture_forward(const MixtureShape& shape, const MixtureArguments<V>& arguments, V* nodes,
                     Compute<V>* saved, void* scratch, CudaStream stream);
// All gradients are written; without `grad_weights` there are none of the weights.
template <class V>
void mixture_backward(const MixtureShape& shape, const MixtureArguments<V>& arguments,
                      const V* nodes, const V* grad_nodes, const Compute<V>* saved,
                      const std::vector<V*>& grad_inputs, Compute<V>* grad_coefficients,
                      const std::vector<Compute<V>*>& grad_weights, void* scratch,
                      CudaStream stream);

}  // namespace asng::cuda
