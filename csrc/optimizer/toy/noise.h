// Normal numbers of the toy problem: four from each block of random bits, by Box and Muller's
// method with logarithm, sine and cosine as polynomials, so that several pairs go through at a
// time and the bits do not depend on a mathematical library. Errors are a few units in the last
// place, tails end at 6.7 standard deviations (32-bit uniforms).
#pragma once

#include <cstdint>

#include "core/philox.h"
#include "platform/lanes.h"

namespace asng::host {

// -2 ln u for u in (0, 1].
template <int Width>
ASNG_INLINE typename Lanes<Width>::Real minus_two_log(typename Lanes<Width>::Real u) {
  using L = Lanes<Width>;
  using Real = typename L::Real;
  using Bits = typename L::Bits;
  // u = 2^exponent m with m in [sqrt(1/2), sqrt(2)): add to the bits what makes the exponent turn
  // over at sqrt(2), split, and put it back.
  const Bits sqrt_half = L::all_bits(0x3fe6a09e00000000ull);
  const Bits bits = (Bits)u + (L::all_bits(0x3ff0000000000000ull) - sqrt_half);
  // An integer below 2^52 becomes a number by giving it the exponent of 2^52.
  const Real exponent =
      (Real)((bits >> 52) | L::all_bits(0x4330000000000000ull)) - (0x1p52 + 1023.0);
  const Real m = (Real)((bits & L::all_bits(0x000fffffffffffffull)) + sqrt_half);
  // ln m = 2 artanh r = 2 r (1 + r^2/3 + r^4/5 + ...), r = (m - 1) / (m + 1), |r| < 0.172
  const Real r = (m - 1.0) / (m + 1.0);
  const Real q = r * r;
  Real series = q * (1.0 / 19.0) + 1.0 / 17.0;
  series = series * q + 1.0 / 15.0;
  series = series * q + 1.0 / 13.0;
  series = series * q + 1.0 / 11.0;
  series = series * q + 1.0 / 9.0;
  series = series * q + 1.0 / 7.0;
  series = series * q + 1.0 / 5.0;
  series = series * q + 1.0 / 3.0;
  const Real log_m = 2.0 * (r + r * q * series);
  return -2.0 * (log_m + exponent * 0.6931471805599453);
}

// sin and cos of 2 pi turn / 2^32, for integers `turn` in [0, 2^32).
template <int Width>
ASNG_INLINE void sine_cosine(typename Lanes<Width>::Real turn, typename Lanes<Width>::Real& sine,
                             typename Lanes<Width>::Real& cosine) {
  using L = Lanes<Width>;
  using Real = typename L::Real;
  using Bits = typename L::Bits;
  // The nearest quarter turn (adding 1.5 2^52 rounds to integers), and the angle from there.
  const Real shifter = L::all(0x1.8p52);
  const Real shifted = turn * 0x1p-30 + shifter;
  const Bits quarter = (Bits)shifted;
  const Real angle = (turn - (shifted - shifter) * 0x1p30) * (0x1p-32 * 6.283185307179586);
  const Real q = angle * angle;  // at most (pi/4)^2
  Real s = q * (1.0 / 1307674368000.0) * -1.0 + 1.0 / 6227020800.0;
  s = s * q - 1.0 / 39916800.0;
  s = s * q + 1.0 / 362880.0;
  s = s * q - 1.0 / 5040.0;
  s = s * q + 1.0 / 120.0;
  s = s * q - 1.0 / 6.0;
  s = angle + angle * q * s;
  Real c = q * (1.0 / 20922789888000.0) - 1.0 / 87178291200.0;
  c = c * q + 1.0 / 479001600.0;
  c = c * q - 1.0 / 3628800.0;
  c = c * q + 1.0 / 40320.0;
  c = c * q - 1.0 / 720.0;
  c = c * q + 1.0 / 24.0;
  c = 1.0 + q * (c * q - 0.5);
  // sin: s, c, -s, -c in the four quarters; cos: c, -s, -c, s.
  const typename L::Mask odd = (typename L::Mask)(quarter & 1) != 0;
  const Bits sine_sign = (quarter & 2) << 62;
  const Bits cosine_sign = ((quarter + 1) & 2) << 62;
  sine = (Real)((Bits)(odd ? c : s) ^ sine_sign);
  cosine = (Real)((Bits)(odd ? s : c) ^ cosine_sign);
}

// `words` of blocks [0, blocks) of a row.
ASNG_INLINE void fill_words(std::uint64_t key, Stream stream, std::uint64_t generation,
                            std::uint32_t row, std::int64_t blocks, std::uint32_t* words) {
  for (std::int64_t b = 0; b < blocks; ++b) {
    const PhiloxBlock block =
        philox(key, draw_counter(stream, generation, row, static_cast<std::uint32_t>(b)));
    for (int w = 0; w < 4; ++w) {
      words[4 * b + w] = block.word[w];
    }
  }
}

// Sixteen words to sixteen normal numbers; words 2p and 2p + 1 make numbers 2p and 2p + 1.
template <int Width>
ASNG_INLINE void sixteen_normals(const std::uint32_t* words, double* out) {
  using L = Lanes<Width>;
  std::uint32_t even[kLanes];
  std::uint32_t odd[kLanes];
  for (std::int64_t p = 0; p < kLanes; ++p) {
    even[p] = words[2 * p];
    odd[p] = words[2 * p + 1];
  }
  double first[kLanes];
  double second[kLanes];
  for (std::int64_t p = 0; p < kLanes; p += Width) {
    const typename L::Real radius =
        L::square_root(minus_two_log<Width>((L::from_words(even + p) + 0.5) * 0x1p-32));
    typename L::Real sine;
    typename L::Real cosine;
    sine_cosine<Width>(L::from_words(odd + p), sine, cosine);
    L::store(first + p, radius * cosine);
    L::store(second + p, radius * sine);
  }
  for (std::int64_t p = 0; p < kLanes; ++p) {
    out[2 * p] = first[p];
    out[2 * p + 1] = second[p];
  }
}

}  // namespace asng::host
