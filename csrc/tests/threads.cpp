// Tasks on threads of the standard library, so that the kernels can be tested without PyTorch.

#include "tests/threads.h"

#include <thread>
#include <vector>

#include "platform/threads.h"

namespace asng::test {

int thread_count = 1;

}  // namespace asng::test

namespace asng::cpu {

void run_tasks(int64_t count, const std::function<void(int64_t)>& task) {
  run_work_ranges(count, asng::test::thread_count, task, [](int64_t ranges, const auto& work) {
    std::vector<std::thread> threads;
    for (int64_t t = 1; t < ranges; ++t) threads.emplace_back([&work, t] { work(t); });
    work(0);
    for (std::thread& thread : threads) thread.join();
  });
}

}  // namespace asng::cpu
