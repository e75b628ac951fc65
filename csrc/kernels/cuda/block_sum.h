// Sums over the threads of a block, in an order that depends on their number alone.
#pragma once

#include "platform/cuda.h"

namespace asng::cuda {

// The sum over the lanes of a warp, the same bits in all of them.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// The sum over a block of whole warps, in all of its threads. To be called once in a kernel.
template <int kBlockThreads>
__device__ double block_sum(double value) {
  __shared__ double of_warps[kBlockThreads / 32];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
#pragma unroll
  for (int warp = 0; warp < kBlockThreads / 32; ++warp) sum += of_warps[warp];
  return sum;
}

}  // namespace asng::cuda
