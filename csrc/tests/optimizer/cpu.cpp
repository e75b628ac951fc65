#include "optimizer/cpu.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "optimizer/compat.h"

using asng::host::Asng;
using asng::host::CompatUpdate;
using asng::host::Layout;
using asng::host::NaturalAdam;
using asng::host::Optimizer;
using asng::host::Sng;

namespace {

const double kInfinity = std::numeric_limits<double>::infinity();

Layout layout_of(const std::vector<std::int64_t>& sizes, std::int64_t n_gaussian) {
  const auto m = static_cast<std::size_t>(n_gaussian);
  return Layout(sizes, 0, std::vector<double>(m, -4.0), std::vector<double>(m, 12.0),
                std::vector<double>(m, 0.25));
}

Asng make(const std::vector<std::int64_t>& sizes, std::int64_t n_gaussian, std::int64_t lambda) {
  return Asng(layout_of(sizes, n_gaussian), std::vector<double>(sizes.size(), 0.01), lambda, 42,
              1.5, 1.0, kInfinity);
}

struct Draw {
  std::vector<std::int64_t> categorical;
  std::vector<double> gaussian;
};

Draw ask(Optimizer& optimizer) {
  const Layout& layout = optimizer.layout();
  Draw draw{
      std::vector<std::int64_t>(
          static_cast<std::size_t>(optimizer.lambda() * layout.n_categorical())),
      std::vector<double>(static_cast<std::size_t>(optimizer.lambda() * layout.n_gaussian()))};
  optimizer.ask(draw.categorical.data(), draw.gaussian.data());
  return draw;
}

}  // namespace

TEST_CASE("draws are in range and antithetic for every lambda") {
  const std::vector<std::int64_t> sizes{2, 1, 7, 3, 5};
  for (std::int64_t lambda = 2; lambda <= 9; ++lambda) {
    for (std::int64_t n_gaussian : {0, 1, 2, 5}) {
      Asng optimizer = make(sizes, n_gaussian, lambda);
      const Draw draw = ask(optimizer);
      for (std::size_t k = 0; k < draw.categorical.size(); ++k) {
        CHECK(draw.categorical[k] >= 0);
        CHECK(draw.categorical[k] < sizes[k % sizes.size()]);
      }
      for (std::int64_t k = 0; k + 1 < lambda; k += 2) {
        for (std::int64_t j = 0; j < n_gaussian; ++j) {
          CHECK(std::fabs(draw.gaussian[k * n_gaussian + j] +
                          draw.gaussian[(k + 1) * n_gaussian + j] - 8.0) <= 1e-12);
        }
      }
    }
  }
}

