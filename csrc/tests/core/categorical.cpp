#include "core/categorical.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

namespace {

// g' F g with F = diag(1/theta) + 11'/theta_K over the first K - 1 components.
double fisher_norm(const std::vector<double>& theta, const std::vector<double>& g) {
  double sum = 0, total = 0;
  for (std::size_t j = 0; j + 1 < theta.size(); ++j) {
    total += g[j] * g[j] / theta[j];
    sum += g[j];
  }
  return total + sum * sum / theta.back();
}

}  // namespace

TEST_CASE("categories follow the cumulative distribution") {
  const double theta[] = {0.25, 0.5, 0.25};
  CHECK(asng::sample_category(theta, 3, 0.0) == 0);
  CHECK(asng::sample_category(theta, 3, 0.2499) == 0);
  CHECK(asng::sample_category(theta, 3, 0.25) == 1);
  CHECK(asng::sample_category(theta, 3, 0.7499) == 1);
  CHECK(asng::sample_category(theta, 3, 0.75) == 2);
  CHECK(asng::sample_category(theta, 3, 1.0) == 2);  // rounding gaps belong to the last
  CHECK(asng::sample_category(theta, 1, 0.9) == 0);
}

TEST_CASE("the Fisher root of a categorical variable has the Fisher norm") {
  const std::vector<double> theta{0.1, 0.2, 0.3, 0.4};
  for (const std::vector<double>& g :
       {std::vector<double>{0.5, 0, 0, -0.5}, {0.25, -0.5, 0.25, 0}, {0.1, 0.2, -0.1, -0.2}}) {
    double root[3];
    const double norm = asng::categorical_fisher_root(theta.data(), g.data(), 4, root);
    CHECK(std::fabs(norm - fisher_norm(theta, g)) <= 1e-12);
    CHECK(std::fabs(norm - (root[0] * root[0] + root[1] * root[1] + root[2] * root[2])) <= 1e-12);
  }
}

TEST_CASE("the Fisher root preserves the Fisher inner product") {
  const std::vector<double> theta{0.15, 0.6, 0.25};
  const std::vector<double> a{0.3, -0.1, -0.2}, b{-0.4, 0.1, 0.3}, sum{-0.1, 0.0, 0.1};
  double root_a[2], root_b[2];
  asng::categorical_fisher_root(theta.data(), a.data(), 3, root_a);
  asng::categorical_fisher_root(theta.data(), b.data(), 3, root_b);
  const double inner =
      (fisher_norm(theta, sum) - fisher_norm(theta, a) - fisher_norm(theta, b)) / 2;
  CHECK(std::fabs(root_a[0] * root_b[0] + root_a[1] * root_b[1] - inner) <= 1e-12);
}

TEST_CASE("categories of probability zero keep numbers finite") {
  const double theta[] = {0.0, 1.0, 0.0};
  double root[2];
  for (const std::vector<double>& g : {std::vector<double>{0, 0.5, -0.5}, {-0.5, 0.5, 0}}) {
    CHECK(std::isfinite(asng::categorical_fisher_root(theta, g.data(), 3, root)));
  }
}

TEST_CASE("projection gives a distribution above the margin") {
  for (double margin : {0.0, 0.01, 0.2, 0.2499999}) {
    for (std::vector<double> theta :
         {std::vector<double>{0.25, 0.25, 0.25, 0.25}, {5, -3, -0.5, -0.5}, {1, 0, 0, 0}}) {
      asng::project_categorical(theta.data(), 4, margin);
      double sum = 0;
      for (double p : theta) {
        CHECK(p >= margin - 1e-9);
        sum += p;
      }
      CHECK(std::fabs(sum - 1.0) <= 1e-12);
    }
  }
}

TEST_CASE("without room above the margin probabilities become equal") {
  for (double margin : {0.0, 0.01, 0.2}) {
    double theta[] = {-3.0, -1.0, -2.0, margin};
    asng::project_categorical(theta, 4, margin);
    for (double p : theta) {
      CHECK(std::fabs(p - 0.25) <= 1e-15);
    }
  }
}

TEST_CASE("a hair of room is shared out") {
  double theta[] = {0.01, 0.01, 0.01 + 1e-17, 0.010000000000000002};
  asng::project_categorical(theta, 4, 0.01);
  CHECK(std::fabs(theta[0] + theta[1] + theta[2] + theta[3] - 1.0) <= 1e-12);
  for (double p : theta) {
    CHECK(p >= 0.01 - 1e-12);
  }
}
