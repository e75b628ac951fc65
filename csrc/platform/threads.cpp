// Tasks on PyTorch's threads.

#include "platform/threads.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

namespace asng::cpu {

constexpr int64_t kMaxThreads = 256;

void run_tasks(int64_t count, const std::function<void(int64_t)>& task) {
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), kMaxThreads);
  run_work_ranges(count, threads, task, [](int64_t ranges, const auto& work) {
    torch::stable::parallel_for(0, ranges, 1, [&](int64_t first, int64_t) { work(first); });
  });
}

}  // namespace asng::cpu
