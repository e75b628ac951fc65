// Algorithm 1 on a device, by the arithmetic of csrc/core: one launch samples, one updates. What is
// computed, and in which order for each variable, is that of csrc/optimizer/cpu.cpp.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/categorical.h"
#include "core/gaussian.h"
#include "core/philox.h"
#include "core/step_size.h"
#include "core/utility.h"
#include "optimizer/cuda.h"
#include "platform/cuda.h"

namespace asng::cuda {

namespace {

// Sampling: the populations of all instances.
constexpr unsigned int kAskThreads = 128;

struct Draw {
  OptimizerShape shape;
  OptimizerState state;
  const std::int64_t* offsets;
  std::int64_t* categorical;
  double* gaussian;
};

// Four categorical variables of one sample, which share a block of random numbers.
__device__ void draw_categories(const Draw& draw, std::int64_t instance, std::uint64_t seed,
                                std::uint64_t asked, std::int64_t sample, std::int64_t block) {
  const std::int64_t n = draw.shape.categorical;
  const double* theta = draw.state.theta + instance * draw.shape.theta_size;
  std::int64_t* row = draw.categorical + (instance * draw.shape.population + sample) * n;
  const PhiloxBlock bits =
      philox(seed, draw_counter(Stream::kCategorical, asked, static_cast<std::uint32_t>(sample),
                                static_cast<std::uint32_t>(block)));
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const std::int64_t i = 4 * block + k;
    if (i < n) {
      const std::int64_t begin = draw.offsets[i];
      row[i] = sample_category(theta + begin, draw.offsets[i + 1] - begin, uniform32(bits.word[k]));
    }
  }
}

// Two Gaussian variables of an antithetic pair of samples.
__device__ void draw_normals(const Draw& draw, std::int64_t instance, std::uint64_t seed,
                             std::uint64_t asked, std::int64_t pair, std::int64_t block) {
  const std::int64_t n = draw.shape.gaussian;
  const double* mean = draw.state.mean + instance * n;
  const double* variance = draw.state.variance + instance * n;
  double* upper = draw.gaussian + (instance * draw.shape.population + 2 * pair) * n;
  const bool mirrored = 2 * pair + 1 < draw.shape.population;
  double z[2];
  standard_normal_pair(
      philox(seed, draw_counter(Stream::kGaussian, asked, static_cast<std::uint32_t>(pair),
                                static_cast<std::uint32_t>(block))),
      z[0], z[1]);
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const std::int64_t j = 2 * block + k;
    if (j < n) {
      const double offset = std::sqrt(variance[j]) * z[k];
      upper[j] = mean[j] + offset;
      if (mirrored) upper[n + j] = mean[j] - offset;
    }
  }
}

__global__ void __launch_bounds__(kAskThreads) ask_kernel(Draw draw) {
  const std::int64_t instance = blockIdx.y;
  std::int64_t* counters = draw.state.counters + instance * kCounters;
  const auto seed = static_cast<std::uint64_t>(counters[kSeed]);
  const auto asked = static_cast<std::uint64_t>(counters[kAsked]);
  const std::int64_t lambda = draw.shape.population;
  const std::int64_t category_blocks = (draw.shape.categorical + 3) / 4;
  const std::int64_t normal_blocks = (draw.shape.gaussian + 1) / 2;
  const std::int64_t of_categories = lambda * category_blocks;
  const std::int64_t all = of_categories + (lambda + 1) / 2 * normal_blocks;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t w = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; w < all;
       w += stride) {
    if (w < of_categories) {
      draw_categories(draw, instance, seed, asked, w / category_blocks, w % category_blocks);
    } else {
      const std::int64_t rest = w - of_categories;
      draw_normals(draw, instance, seed, asked, rest / normal_blocks, rest % normal_blocks);
    }
  }
  // The last block to arrive counts the population: by then all have read the counter.
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    auto* ticket = reinterpret_cast<unsigned long long*>(counters + kTicket);
    if (atomicAdd(ticket, 1ull) == gridDim.x - 1) {
      counters[kTicket] = 0;
      counters[kAsked] = static_cast<std::int64_t>(asked + 1);
    }
  }
}

// The update: one launch ranks the losses, forms the natural gradient, normalizes it, moves the
// distribution and adapts the step size. An instance has one block, or several that synchronize
// once: between the norm of the natural gradient, which all of them need, and the move. Sums are
// taken in an order that depends on the sizes alone.
constexpr unsigned int kTellThreads = 256;
// A thread takes up to this many variables before a second block is worth the synchronization.
constexpr std::int64_t kVariablesPerThread = 4;

