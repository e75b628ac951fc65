#include "optimizer/toy/batch.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace asng::host {

namespace {

// Iterations between two looks at whether to stop: a millisecond or so.
constexpr std::int64_t kChunk = 1000;

struct Shared {
  std::atomic<std::size_t> next{0};
  std::atomic<std::int64_t> runs{0};
  std::atomic<std::int64_t> iterations{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::condition_variable changed;
  int working = 0;            // under the mutex
  std::exception_ptr failed;  // under the mutex
};

void work(Shared& shared, const ToySettings& settings, std::uint64_t seed, std::uint64_t first,
          std::span<ToyOutcome> outcomes) {
  ToyRun run(settings);
  for (;;) {
    const std::size_t index = shared.next.fetch_add(1);
    if (index >= outcomes.size()) {
      return;
    }
    run.start(toy_key(seed, first + index));
    while (!run.over()) {
      if (shared.stop) {
        return;
      }
      const std::int64_t before = run.iteration;
      run.advance(kChunk);
      shared.iterations += run.iteration - before;
    }
    outcomes[index] = {run.iteration, run.succeeded};
    ++shared.runs;
  }
}

// Stops and joins on the way out, also when an exception takes it.
struct Threads {
  Shared& shared;
  std::vector<std::thread> all;
  ~Threads() {
    shared.stop = true;
    for (std::thread& thread : all) {
      thread.join();
    }
  }
};

}  // namespace

bool toy_batch(const ToySettings& settings, std::uint64_t seed, std::uint64_t first,
               std::span<ToyOutcome> outcomes, int threads,
               const std::function<bool(const ToyProgress&)>& poll, double polls_per_second) {
  Shared shared;
  const auto progress = [&] { return ToyProgress{shared.runs, shared.iterations}; };
  const std::chrono::duration<double> pause(1.0 / polls_per_second);
  {
    Threads pool{shared, {}};
    const std::size_t count =
        std::min(static_cast<std::size_t>(std::max(threads, 1)), outcomes.size());
    shared.working = static_cast<int>(count);
    for (std::size_t t = 0; t < count; ++t) {
      try {
        pool.all.emplace_back([&] {
          std::exception_ptr failed;
          try {
            work(shared, settings, seed, first, outcomes);
          } catch (...) {
            failed = std::current_exception();
          }
          const std::lock_guard<std::mutex> lock(shared.mutex);
          --shared.working;
          shared.failed = failed ? failed : shared.failed;
          shared.changed.notify_one();
        });
      } catch (...) {  // no more threads to be had
        const std::lock_guard<std::mutex> lock(shared.mutex);
        shared.working -= static_cast<int>(count - t);
        if (t == 0) {
          throw;
        }
        break;
      }
    }
    std::unique_lock<std::mutex> lock(shared.mutex);
    while (!shared.changed.wait_for(lock, pause, [&] { return shared.working == 0; })) {
      lock.unlock();
      if (!poll(progress())) {
        return false;
      }
      lock.lock();
    }
  }
  if (shared.failed) {
    std::rethrow_exception(shared.failed);
  }
  poll(progress());
  return true;
}

}  // namespace asng::host
