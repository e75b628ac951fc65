// The update, by the arithmetic of csrc/core and in the order of csrc/optimizer/cpu.cpp: one launch
// ranks the losses, forms the natural gradient, normalizes it, moves the distribution and adapts
// the step size. An instance has one block, or several that synchronize once: between the natural
// gradient, with the sums over all of it, and the move. Sums are taken in an order that depends on
// the sizes alone.
//
// With up to kMostInLanes variables a group of lanes has a categorical variable, each lane one of
// its categories: what takes time is then not arithmetic but that one result waits for the next.
// With more variables, more than can be in lanes at the same time, or more categories than lanes, a
// thread has all of a variable. Where all variables are in lanes and have but two samples, the
// paper's setting, there is a kernel without all the rest: how long it takes is also a matter of
// how many instructions have to be fetched.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "optimizer/cuda_lanes.h"
#include "optimizer/cuda_variables.h"

namespace asng::cuda {

namespace {

using namespace update;

// The sum of one of Sums over an instance, from what the warps of a single block, or the blocks,
// have of it; for all lanes of the warp that calls.
__device__ double total(const Instance& instance, const Shared& shared, int which) {
  double sum = 0.0;
  if (gridDim.x == 1) {
    const double* of_warp = shared.sums + which * Shared::kMostWarps;
    double parts[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      parts[i] = (of_warp[i] + of_warp[i + 4]) + (of_warp[i + 8] + of_warp[i + 12]);
    }
    return (parts[0] + parts[1]) + (parts[2] + parts[3]);
  }
  const double* of_block = instance.sums + which * gridDim.x;
#pragma unroll 4
  for (unsigned int block = threadIdx.x % 32; block < gridDim.x; block += 32) {
    sum += __ldcg(of_block + block);
  }
  sum_lanes(sum);
  return sum;
}

// `lanes`, of each categorical variable: kLanes, where no thread has more than one variable, or 1.
// `pair`: all variables are in lanes, and there are two samples.
template <int lanes, bool pair>
__global__ void __launch_bounds__(lanes > 1 ? kMostTellThreads + kClerkThreads : kTellThreads,
                                  lanes > 1 ? 1 : 4) tell_kernel(Job job) {
  const Shared shared(pair ? 0 : job.shape.population);
  const Instance instance(job, blockIdx.y, shared.memory);
  using Index = std::conditional_t<(lanes > 1), int, std::int64_t>;
  const Index n = static_cast<Index>(job.shape.categorical);
  const Index m = pair ? 0 : static_cast<Index>(job.shape.gaussian);
  const Index items = n * lanes + m;
  const bool clerk = threadIdx.x / 32 == blockDim.x / 32 - 1;  // its last warp
  const bool works = lanes == 1 || !clerk;
  const Index workers = static_cast<Index>(blockDim.x - (lanes > 1 ? kClerkThreads : 0));
  const unsigned int warps = static_cast<unsigned int>(workers / 32);
  const Index first =
      works ? static_cast<Index>(blockIdx.x) * workers + static_cast<Index>(threadIdx.x) : items;
  const Index stride = static_cast<Index>(gridDim.x) * workers;
  const auto variable = [&](Index item) {
    return item < n * lanes ? item / lanes : item - n * (lanes - 1);
  };
  const bool leads = first < n * lanes && threadIdx.x % lanes == 0;
  const bool shares = gridDim.x > 1;

  // All that is read before it is known what the losses say is asked for at the same time.
  const double best_loss = *instance.best_loss;
  StepSize adapted;
  if (clerk) {
    adapted.gamma = instance.step[0];
    adapted.Delta = instance.step[1];
  }
  Row<pair> row{};
  if (lanes > 1 && first < n * lanes) row.load(job, instance, variable(first));

  if (clerk && threadIdx.x % 32 >= warps && threadIdx.x % 32 < Shared::kMostWarps) {
    for (int which = 0; which < Sums::kCount; ++which) {
      shared.sums[which * Shared::kMostWarps + threadIdx.x % 32] = 0.0;
    }
  }
  Sums sums;
  double smallest = 0.0, beta = 0.0;
  int first_sample = 0;
  const auto set_pace = [&] {
    beta = adapted.beta(job.settings);
    const Accumulation normalized(beta, 1.0);
    if (threadIdx.x % 32 != 0) return;
    shared.step[0] = adapted.delta(job.settings);
    shared.step[1] = normalized.keep;
    shared.step[2] = normalized.add;
  };
  if constexpr (pair) {
    if (clerk) set_pace();
    const Pair population(job, blockIdx.y);
    smallest = population.smallest;
    first_sample = population.first;
    if (works) {
      row.prepare();
      row.differentiate(population);
    }
  } else {
    rank(job, blockIdx.y, shared);
    if (lanes > 1) row.prepare();
    __syncthreads();
    if (clerk) set_pace();
    first_sample = shared.order[0];
    smallest = shared.loss[first_sample];
    if (lanes > 1 && works) row.differentiate(job, instance, shared);
#pragma unroll 1
    for (Index item = first; item < items; item += stride) {  // eq. (12)
      const Index v = variable(item);
      if (v >= n) {
        gaussian_gradient(job, instance, shared, v - n, sums);
      } else if (leads && !row.fits()) {
        categorical_gradient(job, instance, shared, v, sums);
      }
    }
  }
  if (works) {
    if (lanes > 1) {
      sums.gradient += row.root * row.root;
      sums.add(row.root, row.s);
    }
    sum_lanes(sums.gradient, sums.both, sums.s);
    if (threadIdx.x % 32 == 0) {
      double* of_warp = shared.sums + threadIdx.x / 32;
      of_warp[0] = sums.gradient;
      of_warp[Shared::kMostWarps] = sums.both;
      of_warp[2 * Shared::kMostWarps] = sums.s;
    }
  }
  __syncthreads();
  auto* arrivals = reinterpret_cast<unsigned long long*>(instance.counters + kArrivals);
  unsigned int before = 0;  // blocks that have already seen that all have arrived
  if (shares) {
    if (threadIdx.x < Sums::kCount) {
      const double* of_warp = shared.sums + threadIdx.x * Shared::kMostWarps;
      double sum = 0.0;
      for (unsigned int warp = 0; warp < warps; ++warp) sum += of_warp[warp];
      instance.sums[threadIdx.x * gridDim.x + blockIdx.x] = sum;
    }
    if (threadIdx.x < 32) __syncwarp();
    if (threadIdx.x == 0) {
      arrive(arrivals);
      wait_for(arrivals, gridDim.x);
      before = atomicInc(reinterpret_cast<unsigned int*>(instance.counters + kTicket),
                         gridDim.x - 1);  // back to 0 after the last
    }
    __syncthreads();
  }

  const double squared_norm = total(instance, shared, 0);
  const bool moved = squared_norm > 0.0 && squared_norm < HUGE_VAL;
  const double inverse = reciprocal_root(squared_norm);
  const double epsilon = moved ? shared.step[0] * inverse : 0.0;  // eq. (14)
  Accumulation accumulate(0.0, 1.0);
  accumulate.keep = shared.step[1];
  accumulate.add = shared.step[2] * inverse;
  if (moved) {
    if (lanes > 1 && works) {
      row.accumulate(accumulate, instance);
      row.move(epsilon, instance);
    }
#pragma unroll 1
    for (Index item = first; item < items && !pair; item += stride) {  // eq. (13), eq. (19)
      const Index v = variable(item);
      if (v >= n) {
        move_gaussian(job, instance, v - n, epsilon, accumulate);
      } else if (leads && !row.fits()) {
        move_categorical(job, instance, v, epsilon, accumulate);
      }
    }
  }
  const bool better = smallest < best_loss;
  if (better) {
#pragma unroll 1
    for (Index v = first; v < n + m; v += stride) {
      if (v < n) {
        instance.best_categorical[v] = instance.categorical[first_sample * n + v];
      } else {
        instance.best_gaussian[v - n] = instance.numerical[first_sample * m + (v - n)];
      }
    }
  }
  if (clerk && blockIdx.x == 0) {
    const std::int64_t generation = instance.counters[kGeneration];
    const std::int64_t evaluations = instance.counters[kEvaluations];
    const double both = total(instance, shared, 1);
    const double squared_s = total(instance, shared, 2);
    if (threadIdx.x % 32 == 0) {
      if (moved) {
        // ||s||^2 after the update, from sums that were there before it.
        const double keep = accumulate.keep;
        const double squared_add = shared.step[2] * shared.step[2];  // of a norm of 1
        adapted.adapt(job.settings, beta,
                      keep * keep * squared_s + 2.0 * keep * accumulate.add * both +
                          squared_add);  // eq. (20), eq. (21)
        instance.step[0] = adapted.gamma;
        instance.step[1] = adapted.Delta;
        instance.counters[kMoved] = generation + 1;
      }
      instance.counters[kGeneration] = generation + 1;
      instance.counters[kEvaluations] = evaluations + job.shape.population;
      if (better) {
        *instance.best_loss = smallest;
        instance.counters[kBest] = generation + 1;
      }
      job.evaluations.moved[blockIdx.y] = moved;
    }
  }
  if (shares && before == gridDim.x - 1) *arrivals = 0;
}

// Whether all variables have few enough categories for lanes, and there are two samples.
bool is_pair(const OptimizerShape& shape) {
  return shape.gaussian == 0 && shape.largest > 0 && shape.largest <= kLanes &&
         shape.population == 2;
}

std::int64_t threads_in_lanes(const OptimizerShape& shape) {
  return kLanes * shape.categorical + shape.gaussian;
}

// Blocks that give each variable its lanes; 0 where a thread is to have all of a variable.
std::int64_t blocks_in_lanes(const OptimizerShape& shape) {
  if (shape.categorical + shape.gaussian > kMostInLanes) return 0;
  const std::int64_t threads = threads_in_lanes(shape);
  return threads <= kMostTellThreads ? 1 : (threads + kTellThreads - 1) / kTellThreads;
}

auto kernel_in_lanes(const OptimizerShape& shape) {
  return is_pair(shape) ? tell_kernel<kLanes, true> : tell_kernel<kLanes, false>;
}

// Doubles of an instance, if its blocks are `blocks`.
std::int64_t intermediate_results(const OptimizerShape& shape, std::int64_t blocks) {
  if (blocks == blocks_in_lanes(shape) && is_pair(shape)) return 0;
  return shape.theta_size + shape.n_theta() + 2 * shape.gaussian;
}

// Bytes of shared memory for these; 0 if they are not there.
std::size_t shared_memory(const OptimizerShape& shape, std::int64_t blocks) {
  const auto bytes = static_cast<std::size_t>(8 * intermediate_results(shape, blocks));
  const std::size_t others = Shared::bytes(shape.population);
  return blocks == 1 && others + bytes <= kPlainSharedBytes ? bytes : 0;
}

}  // namespace

std::int64_t tell_blocks(const OptimizerShape& shape) {
  const std::size_t bytes = Shared::bytes(shape.population);
  const std::int64_t in_lanes = blocks_in_lanes(shape);
  if (in_lanes == 1) return 1;
  if (in_lanes > 1) {
    const int fit = co_resident_blocks(kernel_in_lanes(shape), kTellThreads + kClerkThreads, bytes);
    return in_lanes <= fit / shape.instances ? in_lanes : 1;
  }
  const int fit = co_resident_blocks(tell_kernel<1, false>, kTellThreads, bytes);
  const std::int64_t variables = shape.categorical + shape.gaussian;
  return std::max<std::int64_t>(
      std::min((variables + kTellThreads - 1) / kTellThreads, fit / shape.instances), 1);
}

std::int64_t Workspace::size_for(const OptimizerShape& shape, std::int64_t blocks) {
  if (shared_memory(shape, blocks) > 0) return 0;
  return intermediate_results(shape, blocks) + (blocks > 1 ? Sums::kCount * blocks : 0);
}

void tell(const OptimizerShape& shape, const OptimizerState& state, const Evaluations& evaluations,
          const StepSizeSettings& settings, const Workspace& workspace, std::int64_t blocks,
          CudaStream stream) {
  const bool in_lanes = blocks == blocks_in_lanes(shape);
  const auto kernel = in_lanes ? kernel_in_lanes(shape) : tell_kernel<1, false>;
  unsigned int threads = kTellThreads;
  if (in_lanes && blocks == 1) {
    threads = static_cast<unsigned int>((threads_in_lanes(shape) + 31) / 32 * 32);
  }
  if (in_lanes) threads += kClerkThreads;
  const dim3 grid(static_cast<unsigned int>(blocks), static_cast<unsigned int>(shape.instances));
  const std::size_t bytes = Shared::bytes(shape.population) + shared_memory(shape, blocks);
  const double reward = reward_of(shape.population);
  const Job job{shape,
                state,
                evaluations,
                settings,
                workspace,
                reward,
                canceled_weight(shape.population),
                reward / static_cast<double>(shape.population),
                shape.alike()};
  if (blocks > 1) {
    launch_cooperative(kernel, grid, threads, bytes, stream, job);
  } else {
    launch(kernel, grid, threads, bytes, stream, job);
  }
}

}  // namespace asng::cuda
