// The allocator of scratch memory: blocks, and arenas that hand out pieces of a block.
//
// A search iteration asks for the same sizes again and again. Fresh pages from the operating system
// cost more than the arithmetic done on them, so blocks go back to a list, not to the system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include "platform/dispatch.h"

namespace asng {

// Pieces of a block of memory, one behind the other, each aligned as the block is, to kAlignment.
// Over no memory at all it only counts.
template <size_t kAlignment>
class AlignedArena {
 public:
  ASNG_INLINE explicit AlignedArena(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  ASNG_INLINE T* take(int64_t count) {
    char* piece = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(piece);
  }

  ASNG_INLINE size_t used() const { return used_; }

 private:
  char* memory_;
  size_t used_ = 0;
};

}  // namespace asng

namespace asng::cuda {

using Arena = AlignedArena<256>;  // as cudaMalloc aligns

}  // namespace asng::cuda

namespace asng::cpu {

using Arena = AlignedArena<64>;  // a cache line

struct ReturnBlock {
  size_t bytes = 0;
  void operator()(void* block) const;
};
using Block = std::unique_ptr<void, ReturnBlock>;

// At least `bytes` bytes, aligned to 64; the contents are whatever was there.
// Throws std::bad_alloc.
Block acquire(size_t bytes);

// Gives all blocks that are not in use back to the system; returns how many bytes that were.
size_t release_cached();

// At least `bytes` bytes, aligned to 64, kept for the next call; valid until this thread asks
// again.
void* scratch(size_t bytes);

// What `take` takes of an arena, out of this thread's scratch memory; it is called twice, the first
// time with an arena that only counts.
template <class Take>
ASNG_INLINE void take_scratch(Take take) {
  Arena counted(nullptr);
  take(counted);
  Arena arena(scratch(counted.used()));
  take(arena);
}

// An arena of values of one type, which must not take more than there is.
template <class T>
class Bump {
 public:
  Bump(T* memory, int64_t capacity) : arena_(memory), capacity_(capacity) {}

  T* take(int64_t count) {
    if (count > left()) throw std::logic_error("asng: a memory plan is larger than its bound");
    return arena_.take<T>(count);
  }
  int64_t left() const { return capacity_ - static_cast<int64_t>(arena_.used() / sizeof(T)); }

 private:
  Arena arena_;
  int64_t capacity_;
};

// Slots of one size that are used again when they are given back.
template <class T>
class Slots {
 public:
  Slots(Bump<T>& memory, int64_t size) : memory_(memory), size_(size) {}

  // The slot that was given back last, if there is one: it is likely to be in the cache.
  T* take() {
    if (free_.empty()) return memory_.take(size_);
    T* slot = free_.back();
    free_.pop_back();
    return slot;
  }
  void give(T* slot) { free_.push_back(slot); }

 private:
  Bump<T>& memory_;
  int64_t size_;
  std::vector<T*> free_;
};

}  // namespace asng::cpu
