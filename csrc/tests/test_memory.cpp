#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/cpu/norm_statistics.h"
#include "platform/memory.h"
#include "tests/check.h"

namespace asng::cpu {
namespace {

TEST(blocks_are_used_again) {
  release_cached();
  void* first = nullptr;
  {
    const Block block = acquire(100000);
    first = block.get();
    std::memset(first, 1, 100000);
    const Block other = acquire(100000);
    CHECK(other.get() != first);
  }
  const Block again = acquire(100000), more = acquire(100000);
  CHECK(again.get() == first || more.get() == first);
  CHECK(release_cached() == 0);
}

TEST(released_memory_is_counted) {
  release_cached();
  {
    const Block block = acquire(5 << 20);
  }
  CHECK(release_cached() >= size_t{5} << 20);
  CHECK(release_cached() == 0);
}

TEST(blocks_of_many_threads) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < 200; ++i) {
        const Block block = acquire(size_t(1) << (6 + (i + t) % 8));
        static_cast<char*>(block.get())[0] = static_cast<char>(i);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(release_cached() > 0);
}

TEST(a_plan_that_is_too_large_is_an_error) {
  float values[32];
  Bump<float> memory(values, 32);
  CHECK(memory.take(16) == values);
  CHECK(memory.take(16) == values + 16);
  bool thrown = false;
  try {
    memory.take(1);
  } catch (const std::logic_error&) {
    thrown = true;
  }
  CHECK(thrown);
}

TEST(parts_cover_a_batch_once) {
  for (int64_t images = 1; images < 40; ++images) {
    int64_t next = 0;
    for (int64_t i = 0; i < split_count(images); ++i) {
      const Split p = split(images, i);
      CHECK(p.first == next);
      CHECK(p.count > 0);
      next += p.count;
    }
    CHECK(next == images);
  }
}

TEST(scratch_grows_and_is_aligned) {
  for (size_t bytes : {size_t{1}, size_t{1000}, size_t{100000}, size_t{10}}) {
    char* block = static_cast<char*>(scratch(bytes));
    CHECK(reinterpret_cast<uintptr_t>(block) % 64 == 0);
    block[bytes - 1] = 1;
  }
}

}  // namespace
}  // namespace asng::cpu
