// A step of stochastic gradient descent for all weights of a network in two launches.
#pragma once

#include <cstdint>
#include <vector>

#include "platform/cuda_stream.h"

namespace asng::cuda {

// A weight, in whatever order of its elements, with all that belongs to it in the same order.
template <class T>
struct SgdTensor {
  T* weight;
  T* velocity;
  const T* gradient;
  int64_t size;
};

struct SgdSettings {
  const float* learning_rate;  // on the device
  double momentum, weight_decay;
  double max_norm;  // of all gradients together
};

// How many numbers sgd_step needs for intermediate results.
template <class T>
int64_t sgd_scratch(const std::vector<SgdTensor<T>>& tensors);

// With c = min(1, max_norm/(|gradients| + 1e-6)):
//   velocity ← momentum·velocity + c·gradient + weight_decay·weight,
//   weight ← weight − learning_rate·velocity.
template <class T>
void sgd_step(const std::vector<SgdTensor<T>>& tensors, const SgdSettings& settings,
              double* scratch, CudaStream stream);

}  // namespace asng::cuda
