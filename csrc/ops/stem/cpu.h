// The stem: 3×3 convolution of the images, then batch normalization with a weight and a bias.
#pragma once

#include <cstdint>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/pointwise_batch.h"

namespace asng::cpu {

struct StemShape {
  int64_t images = 0, height = 0, width = 0;
  int64_t in_channels = 0, channels = 0, padded = 0;

  int64_t out_size() const { return images * height * width * padded; }
  int64_t saved_size() const { return out_size() + 2 * padded; }
};

template <class T>
class Stem {
 public:
  // `weight` is (channels, in_channels, 3, 3).
  Stem(const StemShape& shape, const T* weight);

  // x (images, height, width, in_channels) to y (images, height, width, padded).
  void forward(const T* x, const T* scale, const T* bias, T* y, T* saved);

  // Adds to the gradients of the weights.
  void backward(const T* x, const T* scale, const T* grad_y, T* saved, T* grad_weight,
                T* grad_scale, T* grad_bias);

 private:
  PointwiseBatch<T> projection(const T* x, T* saved) const;

  StemShape shape_;
  const T* weight_;
};

}  // namespace asng::cpu
