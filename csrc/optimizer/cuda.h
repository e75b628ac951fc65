// Algorithm 1 on a device: P optimizers of one space, each an instance with a distribution, samples
// and a random stream of its own, advance in the same launches. Nothing is read back, so that the
// launches can be captured in a graph.
#pragma once

#include <cstdint>

#include "core/counters.h"
#include "core/step_size.h"
#include "platform/cuda_stream.h"

namespace asng::cuda {

// Sizes that all instances share.
struct OptimizerShape {
  std::int64_t instances;   // P
  std::int64_t population;  // lambda: samples that are drawn, or evaluated
  std::int64_t categorical, gaussian;
  std::int64_t theta_size;
  std::int64_t largest = 0;  // number of categories of a variable; 0 if that is not known

  // The number of categories of every variable, if it is known to be the same; otherwise 0.
  std::int64_t alike() const { return largest * categorical == theta_size ? largest : 0; }
  ASNG_HD std::int64_t n_theta() const { return theta_size - categorical + 2 * gaussian; }
};

// A row for each instance.
template <class T>
struct Rows {
  T* first = nullptr;
  std::int64_t stride = 0;  // from a row to the next

  ASNG_HD T* operator[](std::int64_t p) const { return first + p * stride; }
};

struct OptimizerState {
  Rows<std::int64_t> counters;  // (P, kCounters)
  Rows<double> theta;           // (P, theta_size)
  Rows<double> mean;            // (P, gaussian)
  Rows<double> variance;        // (P, gaussian)
  Rows<double> s;               // (P, n_theta)
  Rows<double> step;            // (P, 2) gamma and Delta
  // The sample of the smallest loss, in the direction that is minimized.
  Rows<double> best_loss;               // (P, 1) infinite before there is one
  Rows<std::int64_t> best_categorical;  // (P, categorical)
  Rows<double> best_gaussian;           // (P, gaussian)
};

// Draws (P, lambda, categorical) categories and (P, lambda, gaussian) numbers. Categorical variable
// i has the probabilities from offsets[i] to offsets[i + 1] of an instance's theta. Leaves all that
// follows the variance in the state alone.
void ask(const OptimizerShape& shape, const OptimizerState& state, const std::int64_t* offsets,
         std::int64_t* categorical, double* gaussian, CudaStream stream);

struct Evaluations {
  const std::int64_t* categorical;  // (P, lambda, categorical)
  const double* gaussian;           // (P, lambda, gaussian)
  const double* losses;             // (P, lambda); all that is not finite ranks last and ties
  bool maximize;
  const std::int64_t* offsets;  // (categorical + 1,)
  const double* margin;         // (categorical,)
  const double* bounds;         // (4, gaussian): low, high, least and largest standard deviation
  double variance_ratio_min;    // of step_gaussian
  bool* moved;                  // (P,) whether the update moved anything
  const float* losses32 = nullptr;  // the losses, if they are in single precision
};

// Memory for intermediate results; what it holds before and after is of no matter.
struct Workspace {
  double* memory;  // null if no instance needs any
  std::int64_t per_instance;

  // The doubles that an instance needs.
  static std::int64_t size_for(const OptimizerShape& shape, std::int64_t blocks);
};

// How many blocks an instance gets on the current device.
std::int64_t tell_blocks(const OptimizerShape& shape);

// Updates the distributions of all instances.
void tell(const OptimizerShape& shape, const OptimizerState& state, const Evaluations& evaluations,
          const StepSizeSettings& settings, const Workspace& workspace, std::int64_t blocks,
          CudaStream stream);

}  // namespace asng::cuda
