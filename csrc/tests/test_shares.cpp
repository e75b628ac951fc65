// Tasks in work ranges: each runs once, and what one throws arrives.

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "platform/threads.h"
#include "tests/check.h"
#include "tests/threads.h"

namespace asng::cpu {
namespace {

TEST(every_task_runs_once) {
  for (const int threads : {1, 2, 3, 7}) {
    test::thread_count = threads;
    for (const int64_t count : {0, 1, 2, 5, 64, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
      run_tasks(count, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
      for (const std::atomic<int>& times : runs) CHECK(times == 1);
    }
  }
  test::thread_count = 1;
}

TEST(one_worker_does_the_ranges_of_all) {
  std::vector<int> runs(20);
  run_work_ranges(
      20, 4, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; },
      [](int64_t, const auto& work) { work(2); });
  for (const int times : runs) CHECK(times == 1);
}

TEST(an_exception_of_a_task_arrives) {
  test::thread_count = 3;
  std::string message;
  try {
    run_tasks(100, [](int64_t i) {
      if (i == 40) throw std::runtime_error("task 40");
    });
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  CHECK(message == "task 40");
  test::thread_count = 1;
}

}  // namespace
}  // namespace asng::cpu
