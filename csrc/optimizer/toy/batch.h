// Many independent runs of the toy problem over threads.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "optimizer/toy/run.h"

namespace asng::host {

struct ToyOutcome {
  std::int64_t iterations = 0;  // to success, or all there were
  bool succeeded = false;
};

struct ToyProgress {
  std::int64_t runs;        // that are over
  std::int64_t iterations;  // of all runs
};

// Performs runs `first` to `first + outcomes.size()` of `seed`. What a run gives depends on the
// settings, the seed and its number only: threads take the next run that is not begun, and each
// needs the memory of one run. `poll` is called by the calling thread about `polls_per_second`
// times, and a last time when all runs are over; if it returns false or throws, the runs are given
// up. Returns whether all runs are over.
bool toy_batch(const ToySettings& settings, std::uint64_t seed, std::uint64_t first,
               std::span<ToyOutcome> outcomes, int threads,
               const std::function<bool(const ToyProgress&)>& poll, double polls_per_second = 10.0);

}  // namespace asng::host
