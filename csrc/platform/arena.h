// Pieces of one block of memory, one behind the other. Over no memory at all it only counts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace asng::cuda {

class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    constexpr size_t kAlignment = 256;
    unsigned char* piece = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(piece);
  }

  size_t used() const { return used_; }

 private:
  unsigned char* memory_;
  size_t used_ = 0;
};

}  // namespace asng::cuda
