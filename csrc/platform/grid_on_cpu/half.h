// Half precision, as in cuda_fp16.h, for kernels that were compiled as C++.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "platform/grid_on_cpu/grid.h"

struct __half {
  std::uint16_t bits;
};

inline float __half2float(__half x) { return static_cast<float>(std::bit_cast<_Float16>(x.bits)); }

// To the nearest, ties to even.
inline __half __float2half(float x) {
  if (std::isnan(x)) return {0x7fff};
  return {std::bit_cast<std::uint16_t>(static_cast<_Float16>(x))};
}
