#include <cmath>

#include "core/philox.h"
#include "tests/check.h"

using asng::philox;
using asng::PhiloxBlock;

// The known answers of the algorithm's authors (Random123, kat_vectors).
TEST(philox_gives_the_published_answers) {
  const PhiloxBlock zero = philox(0, {{0, 0, 0, 0}});
  CHECK(zero.word[0] == 0x6627e8d5u && zero.word[1] == 0xe169c58du && zero.word[2] == 0xbc57ac4cu &&
        zero.word[3] == 0x9b00dbd8u);
  const std::uint32_t all = 0xffffffffu;
  const PhiloxBlock ones = philox(0xffffffffffffffffull, {{all, all, all, all}});
  CHECK(ones.word[0] == 0x408f276du && ones.word[1] == 0x41c83b0eu && ones.word[2] == 0xa20bc7c6u &&
        ones.word[3] == 0x6d5451fdu);
  const PhiloxBlock pi =
      philox(0x299f31d0a4093822ull, {{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}});
  CHECK(pi.word[0] == 0xd16cfe09u && pi.word[1] == 0x94fdccebu && pi.word[2] == 0x5001e420u &&
        pi.word[3] == 0x24126ea1u);
}

TEST(streams_and_generations_have_counters_of_their_own) {
  const PhiloxBlock a = asng::draw_counter(asng::Stream::kCategorical, 1ull << 40, 3, 5);
  CHECK(a.word[0] == 5 && a.word[1] == 3 && a.word[2] == 0 && a.word[3] == 256);
  const PhiloxBlock b = asng::draw_counter(asng::Stream::kGaussian, 1ull << 40, 3, 5);
  CHECK(b.word[0] == (5u | 0x80000000u));
}

TEST(normal_numbers_have_the_right_moments_and_no_correlation) {
  double sum = 0, square = 0, product = 0, fourth = 0;
  const int count = 200000;
  for (int i = 0; i < count; ++i) {
    double a, b;
    asng::standard_normal_pair(
        philox(7, asng::draw_counter(asng::Stream::kGaussian, 0, 0, static_cast<unsigned>(i))), a,
        b);
    sum += a + b;
    square += a * a + b * b;
    fourth += a * a * a * a + b * b * b * b;
    product += a * b;
  }
  CHECK_NEAR(sum / (2 * count), 0.0, 0.01);
  CHECK_NEAR(square / (2 * count), 1.0, 0.015);
  CHECK_NEAR(fourth / (2 * count), 3.0, 0.1);
  CHECK_NEAR(product / count, 0.0, 0.015);
}

TEST(normal_numbers_stay_finite_at_the_ends_of_the_uniforms) {
  for (std::uint32_t word : {0u, 0xffffffffu}) {
    double a, b;
    asng::standard_normal_pair({{word, word, word, word}}, a, b);
    CHECK(std::isfinite(a) && std::isfinite(b));
  }
}
