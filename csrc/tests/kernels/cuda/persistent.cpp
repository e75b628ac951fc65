// What blocks of a cell tell each other.
#include "kernels/cuda/persistent.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

namespace asng::test {
namespace {

using namespace asng::cuda;

TEST_CASE("CUDA: sums keep their value as words") {
  const auto kept = [](double sum) {
    const unsigned word = to_word(sum);
    CHECK(word % 2 == 1);
    return from_word(word);
  };
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const double sum : {0.0, 1.0, -1.5, 1 + 0x1p-22, 0x1p-149 * 2, 0x1p127}) {
    CHECK(kept(sum) == sum);
  }
  // Ties go to even, and otherwise to the nearest.
  CHECK(kept(1 + 0x1p-23) == 1);
  CHECK(kept(1 + 0x3p-23) == 1 + 0x1p-21);
  CHECK(kept(-1 - 0x3p-23) == -1 - 0x1p-21);
  CHECK(kept(kInfinity) == kInfinity);
  CHECK(kept(-kInfinity) == -kInfinity);
  CHECK(std::isnan(kept(std::nan(""))));
  CHECK(std::isnan(from_word(to_word(-std::nan("")))));
}

}  // namespace
}  // namespace asng::test
