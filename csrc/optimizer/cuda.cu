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

// Sampling: the populations of all instances. A thread draws one categorical variable of a sample,
// or two Gaussian variables of an antithetic pair of samples.
constexpr unsigned int kAskThreads = 256;
constexpr unsigned int kAskColumns = 128;  // of a sample in a block

struct Draw {
  OptimizerShape shape;
  OptimizerState state;
  const std::int64_t* offsets;
  std::int64_t* categorical;
  double* gaussian;
};

struct Drawing {
  std::int64_t instance;
  std::uint64_t seed, asked;
};

__device__ void draw_category(const Draw& draw, const Drawing& of, std::int64_t sample,
                              std::int64_t i) {
  const std::int64_t begin = draw.offsets[i];
  const std::int64_t size = draw.offsets[i + 1] - begin;
  const PhiloxBlock bits = philox(
      of.seed, draw_counter(Stream::kCategorical, of.asked, static_cast<std::uint32_t>(sample),
                            static_cast<std::uint32_t>(i / 4)));
  // Variable i has word i % 4; an index would put the words into memory.
  const std::uint32_t even = i & 2 ? bits.word[2] : bits.word[0];
  const std::uint32_t odd = i & 2 ? bits.word[3] : bits.word[1];
  draw.categorical[(of.instance * draw.shape.population + sample) * draw.shape.categorical + i] =
      sample_category(draw.state.theta + of.instance * draw.shape.theta_size + begin, size,
                      uniform32(i & 1 ? odd : even));
}

