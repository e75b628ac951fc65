// Half precision, as in cuda_fp16.h, for kernels that were compiled as C++.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "platform/grid_on_cpu/grid.h"

struct __half {
  std::uint16_t bits;
};

inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  float size = 0.0f;
  if (exponent == 31) {
    size = fraction == 0 ? std::numeric_limits<float>::infinity()
                         : std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == 0) {
    size = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    size = std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  }
  return (x.bits & 0x8000) != 0 ? -size : size;
}

// To the nearest, ties to even.
inline __half __float2half(float x) {
  const unsigned int sign = __float_as_uint(x) >> 16 & 0x8000u;
  const float size = std::fabs(x);
  unsigned int bits = 0x7c00;  // infinity, also for what is rounded to 65536
  if (std::isnan(x)) {
    return {0x7fff};
  } else if (size < 0x1p-14f) {
    bits = static_cast<unsigned int>(std::nearbyint(size * 0x1p24f));
  } else if (size < 65520.0f) {
    const unsigned int wide = __float_as_uint(size);
    bits = ((wide + 0xfffu + (wide >> 13 & 1u)) >> 13) - (112u << 10);
  }
  return {static_cast<std::uint16_t>(sign | bits)};
}
