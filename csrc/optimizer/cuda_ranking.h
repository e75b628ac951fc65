// How good the samples of a population are, to each other.
#pragma once

#include "optimizer/cuda_tell.h"

namespace asng::cuda::update {

__device__ inline double loss_at(const Job& job, std::int64_t at) {
  const Evaluations& given = job.evaluations;
  const double value = given.losses32 ? given.losses32[at] : given.losses[at];
  const double loss = given.maximize ? -value : value;
  // An infinitely good loss cannot be refused here, so it is no better than NaN.
  return loss < HUGE_VAL && loss > -HUGE_VAL ? loss : HUGE_VAL;
}

// What weigh_samples does, by all threads of a block. The results are there after a barrier.
__device__ inline void rank(const Job& job, std::int64_t p, const Shared& shared) {
  const int lambda = static_cast<int>(job.shape.population);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
#pragma unroll 1
  for (int k = thread; k < lambda; k += threads) shared.loss[k] = loss_at(job, p * lambda + k);
  __syncthreads();
  // Up to a warp of threads counts which losses are smaller than a sample's.
  int bits = 0;
  while (bits < 5 && (lambda << (bits + 1)) <= threads) ++bits;
  const int parts = 1 << bits;
#pragma unroll 1
  for (int first = 0; first < lambda; first += threads >> bits) {
    const int k = first + (thread >> bits);
    const double loss = shared.loss[min(k, lambda - 1)];
    int position = 0;
#pragma unroll 4
    for (int j = thread & (parts - 1); j < lambda; j += parts) {
      position += shared.loss[j] < loss || (shared.loss[j] == loss && j < k);
    }
    for (int step = parts / 2; step > 0; step /= 2) {
      position += __shfl_xor_sync(kWarp, position, step);
    }
    if (k < lambda && (thread & (parts - 1)) == 0) {
      shared.order[position] = k;
      shared.sorted[position] = loss;
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int r = thread; r < lambda; r += threads) {
    int begin = r;
    while (begin > 0 && losses_tie(shared.sorted[begin - 1], shared.sorted[begin])) --begin;
    int end = r + 1;
    while (end < lambda && losses_tie(shared.sorted[end - 1], shared.sorted[end])) ++end;
    shared.weight[shared.order[r]] =
        shared_utility(begin, end, lambda, job.reward) / static_cast<double>(lambda);
  }
  __syncthreads();
  if (thread < 32) {
    int count = 0;
#pragma unroll 1
    for (int first = 0; first < lambda; first += 32) {
      const int k = first + thread;
      const double weight = k < lambda ? shared.weight[k] : 0.0;
      const unsigned int selected = __ballot_sync(kWarp, weight != 0.0);
      if (weight != 0.0) {
        shared.weighted[count + __popc(selected & ((1u << thread) - 1u))] = {k, weight};
      }
      count += __popc(selected);
    }
    if (thread == 0) *shared.count = count;
  }
}

// A population of two, as each thread ranks it for itself.
struct Pair {
  int first;        // the sample of the smallest loss
  double smallest;  // that loss
  double weight;    // of sample 0; that of sample 1 is the negative

  __device__ Pair(const Job& job, std::int64_t p) {
    const double loss = loss_at(job, 2 * p), other = loss_at(job, 2 * p + 1);
    first = other < loss;
    smallest = first == 0 ? loss : other;
    const bool tie = losses_tie(smallest, first == 0 ? other : loss);
    weight = tie ? 0.0 : first == 0 ? job.weight : -job.weight;
  }
};

}  // namespace asng::cuda::update
