// Kernels that exercise what csrc/platform/grid_on_cpu provides; compiled by nvcc as well, so that
// they are CUDA and not merely something like it.
#include "tests/platform/grid_samples.h"

namespace asng::cuda {

namespace {

__global__ void reduce_kernel(const float* values, int count, float* sum) {
  __shared__ float part[256];
  const int t = static_cast<int>(threadIdx.x);
  float mine = 0.0f;
  for (int i = t; i < count; i += static_cast<int>(blockDim.x)) mine += values[i];
  part[t] = mine;
  for (int stage = static_cast<int>(blockDim.x) / 2; stage > 0; stage /= 2) {
    __syncthreads();
    if (t < stage) part[t] += part[t + stage];
  }
  if (t == 0) *sum = part[0];
}

__global__ void scan_kernel(const int* values, int* sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  int sum = values[i];
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, sum, static_cast<unsigned int>(step));
    if (lane >= step) sum += below;
  }
  sums[i] = sum;
}

__global__ void warp_kernel(const double* values, double* results, unsigned int* ballots) {
  const unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  double sum = values[i];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
  const double total = __shfl_sync(0xffffffffu, sum, 0);
  double most = values[i];
  for (int step = 4; step > 0; step /= 2) {
    most = fmax(most, __shfl_xor_sync(0xffffffffu, most, step, 8));
  }
  results[2 * i] = total;
  results[2 * i + 1] = most;
  const unsigned int ballot = __ballot_sync(0xffffffffu, values[i] > 0.5);
  // Stage a warp on its own.
  unsigned int stage = 0;
  if (lane < 16) {
    stage = __ballot_sync(0x0000ffffu, lane % 2);
    __syncwarp(0x0000ffffu);
  }
  ballots[i] = lane < 16 ? stage : ballot;
}

__global__ void histogram_kernel(const int* values, int count, int bins, int* counts,
                                 unsigned int* blocks_done, int* last_block) {
  int* mine = dynamic_shared<int>();
  const int t = static_cast<int>(threadIdx.x + threadIdx.y * blockDim.x);
  const int threads = static_cast<int>(blockDim.x * blockDim.y);
  for (int b = t; b < bins; b += threads) mine[b] = 0;
  __syncthreads();
  const int block = static_cast<int>(blockIdx.x + gridDim.x * blockIdx.y);
  const int all = static_cast<int>(gridDim.x * gridDim.y) * threads;
  for (int i = block * threads + t; i < count; i += all) atomicAdd(&mine[values[i]], 1);
  __syncthreads();
  for (int b = t; b < bins; b += threads) atomicAdd(&counts[b], mine[b]);
  __threadfence();
  const bool first = t == 0;
  if (first && atomicAdd(blocks_done, 1u) == gridDim.x * gridDim.y - 1) *last_block += 1;
}

__global__ void diverge_kernel(Divergence how, int* out) {
  const unsigned int t = threadIdx.x;
  switch (how) {
    case Divergence::kNone:
      __syncthreads();
      break;
    case Divergence::kExit:
      if (t == 5) return;
      __syncthreads();
      break;
    case Divergence::kOtherBarrier:
      if (t < 40) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case Divergence::kShuffle:
      if (t != 33) out[t] = __shfl_xor_sync(0xffffffffu, static_cast<int>(t), 1);
      break;
    case Divergence::kOutsideMask:
      if (t < 4) out[t] = __shfl_sync(0x0000000fu, static_cast<int>(t), 9);
      break;
    case Divergence::kBarrierAgainstShuffle:
      if (t < 32) {
        __syncthreads();
      } else {
        out[t] = __shfl_xor_sync(0xffffffffu, static_cast<int>(t), 1);
      }
      break;
  }
  out[t] = 1;
}

