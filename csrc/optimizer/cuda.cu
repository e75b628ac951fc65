// The update of Algorithm 1: one launch ranks the losses, forms the natural gradient, normalizes
// it, moves the distribution and adapts the step size. What is computed, and in which order for
// each variable, is that of csrc/optimizer/cpu_update.cpp.
//
// A problem has one block, or several which wait for each other once: between the norm of the
// natural gradient, which all of them need, and the move. Sums are taken in an order that depends
// on the sizes alone.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/categorical.h"
#include "core/gaussian.h"
#include "core/step_size.h"
#include "core/utility.h"
#include "optimizer/cuda.h"
#include "platform/cuda.h"

namespace asng::cuda {

namespace {

constexpr unsigned int kThreads = 256;
// A thread takes up to so many variables before a second block pays for the wait.
constexpr std::int64_t kVariablesPerThread = 4;

struct Job {
  OptimizerShape shape;
  OptimizerState state;
  Evaluations told;
  StepSizeSettings settings;
  Workspace workspace;
};

// One problem's part of everything.
struct Problem {
  std::int64_t* counters;
  double *theta, *mean, *variance, *s, *step, *best_loss, *best_gaussian;
  std::int64_t* best_categorical;
  const std::int64_t* categorical;
  const double *numerical, *losses;
  double *gradient, *root, *gaussian, *norm_parts, *s_parts;

  __device__ Problem(const Job& job, std::int64_t p, std::int64_t blocks) {
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
    categorical = job.told.categorical + p * shape.population * shape.categorical;
    numerical = job.told.gaussian + p * shape.population * shape.gaussian;
    losses = job.told.losses + p * shape.population;
    gradient = job.workspace.memory + p * job.workspace.per_problem;
    root = gradient + shape.theta_size;
    gaussian = root + shape.n_theta();
    norm_parts = gaussian + 2 * shape.gaussian;
    s_parts = norm_parts + blocks;
  }
};

// The population as all threads of a block see it, in dynamic shared memory.
struct Ranked {
  double* loss;          // (lambda,) in the direction that is minimized, without NaN
  double* utility;       // (lambda,)
  std::int64_t* order;   // (lambda,) samples in ascending order of loss
  double* weight;        // of the samples whose utility is not 0: utility / lambda
  std::int64_t* sample;  // and which they are
  double* scratch;       // (32,)
  std::int64_t* count;   // how many these are; 0 if all losses are equal

