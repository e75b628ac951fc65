// What blocks of a cell tell each other, and what they are told.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "kernels/cuda/persistent_plan.h"

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

TEST_CASE("CUDA: addresses of plans are counted from where memory will begin") {
  struct Record {
    float *first, *second;
    int other;
  };
  float planned[4], saved[4], scratch[16], shared[4];
  const auto in_scratch = counted_from<float>(Base::kScratch) + 2;
  Record records[] = {
      {counted_from<float>(Base::kSaved) + 3, nullptr, 7},
      {counted_from<float>(Base::kShared), in_scratch, 8},
      {counted_from(Base::kOfBlock, in_scratch), counted_from<float>(Base::kPlanned) + 1, 9}};
  Bases bases;
  threadIdx = {};
  blockIdx = {3, 0, 0};  // each four values further
  bases.set(planned, saved, scratch, 4 * sizeof(float), shared);
  // Of words of other records before and behind these it is no thread's turn.
  for (int turn = -2; turn < 8; ++turn) CHECK(bases.add_to<2>(records, turn) == turn - 6);
  CHECK(records[0].first == saved + 3);
  CHECK(records[0].second == nullptr);
  CHECK(records[1].first == shared);
  CHECK(records[1].second == scratch + 2);
  CHECK(records[2].first == scratch + 2 + 3 * 4);
  CHECK(records[2].second == planned + 1);
  CHECK(records[0].other + records[1].other + records[2].other == 24);
}

}  // namespace
}  // namespace asng::test
