// A categorical variable whose categories are in lanes of a warp.
#pragma once

#include "core/categorical.h"
#include "optimizer/cuda_categories.h"
#include "optimizer/cuda_ranking.h"

namespace asng::cuda::update {

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

}  // namespace asng::cuda::update
