#pragma once

#include "platform/cuda.h"

namespace asng::cuda {

enum class Divergence {
  kNone,
  kExit,
  kOtherBarrier,
  kShuffle,
  kOutsideMask,
  kBarrierAgainstShuffle
};

void sample_reduce(const float* values, int count, float* sum, CudaStream stream);
// Sums of each warp of 64 threads in `blocks` blocks.
void sample_scan(const int* values, int* sums, int blocks, CudaStream stream);
// 64 values; (64, 2) results: the sum of a warp, the largest of eight neighbors.
void sample_warp(const double* values, double* results, unsigned int* ballots, CudaStream stream);
void sample_histogram(const int* values, int count, int bins, int* counts,
                      unsigned int* blocks_done, int* last_block, std::size_t shared_bytes,
                      CudaStream stream);
void sample_diverge(Divergence how, int* out, CudaStream stream);
// A kernel with static shared memory beside `shared_bytes` of dynamic.
void sample_both_kinds(std::size_t shared_bytes, int* out, CudaStream stream);
// Reads, copies or writes four values, with shared memory in the place of `values` or not.
enum class Access { kRead, kWrite, kCopy, kStoreShared };
void sample_access(Access how, bool shared, float4* values, CudaStream stream);
// Three copies, each a group, of which `open` are not waited for; then zeros of the first one.
void sample_copies(const float4* values, float4* out, int open, CudaStream stream);
void sample_race(int* out, CudaStream stream);
// Five blocks, each of which sums up all parts once all blocks have arrived; none is absent if < 0.
void sample_hand_over(uint4* words, unsigned int* sums, int absent, CudaStream stream);
void sample_together(int* parts, int* sums, unsigned long long* arrivals, int absent,
                     CudaStream stream);
void sample_wide(const float4* in, float4* out, int count, unsigned int threads, CudaStream stream);

}  // namespace asng::cuda
