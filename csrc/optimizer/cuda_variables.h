// Variables of which a thread has all: Gaussian ones, and categorical ones outside of lanes.
#pragma once

#include "core/categorical.h"
#include "core/gaussian.h"
#include "optimizer/cuda_categories.h"
#include "optimizer/cuda_tell.h"

namespace asng::cuda::update {

// G and F^(1/2) G of a categorical variable.
__device__ inline void categorical_gradient(const Job& job, const Instance& instance,
                                            const Shared& shared, std::int64_t i, Sums& sums) {
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

__device__ inline void gaussian_gradient(const Job& job, const Instance& instance,
                                         const Shared& shared, std::int64_t j, Sums& sums) {
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

__device__ inline void accumulate_at(const Accumulation& accumulate, const Instance& instance,
                                     std::int64_t e) {
  instance.s[e] = accumulate(instance.s[e], instance.root[e]);  // eq. (19)
}

__device__ inline void move_categorical(const Job& job, const Instance& instance, std::int64_t i,
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

__device__ inline void move_gaussian(const Job& job, const Instance& instance, std::int64_t j,
                                     double step, const Accumulation& accumulate) {
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

}  // namespace asng::cuda::update
