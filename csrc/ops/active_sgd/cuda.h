// Stochastic gradient descent on leading slices of weights, all of them at once.
#pragma once

#include <cstdint>
#include <vector>

#include "platform/cuda_stream.h"

namespace asng::cuda {

// A weight whose rows lie `pitch` values apart. Its velocity is that of a leading slice, (rows,
// run) without gaps, and its gradient that of a slice of that, (gradient_rows, gradient_run).
template <class T>
struct ActiveWeight {
  T* weight;
  T* velocity;
  const T* gradient;
  int64_t pitch;
  int rows, run;
  int gradient_rows, gradient_run;
  // Of steps that are made later than they were due, with momentum alone:
  // weight ← weight − distance·velocity, velocity ← factor·velocity.
  T distance, factor;
};

struct ActiveSgdSettings {
  double learning_rate, momentum;
  double max_norm;  // of all gradients together; it may be infinite
};

// How many numbers active_sgd_step needs for intermediate results.
template <class T>
int64_t active_sgd_scratch(const std::vector<ActiveWeight<T>>& weights);

// With c = min(1, max_norm/(|gradients| + 1e-6)):
//   velocity ← momentum·velocity + c·gradient,  weight ← weight − learning_rate·velocity.
template <class T>
void active_sgd_step(const std::vector<ActiveWeight<T>>& weights, const ActiveSgdSettings& settings,
                     double* scratch, CudaStream stream);

template <class T>
void active_sgd_catch_up(const std::vector<ActiveWeight<T>>& weights, CudaStream stream);

}  // namespace asng::cuda