__device__ void draw_normals(const Draw& draw, const Drawing& of, std::int64_t pair,
                             std::int64_t block) {
  const std::int64_t n = draw.shape.gaussian;
  const double* mean = draw.state.mean + of.instance * n;
  const double* variance = draw.state.variance + of.instance * n;
  double* upper = draw.gaussian + (of.instance * draw.shape.population + 2 * pair) * n;
  const bool mirrored = 2 * pair + 1 < draw.shape.population;
  double z[2];
  standard_normal_pair(
      philox(of.seed, draw_counter(Stream::kGaussian, of.asked, static_cast<std::uint32_t>(pair),
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

// Rows of threads are samples, or pairs of these; columns are categorical variables and then pairs
// of Gaussian ones.
__global__ void __launch_bounds__(kAskThreads) ask_kernel(Draw draw) {
  std::int64_t* counters = draw.state.counters + blockIdx.y * kCounters;
  const Drawing of{blockIdx.y, static_cast<std::uint64_t>(counters[kSeed]),
                   static_cast<std::uint64_t>(counters[kAsked])};
  const std::int64_t lambda = draw.shape.population;
  const std::int64_t n = draw.shape.categorical;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.z) * blockDim.y + threadIdx.y;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column < n) {
    if (row < lambda) draw_category(draw, of, row, column);
  } else if (2 * (column - n) < draw.shape.gaussian) {
    if (2 * row < lambda) draw_normals(draw, of, row, column - n);
  }
  // The last block to arrive counts the population: by then all have read the counter.
  __syncthreads();
  if (threadIdx.x != 0 || threadIdx.y != 0) return;
  const unsigned long long blocks = static_cast<unsigned long long>(gridDim.x) * gridDim.z;
  if (blocks > 1) {
    __threadfence();
    auto* ticket = reinterpret_cast<unsigned long long*>(counters + kTicket);
    if (atomicAdd(ticket, 1ull) != blocks - 1) return;
    *ticket = 0;
  }
  counters[kAsked] = static_cast<std::int64_t>(of.asked + 1);
}

// The update: one launch ranks the losses, forms the natural gradient, normalizes it, moves the
// distribution and adapts the step size. An instance has one block, or several that synchronize
// once: between the norm of the natural gradient, which all of them need, and the move. Sums are
// taken in an order that depends on the sizes alone.
//
// With up to kMostInLanes variables a group of lanes has a categorical variable, each lane one of
// its categories: what takes time is then not arithmetic but that one result waits for the next.
// With more variables, more than can be in lanes at the same time, or more categories than lanes, a
// thread has all of a variable.
constexpr int kLanes = 8;
constexpr std::int64_t kMostInLanes = 1024;
constexpr unsigned int kTellThreads = 256;
constexpr unsigned int kMostTellThreads = 512;  // of one block whose variables are in lanes

struct Job {
  OptimizerShape shape;
  OptimizerState state;
  Evaluations evaluations;
  StepSizeSettings settings;
  Workspace workspace;
  double reward, canceled;  // see core/utility.h
};

// What belongs to one instance.
struct Instance {
  std::int64_t* counters;
  double *theta, *mean, *variance, *s, *step, *best_loss, *best_gaussian;
  std::int64_t* best_categorical;
  const std::int64_t* categorical;
  const double* numerical;
  double *gradient, *root, *gaussian, *terms;

  // `memory` is the block's own, for intermediate results, if there is none in the workspace.
  __device__ Instance(const Job& job, std::int64_t p, double* memory) {
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
    const Workspace& workspace = job.workspace;
    gradient = workspace.memory ? workspace.memory + p * workspace.per_instance : memory;
    root = gradient + shape.theta_size;
    gaussian = root + shape.n_theta();
    terms = gaussian + 2 * shape.gaussian;
  }
};

// The population as all threads of a block see it, in dynamic shared memory.
struct Ranked {
  double* loss;        // (lambda,) in the direction that is minimized, without NaN
  double* utility;     // (lambda,)
  double* scratch;     // (32,)
  double* step;        // (2,) delta and beta
  Weighted* weighted;  // (lambda,)
  int* order;          // (lambda,) samples in ascending order of loss
  int* count;          // how many `weighted` holds; 0 if all losses are equal
  double* terms;       // (2, kMostTellThreads) if the instance has one block
  double* memory;      // of intermediate results, if they are here

  explicit __device__ Ranked(std::int64_t lambda) {
    loss = dynamic_shared<double>();
    utility = loss + lambda;
    scratch = utility + lambda;
    step = scratch + 32;
    weighted = reinterpret_cast<Weighted*>(step + 2);
    terms = reinterpret_cast<double*>(weighted + lambda);
    order = reinterpret_cast<int*>(terms + (gridDim.x == 1 ? 2 * kMostTellThreads : 0));
    count = order + lambda;
    memory = reinterpret_cast<double*>(count + 1 + (lambda + 1) % 2);
  }
  static std::size_t bytes(std::int64_t lambda, bool one_block) {
    return static_cast<std::size_t>(8 * (4 * lambda + 34 + (one_block ? 2 * kMostTellThreads : 0)) +
                                    4 * (lambda + 1 + (lambda + 1) % 2));
  }
};

constexpr unsigned int kWarp = 0xffffffffu;  // all of its lanes

// The sum over the lanes of the warp, for all of them.
__device__ double warp_sum(double value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kWarp, value, step);
  return value;
}

// The sum over the threads of the block, for all of them.
__device__ double block_sum(double value, double* scratch) {
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0.0;
  for (unsigned int warp = 0; warp < blockDim.x / 32; ++warp) sum += scratch[warp];
  return sum;
}

// Numbers that add up to a norm, in the order in which kTellThreads threads, or as many warps as
// there are numbers for, add them.
struct Terms {
  double* values;  // shared by a block, or by the blocks of an instance
  std::int64_t count;

  __device__ int warps() const {
    return static_cast<int>(min((count + 31) / 32, std::int64_t{kTellThreads / 32}));
  }
  // What warp `warp` has, for all lanes of the warp that calls.
  __device__ double of_warp(int warp) const {
    double sum = 0.0;
    for (std::int64_t k = 32 * warp + threadIdx.x % 32; k < count; k += kTellThreads) {
      sum += gridDim.x == 1 ? values[k] : __ldcg(values + k);
    }
    return warp_sum(sum);
  }
  // All of them, by one warp.
  __device__ double by_warp() const {
    double sum = 0.0;
#pragma unroll 1
    for (int warp = 0; warp < warps(); ++warp) sum += of_warp(warp);
    return sum;
  }
  // All of them, for all threads of the block.
  __device__ double by_block(double* scratch) const {
    if (warps() == 1) return of_warp(0);
    for (int warp = threadIdx.x / 32; warp < warps(); warp += blockDim.x / 32) {
      const double sum = of_warp(warp);
      if (threadIdx.x % 32 == 0) scratch[warp] = sum;
    }
    __syncthreads();
    double sum = 0.0;
    for (int warp = 0; warp < warps(); ++warp) sum += scratch[warp];
    return sum;
  }
};

// What weigh_samples does, by some threads, of which this is number `thread`. `wait` waits for all
// of them; the results are there after one more.
template <class Wait>
__device__ void rank(const Job& job, std::int64_t p, const Ranked& ranked, int thread, int threads,
                     Wait wait) {
  const Evaluations& given = job.evaluations;
  const int lambda = static_cast<int>(job.shape.population);
  const double* losses = ranked.loss;
  const int* order = ranked.order;
#pragma unroll 1
  for (int k = thread; k < lambda; k += threads) {
    const std::int64_t at = p * lambda + k;
    const double value = given.losses32 ? given.losses32[at] : given.losses[at];
    const double loss = given.maximize ? -value : value;
    // An infinitely good loss cannot be refused here, so it is no better than NaN.
    ranked.loss[k] = loss < HUGE_VAL && loss > -HUGE_VAL ? loss : HUGE_VAL;
  }
  wait();
#pragma unroll 1
  for (int k = thread; k < lambda; k += threads) {
    const double loss = losses[k];
    int position = 0;
#pragma unroll 4
    for (int j = 0; j < lambda; ++j) {
      position += losses[j] < loss || (losses[j] == loss && j < k);
    }
    ranked.order[position] = k;
  }
  wait();
#pragma unroll 1
  for (int r = thread; r < lambda; r += threads) {
    int begin = r;
    while (begin > 0 && losses_tie(losses[order[begin - 1]], losses[order[begin]])) --begin;
    int end = r + 1;
    while (end < lambda && losses_tie(losses[order[end - 1]], losses[order[end]])) ++end;
    ranked.utility[order[r]] = shared_utility(begin, end, lambda, job.reward);
  }
  wait();
  if (thread < 32) {
    int count = 0;
#pragma unroll 1
    for (int first = 0; first < lambda; first += 32) {
      const int k = first + thread;
      const double utility = k < lambda ? ranked.utility[k] : 0.0;
      const unsigned int selected = __ballot_sync(kWarp, utility != 0.0);
      if (utility != 0.0) {
        ranked.weighted[count + __popc(selected & ((1u << thread) - 1u))] = {
            k, utility / static_cast<double>(lambda)};
      }
      count += __popc(selected);
    }
    if (thread == 0) *ranked.count = count;
  }
}

// A categorical variable in the lanes of a group: what core/categorical.h does, with a category in
// each lane. Lanes without one have zeros; all lanes of a warp take part.
struct Row {
  int lane, size;  // size: 0 without a variable, or with one of more categories than lanes
  std::int64_t variable, begin;
  double theta, s, margin;
  double floored, scale;  // theta as it is read in a denominator, and its root
  std::int64_t category;  // that sample `lane` chose
  double gradient, root;
  bool moves;

  __device__ bool fits() const { return size > 0; }

  // Loads what does not depend on the losses.
  __device__ void load(const Job& job, const Instance& instance, std::int64_t v) {
    lane = static_cast<int>(threadIdx.x % kLanes);
    variable = v;
    begin = job.evaluations.offsets[v];
    const std::int64_t categories = job.evaluations.offsets[v + 1] - begin;
    size = categories <= kLanes ? static_cast<int>(categories) : 0;
    theta = lane < size ? instance.theta[begin + lane] : 0.0;
    s = lane + 1 < size ? instance.s[begin - v + lane] : 0.0;
    margin = job.evaluations.margin[v];
    category = load_category(job, instance, lane < job.shape.population ? lane : 0);
  }
  // What else does not, once loaded.
  __device__ void prepare() {
    floored = theta > kProbabilityFloor ? theta : kProbabilityFloor;
    scale = std::sqrt(floored);
  }

  __device__ std::int64_t load_category(const Job& job, const Instance& instance,
                                        std::int64_t sample) const {
    return fits() ? instance.categorical[sample * job.shape.categorical + variable] : -1;
  }
  // Python checks categories as far as it can without host-device synchronization.
  __device__ int checked(std::int64_t value) const {
    return static_cast<std::uint64_t>(value) < static_cast<std::uint64_t>(size)
               ? static_cast<int>(value)
               : -1;
  }

  // The sum over the lanes, in their order.
  __device__ double total(double value) const {
    double sum = 0.0;
#pragma unroll
    for (int l = 0; l < kLanes; ++l) sum += __shfl_sync(kWarp, value, l, kLanes);
    return sum;
  }

  // categorical_gradient and categorical_fisher_root.
  __device__ double differentiate(const Job& job, const Instance& instance, const Ranked& ranked) {
    const int count = *ranked.count;
    const bool all_held = job.shape.population <= kLanes;
    // What weighted sample w + lane chose, loaded before it is needed.
    const auto load_weighted = [&](int w) {
      return load_category(job, instance, ranked.weighted[min(w + lane, count - 1)].sample);
    };
    std::int64_t next = all_held ? category : load_weighted(0);
    int held = checked(next);
    int lowest = size, highest = -1;
    bool valid = true;
    gradient = 0.0;
#pragma unroll 4
    for (int w = 0; w < count; ++w) {
      if (!all_held && w % kLanes == 0) {
        held = checked(next);
        next = load_weighted(w + kLanes);
      }
      const Weighted sample = ranked.weighted[w];
      const int source = all_held ? static_cast<int>(sample.sample) : w % kLanes;
      const int chosen = __shfl_sync(kWarp, held, source, kLanes);
      gradient += chosen == lane ? sample.weight : 0.0;  // eq. (12)
      valid = valid && chosen >= 0;
      lowest = chosen >= 0 ? min(lowest, chosen) : lowest;
      highest = max(highest, chosen);
    }
    const bool counts = valid && lowest < highest && std::fabs(gradient) > job.canceled;
    gradient = counts ? gradient : 0.0;
    moves = (__ballot_sync(kWarp, counts) >> (threadIdx.x % 32 - lane)) % (1u << kLanes) != 0;
    // The last category has no component of its own: its quotient is what the others share.
    const bool last = lane == size - 1;
    const double quotient =
        counts ? (last ? -gradient : gradient) / (last ? floored + scale : scale) : 0.0;
    const double shared = __shfl_sync(kWarp, quotient, size - 1, kLanes);
    root = moves && lane + 1 < size ? quotient + scale * shared : 0.0;
    return total(root * root);
  }

  // Returns the squared norm of the variable's part of s.
  __device__ double accumulate(const Accumulation& accumulate, const Instance& instance) const {
    const bool component = lane + 1 < size;
    const double value = component ? accumulate(s, root) : 0.0;  // eq. (19)
    if (component) instance.s[begin - variable + lane] = value;
    return total(value * value);
  }

  // step_categorical.
  __device__ void move(double step, const Instance& instance) const {
    const bool category = moves && lane < size;
    double moved = theta + step * gradient;  // eq. (13)
    moved = moved > margin ? moved : margin;
    const double sum = total(category ? moved : 0.0);
    const double room = total(category ? moved - margin : 0.0);
    const bool above = room > 0.0;
    if (above) moved -= (sum - 1.0) / room * (moved - margin);
    const double sum_above = total(category ? moved : 0.0);
    const double scale = 1.0 / (above ? sum_above : static_cast<double>(size));
    moved = above ? moved * scale : scale;
    if (category) instance.theta[begin + lane] = moved;
  }
};

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
                                 job.shape.categorical, job.canceled, size, gradient)) {
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

// `lanes`, of each categorical variable: kLanes, where no thread has more than one variable, or 1.
template <int lanes>
__global__ void __launch_bounds__(lanes > 1 ? kMostTellThreads : kTellThreads, lanes > 1 ? 1 : 4)
    tell_kernel(Job job) {
  const Ranked ranked(job.shape.population);
  const Instance instance(job, blockIdx.y, ranked.memory);
  const std::int64_t n = job.shape.categorical;
  const std::int64_t items = n * lanes + job.shape.gaussian;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const auto variable = [&](std::int64_t item) {
    return item < n * lanes ? item / lanes : item - n * (lanes - 1);
  };
  const bool leads = first < items && (first >= n * lanes || threadIdx.x % lanes == 0);
  const bool shares = gridDim.x > 1;
  auto* arrivals = reinterpret_cast<unsigned long long*>(instance.counters + kArrivals);
  auto* ticket = reinterpret_cast<unsigned long long*>(instance.counters + kTicket);
  const Terms norm_terms{shares ? instance.terms : ranked.terms,
                         lanes > 1 ? n + job.shape.gaussian : gridDim.x};
  const Terms s_terms{norm_terms.values + norm_terms.count, norm_terms.count};

  // The last warp, which has no variable if there is room for that, ranks a small population while
  // others load their variables, and looks after the step size.
  const bool clerk = threadIdx.x / 32 == blockDim.x / 32 - 1;
  const int lambda = static_cast<int>(job.shape.population);
  const double best_loss = *instance.best_loss;
  StepSize adapted;
  adapted.gamma = instance.step[0];
  adapted.Delta = instance.step[1];
  Row row{};
  if (lanes > 1 && first < n * lanes) row.load(job, instance, variable(first));
  if (lanes > 1 && lambda <= 32) {
    if (clerk) rank(job, blockIdx.y, ranked, threadIdx.x % 32, 32, [] { __syncwarp(); });
  } else {
    rank(job, blockIdx.y, ranked, threadIdx.x, blockDim.x, [] { __syncthreads(); });
  }
  if (lanes > 1) row.prepare();
  __syncthreads();
  if (clerk && threadIdx.x % 32 == 0) {
    ranked.step[0] = adapted.delta(job.settings);
    ranked.step[1] = adapted.beta(job.settings);
  }

  double norm = 0.0;
  if (*ranked.count > 0) {
    double sum = lanes > 1 ? row.differentiate(job, instance, ranked) : 0.0;
#pragma unroll 1
    for (std::int64_t item = first; item < items; item += stride) {  // eq. (12)
      const std::int64_t v = variable(item);
      if (v >= n) {
        sum += gaussian_gradient(job, instance, ranked, v - n);
      } else if (leads && !row.fits()) {
        sum += categorical_gradient(job, instance, ranked, v);
      }
    }
    if (lanes > 1 && leads) norm_terms.values[variable(first)] = sum;
    if (lanes == 1) {
      sum = block_sum(sum, ranked.scratch);
      if (threadIdx.x == 0) norm_terms.values[blockIdx.x] = sum;
    }
    __syncthreads();
    if (shares) {
      if (threadIdx.x == 0) {
        arrive(arrivals);
        wait_for(arrivals, gridDim.x);
      }
      __syncthreads();
    }
    norm = std::sqrt(norm_terms.by_block(ranked.scratch));
  }
  const bool moved = norm > 0.0 && norm < HUGE_VAL;
  const double epsilon = moved ? ranked.step[0] / norm : 0.0;  // eq. (14)
  if (moved) {
    const Accumulation accumulate(ranked.step[1], norm);
    double sum = lanes > 1 ? row.accumulate(accumulate, instance) : 0.0;
#pragma unroll 1
    for (std::int64_t item = first; item < items; item += stride) {  // eq. (13), eq. (19)
      const std::int64_t v = variable(item);
      if (v >= n) {
        sum += move_gaussian(job, instance, v - n, epsilon, accumulate);
      } else if (leads && !row.fits()) {
        sum += move_categorical(job, instance, v, epsilon, accumulate);
      }
    }
    if (lanes > 1 && leads) s_terms.values[variable(first)] = sum;
    if (lanes == 1) {
      sum = block_sum(sum, ranked.scratch);
      if (threadIdx.x == 0) s_terms.values[blockIdx.x] = sum;
    }
  }

  // The last block to arrive, when no other reads them any more, sets what all share. One warp does
  // so while others still move their variables.
  __syncthreads();
  if (shares && threadIdx.x == 0) {
    __threadfence();
    *ranked.count = atomicAdd(ticket, 1ull) == gridDim.x - 1 ? 1 : 0;
    __threadfence();
  }
  if (lanes > 1 && moved) row.move(epsilon, instance);  // eq. (13)
  const int first_sample = ranked.order[0];
  const double smallest = ranked.loss[first_sample];
  const bool better = smallest < best_loss;
  if (better) {
    const std::int64_t m = job.shape.gaussian;
#pragma unroll 1
    for (std::int64_t v = first; v < n + m; v += stride) {
      if (v < n) {
        instance.best_categorical[v] = instance.categorical[first_sample * n + v];
      } else {
        instance.best_gaussian[v - n] = instance.numerical[first_sample * m + (v - n)];
      }
    }
  }
  double squared_norm = 0.0;
  if (shares) {
    __syncthreads();
    if (*ranked.count == 0) return;
    if (moved) squared_norm = s_terms.by_block(ranked.scratch);
  } else {
    if (!clerk) return;
    if (moved) squared_norm = s_terms.by_warp();
  }
  if (clerk && threadIdx.x % 32 == 0) {
    if (moved) {
      adapted.adapt(job.settings, ranked.step[1], squared_norm);  // eq. (20), eq. (21)
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
    if (shares) {
      *ticket = 0;
      *arrivals = 0;
    }
    job.evaluations.moved[blockIdx.y] = moved;
  }
}

std::int64_t threads_in_lanes(const OptimizerShape& shape) {
  return kLanes * shape.categorical + shape.gaussian;
}

// Doubles of an instance.
std::int64_t intermediate_results(const OptimizerShape& shape) {
  return shape.theta_size + shape.n_theta() + 2 * shape.gaussian;
}

// Bytes of shared memory for these; 0 if they are not there.
std::size_t shared_memory(const OptimizerShape& shape, std::int64_t blocks) {
  const auto bytes = static_cast<std::size_t>(8 * intermediate_results(shape));
  const std::size_t others = Ranked::bytes(shape.population, blocks == 1);
  return blocks == 1 && others + bytes <= kPlainSharedBytes ? bytes : 0;
}

// Blocks that give each variable its lanes; 0 where a thread is to have all of a variable.
std::int64_t blocks_in_lanes(const OptimizerShape& shape) {
  if (shape.categorical + shape.gaussian > kMostInLanes) return 0;
  const std::int64_t threads = threads_in_lanes(shape);
  return threads <= kMostTellThreads ? 1 : (threads + kTellThreads - 1) / kTellThreads;
}

}  // namespace

void ask(const OptimizerShape& shape, const OptimizerState& state, const std::int64_t* offsets,
         std::int64_t* categorical, double* gaussian, CudaStream stream) {
  const std::int64_t columns = shape.categorical + (shape.gaussian + 1) / 2;
  const std::int64_t width = std::min((columns + 31) / 32 * 32, std::int64_t{kAskColumns});
  const std::int64_t height = std::min(shape.population, kAskThreads / width);
  const auto parts = [](std::int64_t all, std::int64_t of) {
    return static_cast<unsigned int>((all + of - 1) / of);
  };
  const dim3 grid(parts(columns, width), static_cast<unsigned int>(shape.instances),
                  parts(shape.population, height));
  const dim3 block(static_cast<unsigned int>(width), static_cast<unsigned int>(height));
  launch(ask_kernel, grid, block, 0, stream, Draw{shape, state, offsets, categorical, gaussian});
}

std::int64_t tell_blocks(const OptimizerShape& shape) {
  const std::size_t bytes = Ranked::bytes(shape.population, false);
  const std::int64_t in_lanes = blocks_in_lanes(shape);
  if (in_lanes == 1) return 1;
  if (in_lanes > 1) {
    const int fit = co_resident_blocks(tell_kernel<kLanes>, kTellThreads, bytes);
    return in_lanes <= fit / shape.instances ? in_lanes : 1;
  }
  const int fit = co_resident_blocks(tell_kernel<1>, kTellThreads, bytes);
  const std::int64_t variables = shape.categorical + shape.gaussian;
  return std::max<std::int64_t>(
      std::min((variables + kTellThreads - 1) / kTellThreads, fit / shape.instances), 1);
}

std::int64_t Workspace::size_for(const OptimizerShape& shape, std::int64_t blocks) {
  if (shared_memory(shape, blocks) > 0) return 0;
  const std::int64_t terms = blocks == blocks_in_lanes(shape) ? kMostInLanes : blocks;
  return intermediate_results(shape) + (blocks > 1 ? 2 * terms : 0);
}

void tell(const OptimizerShape& shape, const OptimizerState& state, const Evaluations& evaluations,
          const StepSizeSettings& settings, const Workspace& workspace, std::int64_t blocks,
          CudaStream stream) {
  const bool in_lanes = blocks == blocks_in_lanes(shape);
  const auto kernel = in_lanes ? tell_kernel<kLanes> : tell_kernel<1>;
  unsigned int threads = kTellThreads;
  if (in_lanes && blocks == 1) {
    // The last warp sets what all share: one with nothing else to do, if there is room for it.
    const std::int64_t warps = (threads_in_lanes(shape) + 31) / 32 + 1;
    threads = static_cast<unsigned int>(std::min<std::int64_t>(32 * warps, kMostTellThreads));
  }
  const dim3 grid(static_cast<unsigned int>(blocks), static_cast<unsigned int>(shape.instances));
  const std::size_t bytes =
      Ranked::bytes(shape.population, blocks == 1) + shared_memory(shape, blocks);
  const Job job{shape,
                state,
                evaluations,
                settings,
                workspace,
                reward_of(shape.population),
                canceled_weight(shape.population)};
  if (blocks > 1) {
    launch_cooperative(kernel, grid, threads, bytes, stream, job);
  } else {
    launch(kernel, grid, threads, bytes, stream, job);
  }
}

}  // namespace asng::cuda
