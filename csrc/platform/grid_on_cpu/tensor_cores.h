// Products on tensor cores, for a grid that runs on the CPU. They are strict: all lanes of a warp
// must arrive, and factors must have been rounded to TF32.
#pragma once

#include <cmath>
#include <stdexcept>
#include <string>

#include "platform/grid_on_cpu/grid.h"

namespace asng::cuda_on_cpu {

// Whole factors, as the lanes of a warp put them together.
struct Factors {
  float a[16 * 8], b[8 * 8];
};
inline Factors& factors() {
  static thread_local Factors of_warps[32];
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

// As mma.m16n8k8: lane 4·g + t holds rows g and g + 8 of a at columns t and t + 4, column g of b at
// rows t and t + 4, and rows g and g + 8 of c at columns 2·t and 2·t + 1.
inline void mma_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                     cuda_on_cpu::Location where = cuda_on_cpu::Location::current()) {
  cuda_on_cpu::Factors& factors = cuda_on_cpu::factors();
  const auto wait = [&] {
    cuda_on_cpu::exchange("mma_tf32", 0xffffffffu, false, cuda_on_cpu::lane(), nullptr, 0, where);
  };
  const int g = cuda_on_cpu::lane() / 4, t = cuda_on_cpu::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    factors.a[(g + i % 2 * 8) * 8 + t + i / 2 * 4] = cuda_on_cpu::checked_factor(a[i], where);
  }
  for (int i = 0; i < 2; ++i) {
    factors.b[(t + i * 4) * 8 + g] = cuda_on_cpu::checked_factor(b[i], where);
  }
  wait();
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    float sum = 0;
    for (int k = 0; k < 8; ++k) sum += factors.a[row * 8 + k] * factors.b[k * 8 + column];
    c[i] += sum;
  }
  wait();
}

// To the nearest, ties away from zero, 10-bit mantissa.
inline unsigned to_tf32(float x) {
  const unsigned bits = __float_as_uint(x);
  return std::isfinite(x) ? (bits + 0x1000u) & ~0x1fffu : bits;
}

}  // namespace asng::cuda