  explicit __device__ Ranked(std::int64_t lambda) {
    loss = dynamic_shared<double>();
    utility = loss + lambda;
    weight = utility + lambda;
    scratch = weight + lambda;
    order = reinterpret_cast<std::int64_t*>(scratch + 32);
    sample = order + lambda;
    count = sample + lambda;
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

__device__ void rank(const Job& job, const Problem& problem, const Ranked& ranked) {
  const std::int64_t lambda = job.shape.population;
  for (std::int64_t k = threadIdx.x; k < lambda; k += blockDim.x) {
    const double loss = job.told.maximize ? -problem.losses[k] : problem.losses[k];
    // An infinitely good loss cannot be refused here, so it is no better than NaN.
    ranked.loss[k] = loss < HUGE_VAL && loss > -HUGE_VAL ? loss : HUGE_VAL;
  }
  __syncthreads();
  for (std::int64_t k = threadIdx.x; k < lambda; k += blockDim.x) {
    std::int64_t place = 0;
    for (std::int64_t j = 0; j < lambda; ++j) {
      place += ranked.loss[j] < ranked.loss[k] || (ranked.loss[j] == ranked.loss[k] && j < k);
    }
    ranked.order[place] = k;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    std::int64_t count = 0;
    if (rank_utilities(ranked.loss, ranked.order, lambda, ranked.utility)) {
      for (std::int64_t k = 0; k < lambda; ++k) {
        if (ranked.utility[k] != 0.0) {
          ranked.weight[count] = ranked.utility[k] / static_cast<double>(lambda);
          ranked.sample[count] = k;
          ++count;
        }
      }
    }
    *ranked.count = count;
  }
  __syncthreads();
}

// G and F^(1/2) G of a categorical variable; returns its share of ||G||_F^2.
__device__ double categorical_gradient(const Job& job, const Problem& problem, const Ranked& ranked,
                                       std::int64_t i) {
  const std::int64_t n = job.shape.categorical;
  const std::int64_t begin = job.told.offsets[i];
  const std::int64_t size = job.told.offsets[i + 1] - begin;
  double* gradient = problem.gradient + begin;
  double* root = problem.root + (begin - i);
  for (std::int64_t j = 0; j < size; ++j) gradient[j] = 0.0;
  std::int64_t lowest = size;
  std::int64_t highest = -1;
  bool valid = true;
  // The utilities sum to 0, so sum_k w_k (T(c_k) - theta) = sum_k w_k T(c_k).
  for (std::int64_t w = 0; w < *ranked.count; ++w) {
    const std::int64_t category = problem.categorical[ranked.sample[w] * n + i];
    if (category < 0 || category >= size) {
      valid = false;  // only memory is kept safe here; Python checks what it can without waiting
      continue;
    }
    gradient[category] += ranked.weight[w];
    lowest = category < lowest ? category : lowest;
    highest = category > highest ? category : highest;
  }
  const std::int64_t lambda = job.shape.population;
  const double canceled = kCanceledUtility / static_cast<double>(lambda * selected_count(lambda));
  double largest = 0.0;
  for (std::int64_t j = lowest; j <= highest; ++j) {
    const bool counts = valid && lowest < highest && std::fabs(gradient[j]) > canceled;
    gradient[j] = counts ? gradient[j] : 0.0;
    largest = std::fmax(largest, std::fabs(gradient[j]));
  }
  if (largest > 0.0) return categorical_fisher_root(problem.theta + begin, gradient, size, root);
  for (std::int64_t j = 0; j + 1 < size; ++j) root[j] = 0.0;
  return 0.0;
}

__device__ double gaussian_gradient(const Job& job, const Problem& problem, const Ranked& ranked,
                                    std::int64_t j) {
  const std::int64_t n = job.shape.gaussian;
  const double mean = problem.mean[j];
  const double variance = problem.variance[j];
  GaussianGradient gradient{0.0, 0.0};
  double mean_size = 0.0;
  double spread_size = 0.0;
  for (std::int64_t w = 0; w < *ranked.count; ++w) {
    const double weight = ranked.weight[w];
    const double offset = problem.numerical[ranked.sample[w] * n + j] - mean;
    const double spread = offset * offset - variance;
    gradient.mean += weight * offset;
    gradient.spread += weight * spread;
    mean_size += std::fabs(weight * offset);
    spread_size += std::fabs(weight * spread);
  }
  if (std::fabs(gradient.mean) <= kCanceledUtility * mean_size) gradient.mean = 0.0;
  if (std::fabs(gradient.spread) <= kCanceledUtility * spread_size) gradient.spread = 0.0;
  problem.gaussian[2 * j] = gradient.mean;
  problem.gaussian[2 * j + 1] = gradient.spread;
  double* root = problem.root + (job.shape.theta_size - job.shape.categorical);
  return gaussian_fisher_root(mean, variance, gradient, root[j], root[n + j]);
}

// s <- (1 - beta) s + sqrt(beta (2 - beta)) F^(1/2) G / ||G||_F (eq. 19, normalized).
struct Accumulation {
  double keep, add;

  // Returns the square of the new component.
  __device__ double operator()(double* s, const double* root, std::int64_t e) const {
    const double value = keep * s[e] + add * root[e];
    s[e] = value;
    return value * value;
  }
};

__device__ double move_categorical(const Job& job, const Problem& problem, std::int64_t i,
                                   double step, const Accumulation& accumulate) {
  const std::int64_t begin = job.told.offsets[i];
  const std::int64_t size = job.told.offsets[i + 1] - begin;
  double* theta = problem.theta + begin;
  const double* gradient = problem.gradient + begin;
  bool moves = false;
  for (std::int64_t j = 0; j < size; ++j) moves = moves || gradient[j] != 0.0;
  if (moves) {
    for (std::int64_t j = 0; j < size; ++j) theta[j] += step * gradient[j];
    project_categorical(theta, size, job.told.margin[i]);
  }
  double sum = 0.0;
  for (std::int64_t e = begin - i; e < begin - i + size - 1; ++e) {
    sum += accumulate(problem.s, problem.root, e);
  }
  return sum;
}

__device__ double move_gaussian(const Job& job, const Problem& problem, std::int64_t j, double step,
                                const Accumulation& accumulate) {
  const std::int64_t n = job.shape.gaussian;
  const double* bounds = job.told.bounds;
  step_gaussian(problem.mean[j], problem.variance[j],
                {problem.gaussian[2 * j], problem.gaussian[2 * j + 1]}, step, bounds[j],
                bounds[n + j], bounds[2 * n + j], bounds[3 * n + j], job.told.variance_ratio_min);
  const std::int64_t first = job.shape.theta_size - job.shape.categorical + j;
  return accumulate(problem.s, problem.root, first) +
         accumulate(problem.s, problem.root, first + n);
}

// The sum of the parts that the blocks of a problem wrote, for all threads of this block.
__device__ double sum_of_parts(const double* parts, double* scratch) {
  double sum = 0.0;
  for (unsigned int b = threadIdx.x; b < gridDim.x; b += blockDim.x) sum += __ldcg(parts + b);
  return block_sum(sum, scratch);
}

__global__ void __launch_bounds__(kThreads) tell_kernel(Job job) {
  const Problem problem(job, blockIdx.y, gridDim.x);
  const Ranked ranked(job.shape.population);
  const std::int64_t n = job.shape.categorical;
  const std::int64_t variables = n + job.shape.gaussian;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  auto* arrivals = reinterpret_cast<unsigned long long*>(problem.counters + kArrivals);
  auto* ticket = reinterpret_cast<unsigned long long*>(problem.counters + kTicket);

  rank(job, problem, ranked);
  const std::int64_t first_place = ranked.order[0];
  const double smallest = ranked.loss[first_place];
  const bool better = smallest < *problem.best_loss;
  if (better) {
    for (std::int64_t v = first; v < variables; v += stride) {
      if (v < n) {
        problem.best_categorical[v] = problem.categorical[first_place * n + v];
      } else {
        problem.best_gaussian[v - n] =
            problem.numerical[first_place * job.shape.gaussian + (v - n)];
      }
    }
  }
  double sum = 0.0;
  if (*ranked.count > 0) {
    for (std::int64_t v = first; v < variables; v += stride) {
      sum += v < n ? categorical_gradient(job, problem, ranked, v)
                   : gaussian_gradient(job, problem, ranked, v - n);
    }
    sum = block_sum(sum, ranked.scratch);
    if (gridDim.x > 1) {
      if (threadIdx.x == 0) {
        problem.norm_parts[blockIdx.x] = sum;
        __threadfence();
        atomicAdd(arrivals, 1ull);
        wait_for(arrivals, gridDim.x);
      }
      __syncthreads();
      sum = sum_of_parts(problem.norm_parts, ranked.scratch);
    }
  }
  const double norm = std::sqrt(sum);
  const bool moved = norm > 0.0 && norm < HUGE_VAL;

  StepSize adapted;
  adapted.gamma = problem.step[0];
  adapted.Delta = problem.step[1];
  const double beta = adapted.beta(job.settings);
  sum = 0.0;
  if (moved) {
    const double step = adapted.delta(job.settings) / norm;
    const Accumulation accumulate{1.0 - beta, std::sqrt(beta * (2.0 - beta)) / norm};
    for (std::int64_t v = first; v < variables; v += stride) {
      sum += v < n ? move_categorical(job, problem, v, step, accumulate)
                   : move_gaussian(job, problem, v - n, step, accumulate);
    }
    sum = block_sum(sum, ranked.scratch);
  }

  // The block that comes last here, when nobody reads them any more, sets what all share.
  __syncthreads();
  if (threadIdx.x == 0) {
    problem.s_parts[blockIdx.x] = sum;
    __threadfence();
    *ranked.count = atomicAdd(ticket, 1ull) == gridDim.x - 1 ? 1 : 0;
    __threadfence();
  }
  __syncthreads();
  if (*ranked.count == 0) return;
  const double squared_norm = sum_of_parts(problem.s_parts, ranked.scratch);
  if (threadIdx.x == 0) {
    if (moved) {
      adapted.adapt(job.settings, beta, squared_norm);
      problem.step[0] = adapted.gamma;
      problem.step[1] = adapted.Delta;
    }
    const std::int64_t generation = ++problem.counters[kGeneration];
    problem.counters[kEvaluations] += job.shape.population;
    if (moved) problem.counters[kMoved] = generation;
    if (better) {
      *problem.best_loss = smallest;
      problem.counters[kBest] = generation;
    }
    *ticket = 0;
    *arrivals = 0;
    job.told.moved[blockIdx.y] = moved;
  }
}

unsigned int threads_for(const OptimizerShape& shape) {
  const std::int64_t most = std::max(shape.categorical + shape.gaussian, shape.population);
  const std::int64_t warps = std::min<std::int64_t>((most + 31) / 32, kThreads / 32);
  return static_cast<unsigned int>(32 * warps);
}

}  // namespace

std::int64_t tell_blocks(const OptimizerShape& shape) {
  const std::int64_t variables = shape.categorical + shape.gaussian;
  if (variables <= kThreads * kVariablesPerThread) return 1;
  const std::int64_t fit =
      co_resident_blocks(tell_kernel, kThreads, Ranked::bytes(shape.population)) / shape.problems;
  return std::max<std::int64_t>(std::min((variables + kThreads - 1) / kThreads, fit), 1);
}

std::int64_t Workspace::size_for(const OptimizerShape& shape, std::int64_t blocks) {
  return shape.theta_size + shape.n_theta() + 2 * shape.gaussian + 2 * blocks;
}

void tell(const OptimizerShape& shape, const OptimizerState& state, const Evaluations& told,
          const StepSizeSettings& settings, const Workspace& workspace, std::int64_t blocks,
          CudaStream stream) {
  const dim3 grid(static_cast<unsigned int>(blocks), static_cast<unsigned int>(shape.problems));
  const std::size_t bytes = Ranked::bytes(shape.population);
  const Job job{shape, state, told, settings, workspace};
  if (blocks > 1) {
    launch_cooperative(tell_kernel, grid, threads_for(shape), bytes, stream, job);
  } else {
    launch(tell_kernel, grid, threads_for(shape), bytes, stream, job);
  }
}

}  // namespace asng::cuda
