#include "core/philox.h"

#include <doctest/doctest.h>

#include <cmath>
#include <initializer_list>

using asng::philox;
using asng::PhiloxBlock;

// The known answers of the algorithm's authors (Random123, kat_vectors).
TEST_CASE("Philox gives the published answers") {
  const PhiloxBlock zero = philox(0, {{0, 0, 0, 0}});
  CHECK(zero.word[0] == 0x6627e8d5u);
  CHECK(zero.word[1] == 0xe169c58du);
  CHECK(zero.word[2] == 0xbc57ac4cu);
  CHECK(zero.word[3] == 0x9b00dbd8u);
  const std::uint32_t all = 0xffffffffu;
  const PhiloxBlock ones = philox(0xffffffffffffffffull, {{all, all, all, all}});
  CHECK(ones.word[0] == 0x408f276du);
  CHECK(ones.word[1] == 0x41c83b0eu);
  CHECK(ones.word[2] == 0xa20bc7c6u);
  CHECK(ones.word[3] == 0x6d5451fdu);
  const PhiloxBlock pi =
      philox(0x299f31d0a4093822ull, {{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}});
  CHECK(pi.word[0] == 0xd16cfe09u);
  CHECK(pi.word[1] == 0x94fdccebu);
  CHECK(pi.word[2] == 0x5001e420u);
  CHECK(pi.word[3] == 0x24126ea1u);
}

TEST_CASE("streams and generations have counters of their own") {
  const PhiloxBlock a = asng::draw_counter(asng::Stream::kCategorical, 1ull << 40, 3, 5);
  CHECK(a.word[0] == 5);
  CHECK(a.word[1] == 3);
  CHECK(a.word[2] == 0);
  CHECK(a.word[3] == 256);
  const PhiloxBlock b = asng::draw_counter(asng::Stream::kGaussian, 1ull << 40, 3, 5);
  CHECK(b.word[0] == (5u | 0x80000000u));
}

TEST_CASE("normal numbers have the right moments and no correlation") {
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
  CHECK(std::fabs(sum / (2 * count)) <= 0.01);
  CHECK(std::fabs(square / (2 * count) - 1.0) <= 0.015);
  CHECK(std::fabs(fourth / (2 * count) - 3.0) <= 0.1);
  CHECK(std::fabs(product / count) <= 0.015);
}

TEST_CASE("normal numbers stay finite at the ends of the uniforms") {
  for (std::uint32_t word : {0u, 0xffffffffu}) {
    double a, b;
    asng::standard_normal_pair({{word, word, word, word}}, a, b);
    CHECK(std::isfinite(a));
    CHECK(std::isfinite(b));
  }
}
