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

// What a lane brings to a product, and to a load.
struct ProductOfLane {
  float (&c)[4];
  const unsigned (&a)[4], (&b)[2];
  const cuda_on_cpu::Location& where;
};
struct LoadOfLane {
  unsigned (&to)[4];
  const char* row;
};

// As mma: lane 4·g + t holds rows g and g + 8 of a, and column g of b, at `wide` neighbors from
// wide·t on and as many behind half of the depth, and rows g and g + 8 of c at columns 2·t and
// 2·t + 1. Factor::value(word, i, where) is a factor's.
template <int kWide, class Factor>
void multiply_together(void* const (&of_lanes)[32]) {
  constexpr int kDepth = 8 * kWide;
  float a[16][kDepth], b[kDepth][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const auto& mine = *static_cast<const ProductOfLane*>(of_lanes[lane]);
    for (int k = 0; k < kWide; ++k) {
      for (int i = 0; i < 4; ++i) {
        const int column = kWide * t + k + i / 2 * kDepth / 2;
        a[g + i % 2 * 8][column] = Factor::value(mine.a[i], k, mine.where);
      }
      for (int i = 0; i < 2; ++i) {
        b[kWide * t + k + i * kDepth / 2][g] = Factor::value(mine.b[i], k, mine.where);
      }
    }
  }
  for (int row = 0; row < 16; ++row) {
    float sums[8] = {};
    for (int k = 0; k < kDepth; ++k) {
      for (int column = 0; column < 8; ++column) sums[column] += a[row][k] * b[k][column];
    }
    for (int column = 0; column < 8; ++column) {
      const int lane = row % 8 * 4 + column / 2;
      const auto& mine = *static_cast<const ProductOfLane*>(of_lanes[lane]);
      mine.c[row / 8 * 2 + column % 2] += sums[column];
    }
  }
}

struct Tf32Factor {
  static float value(unsigned word, int, const cuda_on_cpu::Location& where) {
    return cuda_on_cpu::checked_factor(word, where);
  }
};
struct BFloat16Factor {
  static float value(unsigned word, int i, const cuda_on_cpu::Location&) {
    return __uint_as_float(i == 0 ? word << 16 : word & 0xffff0000u);
  }
};

// Lane 8·matrix + row has the place of that row of a matrix; lane 4·g + t gets row g of each, from
// word t on, or, turned, column g.
template <bool kTurned>
void load_together(void* const (&of_lanes)[32]) {
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const auto row = [&](int i, int at) {
      return static_cast<const LoadOfLane*>(of_lanes[8 * i + at])->row;
    };
    for (int i = 0; i < 4; ++i) {
      unsigned& to = static_cast<const LoadOfLane*>(of_lanes[lane])->to[i];
      if constexpr (kTurned) {
        std::uint16_t pair[2];
        for (int k = 0; k < 2; ++k) std::memcpy(&pair[k], row(i, 2 * t + k) + 2 * g, 2);
        to = pair[0] | static_cast<unsigned>(pair[1]) << 16;
      } else {
        std::memcpy(&to, row(i, g) + 4 * t, 4);
      }
    }
  }
}

template <bool kTurned>
void load(const char* what, unsigned (&to)[4], const void* row,
          const cuda_on_cpu::Location& where) {
  cuda_on_cpu::check_shared(row);
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    throw std::runtime_error("a row of a matrix is not aligned to 16 bytes");
  }
  LoadOfLane mine = {to, static_cast<const char*>(row)};
  cuda_on_cpu::collect(what, &mine, load_together<kTurned>, where);
}

}  // namespace detail

inline void mma_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                     cuda_on_cpu::Location where = cuda_on_cpu::Location::current()) {
  detail::ProductOfLane mine = {c, a, b, where};
  cuda_on_cpu::collect("mma_tf32", &mine, detail::multiply_together<1, detail::Tf32Factor>, where);
}
inline void mma_bfloat16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                         cuda_on_cpu::Location where = cuda_on_cpu::Location::current()) {
  detail::ProductOfLane mine = {c, a, b, where};
  cuda_on_cpu::collect("mma_bfloat16", &mine, detail::multiply_together<2, detail::BFloat16Factor>,
                       where);
}

inline void load_matrices(unsigned (&to)[4], const void* row,
                          cuda_on_cpu::Location where = cuda_on_cpu::Location::current()) {
  detail::load<false>("load_matrices", to, row, where);
}
inline void load_turned_matrices(unsigned (&to)[4], const void* row,
                                 cuda_on_cpu::Location where = cuda_on_cpu::Location::current()) {
  detail::load<true>("load_turned_matrices", to, row, where);
}

// To the nearest, ties away from zero, 10-bit mantissa.
inline unsigned to_tf32(float x) {
  const unsigned bits = __float_as_uint(x);
  return std::isfinite(x) ? (bits + 0x1000u) & ~0x1fffu : bits;
}

}  // namespace asng::cuda
