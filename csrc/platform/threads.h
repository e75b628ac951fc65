// Tasks on threads. The kernels do not know them; the library runs tasks on PyTorch's threads, the
// C++ tests on their own.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <vector>

namespace asng::cpu {

// Runs task(0) … task(count - 1), in any order, on any thread, and waits for all. What a task
// computes must not depend on where and when it runs: sums over tasks are added afterwards, in the
// order of the tasks. An exception of a task is thrown again here.
void run_tasks(int64_t count, const std::function<void(int64_t)>& task);

// Runs task(item, split) for every item and split of the batch. Tasks of a split run together: the
// thread that has made some feature maps is likely to be the one that reads them next.
template <class Task>
void run_splits(int64_t items, int64_t splits, Task task) {
  run_tasks(items * splits, [&](int64_t i) { task(i % items, i / items); });
}

// What run_tasks is made of: `parallel(threads, work)` is to call work(first) on several threads,
// each with another number below `threads`. Whether some numbers are left out makes no difference.
template <class Parallel>
void run_work_ranges(int64_t count, int64_t threads, const std::function<void(int64_t)>& task,
                     Parallel parallel) {
  // A cache line of its own, so that threads do not slow each other down.
  struct alignas(64) Range {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  if (count <= 0) return;
  threads = std::min(count, threads);
  // Each thread starts with a range of consecutive tasks and then helps the others, so that a slow
  // core does not hold up the rest.
  std::vector<Range> ranges(static_cast<size_t>(threads));
  for (int64_t t = 0; t < threads; ++t) {
    ranges[static_cast<size_t>(t)].next = count * t / threads;
    ranges[static_cast<size_t>(t)].end = count * (t + 1) / threads;
  }
  std::exception_ptr error;
  std::mutex mutex;
  std::atomic<bool> stop{false};
  parallel(threads, [&](int64_t first) {
    try {
      for (int64_t t = 0; t < threads; ++t) {
        Range& range = ranges[static_cast<size_t>((first + t) % threads)];
        for (int64_t i = range.next++; i < range.end && !stop; i = range.next++) task(i);
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
