// Means of metrics over the steps of an epoch, summed up on the device.
#pragma once

#include <cstdint>
#include <vector>

#include "platform/cuda_stream.h"

namespace asng::cuda {

// Numbers of one metric in one step, float32 or float64.
struct Metric {
  const void* values;
  int64_t size;
  bool is_double;
};

// Adds to totals[i] the mean of metric i, and behind those 1 if no number of the metric `watched`
// is finite and then 1 for the step. If `watched` is -1, only the latter.
void add_means(const std::vector<Metric>& metrics, int watched, float* totals, CudaStream stream);

}  // namespace asng::cuda
