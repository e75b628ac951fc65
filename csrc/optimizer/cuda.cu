// Algorithm 1 on a device, by the arithmetic of csrc/core: one launch samples, one updates. What is
// computed, and in which order for each variable, is that of csrc/optimizer/cpu.cpp.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

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
  std::int64_t alike;  // see OptimizerShape
};

struct Drawing {
  std::int64_t instance;
  std::uint64_t seed, asked;
};

// Where a categorical variable has its probabilities.
struct Categories {
  std::int64_t begin, size;

  // Where all variables are alike, nothing has to be loaded before what is there can be.
  __device__ Categories(std::int64_t alike, const std::int64_t* offsets, std::int64_t i)
      : begin(i * alike), size(alike) {
    if (alike > 0) return;
    begin = offsets[i];
    size = offsets[i + 1] - begin;
  }
};

// sample_category with the random bits of a variable.
__device__ void draw_category(const Draw& draw, const Drawing& of, std::int64_t sample,
                              std::int64_t i) {
  constexpr int kAhead = 8;
  const Categories at(draw.alike, draw.offsets, i);
  const double* theta = draw.state.theta[of.instance] + at.begin;
  // The first are loaded while the counter is, and the random bits are made of it.
  double ahead[kAhead];
#pragma unroll
  for (int j = 0; j < kAhead; ++j) ahead[j] = j + 1 < at.size ? theta[j] : 0.0;
  const PhiloxBlock bits = philox(
      of.seed, draw_counter(Stream::kCategorical, of.asked, static_cast<std::uint32_t>(sample),
                            static_cast<std::uint32_t>(i / 4)));
  // Variable i has word i % 4; an index would put the words into memory.
  const std::uint32_t even = i & 2 ? bits.word[2] : bits.word[0];
  const std::uint32_t odd = i & 2 ? bits.word[3] : bits.word[1];
  const double uniform = uniform32(i & 1 ? odd : even);
  double cumulative = 0.0;
  std::int64_t category = 0;
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    cumulative += ahead[j];
    category += j + 1 < at.size && uniform >= cumulative;
  }
#pragma unroll 4
  for (std::int64_t j = kAhead; j + 1 < at.size; ++j) {
    cumulative += theta[j];
    category += uniform >= cumulative;
  }
  draw.categorical[(of.instance * draw.shape.population + sample) * draw.shape.categorical + i] =
      category;
}

__device__ void draw_normals(const Draw& draw, const Drawing& of, std::int64_t pair,
                             std::int64_t block) {
  const std::int64_t n = draw.shape.gaussian;
  const double* mean = draw.state.mean[of.instance];
  const double* variance = draw.state.variance[of.instance];
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
  std::int64_t* counters = draw.state.counters[blockIdx.y];
  const Drawing of{blockIdx.y, static_cast<std::uint64_t>(counters[kSeed]),
                   static_cast<std::uint64_t>(counters[kAsked])};
  // The last block to say that it has read the counter counts the population. It says so before it
  // has anything of its own in flight, and draws while the answer is on its way.
  __syncthreads();
  const unsigned int blocks = gridDim.x * gridDim.z;
  const bool speaks = threadIdx.x == 0 && threadIdx.y == 0;
  unsigned int before = 0;
  if (speaks && blocks > 1) {
    __threadfence();
    before = atomicInc(reinterpret_cast<unsigned int*>(counters + kTicket), blocks - 1);
  }
  const std::int64_t lambda = draw.shape.population;
  const std::int64_t n = draw.shape.categorical;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.z) * blockDim.y + threadIdx.y;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column < n) {
    if (row < lambda) draw_category(draw, of, row, column);
  } else if (2 * (column - n) < draw.shape.gaussian) {
    if (2 * row < lambda) draw_normals(draw, of, row, column - n);
  }
  if (speaks && before == blocks - 1) {
    counters[kAsked] = static_cast<std::int64_t>(of.asked + 1);
  }
}

