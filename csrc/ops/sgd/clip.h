// Limits the norm of all gradients together.
#pragma once

#include "kernels/cuda/block_sum.h"

namespace asng::cuda {

// What gradients are multiplied by, at most 1, for their norm to be at most `max_norm`: from parts
// of the sum of their squares, which every block adds in the same order. A norm of NaN gives NaN.
// To be called once in a kernel, by all threads of a block.
template <int kBlockThreads>
__device__ double clip_factor(const double* parts, int count, double max_norm) {
  double squares = 0;
  for (int first = threadIdx.x; first < count; first += 4 * kBlockThreads) {
#pragma unroll
    for (int i = first; i < first + 4 * kBlockThreads; i += kBlockThreads) {
      squares += i < count ? parts[i] : 0;
    }
  }
  const double scale = max_norm / (sqrt(block_sum<kBlockThreads>(squares)) + 1e-6);
  return scale > 1 ? 1 : scale;
}

}  // namespace asng::cuda