struct Job {
  OptimizerShape shape;
  OptimizerState state;
  Evaluations evaluations;
  StepSizeSettings settings;
  Workspace workspace;
};

// What belongs to one instance.
struct Instance {
  std::int64_t* counters;
  double *theta, *mean, *variance, *s, *step, *best_loss, *best_gaussian;
  std::int64_t* best_categorical;
  const std::int64_t* categorical;
  const double *numerical, *losses;
  double *gradient, *root, *gaussian, *norm_terms, *s_terms;

  __device__ Instance(const Job& job, std::int64_t p, std::int64_t blocks) {
    const OptimizerShape& shape = job.shape;
    counters = job.state.counters + p * kCounters;
    theta = job.state.theta + p * shape.theta_size;
    mean = job.state.mean + p * shape.gaussian;
    variance = job.state.variance + p * shape.gaussian;
    s = job.state.s + p * shape.n_theta();
    step = job.state.step + p * 2;
    best_loss = job.state.best_loss + p;
    best_categorical = job.state.best_categorical + p * shape.categorical;
    best_gaussian = job.state.best_gaussian + p * shape.gaussian;
    categorical = job.evaluations.categorical + p * shape.population * shape.categorical;
    numerical = job.evaluations.gaussian + p * shape.population * shape.gaussian;
    losses = job.evaluations.losses + p * shape.population;
    gradient = job.workspace.memory + p * job.workspace.per_instance;
    root = gradient + shape.theta_size;
    gaussian = root + shape.n_theta();
    norm_terms = gaussian + 2 * shape.gaussian;
    s_terms = norm_terms + blocks;
  }
};

// The population as all threads of a block see it, in dynamic shared memory.
struct Ranked {
  double* loss;         // (lambda,) in the direction that is minimized, without NaN
  double* utility;      // (lambda,)
  double* scratch;      // (32,)
  std::int64_t* order;  // (lambda,) samples in ascending order of loss
  std::int64_t* count;  // how many `weighted` holds; 0 if all losses are equal
  Weighted* weighted;   // (lambda,)

  explicit __device__ Ranked(std::int64_t lambda) {
    loss = dynamic_shared<double>();
    utility = loss + lambda;
    scratch = utility + lambda;
    order = reinterpret_cast<std::int64_t*>(scratch + 32);
    count = order + lambda;
    weighted = reinterpret_cast<Weighted*>(count + 1);
  }
  static std::size_t bytes(std::int64_t lambda) {
    return static_cast<std::size_t>(5 * lambda + 32 + 1) * 8;
  }
};

// The sum over the threads of the block, for all of them.
__device__ double block_sum(double value, double* scratch) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0.0;
  for (unsigned int warp = 0; warp < blockDim.x / 32; ++warp) sum += scratch[warp];
  return sum;
}

__device__ void rank(const Job& job, const Instance& instance, const Ranked& ranked) {
  const std::int64_t lambda = job.shape.population;
  for (std::int64_t k = threadIdx.x; k < lambda; k += blockDim.x) {
    const double loss = job.evaluations.maximize ? -instance.losses[k] : instance.losses[k];
    // An infinitely good loss cannot be refused here, so it is no better than NaN.
    ranked.loss[k] = loss < HUGE_VAL && loss > -HUGE_VAL ? loss : HUGE_VAL;
  }
  __syncthreads();
  for (std::int64_t k = threadIdx.x; k < lambda; k += blockDim.x) {
    std::int64_t position = 0;
    for (std::int64_t j = 0; j < lambda; ++j) {
      position += ranked.loss[j] < ranked.loss[k] || (ranked.loss[j] == ranked.loss[k] && j < k);
    }
    ranked.order[position] = k;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    *ranked.count =
        weigh_samples(ranked.loss, ranked.order, lambda, ranked.utility, ranked.weighted);
  }
  __syncthreads();
}

// G and F^(1/2) G of a categorical variable; returns its term of ||G||_F^2.
__device__ double categorical_gradient(const Job& job, const Instance& instance,
                                       const Ranked& ranked, std::int64_t i) {
  const std::int64_t begin = job.evaluations.offsets[i];
  const std::int64_t size = job.evaluations.offsets[i + 1] - begin;
  double* gradient = instance.gradient + begin;
  double* root = instance.root + (begin - i);
  for (std::int64_t j = 0; j < size; ++j) gradient[j] = 0.0;
  // Python checks categories as far as it can without host-device synchronization.
  if (asng::categorical_gradient(ranked.weighted, *ranked.count, instance.categorical + i,
                                 job.shape.categorical, canceled_weight(job.shape.population), size,
                                 gradient)) {
    return categorical_fisher_root(instance.theta + begin, gradient, size, root);
  }
  for (std::int64_t j = 0; j + 1 < size; ++j) root[j] = 0.0;
  return 0.0;
}