// The update: one launch ranks the losses, forms the natural gradient, normalizes it, moves the
// distribution and adapts the step size. An instance has one block, or several that synchronize
// once: between the natural gradient, with the sums over all of it, and the move. Sums are taken in
// an order that depends on the sizes alone.
//
// With up to kMostInLanes variables a group of lanes has a categorical variable, each lane one of
// its categories: what takes time is then not arithmetic but that one result waits for the next.
// With more variables, more than can be in lanes at the same time, or more categories than lanes, a
// thread has all of a variable. Where all variables are in lanes and have but two samples, the
// paper's setting, there is a kernel without all the rest: how long it takes is also a matter of
// how many instructions have to be fetched.
constexpr int kLanes = 8;
constexpr std::int64_t kMostInLanes = 1024;
constexpr unsigned int kTellThreads = 256;
constexpr unsigned int kMostTellThreads = 512;  // of one block whose variables are in lanes
// Beside these a block whose variables are in lanes has a warp without any, which looks after the
// step size: what it computes takes as long as what the others do meanwhile.
constexpr unsigned int kClerkThreads = 32;

struct Job {
  OptimizerShape shape;
  OptimizerState state;
  Evaluations evaluations;
  StepSizeSettings settings;
  Workspace workspace;
  double reward, canceled;  // see core/utility.h
  double weight;            // of a sample that is rewarded and does not tie: reward / lambda
  std::int64_t alike;       // see OptimizerShape
};

// Over all components of the natural gradient and of s.
struct Sums {
  static constexpr int kCount = 3;
  double gradient = 0.0;  // squares of F^(1/2) G: ||G||_F^2
  double both = 0.0;      // products of F^(1/2) G and s
  double s = 0.0;         // squares of s before the update

  __device__ void add(double root, double accumulated) {
    both += root * accumulated;
    s += accumulated * accumulated;
  }
};

// What belongs to one instance.
struct Instance {
  std::int64_t* counters;
  double *theta, *mean, *variance, *s, *step, *best_loss, *best_gaussian;
  std::int64_t* best_categorical;
  const std::int64_t* categorical;
  const double* numerical;
  double* sums;  // (Sums::kCount, blocks) if the instance has several
  double *gradient, *root, *gaussian;

  // `memory` is the block's own, for intermediate results, if there is none in the workspace.
  __device__ Instance(const Job& job, std::int64_t p, double* memory) {
    const OptimizerShape& shape = job.shape;
    const OptimizerState& state = job.state;
    const Workspace& workspace = job.workspace;
    counters = state.counters.first;
    theta = state.theta.first;
    mean = state.mean.first;
    variance = state.variance.first;
    s = state.s.first;
    step = state.step.first;
    best_loss = state.best_loss.first;
    best_categorical = state.best_categorical.first;
    best_gaussian = state.best_gaussian.first;
    categorical = job.evaluations.categorical;
    numerical = job.evaluations.gaussian;
    sums = workspace.memory;
    if (p > 0) {  // a single instance need not wait for what this comes to
      counters = state.counters[p];
      theta = state.theta[p];
      mean = state.mean[p];
      variance = state.variance[p];
      s = state.s[p];
      step = state.step[p];
      best_loss = state.best_loss[p];
      best_categorical = state.best_categorical[p];
      best_gaussian = state.best_gaussian[p];
      categorical += p * shape.population * shape.categorical;
      numerical += p * shape.population * shape.gaussian;
      sums += p * workspace.per_instance;
    }
    gradient = workspace.memory ? sums + (gridDim.x > 1 ? Sums::kCount * gridDim.x : 0) : memory;
    root = gradient + shape.theta_size;
    gaussian = root + shape.n_theta();
  }
};

// What all threads of a block see, in dynamic shared memory.
struct Shared {
  static constexpr int kMostWarps = kMostTellThreads / 32;

  double* sums;  // (Sums::kCount, kMostWarps), zeros where there is no warp
  double* step;  // (3,) delta and what Accumulation has for a norm of 1
  // The population, if it is ranked here.
  double* loss;        // (lambda,) in the direction that is minimized, without NaN
  double* weight;      // (lambda,)
  Weighted* weighted;  // (lambda,) those whose weight is not 0
  double* sorted;      // (lambda,) losses in ascending order, until `weighted` takes their place
  int* order;          // (lambda,) whose they are
  int* count;          // how many `weighted` holds
  double* memory;      // of intermediate results, if they are here

