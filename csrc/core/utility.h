// Ranking-based utilities (section 2.4): invariant to increasing transformations of the loss.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/hd.h"

namespace asng {

// Losses closer than this, relative to their size, count as equal.
constexpr double kTieTolerance = 1e-14;

// Sums of utilities that cancel leave rounding errors behind. Anything this small relative to the
// largest utility is such a rest, and normalizing it would turn noise into a full step.
constexpr double kCanceledUtility = 1e-13;

ASNG_HD inline bool losses_tie(double better, double worse) {
  return better == worse || worse - better < kTieTolerance * std::fabs(better);
}

// How many of `count` samples are rewarded, and how many punished: ceil(count / 4).
ASNG_HD inline std::int64_t selected_count(std::int64_t count) { return (count + 3) / 4; }

// The utility that the samples of ranks [begin, end) of `count`, whose losses tie, share: the mean
// over these ranks of +1/m for the m best, -1/m for the m worst and 0 between. `reward` is 1/m.
ASNG_HD inline double shared_utility(std::int64_t begin, std::int64_t end, std::int64_t count,
                                     double reward) {
  const std::int64_t selected = selected_count(count);
  // Ranks [0, selected) are good, [count - selected, count) are bad.
  const std::int64_t good = (end < selected ? end : selected) - begin;
  const std::int64_t bad_begin = count - selected;
  const std::int64_t bad = end - (begin > bad_begin ? begin : bad_begin);
  const std::int64_t balance = (good > 0 ? good : 0) - (bad > 0 ? bad : 0);
  return reward * static_cast<double>(balance) / static_cast<double>(end - begin);
}

ASNG_HD inline double reward_of(std::int64_t count) {
  return 1.0 / static_cast<double>(selected_count(count));
}

// utility[order[r]] for the samples in ascending order of loss. Returns false if all losses are
// equal, in which case every utility is 0.
ASNG_HD inline bool rank_utilities(const double* losses, const std::int64_t* order,
                                   std::int64_t count, double* utility) {
  const double reward = reward_of(count);
  bool any = false;
  for (std::int64_t begin = 0; begin < count;) {
    std::int64_t end = begin + 1;
    while (end < count && losses_tie(losses[order[end - 1]], losses[order[end]])) {
      ++end;
    }
    const double shared = shared_utility(begin, end, count, reward);
    any = any || shared != 0.0;
    for (std::int64_t rank = begin; rank < end; ++rank) {
      utility[order[rank]] = shared;
    }
    begin = end;
  }
  return any;
}

// A sample that moves the distribution.
struct Weighted {
  std::int64_t sample;
  double weight;  // utility / lambda
};

// Writes the samples whose utility is not 0 to `weighted` and returns how many these are. The other
// arguments are those of rank_utilities.
ASNG_HD inline std::int64_t weigh_samples(const double* losses, const std::int64_t* order,
                                          std::int64_t lambda, double* utility,
                                          Weighted* weighted) {
  std::int64_t count = 0;
  if (rank_utilities(losses, order, lambda, utility)) {
    for (std::int64_t k = 0; k < lambda; ++k) {
      if (utility[k] != 0.0) {
        weighted[count++] = {k, utility[k] / static_cast<double>(lambda)};
      }
    }
  }
  return count;
}

// A sum of weights that is no larger is what rounding left of 0.
ASNG_HD inline double canceled_weight(std::int64_t lambda) {
  return kCanceledUtility / static_cast<double>(lambda * selected_count(lambda));
}

}  // namespace asng
