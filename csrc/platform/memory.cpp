#include "platform/memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <list>
#include <mutex>
#include <new>

namespace asng::cpu {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
// A block that was not requested for this long belongs to sizes of the past.
constexpr uint64_t kIdleRequests = 4096;

struct Cached {
  void* block;
  size_t bytes;
  uint64_t returned_at;
};

struct Cache {
  std::mutex mutex;
  std::list<Cached> blocks;  // the one returned last comes first: its pages are in the cache
  uint64_t requests = 0;
};

Cache& cache() {
  // Never destroyed: tensors may outlive static objects.
  static Cache* instance = new Cache;
  return *instance;
}

// Large blocks come in eight sizes per power of two, so that a block serves again when the next
// request is only a little different. What is not touched of it costs no memory.
size_t round_up(size_t bytes) {
  size_t unit = kPage;
  if (bytes >= kHugePage) {
    unit = kHugePage;
    while (unit * 16 <= bytes) unit *= 2;
  }
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

void ReturnBlock::operator()(void* block) const {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  c.blocks.push_front({block, bytes, c.requests});
}

Block acquire(size_t bytes) {
  const size_t rounded = round_up(bytes == 0 ? 1 : bytes);
  Cache& c = cache();
  {
    const std::lock_guard<std::mutex> lock(c.mutex);
    ++c.requests;
    // The same size, or else the next larger one that would not waste more than half.
    auto best = c.blocks.end();
    for (auto it = c.blocks.begin(); it != c.blocks.end(); ++it) {
      if (it->bytes < rounded || it->bytes > 2 * rounded) continue;
      if (best == c.blocks.end() || it->bytes < best->bytes) best = it;
      if (best->bytes == rounded) break;
    }
    if (best != c.blocks.end()) {
      Block found(best->block, ReturnBlock{best->bytes});
      c.blocks.erase(best);
      return found;
    }
    while (!c.blocks.empty() && c.blocks.back().returned_at + kIdleRequests < c.requests) {
      std::free(c.blocks.back().block);
      c.blocks.pop_back();
    }
  }
  const size_t alignment = rounded >= kHugePage ? kHugePage : kPage;
  void* block = std::aligned_alloc(alignment, rounded);
  if (block == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // Pages that are never touched cost nothing; those that are fault once per 2 MB.
  if (rounded >= kHugePage) madvise(block, rounded, MADV_HUGEPAGE);
#endif
  return Block(block, ReturnBlock{rounded});
}

size_t release_cached() {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  size_t total = 0;
  for (const Cached& cached : c.blocks) {
    total += cached.bytes;
    std::free(cached.block);
  }
  c.blocks.clear();
  return total;
}

void* scratch(size_t bytes) {
  static thread_local Block block;
  if (block == nullptr || bytes > block.get_deleter().bytes) {
    block.reset();
    block = acquire(bytes);
  }
  return block.get();
}

}  // namespace asng::cpu
