// Blocks of memory that are kept for the next iteration.
//
// A search iteration asks for the same sizes again and again. Fresh pages from the operating system
// cost more than the arithmetic done on them, so blocks go back to a list, not to the system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace asng::cpu {

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

// Takes consecutive parts of a block. Every part is a multiple of kChannelBlock values, so all stay
// aligned.
template <class T>
class Bump {
 public:
  Bump(T* base, int64_t capacity) : next_(base), left_(capacity) {}

  T* take(int64_t count);
  int64_t left() const { return left_; }

 private:
  T* next_;
  int64_t left_;
};

// Places of one size that serve again when they are given back.
template <class T>
class Slots {
 public:
  Slots(Bump<T>& memory, int64_t size) : memory_(memory), size_(size) {}

  // The place that was given back last, if there is one: it is likely to be in the cache.
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