TEST_CASE("bad input is refused before anything changes") {
  Asng optimizer = make({4, 3}, 0, 2);
  const std::vector<double> before = optimizer.state().theta;
  const std::int64_t good[] = {0, 1, 2, 0};
  const std::int64_t bad[] = {0, 1, 2, 3};
  const std::int64_t negative[] = {0, 1, -1, 0};
  const double losses[] = {1.0, 2.0};
  const double infinitely_good[] = {1.0, -kInfinity};
  int refused = 0;
  for (const asng::host::Population& population : {asng::host::Population{2, bad, nullptr, losses},
                                                   {2, negative, nullptr, losses},
                                                   {2, good, nullptr, infinitely_good}}) {
    try {
      optimizer.tell(population);
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  CHECK(refused == 3);
  CHECK(optimizer.state().theta == before);
  CHECK(optimizer.state().generation == 0);
}

TEST_CASE("losses without information change nothing") {
  Asng optimizer = make({4, 3}, 2, 2);
  const Draw draw = ask(optimizer);
  const std::vector<double> theta = optimizer.state().theta;
  for (const std::vector<double>& losses :
       {std::vector<double>{1, 1}, {NAN, NAN}, {kInfinity, NAN}, {-3, -3}}) {
    CHECK(!optimizer.tell({2, draw.categorical.data(), draw.gaussian.data(), losses.data()}));
  }
  const Draw twins{{1, 1, 1, 1}, {2.0, 3.0, 2.0, 3.0}};
  const double losses[] = {1.0, 2.0};
  CHECK(!optimizer.tell({2, twins.categorical.data(), twins.gaussian.data(), losses}));
  CHECK(optimizer.state().theta == theta);
  CHECK(optimizer.step.gamma == 0.0);
}

TEST_CASE("padded and packed parameters give the same update") {
  const std::vector<std::int64_t> sizes{2, 4, 3};
  Asng packed = make(sizes, 0, 2);
  CompatUpdate padded(Layout(sizes, 4, {}, {}, {}), {0.01, 0.01, 0.01}, 1.5, 1.0, kInfinity);
  std::vector<double> theta{0.5, 0.5, 0, 0, 0.25, 0.25, 0.25, 0.25, 1 / 3., 1 / 3., 1 / 3., 0};
  std::vector<double> s(6);
  asng::StepSize step;
  for (int t = 0; t < 50; ++t) {
    const Draw draw = ask(packed);
    const double losses[] = {std::sin(t), std::cos(3 * t)};
    const asng::host::Population population{2, draw.categorical.data(), nullptr, losses};
    packed.tell(population);
    step =
        padded.adapt({theta.data(), nullptr, nullptr}, s.data(), step, population, true, 0.0, false)
            .step;
  }
  CHECK(s == packed.s);
  CHECK(step.Delta == packed.step.Delta);
  for (int j = 0; j < 4; ++j) {
    CHECK(theta[4 + j] == packed.state().theta[2 + j]);
  }
}

TEST_CASE("padded and packed parameters give the same baselines") {
  const std::vector<std::int64_t> sizes{2, 4, 3};
  const std::vector<double> margin{0.01, 0.01, 0.01};
  const asng::AdamSettings adam{0.05, 0.9, 0.999};
  Sng sng(layout_of(sizes, 0), margin, 2, 42, 0.3);
  NaturalAdam natural_adam(layout_of(sizes, 0), margin, 2, 42, adam);
  const std::vector<double> start{0.5,  0.5,  0,      0,      0.25,   0.25,
                                  0.25, 0.25, 1 / 3., 1 / 3., 1 / 3., 0};
  std::vector<double> theta = start, theta_adam = start, first(12), second(12);
  CompatUpdate padded(Layout(sizes, 4, {}, {}, {}), margin);
  for (int t = 0; t < 50; ++t) {
    const double losses[] = {std::sin(t), std::cos(3 * t)};
    Draw draw = ask(sng);
    asng::host::Population population{2, draw.categorical.data(), nullptr, losses};
    sng.tell(population);
    padded.step({theta.data(), nullptr, nullptr}, 0.3, population, true, 0.0);
    draw = ask(natural_adam);
    population.categorical = draw.categorical.data();
    const std::uint64_t next = natural_adam.updates + 1;
    const bool moved = natural_adam.tell(population);
    CHECK(moved == padded.step_adam({theta_adam.data(), nullptr, nullptr}, first.data(),
                                    second.data(), adam, next, population, true));
  }
  for (int j = 0; j < 4; ++j) {
    CHECK(theta[4 + j] == sng.state().theta[2 + j]);
    CHECK(theta_adam[4 + j] == natural_adam.state().theta[2 + j]);
    CHECK(second[4 + j] == natural_adam.second_moment[2 + j]);
  }
}

TEST_CASE("huge steps leave a distribution") {
  for (double size : {1e-9, 1.0, 1e9}) {
    Sng sng(layout_of({4, 1, 3}, 2), {0.01, 0.0, 0.01}, 4, 1, size);
    NaturalAdam adam(layout_of({4, 1, 3}, 2), {0.01, 0.0, 0.01}, 4, 1, {size, 0.9, 0.999});
    for (Optimizer* optimizer : {static_cast<Optimizer*>(&sng), static_cast<Optimizer*>(&adam)}) {
      for (int t = 0; t < 200; ++t) {
        const Draw draw = ask(*optimizer);
        const double losses[] = {std::sin(t), std::cos(3 * t), 0.1, std::sin(2 * t)};
        optimizer->tell({4, draw.categorical.data(), draw.gaussian.data(), losses});
        const Optimizer::State& state = optimizer->state();
        CHECK(std::fabs(state.theta[0] + state.theta[1] + state.theta[2] + state.theta[3] - 1.0) <=
              1e-9);
        CHECK(std::fabs(state.theta[4] - 1.0) <= 0.0);
        for (double theta : state.theta) {
          CHECK(theta >= 0.01 - 1e-9);
        }
        for (int j = 0; j < 2; ++j) {
          CHECK(state.mean[j] >= -4.0);
          CHECK(state.mean[j] <= 12.0);
          CHECK(state.variance[j] >= 0.0625);
          CHECK(state.variance[j] <= 64.0);
        }
      }
    }
  }
}

TEST_CASE("one hot samples are read whatever their type") {
  CompatUpdate update(Layout(std::vector<std::int64_t>{2, 3}, 3, {}, {}, {}), {0.1, 0.1}, 1.5, 1.0,
                      kInfinity);
  const float floats[] = {0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0};
  const std::int64_t* categories = update.categories(floats, 2);
  CHECK(categories[0] == 1);
  CHECK(categories[1] == 2);
  CHECK(categories[2] == 0);
  CHECK(categories[3] == 1);
  const bool nothing[] = {false, false, false, false, false, false};
  categories = update.categories(nothing, 1);
  CHECK(categories[0] == 1);
  CHECK(categories[1] == 2);  // a row without a one: its last category
}