  explicit __device__ Shared(std::int64_t lambda) {
    sums = dynamic_shared<double>();
    step = sums + Sums::kCount * kMostWarps;
    loss = step + 4;
    weight = loss + lambda;
    weighted = reinterpret_cast<Weighted*>(weight + lambda);
    sorted = reinterpret_cast<double*>(weighted);
    order = reinterpret_cast<int*>(weighted + lambda);
    count = order + lambda;
    memory = reinterpret_cast<double*>(count + 1 + (lambda + 1) % 2);
  }
  static std::size_t bytes(std::int64_t lambda) {
    return static_cast<std::size_t>(8 * (4 * lambda + Sums::kCount * kMostWarps + 4) +
                                    4 * (lambda + 1 + (lambda + 1) % 2));
  }
};

constexpr unsigned int kWarp = 0xffffffffu;  // all of its lanes

// Sums over the lanes of a warp, or of each group of `width`, for all of them.
template <int width = 32, class... Double>
__device__ void sum_lanes(Double&... values) {
#pragma unroll
  for (int step = width / 2; step > 0; step /= 2) {
    ((values += __shfl_xor_sync(kWarp, values, step)), ...);
  }
}

__device__ double loss_at(const Job& job, std::int64_t at) {
  const Evaluations& given = job.evaluations;
  const double value = given.losses32 ? given.losses32[at] : given.losses[at];
  const double loss = given.maximize ? -value : value;
  // An infinitely good loss cannot be refused here, so it is no better than NaN.
  return loss < HUGE_VAL && loss > -HUGE_VAL ? loss : HUGE_VAL;
}

