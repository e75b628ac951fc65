// What an optimizer counts in device memory, and how large a population may be. Python asks for
// these by way of asng_ext._host.
#pragma once

#include <cstdint>

namespace asng {

// Columns of an instance's counters, kCounters of them.
enum Counter : int {
  kSeed,
  kAsked,        // populations drawn: the random numbers' generation
  kGeneration,   // populations evaluated
  kEvaluations,  // samples evaluated
  kMoved,        // the last generation that moved theta
  kBest,         // the generation of the best sample
  kTicket,       // of the launch in progress; 0 between launches
  kArrivals,     // likewise
  kCounters
};
constexpr const char* kCounterNames[kCounters] = {"seed",  "asked", "generation", "evaluations",
                                                  "moved", "best",  "ticket",     "arrivals"};

// The most samples of a population on a device: a block ranks their losses in shared memory.
constexpr std::int64_t kLargestPopulation = 1024;
// On the host, far from what overflows and from what memory holds. No array of the toy problem is
// larger either.
constexpr std::int64_t kMostSamples = std::int64_t{1} << 24;

}  // namespace asng
