// Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011). A block of four 32-bit words is a pure function of a key and a counter,
// so a draw needs no generator that has to be stored, shared or advanced.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/hd.h"

namespace asng {

struct PhiloxBlock {
  std::uint32_t word[4];
};

ASNG_HD inline PhiloxBlock philox(std::uint64_t key, PhiloxBlock counter) {
  std::uint32_t key0 = static_cast<std::uint32_t>(key);
  std::uint32_t key1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * counter.word[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{static_cast<std::uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<std::uint32_t>(product1),
                static_cast<std::uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<std::uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// What a block of random numbers is for. Keeps the streams of one sample apart: the upper four bits
// of the counter's first word, whose other bits number the blocks.
enum class Stream : std::uint32_t {
  kCategorical = 0x0,
  kToyKey = 0x1,    // the key of one run of the toy problem
  kToyStart = 0x2,  // where its weights start
  kToyNoise = 0x3,  // the noise of its losses
  kGaussian = 0x8,
};

// The counter of block `block` of row `row` in generation `generation`. One block serves four
// categorical variables of sample `row`, or two Gaussian variables of antithetic pair `row`.
ASNG_HD inline PhiloxBlock draw_counter(Stream stream, std::uint64_t generation, std::uint32_t row,
                                        std::uint32_t block) {
  return {{block | (static_cast<std::uint32_t>(stream) << 28), row,
           static_cast<std::uint32_t>(generation), static_cast<std::uint32_t>(generation >> 32)}};
}

// Uniform on [0, 1) with 32 bits; enough for probabilities, which are never finer than the margin.
ASNG_HD inline double uniform32(std::uint32_t bits) { return bits * 0x1p-32; }

// Two independent standard normal numbers from one block (Box-Muller with 53-bit uniforms).
ASNG_HD inline void standard_normal_pair(const PhiloxBlock& block, double& first, double& second) {
  const std::uint64_t high = (std::uint64_t{block.word[0]} << 32) | block.word[1];
  const std::uint64_t low = (std::uint64_t{block.word[2]} << 32) | block.word[3];
  const double radius_uniform = static_cast<double>((high >> 11) + 1) * 0x1p-53;  // (0, 1]
  const double angle = static_cast<double>(low >> 11) * (0x1p-53 * 6.283185307179586);
  const double radius = std::sqrt(-2.0 * std::log(radius_uniform));
  first = radius * std::cos(angle);
  second = radius * std::sin(angle);
}

}  // namespace asng
