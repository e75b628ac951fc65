// What the launch that updates works on: the job, an instance of it, and what a block shares.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/step_size.h"
#include "core/utility.h"
#include "optimizer/cuda.h"
#include "platform/cuda.h"

namespace asng::cuda::update {

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

}  // namespace asng::cuda::update
