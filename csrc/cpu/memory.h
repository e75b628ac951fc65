// Blocks of memory that are kept for the next iteration.
//
// A search iteration asks for the same sizes again and again. Fresh pages from the operating system
// cost more than the arithmetic done on them, so blocks go back to a list, not to the system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

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

}  // namespace asng::cpu
