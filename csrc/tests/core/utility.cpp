#include "core/utility.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace {

std::vector<double> utilities(const std::vector<double>& losses, bool& any) {
  std::vector<std::int64_t> order(losses.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](auto a, auto b) { return losses[a] < losses[b]; });
  std::vector<double> utility(losses.size());
  any = asng::rank_utilities(losses.data(), order.data(), static_cast<std::int64_t>(losses.size()),
                             utility.data());
  return utility;
}

void expect(const std::vector<double>& losses, const std::vector<double>& expected) {
  bool any = false;
  const std::vector<double> got = utilities(losses, any);
  for (std::size_t k = 0; k < got.size(); ++k) {
    CHECK(std::fabs(got[k] - expected[k]) <= 1e-15);
  }
  CHECK(any == (std::count(expected.begin(), expected.end(), 0.0) !=
                static_cast<std::ptrdiff_t>(expected.size())));
}

}  // namespace

TEST_CASE("utilities reward the best quarter and punish the worst") {
  const double inf = std::numeric_limits<double>::infinity();
  expect({2, 1}, {-1, 1});
  expect({3, 1, 2}, {-1, 1, 0});
  expect({5, 4, 3, 2, 1, 0}, {-0.5, -0.5, 0, 0, 0.5, 0.5});
  expect({1, inf}, {1, -1});
  expect({-inf, inf}, {1, -1});
  expect({1}, {0});
  expect({}, {});
}

TEST_CASE("ties share the mean of their places") {
  expect({1, 1}, {0, 0});
  expect({0, 0, 1}, {0.5, 0.5, -1});
  expect({-1, -1, -2}, {-0.5, -0.5, 1});
  expect({1, 2, 2, 2, 2, 3}, {0.5, 0, 0, 0, 0, -0.5});
  expect({1, 1 + 1e-15, 2, 3}, {0.5, 0.5, 0, -1});
}
