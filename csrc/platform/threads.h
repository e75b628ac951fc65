// Threads. The kernels do not know them; the library runs tasks on PyTorch's threads, the C++ tests
// on their own.
#pragma once

#include <cstdint>
#include <functional>

namespace asng::cpu {

// Runs task(0) … task(count - 1), in any order, on any thread, and waits for all. What a task
// computes must not depend on where and when it runs: sums over tasks are added up afterwards, in
// the order of the tasks. An exception of a task is thrown again here.
void run_tasks(int64_t count, const std::function<void(int64_t)>& task);

// Runs task(item, part) for every item and part of the batch. Tasks of a part come together: the
// thread that has made some images is likely to be the one that reads them next.
template <class Task>
void run_parts(int64_t items, int64_t parts, Task task) {
  run_tasks(items * parts, [&](int64_t i) { task(i % items, i / items); });
}

}  // namespace asng::cpu
