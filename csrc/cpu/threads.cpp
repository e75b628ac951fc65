// Tasks on PyTorch's threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <vector>

#include "parallel.h"

namespace asng::cpu {

namespace {

// A cache line of its own, so that threads do not slow each other down.
struct alignas(64) Share {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

constexpr int64_t kMaxThreads = 256;

}  // namespace

void run_tasks(int64_t count, const std::function<void(int64_t)>& task) {
  if (count <= 0) return;
  const int64_t threads =
      std::min({count, static_cast<int64_t>(torch::stable::get_num_threads()), kMaxThreads});
  // Each thread starts with a share of consecutive tasks, and helps the others when it is done, so
  // that a slow core holds nobody up.
  std::vector<Share> shares(static_cast<size_t>(threads));
  for (int64_t t = 0; t < threads; ++t) {
    shares[t].next = count * t / threads;
    shares[t].end = count * (t + 1) / threads;
  }
  std::exception_ptr error;
  std::mutex mutex;
  std::atomic<bool> stop{false};
  const auto work = [&](int64_t first, int64_t) {
    try {
      for (int64_t t = 0; t < threads; ++t) {
        Share& share = shares[(first + t) % threads];
        for (int64_t i = share.next++; i < share.end && !stop; i = share.next++) task(i);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
      stop = true;
    }
  };
  torch::stable::parallel_for(0, threads, 1, work);
  if (error) std::rethrow_exception(error);
}

}  // namespace asng::cpu
