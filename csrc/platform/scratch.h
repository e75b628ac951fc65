// Working memory of a thread, kept for the next call.
#pragma once

#include <cstddef>
#include <cstdint>

namespace asng::cpu {

// At least `bytes` bytes, aligned to 64; valid until this thread asks again.
void* scratch(size_t bytes);

// Hands out parts of a block, each aligned to 64 bytes. With a null base it only counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}

  // Inlined everywhere: compilations for different instruction sets share this name.
  template <class T>
  __attribute__((always_inline)) T* take(int64_t count) {
    T* part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return part;
  }

  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace asng::cpu
