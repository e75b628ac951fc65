// Products of warpgroups, for a grid that runs on the CPU. They are as late as they may be:
// computed when they are waited for, so that factors that are overwritten before give wrong sums.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "platform/grid_on_cpu/grid.h"
#include "platform/grid_on_cpu/tensor_cores.h"

namespace asng::cuda_on_cpu {

// The place of byte `byte` of row `row`, counted from a piece of the first row.
inline const char* in_matrix(const char* first, int row, int byte) {
  const auto at = reinterpret_cast<uintptr_t>(first) + row * 128 + byte;
  const auto* place = reinterpret_cast<const char*>(at ^ (at >> 7 & 7) << 4);
  check_shared(place);
  return place;
}
inline float factor(float, const char* first, int row, int k, const Location& where) {
  unsigned bits;
  std::memcpy(&bits, in_matrix(first, row, 4 * k), 4);
  return checked_factor(bits, where);
}
inline float factor(__nv_bfloat16, const char* first, int row, int k, const Location&) {
  std::uint16_t bits;
  std::memcpy(&bits, in_matrix(first, row, 2 * k), 2);
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

}  // namespace asng::cuda_on_cpu

namespace asng::cuda {

inline bool has_warpgroup_products() { return true; }
inline constexpr bool kMayMultiplyByWarpgroups = true;
inline void show_to_products() {}
inline void begin_products(cuda_on_cpu::Location where = cuda_on_cpu::Location::current()) {
  cuda_on_cpu::exchange("begin_products", 0xffffffffu, false, cuda_on_cpu::lane(), nullptr, 0,
                        where);
}
inline void close_products() { cuda_on_cpu::delayed_work().emplace_back(); }
template <int kOpen>
void wait_for_closed_products() {
  cuda_on_cpu::DelayedWork& groups = cuda_on_cpu::delayed_work();
  while (groups.size() > kOpen + 1) {
    for (const auto& product : groups.front()) product();
    groups.erase(groups.begin());
  }
}

inline const char* describe_matrix(const void* first) {
  const auto at = reinterpret_cast<uintptr_t>(first);
  if (at % 1024 >= 128 || at % 32 != 0) {
    throw std::runtime_error("a matrix does not begin at a multiple of 1,024 bytes");
  }
  return static_cast<const char*>(first);
}

template <class T, int kBeside>
void multiply_matrices(T type, float (&c)[kBeside][4], const char* a, const char* b,
                       cuda_on_cpu::Location where = cuda_on_cpu::Location::current()) {
  auto product = [&c, type, a, b, where, warp = threadIdx.x / 32 % 4,
                  lane = cuda_on_cpu::lane()]() {
    constexpr int kDepth = 32 / sizeof(T);
    float left[2][kDepth];
    for (int half = 0; half < 2; ++half) {
      const int row = static_cast<int>(warp) * 16 + lane / 4 + 8 * half;
      for (int k = 0; k < kDepth; ++k) {
        left[half][k] = cuda_on_cpu::factor(type, a, row, k, where);
      }
    }
    for (int j = 0; j < kBeside; ++j) {
      for (int n = 0; n < 2; ++n) {
        const int column = 8 * j + lane % 4 * 2 + n;
        float sum[2] = {};
        for (int k = 0; k < kDepth; ++k) {
          const float right = cuda_on_cpu::factor(type, b, column, k, where);
          for (int half = 0; half < 2; ++half) sum[half] += left[half][k] * right;
        }
        for (int half = 0; half < 2; ++half) c[j][2 * half + n] += sum[half];
      }
    }
  };
  cuda_on_cpu::delayed_work().back().push_back(product);
}

}  // namespace asng::cuda