__global__ void both_kinds_kernel(int* out) {
  __shared__ int board[32];
  board[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = board[31 - threadIdx.x];
}

__global__ void race_kernel(int* out) {
  __shared__ int board[64];
  const int t = static_cast<int>(threadIdx.x);
  board[t] = -1;
  __syncthreads();
  board[t] = t;
  // No barrier: what is read depends on who is first.
  out[t] = board[63 - t];
}

__global__ void wide_kernel(const float4* in, float4* out, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  const float4 v = in[i];
  out[i] = make_float4(v.w, v.z, v.y, v.x);
}

// Every block needs what all others wrote; a block that does not arrive leaves them waiting.
__global__ void together_kernel(int* parts, int* sums, unsigned long long* arrivals, int absent) {
  if (static_cast<int>(blockIdx.x) == absent) return;
  int* mine = dynamic_shared<int>();
  const int t = static_cast<int>(threadIdx.x);
  mine[t] = t + static_cast<int>(blockIdx.x);
  __syncthreads();
  if (t == 0) {
    int sum = 0;
    for (unsigned int k = 0; k < blockDim.x; ++k) sum += mine[k];
    parts[blockIdx.x] = sum;
    __threadfence();
    atomicAdd(arrivals, 1ull);
    wait_for(arrivals, gridDim.x);
    sum = 0;
    for (unsigned int b = 0; b < gridDim.x; ++b) sum += __ldcg(&parts[b]);
    sums[blockIdx.x] = sum;
  }
}

// The same with words that say themselves that they are there: who waits for them is in the middle
// of a warp that goes on together.
__global__ void hand_over_kernel(uint4* words, unsigned int* sums, int absent) {
  if (static_cast<int>(blockIdx.x) == absent) return;
  const unsigned t = threadIdx.x, word = 2 * (t + blockIdx.x) + 1;
  if (t < 2) hand_over(words + blockIdx.x * 2 + t, make_uint4(word, word, word, word));
  // Those that are not there at all are ones.
  uint4 received[3];
  const unsigned pieces = 2 * gridDim.x;
  receive([&](unsigned i) { return t + 4 * i < pieces ? words + t + 4 * i : nullptr; }, received);
  unsigned sum = 0;
  for (const uint4& piece : received) sum += piece.x / 2 * 2 + piece.w / 2 * 2;
  for (int lanes = 1; lanes < 4; lanes *= 2) sum += __shfl_xor_sync(0xfu, sum, lanes);
  if (t == 0) sums[blockIdx.x] = sum;
}

__global__ void access_kernel(Access how, bool shared, float4* values) {
  float4* memory = dynamic_shared<float4>();
  float4* at = shared ? memory + 1 : values;
  if (how == Access::kRead) memory[0] = __ldg(at);
  if (how == Access::kWrite) write_at_once(at, make_float4(1, 2, 3, 4));
  if (how == Access::kCopy) copy_async16(memory, at);
  if (how == Access::kStoreShared) store_shared(&at->x, 1, 2, 3, 4);
  wait_for_copies();
}

template <int kOpen>
__global__ void copies_kernel(const float4* values, float4* out) {
  float4* memory = dynamic_shared<float4>();
  for (int i = 0; i < 4; ++i) memory[i] = make_float4(7, 7, 7, 7);
  copy_async16(memory + 3, values, false);
  for (int i = 0; i < 3; ++i) {
    copy_async16(memory + i, values + i);
    close_copies();
  }
  wait_for_closed_copies<kOpen>();
  for (int i = 0; i < 4; ++i) out[i] = memory[i];
  wait_for_copies();
  for (int i = 0; i < 4; ++i) out[4 + i] = memory[i];
}

}  // namespace

void sample_copies(const float4* values, float4* out, int open, CudaStream stream) {
  const auto kernel = open == 0 ? copies_kernel<0> : copies_kernel<2>;
  launch(kernel, 1, 1, 4 * sizeof(float4), stream, values, out);
}
void sample_access(Access how, bool shared, float4* values, CudaStream stream) {
  launch(access_kernel, 1, 1, 2 * sizeof(float4), stream, how, shared, values);
}
void sample_hand_over(uint4* words, unsigned int* sums, int absent, CudaStream stream) {
  launch_cooperative(hand_over_kernel, 5, 4, 0, stream, words, sums, absent);
}
void sample_together(int* parts, int* sums, unsigned long long* arrivals, int absent,
                     CudaStream stream) {
  launch_cooperative(together_kernel, 5, 32, 32 * sizeof(int), stream, parts, sums, arrivals,
                     absent);
}
void sample_reduce(const float* values, int count, float* sum, CudaStream stream) {
  launch(reduce_kernel, 1, 256, 0, stream, values, count, sum);
}
void sample_scan(const int* values, int* sums, int blocks, CudaStream stream) {
  launch(scan_kernel, blocks, 64, 0, stream, values, sums);
}
void sample_warp(const double* values, double* results, unsigned int* ballots, CudaStream stream) {
  launch(warp_kernel, 2, 32, 0, stream, values, results, ballots);
}
void sample_histogram(const int* values, int count, int bins, int* counts,
                      unsigned int* blocks_done, int* last_block, std::size_t shared_bytes,
                      CudaStream stream) {
  launch(histogram_kernel, dim3(3, 2), dim3(16, 6), shared_bytes, stream, values, count, bins,
         counts, blocks_done, last_block);
}
void sample_diverge(Divergence how, int* out, CudaStream stream) {
  launch(diverge_kernel, 1, 64, 0, stream, how, out);
}
void sample_both_kinds(std::size_t shared_bytes, int* out, CudaStream stream) {
  launch(both_kinds_kernel, 1, 32, shared_bytes, stream, out);
}
void sample_race(int* out, CudaStream stream) { launch(race_kernel, 1, 64, 0, stream, out); }
void sample_wide(const float4* in, float4* out, int count, unsigned int threads,
                 CudaStream stream) {
  launch(wide_kernel, (static_cast<unsigned int>(count) + threads - 1) / threads, threads, 0,
         stream, in, out, count);
}

}  // namespace asng::cuda