// What weigh_samples does, by all threads of a block. The results are there after a barrier.
__device__ void rank(const Job& job, std::int64_t p, const Shared& shared) {
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

constexpr unsigned int kNone = kLanes;  // a category that does not exist

// A categorical variable in the lanes of a group: what core/categorical.h does, with a category in
// each lane. Lanes without one have zeros; all lanes of a warp take part.
template <bool pair>
struct Row {
  // What so many samples chose is loaded before it is known which of them have a weight: a pair in
  // every lane, otherwise the next sample in the next lane.
  static constexpr int kHeld = pair ? 2 : 8 * kLanes;
  static constexpr int kHeldInLane = pair ? kHeld : kHeld / kLanes;

  int lane, size;  // size: 0 without a variable, or with one of more categories than lanes
  int variable, begin;
  double theta, s, margin;
  double scale, inverse;   // the root of theta, and what the gradient is multiplied by
  double inverse_of_last;  // of the last category, in all lanes
  std::int64_t chosen[kHeldInLane];
  double gradient, root;
  bool moves;

  __device__ bool fits() const { return size > 0; }
  __device__ bool is_last() const { return lane == size - 1; }

  // Loads what does not depend on the losses.
  __device__ void load(const Job& job, const Instance& instance, int v) {
    lane = static_cast<int>(threadIdx.x % kLanes);
    variable = v;
    const Categories at(job.alike, job.evaluations.offsets, v);
    begin = static_cast<int>(at.begin);
    size = at.size <= kLanes ? static_cast<int>(at.size) : 0;
    load_chosen(job, instance, 0);
    theta = lane < size ? instance.theta[begin + lane] : 0.0;
    s = lane + 1 < size ? instance.s[begin - v + lane] : 0.0;
    margin = job.evaluations.margin[v];
  }
  // What else does not, once loaded.
  __device__ void prepare() {
    const double floored = theta > kProbabilityFloor ? theta : kProbabilityFloor;
    inverse = reciprocal_root(floored);
    scale = floored * inverse;
    // The last category has no component of its own: its quotient is what the others share.
    if (is_last()) inverse = -reciprocal(floored + scale);
    inverse_of_last = __shfl_sync(kWarp, inverse, size - 1, kLanes);
  }

  // Of the samples from `base` on.
  __device__ void load_chosen(const Job& job, const Instance& instance, int base) {
    const int lambda = static_cast<int>(job.shape.population);
    const int n = static_cast<int>(job.shape.categorical);
#pragma unroll
    for (int i = 0; i < kHeldInLane; ++i) {
      const int sample = pair ? i : base + kLanes * i + lane;
      if (fits() && sample < lambda) chosen[i] = instance.categorical[sample * n + variable];
    }
  }
  // Python checks categories as far as it can without host-device synchronization.
  __device__ bool exists(std::int64_t category) const {
    return static_cast<std::uint64_t>(category) < static_cast<std::uint64_t>(size);
  }
  // What is held, in four bits each.
  __device__ unsigned int packed() const {
    unsigned int all = 0;
#pragma unroll
    for (int i = 0; i < kHeldInLane; ++i) {
      all |= (exists(chosen[i]) ? static_cast<unsigned int>(chosen[i]) : kNone) << 4 * i;
    }
    return all;
  }

  // categorical_gradient and categorical_fisher_root.
  __device__ void differentiate(const Pair& population) {
    const double weight = population.weight;
    moves = exists(chosen[0]) && exists(chosen[1]) && chosen[0] != chosen[1] && weight != 0.0;
    const auto of = [&](int category) {
      return !moves ? 0.0 : category == chosen[0] ? weight : category == chosen[1] ? -weight : 0.0;
    };
    gradient = of(lane);
    set_root(of(size - 1));
  }
  __device__ void differentiate(const Job& job, const Instance& instance, const Shared& shared) {
    const int count = *shared.count;
    const int lambda = static_cast<int>(job.shape.population);
    unsigned int seen = 0;
    gradient = 0.0;
    for (int base = 0, w = 0; base < lambda; base += kHeld) {
      const unsigned int held = packed();
      int end = count;
      if (base + kHeld < lambda) {
        load_chosen(job, instance, base + kHeld);
        end = w;
        while (end < count && shared.weighted[end].sample < base + kHeld) ++end;
      }
#pragma unroll 4
      for (; w < end; ++w) {
        const Weighted sample = shared.weighted[w];
        const int k = static_cast<int>(sample.sample);
        add(__shfl_sync(kWarp, held, k % kLanes, kLanes) >> 4 * (k / kLanes % 8) & 15u,
            sample.weight, seen);
      }
    }
    finish(job, seen);
  }
  __device__ void add(unsigned int category, double weight, unsigned int& seen) {
    if (static_cast<int>(category) == lane) gradient += weight;  // eq. (12)
    if (weight != 0.0) seen |= 1u << category;
  }
  __device__ void finish(const Job& job, unsigned int seen) {
    const bool differ = seen < 1u << kNone && (seen & (seen - 1u)) != 0;
    const bool counts = differ && std::fabs(gradient) > job.canceled;
    gradient = counts ? gradient : 0.0;
    moves = (__ballot_sync(kWarp, counts) >> (threadIdx.x % 32 - lane)) % (1u << kLanes) != 0;
    set_root(__shfl_sync(kWarp, gradient, size - 1, kLanes));
  }
  __device__ void set_root(double gradient_of_last) {
    root = moves && lane + 1 < size
               ? gradient * inverse + scale * (gradient_of_last * inverse_of_last)
               : 0.0;
  }

  __device__ void accumulate(const Accumulation& accumulate, const Instance& instance) const {
    if (lane + 1 < size) instance.s[begin - variable + lane] = accumulate(s, root);  // eq. (19)
  }

  // step_categorical.
  __device__ void move(double step, const Instance& instance) const {
    const bool category = moves && lane < size;
    double moved = theta + step * gradient;  // eq. (13)
    moved = moved > margin ? moved : margin;
    double sum = category ? moved : 0.0;
    double room = category ? moved - margin : 0.0;
    sum_lanes<kLanes>(sum, room);
    const bool above = room > 0.0;
    if (above) moved -= (sum - 1.0) * reciprocal(room) * (moved - margin);
    double sum_above = category ? moved : 0.0;
    sum_lanes<kLanes>(sum_above);
    const double scale = reciprocal(above ? sum_above : static_cast<double>(size));
    moved = above ? moved * scale : scale;
    if (category) instance.theta[begin + lane] = moved;
  }
};

// G and F^(1/2) G of a categorical variable.
__device__ void categorical_gradient(const Job& job, const Instance& instance, const Shared& shared,
                                     std::int64_t i, Sums& sums) {
  const Categories at(job.alike, job.evaluations.offsets, i);
  double* gradient = instance.gradient + at.begin;
  double* root = instance.root + (at.begin - i);
  const double* s = instance.s + (at.begin - i);
  for (std::int64_t j = 0; j < at.size; ++j) gradient[j] = 0.0;
  // Python checks categories as far as it can without host-device synchronization.
  if (asng::categorical_gradient(shared.weighted, *shared.count, instance.categorical + i,
                                 job.shape.categorical, job.canceled, at.size, gradient)) {
    sums.gradient += categorical_fisher_root(instance.theta + at.begin, gradient, at.size, root);
  } else {
    for (std::int64_t j = 0; j + 1 < at.size; ++j) root[j] = 0.0;
  }
  for (std::int64_t j = 0; j + 1 < at.size; ++j) sums.add(root[j], s[j]);
}

__device__ void gaussian_gradient(const Job& job, const Instance& instance, const Shared& shared,
                                  std::int64_t j, Sums& sums) {
  const std::int64_t n = job.shape.gaussian;
  const double mean = instance.mean[j];
  const double variance = instance.variance[j];
  const GaussianGradient gradient = asng::gaussian_gradient(
      shared.weighted, *shared.count, instance.numerical + j, n, mean, variance);
  instance.gaussian[2 * j] = gradient.mean;
  instance.gaussian[2 * j + 1] = gradient.spread;
  const std::int64_t first = job.shape.theta_size - job.shape.categorical + j;
  double* root = instance.root + first;
  sums.gradient += gaussian_fisher_root(mean, variance, gradient, root[0], root[n]);
  sums.add(root[0], instance.s[first]);
  sums.add(root[n], instance.s[first + n]);
}

__device__ void accumulate_at(const Accumulation& accumulate, const Instance& instance,
                              std::int64_t e) {
  instance.s[e] = accumulate(instance.s[e], instance.root[e]);  // eq. (19)
}

__device__ void move_categorical(const Job& job, const Instance& instance, std::int64_t i,
                                 double step, const Accumulation& accumulate) {
  const Categories at(job.alike, job.evaluations.offsets, i);
  const double* gradient = instance.gradient + at.begin;
  bool moves = false;
  for (std::int64_t j = 0; j < at.size; ++j) moves = moves || gradient[j] != 0.0;
  if (moves) {
    step_categorical(instance.theta + at.begin, gradient, at.size, step, job.evaluations.margin[i]);
  }
  for (std::int64_t j = 0; j + 1 < at.size; ++j) {
    accumulate_at(accumulate, instance, at.begin - i + j);
  }
}

__device__ void move_gaussian(const Job& job, const Instance& instance, std::int64_t j, double step,
                              const Accumulation& accumulate) {
  const std::int64_t n = job.shape.gaussian;
  const double* bounds = job.evaluations.bounds;
  step_gaussian(instance.mean[j], instance.variance[j],
                {instance.gaussian[2 * j], instance.gaussian[2 * j + 1]}, step, bounds[j],
                bounds[n + j], bounds[2 * n + j], bounds[3 * n + j],
                job.evaluations.variance_ratio_min);
  const std::int64_t first = job.shape.theta_size - job.shape.categorical + j;
  accumulate_at(accumulate, instance, first);
  accumulate_at(accumulate, instance, first + n);
}

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
  launch(ask_kernel, grid, block, 0, stream,
         Draw{shape, state, offsets, categorical, gaussian, shape.alike()});
}

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
