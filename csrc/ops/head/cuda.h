// What follows the last cell: the mean over the pixels, a linear layer, cross-entropy and accuracy.
#pragma once

#include <cstdint>

#include "platform/bfloat16.h"
#include "platform/cuda_stream.h"

namespace asng::cuda {

struct HeadShape {
  int archs = 0, images = 0;
  int pixels = 0;                // of an image
  int channels = 0, padded = 0;  // of the features
  int classes = 0;

  int pairs() const { return archs * images; }
  // Of each image of each architecture: the means of its channels, and the gradient of its
  // architecture's loss with respect to its logits.
  int64_t saved() const { return static_cast<int64_t>(pairs()) * (channels + classes); }
  // Of each as well: its loss, and whether the label has the largest logit.
  int64_t scratch() const { return 2 * static_cast<int64_t>(pairs()); }
};

// In `losses` (archs,) the mean cross-entropy over the images, in `accuracy` the mean over all. The
// loss of a label that is no class is NaN. Features are (archs, images, pixels, padded).
template <class V>
void head_forward(const HeadShape& shape, const V* features, const Compute<V>* weight,
                  const Compute<V>* bias, const int64_t* labels, Compute<V>* losses,
                  float* accuracy, Compute<V>* saved, Compute<V>* scratch, CudaStream stream);

// From the gradient of `losses`.
template <class V>
void head_backward(const HeadShape& shape, const Compute<V>* grad, const Compute<V>* weight,
                   const Compute<V>* saved, V* grad_features, Compute<V>* grad_weight,
                   Compute<V>* grad_bias, CudaStream stream);

}  // namespace asng::cuda
