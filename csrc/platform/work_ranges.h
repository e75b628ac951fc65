// How tasks are shared out to threads, whatever threads these are.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <vector>

namespace asng::cpu {

// Runs task(0) … task(count - 1) and waits for all: `parallel(threads, work)` is to call
// work(first) on several threads, each with another number below `threads`. Whether some numbers
// are left out makes no difference. An exception of a task is thrown again here.
template <class Parallel>
void run_in_shares(int64_t count, int64_t threads, const std::function<void(int64_t)>& task,
                   Parallel parallel) {
  // A cache line of its own, so that threads do not slow each other down.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  if (count <= 0) return;
  threads = std::min(count, threads);
  // Each thread starts with a share of consecutive tasks, and helps the others when it is done, so
  // that a slow core holds nobody up.
  std::vector<Share> shares(static_cast<size_t>(threads));
  for (int64_t t = 0; t < threads; ++t) {
    shares[static_cast<size_t>(t)].next = count * t / threads;
    shares[static_cast<size_t>(t)].end = count * (t + 1) / threads;
  }
  std::exception_ptr error;
  std::mutex mutex;
  std::atomic<bool> stop{false};
  parallel(threads, [&](int64_t first) {
    try {
      for (int64_t t = 0; t < threads; ++t) {
        Share& share = shares[static_cast<size_t>((first + t) % threads)];
        for (int64_t i = share.next++; i < share.end && !stop; i = share.next++) task(i);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
      stop = true;
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace asng::cpu
