#include <doctest/doctest.h>

#include <cmath>
#include <stdexcept>
#include <vector>

#include "optimizer/toy/batch.h"
#include "optimizer/toy/noise.h"

using asng::host::ToyOutcome;
using asng::host::ToyProblem;
using asng::host::ToyProgress;
using asng::host::ToyRule;
using asng::host::ToyRun;
using asng::host::ToySettings;

namespace {

ToySettings small(ToyRule rule = ToyRule::kAsng) {
  ToySettings settings;
  settings.variables = 5;
  settings.categories = 3;
  settings.noise = 1.0 / 3.0;
  settings.target = 1.0 / 3.0;
  settings.margin = 0.1;
  settings.iteration_limit = 3000;
  settings.rule = rule;
  settings.delta = rule == ToyRule::kAsng ? 1.0 : 0.2;
  return settings;
}

const ToyRule kRules[] = {ToyRule::kAsng, ToyRule::kSng, ToyRule::kNaturalAdam};
const ToyProblem kProblems[] = {ToyProblem::kSelectiveSquaredError, ToyProblem::kOrderedProduct};

bool never_stops(const ToyProgress&) { return true; }

std::vector<ToyOutcome> batch(const ToySettings& settings, std::uint64_t first, std::size_t count,
                              int threads) {
  std::vector<ToyOutcome> outcomes(count);
  CHECK(asng::host::toy_batch(settings, 7, first, outcomes, threads, never_stops, 1000.0));
  return outcomes;
}

bool equal(const ToyOutcome& a, const ToyOutcome& b) {
  return a.iterations == b.iterations && a.succeeded == b.succeeded;
}

}  // namespace

TEST_CASE("normal numbers agree with the library") {
  std::uint32_t words[16];
  double out[16];
  const std::uint32_t ends[] = {0u, 1u, 0x7fffffffu, 0x80000000u, 0xfffffffeu, 0xffffffffu};
  for (std::uint32_t t = 0; t < 20000; ++t) {
    for (std::uint32_t w = 0; w < 16; ++w) {
      words[w] = t < 36 ? ends[w % 2 == 0 ? t / 6 : t % 6] : (16 * t + w) * 2654435769u;
    }
    asng::host::sixteen_normals<2>(words, out);
    for (int p = 0; p < 8; ++p) {
      const double radius = std::sqrt(-2.0 * std::log((words[2 * p] + 0.5) * 0x1p-32));
      const double angle = words[2 * p + 1] * (0x1p-32 * 6.283185307179586);
      CHECK(std::fabs(out[2 * p] - radius * std::cos(angle)) <= 4e-15 * (1.0 + radius));
      CHECK(std::fabs(out[2 * p + 1] - radius * std::sin(angle)) <= 4e-15 * (1.0 + radius));
    }
  }
}

TEST_CASE("noise has the right moments") {
  const std::int64_t count = 300000;
  std::vector<double> numbers(static_cast<std::size_t>(count));
  asng::host::toy_noise(11, 5, count, numbers.data());
  double sum = 0, square = 0, fourth = 0, product = 0;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const double z = numbers[i];
    sum += z;
    square += z * z;
    fourth += z * z * z * z;
    product += z * numbers[(i + 1) % numbers.size()];
  }
  const auto n = static_cast<double>(count);  // tolerances: five standard errors
  CHECK(std::fabs(sum / n) <= 0.0092);
  CHECK(std::fabs(square / n - 1.0) <= 0.013);
  CHECK(std::fabs(fourth / n - 3.0) <= 0.09);
  CHECK(std::fabs(product / n) <= 0.0092);
}

TEST_CASE("every width gives the same bits") {
  for (ToyRule rule : kRules) {
    for (ToyProblem problem : kProblems) {
      for (std::int64_t variables : {1, 5, 8, 21}) {
        ToySettings settings = small(rule);
        settings.problem = problem;
        settings.variables = variables;
        settings.lambda = 2 + variables % 4;
        settings.target = -1.0;
        ToyRun narrow(settings);
        narrow.start(3);
        narrow.advance(200, 2);
        for (int width : asng::host::toy_widths()) {
          ToyRun run(settings);
          run.start(3);
          run.advance(200, width);
          CHECK(run.weights() == narrow.weights());
          CHECK(run.probabilities() == narrow.probabilities());
          CHECK(run.step.Delta == narrow.step.Delta);
        }
      }
    }
  }
}

TEST_CASE("probabilities stay probabilities even with huge steps") {
  for (ToyRule rule : kRules) {
    for (double size : {1e-6, 0.3, 5.0, 1e6}) {
      ToySettings settings = small(rule);
      settings.delta = settings.adam.step_size = size;
      settings.target = -1.0;
      ToyRun run(settings);
      run.start(9);
      for (int t = 0; t < 300; ++t) {
        run.advance(1);
        const std::vector<double> theta = run.probabilities();
        for (std::int64_t i = 0; i < settings.variables; ++i) {
          double total = 0.0;
          for (std::int64_t j = 0; j < settings.categories; ++j) {
            CHECK(theta[i * settings.categories + j] >= settings.margin - 1e-9);
            total += theta[i * settings.categories + j];
          }
          CHECK(std::fabs(total - 1.0) <= 1e-9);
        }
      }
    }
  }
}

TEST_CASE("a run that is started again is the same run") {
  for (ToyRule rule : kRules) {
    ToyRun fresh(small(rule));
    ToyRun used(small(rule));
    fresh.start(4);
    used.start(5);
    used.advance(500);
    used.start(4);
    while (!used.over()) {
      used.advance(7);
    }
    fresh.advance(1 << 30);
    CHECK(fresh.over());
    CHECK(fresh.iteration == used.iteration);
    CHECK(fresh.succeeded == used.succeeded);
    CHECK(fresh.weights() == used.weights());
    CHECK(fresh.probabilities() == used.probabilities());
  }
}

TEST_CASE("a run depends neither on threads nor on other runs") {
  const ToySettings settings = small();
  const std::vector<ToyOutcome> alone = batch(settings, 0, 24, 1);
  for (int threads : {2, 5, 40}) {
    const std::vector<ToyOutcome> together = batch(settings, 0, 24, threads);
    for (std::size_t i = 0; i < alone.size(); ++i) {
      CHECK(equal(together[i], alone[i]));
    }
  }
  const std::vector<ToyOutcome> later = batch(settings, 17, 7, 3);
  for (std::size_t i = 0; i < later.size(); ++i) {
    CHECK(equal(later[i], alone[17 + i]));
  }
  CHECK(batch(settings, 0, 0, 4).empty());
}

TEST_CASE("a batch can be stopped and interrupted") {
  ToySettings settings = small();
  settings.target = -1.0;
  settings.iteration_limit = std::int64_t{1} << 50;
  std::vector<ToyOutcome> outcomes(5);
  int polls = 0;
  const auto stop_at_third = [&](const ToyProgress&) { return ++polls < 3; };
  CHECK(!asng::host::toy_batch(settings, 7, 0, outcomes, 2, stop_at_third, 1000.0));
  CHECK(polls == 3);
  const auto interrupt = [&](const ToyProgress&) -> bool { throw std::runtime_error("stop"); };
  bool thrown = false;
  try {
    asng::host::toy_batch(settings, 7, 0, outcomes, 2, interrupt, 1000.0);
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  CHECK(thrown);
}
