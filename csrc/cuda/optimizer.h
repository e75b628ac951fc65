// ASNG on the device: P optimizers of one space, each with a distribution, samples and a random
// stream of its own, advance in the same launches. Nothing is read back, so that the launches can
// be captured in a graph.
#pragma once

#include <cstdint>

#include "stream.h"

namespace asng::cuda {

// Sizes that all problems share. Categorical variable i has the probabilities from offsets[i] to
// offsets[i + 1] of a problem's theta.
struct OptimizerShape {
  std::int64_t problems;    // P
  std::int64_t population;  // lambda: samples that are drawn, or told
  std::int64_t categorical, gaussian;
  std::int64_t theta_size;

  std::int64_t n_theta() const { return theta_size - categorical + 2 * gaussian; }
};

// Integers of a problem's state, kCounters of them.
enum Counter : int {
  kSeed,
  kAsked,       // populations drawn: the random numbers' generation
  kGeneration,  // populations told
  kTicket,      // of the launch in progress; 0 between launches
  kArrivals,    // likewise
  kCounters
};

// Row-major; P rows each.
struct OptimizerState {
  std::int64_t* counters;  // (P, kCounters)
  double* theta;           // (P, theta_size)
  double* mean;            // (P, gaussian)
  double* variance;        // (P, gaussian)
};

// Draws (P, lambda, categorical) categories and (P, lambda, gaussian) numbers.
void ask(const OptimizerShape& shape, const OptimizerState& state, const std::int64_t* offsets,
         std::int64_t* categorical, double* gaussian, CudaStream stream);

}  // namespace asng::cuda