__device__ double gaussian_gradient(const Job& job, const Instance& instance, const Ranked& ranked,
                                    std::int64_t j) {
  const std::int64_t n = job.shape.gaussian;
  const double mean = instance.mean[j];
  const double variance = instance.variance[j];
  const GaussianGradient gradient = asng::gaussian_gradient(
      ranked.weighted, *ranked.count, instance.numerical + j, n, mean, variance);
  instance.gaussian[2 * j] = gradient.mean;
  instance.gaussian[2 * j + 1] = gradient.spread;
  double* root = instance.root + (job.shape.theta_size - job.shape.categorical);
  return gaussian_fisher_root(mean, variance, gradient, root[j], root[n + j]);
}

// Element e of s; returns its square.
__device__ double accumulate_at(const Accumulation& accumulate, const Instance& instance,
                                std::int64_t e) {
  const double value = accumulate(instance.s[e], instance.root[e]);  // eq. (19)
  instance.s[e] = value;
  return value * value;
}

__device__ double move_categorical(const Job& job, const Instance& instance, std::int64_t i,
                                   double step, const Accumulation& accumulate) {
  const std::int64_t begin = job.evaluations.offsets[i];
  const std::int64_t size = job.evaluations.offsets[i + 1] - begin;
  const double* gradient = instance.gradient + begin;
  bool moves = false;
  for (std::int64_t j = 0; j < size; ++j) moves = moves || gradient[j] != 0.0;
  if (moves) {
    step_categorical(instance.theta + begin, gradient, size, step, job.evaluations.margin[i]);
  }
  double sum = 0.0;
  for (std::int64_t e = begin - i; e < begin - i + size - 1; ++e) {
    sum += accumulate_at(accumulate, instance, e);
  }
  return sum;
}

__device__ double move_gaussian(const Job& job, const Instance& instance, std::int64_t j,
                                double step, const Accumulation& accumulate) {
  const std::int64_t n = job.shape.gaussian;
  const double* bounds = job.evaluations.bounds;
  step_gaussian(instance.mean[j], instance.variance[j],
                {instance.gaussian[2 * j], instance.gaussian[2 * j + 1]}, step, bounds[j],
                bounds[n + j], bounds[2 * n + j], bounds[3 * n + j],
                job.evaluations.variance_ratio_min);
  const std::int64_t first = job.shape.theta_size - job.shape.categorical + j;
  return accumulate_at(accumulate, instance, first) +
         accumulate_at(accumulate, instance, first + n);
}

// The sum of the terms that the blocks of an instance wrote, for all threads of this block.
__device__ double sum_of_terms(const double* terms, double* scratch) {
  double sum = 0.0;
  for (unsigned int b = threadIdx.x; b < gridDim.x; b += blockDim.x) sum += __ldcg(terms + b);
  return block_sum(sum, scratch);
}

