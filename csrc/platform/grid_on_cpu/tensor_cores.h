// Products on tensor cores, for a grid that runs on the CPU. They are strict: all lanes of a warp
// must arrive, and factors must have been rounded to TF32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "platform/grid_on_cpu/grid.h"

namespace asng::cuda_on_cpu {

// What the lanes of a warp put together: whole factors, or where rows of matrices begin.
struct Together {
  float a[16 * 16], b[16 * 8];
  const void* rows[32];
};
inline Together& together() {
  static thread_local Together of_warps[32];
  return of_warps[(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) / 32];
}

inline float checked_factor(unsigned bits, const Location& where) {
  const float x = __uint_as_float(bits);
  if ((bits & 0x1fffu) != 0 && !std::isnan(x)) {
    throw std::runtime_error(std::string("a factor was not rounded to TF32 at ") +
                             where.file_name() + ":" + std::to_string(where.line()));
  }
  return x;
}

}  // namespace asng::cuda_on_cpu

namespace asng::cuda {

namespace detail {

// As mma: lane 4·g + t holds rows g and g + 8 of a, and column g of b, at `wide` neighbors from
// wide·t on and as many behind half of the depth, and rows g and g + 8 of c at columns 2·t and
// 2·t + 1. value(word, i) is a factor's.
template <int kWide, class Value>
void multiply_together(const char* what, float (&c)[4], const unsigned (&a)[4],
                       const unsigned (&b)[2], Value value, const cuda_on_cpu::Location& where) {
  constexpr int kDepth = 8 * kWide;
  cuda_on_cpu::Together& factors = cuda_on_cpu::together();
  const auto wait = [&] {
    cuda_on_cpu::exchange(what, 0xffffffffu, false, cuda_on_cpu::lane(), nullptr, 0, where);
  };
  const int g = cuda_on_cpu::lane() / 4, t = cuda_on_cpu::lane() % 4;
  for (int k = 0; k < kWide; ++k) {
    for (int i = 0; i < 4; ++i) {
      const int column = kWide * t + k + i / 2 * kDepth / 2;
      factors.a[(g + i % 2 * 8) * kDepth + column] = value(a[i], k);
    }
    for (int i = 0; i < 2; ++i) {
      factors.b[(kWide * t + k + i * kDepth / 2) * 8 + g] = value(b[i], k);
    }
  }
  wait();
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    float sum = 0;
    for (int k = 0; k < kDepth; ++k) sum += factors.a[row * kDepth + k] * factors.b[k * 8 + column];
    c[i] += sum;
  }
  wait();
}

// The row of a matrix whose place lane 8·matrix + row has.
inline const char* matrix_row(int matrix, int row) {
  return static_cast<const char*>(cuda_on_cpu::together().rows[8 * matrix + row]);
}

template <class Load>
void load_together(const char* what, const void* row, Load load,
                   const cuda_on_cpu::Location& where) {
  cuda_on_cpu::check_shared(row);
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    throw std::runtime_error("a row of a matrix is not aligned to 16 bytes");
  }
  const auto wait = [&] {
    cuda_on_cpu::exchange(what, 0xffffffffu, false, cuda_on_cpu::lane(), nullptr, 0, where);
  };
  cuda_on_cpu::together().rows[cuda_on_cpu::lane()] = row;
  wait();
  for (int i = 0; i < 4; ++i) load(i);
  wait();
}

}  // namespace detail

inline void mma_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                     cuda_on_cpu::Location where = cuda_on_cpu::Location::current()) {
  const auto value = [&](unsigned word, int) { return cuda_on_cpu::checked_factor(word, where); };
  detail::multiply_together<1>("mma_tf32", c, a, b, value, where);
}
inline void mma_bfloat16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                         cuda_on_cpu::Location where = cuda_on_cpu::Location::current()) {
  const auto value = [](unsigned word, int i) {
    return __uint_as_float(i == 0 ? word << 16 : word & 0xffff0000u);
  };
  detail::multiply_together<2>("mma_bfloat16", c, a, b, value, where);
}

inline void load_matrices(unsigned (&to)[4], const void* row,
                          cuda_on_cpu::Location where = cuda_on_cpu::Location::current()) {
  const int g = cuda_on_cpu::lane() / 4, t = cuda_on_cpu::lane() % 4;
  const auto load = [&](int i) { std::memcpy(&to[i], detail::matrix_row(i, g) + 4 * t, 4); };
  detail::load_together("load_matrices", row, load, where);
}
inline void load_turned_matrices(unsigned (&to)[4], const void* row,
                                 cuda_on_cpu::Location where = cuda_on_cpu::Location::current()) {
  const int g = cuda_on_cpu::lane() / 4, t = cuda_on_cpu::lane() % 4;
  const auto load = [&](int i) {
    std::uint16_t pair[2];
    for (int k = 0; k < 2; ++k) std::memcpy(&pair[k], detail::matrix_row(i, 2 * t + k) + 2 * g, 2);
    to[i] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
  };
  detail::load_together("load_turned_matrices", row, load, where);
}

// To the nearest, ties away from zero, 10-bit mantissa.
inline unsigned to_tf32(float x) {
  const unsigned bits = __float_as_uint(x);
  return std::isfinite(x) ? (bits + 0x1000u) & ~0x1fffu : bits;
}

}  // namespace asng::cuda
