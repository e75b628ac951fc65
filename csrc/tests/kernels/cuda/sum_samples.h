#pragma once

#include "platform/cuda_stream.h"

namespace asng::cuda {

// Sums of (sums, splits, 3, padded) over the splits, a block each, to (sums, 3, padded).
struct SampleSums {
  int sums, splits, padded;
  const double* values;
  double* partials;
  unsigned* counters;
  double* out;
};
void sample_sums(const SampleSums& sums, CudaStream stream);

}  // namespace asng::cuda