__global__ void __launch_bounds__(kTellThreads) tell_kernel(Job job) {
  const Instance instance(job, blockIdx.y, gridDim.x);
  const Ranked ranked(job.shape.population);
  const std::int64_t n = job.shape.categorical;
  const std::int64_t variables = n + job.shape.gaussian;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  auto* arrivals = reinterpret_cast<unsigned long long*>(instance.counters + kArrivals);
  auto* ticket = reinterpret_cast<unsigned long long*>(instance.counters + kTicket);

  rank(job, instance, ranked);
  const std::int64_t first_sample = ranked.order[0];
  const double smallest = ranked.loss[first_sample];
  const bool better = smallest < *instance.best_loss;
  if (better) {
    for (std::int64_t v = first; v < variables; v += stride) {
      if (v < n) {
        instance.best_categorical[v] = instance.categorical[first_sample * n + v];
      } else {
        instance.best_gaussian[v - n] =
            instance.numerical[first_sample * job.shape.gaussian + (v - n)];
      }
    }
  }
  double sum = 0.0;
  if (*ranked.count > 0) {
    for (std::int64_t v = first; v < variables; v += stride) {  // eq. (12)
      sum += v < n ? categorical_gradient(job, instance, ranked, v)
                   : gaussian_gradient(job, instance, ranked, v - n);
    }
    sum = block_sum(sum, ranked.scratch);
    if (gridDim.x > 1) {
      if (threadIdx.x == 0) {
        instance.norm_terms[blockIdx.x] = sum;
        __threadfence();
        atomicAdd(arrivals, 1ull);
        wait_for(arrivals, gridDim.x);
      }
      __syncthreads();
      sum = sum_of_terms(instance.norm_terms, ranked.scratch);
    }
  }
  const double norm = std::sqrt(sum);
  const bool moved = norm > 0.0 && norm < HUGE_VAL;

  StepSize adapted;
  adapted.gamma = instance.step[0];
  adapted.Delta = instance.step[1];
  const double beta = adapted.beta(job.settings);
  sum = 0.0;
  if (moved) {
    const double epsilon = adapted.delta(job.settings) / norm;  // eq. (14)
    const Accumulation accumulate(beta, norm);
    for (std::int64_t v = first; v < variables; v += stride) {  // eq. (13), eq. (19)
      sum += v < n ? move_categorical(job, instance, v, epsilon, accumulate)
                   : move_gaussian(job, instance, v - n, epsilon, accumulate);
    }
    sum = block_sum(sum, ranked.scratch);
  }

  // The last block to arrive, when no other reads them any more, sets what all share.
  __syncthreads();
  if (threadIdx.x == 0) {
    instance.s_terms[blockIdx.x] = sum;
    __threadfence();
    *ranked.count = atomicAdd(ticket, 1ull) == gridDim.x - 1 ? 1 : 0;
    __threadfence();
  }
  __syncthreads();
  if (*ranked.count == 0) return;
  const double squared_norm = sum_of_terms(instance.s_terms, ranked.scratch);
  if (threadIdx.x == 0) {
    if (moved) {
      adapted.adapt(job.settings, beta, squared_norm);  // eq. (20), eq. (21)
      instance.step[0] = adapted.gamma;
      instance.step[1] = adapted.Delta;
    }
    const std::int64_t generation = ++instance.counters[kGeneration];
    instance.counters[kEvaluations] += job.shape.population;
    if (moved) instance.counters[kMoved] = generation;
    if (better) {
      *instance.best_loss = smallest;
      instance.counters[kBest] = generation;
    }
    *ticket = 0;
    *arrivals = 0;
    job.evaluations.moved[blockIdx.y] = moved;
  }
}

unsigned int threads_for(const OptimizerShape& shape) {
  const std::int64_t most = std::max(shape.categorical + shape.gaussian, shape.population);
  const std::int64_t warps = std::min<std::int64_t>((most + 31) / 32, kTellThreads / 32);
  return static_cast<unsigned int>(32 * warps);
}

}  // namespace

void ask(const OptimizerShape& shape, const OptimizerState& state, const std::int64_t* offsets,
         std::int64_t* categorical, double* gaussian, CudaStream stream) {
  const std::int64_t work = shape.population * ((shape.categorical + 3) / 4) +
                            (shape.population + 1) / 2 * ((shape.gaussian + 1) / 2);
  const std::int64_t enough = 32 * static_cast<std::int64_t>(multiprocessor_count());
  const std::int64_t blocks = std::min((work + kAskThreads - 1) / kAskThreads, enough);
  const dim3 grid(static_cast<unsigned int>(std::max<std::int64_t>(blocks, 1)),
                  static_cast<unsigned int>(shape.instances));
  launch(ask_kernel, grid, kAskThreads, 0, stream,
         Draw{shape, state, offsets, categorical, gaussian});
}

std::int64_t tell_blocks(const OptimizerShape& shape) {
  const std::int64_t variables = shape.categorical + shape.gaussian;
  if (variables <= kTellThreads * kVariablesPerThread) return 1;
  const std::int64_t fit =
      co_resident_blocks(tell_kernel, kTellThreads, Ranked::bytes(shape.population)) /
      shape.instances;
  return std::max<std::int64_t>(std::min((variables + kTellThreads - 1) / kTellThreads, fit), 1);
}

std::int64_t Workspace::size_for(const OptimizerShape& shape, std::int64_t blocks) {
  return shape.theta_size + shape.n_theta() + 2 * shape.gaussian + 2 * blocks;
}

void tell(const OptimizerShape& shape, const OptimizerState& state, const Evaluations& evaluations,
          const StepSizeSettings& settings, const Workspace& workspace, std::int64_t blocks,
          CudaStream stream) {
  const dim3 grid(static_cast<unsigned int>(blocks), static_cast<unsigned int>(shape.instances));
  const std::size_t bytes = Ranked::bytes(shape.population);
  const Job job{shape, state, evaluations, settings, workspace};
  if (blocks > 1) {
    launch_cooperative(tell_kernel, grid, threads_for(shape), bytes, stream, job);
  } else {
    launch(tell_kernel, grid, threads_for(shape), bytes, stream, job);
  }
}

}  // namespace asng::cuda
