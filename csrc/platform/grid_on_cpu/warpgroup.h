// Products of warpgroups, for a grid that runs on the CPU. They are as late as they may be:
// computed when they are waited for, so that factors that are overwritten before give wrong sums.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "platform/grid_on_cpu/grid.h"
#include "platform/grid_on_cpu/tensor_cores.h"

namespace asng::cuda_on_cpu {

// What stands at an address, if pieces stand in the order that instructions expect.
template <class Word>
Word in_order(const char* first, int64_t offset) {
  const auto at = reinterpret_cast<uintptr_t>(first) + offset;
  const auto* place = reinterpret_cast<const char*>(at ^ (at >> 7 & 7) << 4);
  check_shared(place);
  Word word;
  std::memcpy(&word, place, sizeof(word));
  return word;
}
inline void check_matrix(const void* first) {
  if (reinterpret_cast<uintptr_t>(first) % 1024 != 0) {
    throw std::runtime_error("a matrix does not begin at a multiple of 1,024 bytes");
  }
}

}  // namespace asng::cuda_on_cpu

namespace asng::cuda {

inline bool has_warpgroup_products() { return true; }
inline constexpr bool kMayMultiplyByWarpgroups = true;
inline void fence_async_proxy() {}
inline void fence_operand(float&) {}
// Lanes do not wait for each other here, so that a missing barrier shows.
inline void begin_products() {}
inline void close_products() { cuda_on_cpu::delayed_work().emplace_back(); }
template <int kOpen>
void wait_for_closed_products() {
  cuda_on_cpu::DelayedWork& groups = cuda_on_cpu::delayed_work();
  while (groups.size() > kOpen + 1) {
    for (const auto& product : groups.front()) product();
    groups.erase(groups.begin());
  }
}

// value() is that of a factor, by its row (or column of the other factor) and depth.
template <bool kTurned>
struct MatrixDescriptor {
  const char* first;
  unsigned leading;

  explicit MatrixDescriptor(const void* first, unsigned leading = 16)
      : first(static_cast<const char*>(first)), leading(leading) {
    cuda_on_cpu::check_matrix(first);
  }
  MatrixDescriptor behind(int bytes) const {
    MatrixDescriptor other = *this;
    other.first += bytes;
    return other;
  }
  float value(float, int row, int k, const cuda_on_cpu::Location& where) const {
    static_assert(!kTurned);
    const auto bits = cuda_on_cpu::in_order<unsigned>(first, row * 128 + k * 4);
    return cuda_on_cpu::checked_factor(bits, where);
  }
  float value(__nv_bfloat16, int row, int k, const cuda_on_cpu::Location&) const {
    const int64_t at = kTurned ? static_cast<int64_t>(row / 64) * leading + row % 64 * 2 + k * 128
                               : row * 128 + k * 2;
    const auto bits = cuda_on_cpu::in_order<std::uint16_t>(first, at);
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
  }
};

template <class T, class Matrix, int kBeside>
void multiply_matrices(T type, float (&c)[kBeside][4], Matrix a, Matrix b,
                       cuda_on_cpu::Location where = cuda_on_cpu::Location::current()) {
  auto product = [&c, type, a, b, where, warp = threadIdx.x / 32 % 4,
                  lane = cuda_on_cpu::lane()]() {
    constexpr int kDepth = 32 / sizeof(T);
    float left[2][kDepth];
    for (int half = 0; half < 2; ++half) {
      const int row = static_cast<int>(warp) * 16 + lane / 4 + 8 * half;
      for (int k = 0; k < kDepth; ++k) {
        left[half][k] = a.value(type, row, k, where);
      }
    }
    for (int j = 0; j < kBeside; ++j) {
      for (int n = 0; n < 2; ++n) {
        const int column = 8 * j + lane % 4 * 2 + n;
        float sum[2] = {};
        for (int k = 0; k < kDepth; ++k) {
          const float right = b.value(type, column, k, where);
          for (int half = 0; half < 2; ++half) sum[half] += left[half][k] * right;
        }
        for (int half = 0; half < 2; ++half) c[j][2 * half + n] += sum[half];
      }
    }
  };
  cuda_on_cpu::delayed_work().back().push_back(product);
}

}  // namespace asng::cuda
