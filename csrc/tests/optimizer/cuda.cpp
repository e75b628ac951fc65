// The optimizer for CUDA, on a grid that runs on the CPU, against csrc/optimizer/cpu.h: the same
// architectures from the same seed, and states that agree.
#include "optimizer/cuda.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "core/philox.h"
#include "optimizer/cpu.h"
#include "platform/grid_on_cpu/grid.h"
#include "tests/platform/sanitized.h"

namespace {

using namespace asng;
using namespace asng::cuda;
using asng::cuda_on_cpu::Backward;
using asng::host::Asng;
using asng::host::Layout;
using asng::host::Population;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Space {
  std::vector<std::int64_t> sizes;
  std::int64_t gaussian = 0;
  double variance_ratio_min = 0.0;

  Layout layout() const {
    std::vector<double> low(gaussian), high(gaussian), std_min(gaussian, 0.25);
    for (std::int64_t j = 0; j < gaussian; ++j) {
      low[j] = -1.0 - static_cast<double>(j);
      high[j] = 7.0 + 3.0 * static_cast<double>(j % 5);
    }
    Layout layout(sizes, 0, low, high, std_min);
    layout.variance_ratio_min = variance_ratio_min;
    return layout;
  }
  std::vector<double> margin() const {
    std::vector<double> margin;
    const double n = static_cast<double>(std::max<std::size_t>(sizes.size(), 3));
    for (std::int64_t size : sizes) {
      margin.push_back(size > 1 ? 1.0 / (n * static_cast<double>(size - 1)) : 0.0);
    }
    return margin;
  }
};

std::vector<std::int64_t> repeated(std::int64_t count, std::int64_t size) {
  return std::vector<std::int64_t>(static_cast<std::size_t>(count), size);
}

// P optimizers on the host, and the same P on the grid.
struct Pair {
  std::int64_t instances, lambda;
  std::int64_t largest = 0;  // number of categories; 0 does not tell the grid
  std::deque<Asng> host;     // which stay where they are
  std::vector<std::int64_t> counters, offsets{0}, categorical;
  std::vector<double> theta, mean, variance, s, step, margin, bounds, gaussian;
  std::vector<std::int64_t> best_categorical;
  std::vector<double> best_loss, best_gaussian;
  asng::StepSizeSettings settings{};

  Pair(const Space& space, std::int64_t instances, std::int64_t lambda, double delta_init = 1.0,
       double Delta_max = kInfinity)
      : instances(instances), lambda(lambda), margin(space.margin()) {
    const Layout layout = space.layout();
    for (std::int64_t p = 0; p < instances; ++p) {
      host.emplace_back(layout, margin, lambda, 1000 + 77 * static_cast<std::uint64_t>(p), 1.5,
                        delta_init, Delta_max);
      Asng& one = host.back();
      const std::int64_t row[kCounters] = {static_cast<std::int64_t>(one.state().seed)};
      best_loss.push_back(kInfinity);
      counters.insert(counters.end(), row, row + kCounters);
      append(theta, one.state().theta);
      append(mean, one.state().mean);
      append(variance, one.state().variance);
      append(s, one.s);
      append(step, {one.step.gamma, one.step.Delta});
    }
    settings = host[0].settings();
    best_categorical.assign(static_cast<std::size_t>(instances * layout.n_categorical()), -1);
    best_gaussian.assign(static_cast<std::size_t>(instances * layout.n_gaussian()), kNan);
    for (std::int64_t size : layout.sizes) {
      offsets.push_back(offsets.back() + size);
      largest = std::max(largest, size);
    }
    for (const std::vector<double>* row :
         {&layout.low, &layout.high, &layout.std_min, &layout.std_max}) {
      append(bounds, *row);
    }
  }

  static void append(std::vector<double>& to, const std::vector<double>& values) {
    to.insert(to.end(), values.begin(), values.end());
  }

  OptimizerShape shape() const {
    const Layout& layout = host[0].layout();
    return {instances,         lambda, layout.n_categorical(), layout.n_gaussian(),
            layout.theta_size, largest};
  }
  OptimizerState state() {
    const OptimizerShape shape = this->shape();
    return {{counters.data(), kCounters},
            {theta.data(), shape.theta_size},
            {mean.data(), shape.gaussian},
            {variance.data(), shape.gaussian},
            {s.data(), shape.n_theta()},
            {step.data(), 2},
            {best_loss.data(), 1},
            {best_categorical.data(), shape.categorical},
            {best_gaussian.data(), shape.gaussian}};
  }

  // Draws on both; returns whether they drew the same.
  bool ask() {
    const OptimizerShape shape = this->shape();
    const auto draws = static_cast<std::size_t>(instances * lambda);
    categorical.assign(draws * shape.categorical, -1);
    gaussian.assign(draws * shape.gaussian, kNan);
    asng::cuda::ask(shape, state(), offsets.data(), categorical.data(), gaussian.data(), nullptr);
    std::vector<std::int64_t> categories(categorical.size());
    std::vector<double> numbers(gaussian.size());
    for (std::int64_t p = 0; p < instances; ++p) {
      host[p].ask(categories.data() + p * lambda * shape.categorical,
                  numbers.data() + p * lambda * shape.gaussian);
    }
    bool near = categories == categorical;
    for (std::size_t k = 0; k < numbers.size(); ++k) {
      near = near && std::fabs(numbers[k] - gaussian[k]) <= 1e-9;
    }
    return near;
  }

  // Updates both by losses (P, lambda); returns whether they agree on what moved.
  bool tell(const std::vector<double>& losses, bool maximize = false) {
    const OptimizerShape shape = this->shape();
    const std::int64_t blocks = tell_blocks(shape);
    const std::int64_t per_instance = Workspace::size_for(shape, blocks);
    std::vector<double> memory(static_cast<std::size_t>(instances * per_instance), kNan);
    const auto moved = std::make_unique<bool[]>(static_cast<std::size_t>(instances));
    asng::cuda::tell(
        shape, state(),
        {categorical.data(), gaussian.data(), losses.data(), maximize, offsets.data(),
         margin.data(), bounds.data(), host[0].layout().variance_ratio_min, moved.get()},
        settings, {memory.data(), per_instance}, blocks, nullptr);
    bool same = true;
    for (std::int64_t p = 0; p < instances; ++p) {
      std::vector<double> row(losses.begin() + p * lambda, losses.begin() + (p + 1) * lambda);
      for (double& loss : row) loss = maximize ? -loss : loss;
      // An infinitely good loss is an error on the host, and the worst on the device.
      for (double& loss : row) loss = loss == -kInfinity ? kInfinity : loss;
      const bool host_moved =
          host[p].tell({lambda, categorical.data() + p * lambda * shape.categorical,
                        gaussian.data() + p * lambda * shape.gaussian, row.data()});
      same = same && host_moved == moved[p];
    }
    return same;
  }

  // The largest difference of any number of the state, relative to its size if that is above 1.
  double difference() {
    double most = 0.0;
    const auto compare = [&](const std::vector<double>& mine, const double* theirs,
                             std::int64_t p) {
      const auto count = static_cast<std::int64_t>(mine.size());
      for (std::int64_t k = 0; k < count; ++k) {
        const double distance = std::fabs(mine[k] - theirs[p * count + k]);
        const double relative = distance / std::fmax(1.0, std::fabs(mine[k]));
        most = std::isnan(relative) ? kInfinity : std::fmax(most, relative);
      }
    };
    for (std::int64_t p = 0; p < instances; ++p) {
      compare(host[p].state().theta, theta.data(), p);
      compare(host[p].state().mean, mean.data(), p);
      compare(host[p].state().variance, variance.data(), p);
      compare(host[p].s, s.data(), p);
      compare({host[p].step.gamma, host[p].step.Delta}, step.data(), p);
      const std::int64_t* row = counters.data() + p * kCounters;
      const bool counted =
          row[kAsked] == static_cast<std::int64_t>(host[p].state().asked) &&
          row[kGeneration] == static_cast<std::int64_t>(host[p].state().generation) &&
          row[kEvaluations] == static_cast<std::int64_t>(host[p].state().evaluations) &&
          row[kMoved] == static_cast<std::int64_t>(host[p].state().moved);
      const asng::host::Best& best = host[p].state().best;
      const bool same_best =
          row[kBest] == static_cast<std::int64_t>(best.generation) && best_loss[p] == best.loss &&
          std::equal(best.categorical.begin(), best.categorical.end(),
                     best_categorical.begin() + p * host[p].layout().n_categorical()) &&
          std::equal(best.gaussian.begin(), best.gaussian.end(),
                     best_gaussian.begin() + p * host[p].layout().n_gaussian());
      const bool at_rest = row[kTicket] == 0 && row[kArrivals] == 0;
      most = counted && at_rest && same_best ? most : kInfinity;
    }
    return most;
  }
};

// A loss that depends on the sample, with ties, NaN and infinities now and then.
std::vector<double> losses_of(const Pair& pair, std::uint64_t generation) {
  const OptimizerShape shape = pair.shape();
  std::vector<double> losses;
  for (std::int64_t k = 0; k < shape.instances * shape.population; ++k) {
    double loss = 0.0;
    for (std::int64_t i = 0; i < shape.categorical; ++i) {
      loss += pair.categorical[k * shape.categorical + i] == i % 2 ? 0.0 : 1.0;
    }
    for (std::int64_t j = 0; j < shape.gaussian; ++j) {
      const double x = pair.gaussian[k * shape.gaussian + j] - 3.0;
      loss += 0.1 * x * x;
    }
    const asng::PhiloxBlock bits = asng::philox(
        5,
        asng::draw_counter(asng::Stream::kToyNoise, generation, static_cast<std::uint32_t>(k), 0));
    switch (bits.word[0] % 16) {
      case 0:
        loss = kNan;
        break;
      case 1:
        loss = kInfinity;
        break;
      case 2:
      case 3:
        loss = 2.0;
        break;
      default:
        break;
    }
    losses.push_back(loss);
  }
  return losses;
}

// Runs both for some generations; ends with the first in which they part.
void check_agreement(const Space& space, std::int64_t instances, std::int64_t lambda,
                     int generations, double delta_init = 1.0, double Delta_max = kInfinity,
                     bool tells_largest = true) {
  Pair pair(space, instances, lambda, delta_init, Delta_max);
  if (!tells_largest) pair.largest = 0;
  for (int g = 0; g < (kSanitized ? std::min(generations, 10) : generations); ++g) {
    INFO("generation ", g, ", ", instances, " instances, lambda ", lambda);
    REQUIRE(pair.ask());
    REQUIRE(pair.tell(losses_of(pair, static_cast<std::uint64_t>(g)), g % 7 == 3));
    REQUIRE(pair.difference() <= 1e-9);
  }
}

}  // namespace

TEST_CASE("CUDA: optimizer agrees on categorical spaces") {
  for (std::int64_t lambda : {2, 3, 4, 7, 8, 9, 16, 64, 150}) {
    check_agreement({repeated(30, 5)}, 1, lambda, lambda < 16 ? 300 : 60);
  }
  for (std::int64_t lambda : {2, 5}) {
    check_agreement({repeated(30, 5)}, 1, lambda, 100, 1.0, kInfinity, false);
    check_agreement({repeated(64, 8)}, 1, lambda, 100);  // no warp without variables
    check_agreement({{2, 7, 1, 3, 8, 2, 2}}, 3, lambda, 300);
  }
  check_agreement({{2, 7, 1, 3, 12, 2, 2}}, 3, 2, 400);
  check_agreement({{1, 1, 40}}, 2, 5, 200);
}

TEST_CASE("CUDA: optimizer agrees on one variable") {
  check_agreement({{2}}, 5, 2, 300);
  check_agreement({{9}}, 2, 4, 300);
  check_agreement({{}, 1}, 4, 2, 300);
  check_agreement({{}, 1}, 1, 9, 300);
}

TEST_CASE("CUDA: optimizer agrees on mixed spaces") {
  check_agreement({repeated(14, 3), 6}, 1, 2, 400);
  check_agreement({{4, 2, 6, 3, 5}, 3}, 5, 6, 300);
  check_agreement({{5, 5}, 40}, 2, 33, 100);
  check_agreement({{4, 2, 6, 3, 5}, 3, 0.5}, 5, 6, 300);
}

TEST_CASE("CUDA: optimizer agrees for other step sizes") {
  check_agreement({repeated(10, 4), 2}, 2, 2, 300, 0.1);
  check_agreement({repeated(10, 4), 2}, 1, 4, 300, 100.0);
  check_agreement({repeated(10, 4)}, 1, 2, 300, 1.0, 1.5);
}

TEST_CASE("CUDA: optimizer agrees where an instance has many blocks") {
  check_agreement({repeated(1500, 3), 20}, 1, 2, 20);
  check_agreement({repeated(1400, 4)}, 2, 6, 10);
  check_agreement({repeated(1100, 2)}, 5, 2, 10);  // no more than one block each fits
  const OptimizerShape large{2, 2, 1400, 0, 5600};
  CHECK(tell_blocks(large) == 3);
  const Backward backward;
  check_agreement({repeated(1500, 3), 20}, 1, 2, 10);
}

TEST_CASE("CUDA: optimizer agrees where variables in lanes fill several blocks") {
  const OptimizerShape some{1, 16, 150, 20, 750}, more{1, 5, 200, 40, 1000};
  CHECK(tell_blocks(some) == 5);
  CHECK(tell_blocks(more) == 1);  // of a thread per variable, because 7 do not fit
  std::vector<std::int64_t> sizes;
  for (std::int64_t i = 0; i < 300; ++i) sizes.push_back(1 + i % 11);
  for (int order = 0; order < 2; ++order) {
    const auto backward = order == 1 ? std::make_unique<Backward>() : nullptr;
    for (std::int64_t lambda : {2, 7, 16}) {
      check_agreement({repeated(150, 5), 20}, 1, lambda, 40);
      check_agreement({repeated(200, 5), 40}, 1, lambda, 20);
      check_agreement({sizes, 30}, 2, lambda, 10);
    }
    check_agreement({repeated(1000, 5)}, 1, 64, 3);
    // Two samples of categorical variables alone have a kernel of their own.
    CHECK(tell_blocks({2, 2, 80, 0, 360, 8}) == 3);
    std::vector<std::int64_t> small;
    for (std::int64_t i = 0; i < 80; ++i) small.push_back(1 + i % 8);
    check_agreement({repeated(150, 5)}, 1, 2, 40);
    check_agreement({small}, 2, 2, 40);
  }
}

TEST_CASE("CUDA: optimizer does not depend on the order of threads") {
  for (std::int64_t variables : {30, 100, 200, 1300}) {
    INFO(variables, " variables");
    Pair one({repeated(variables, 3), 8}, 2, 4);
    Pair other({repeated(variables, 3), 8}, 2, 4);
    for (int g = 0; g < 5; ++g) {
      one.ask();
      one.tell(losses_of(one, g));
      const Backward backward;
      other.ask();
      other.tell(losses_of(other, g));
    }
    CHECK(one.theta == other.theta);
    CHECK(one.s == other.s);
    CHECK(one.step == other.step);
    CHECK(one.mean == other.mean);
    CHECK(one.variance == other.variance);
  }
}

TEST_CASE("CUDA: optimizer skips updates that say nothing") {
  Pair pair({{3, 4}, 1}, 3, 4);
  const std::vector<double> theta = pair.theta, s = pair.s, step = pair.step;
  pair.ask();
  // No finite loss; all the same; ties within rounding.
  std::vector<double> losses{kNan, kInfinity, kNan, -kInfinity, 5, 5, 5, 5, 1, 1 + 1e-15, 1, 1};
  CHECK(pair.tell(losses));
  CHECK(pair.theta == theta);
  CHECK(pair.s == s);
  CHECK(pair.step == step);
  for (std::int64_t p = 0; p < 3; ++p) CHECK(pair.counters[p * kCounters + kGeneration] == 1);
  // Identical samples.
  for (std::size_t k = 0; k < pair.categorical.size(); ++k) pair.categorical[k] = 1;
  for (double& x : pair.gaussian) x = 2.5;
  losses = {1, 2, 3, 4, 4, 3, 2, 1, 1, 1, 2, 2};
  CHECK(pair.tell(losses));
  CHECK(pair.theta == theta);
  CHECK(pair.s == s);
  CHECK(pair.step == step);
  CHECK(pair.difference() == 0.0);
}

TEST_CASE("CUDA: optimizer keeps memory safe from categories that do not exist") {
  Pair pair({{3, 4}}, 1, 2);
  pair.ask();
  const std::vector<double> before = pair.theta;
  pair.categorical = {0, 1'000'000, 2, -5};
  const OptimizerShape shape = pair.shape();
  std::vector<double> memory(static_cast<std::size_t>(Workspace::size_for(shape, 1)));
  const double losses[] = {1, 2};
  bool moved = false;
  tell(shape, pair.state(),
       {pair.categorical.data(), nullptr, losses, false, pair.offsets.data(), pair.margin.data(),
        pair.bounds.data(), 0.0, &moved},
       pair.settings, {memory.data(), static_cast<std::int64_t>(memory.size())}, 1, nullptr);
  CHECK(moved);
  CHECK(pair.theta[0] > before[0]);
  CHECK(pair.theta[2] < before[2]);
  for (int j = 3; j < 7; ++j) CHECK(pair.theta[j] == before[j]);
}

TEST_CASE("CUDA: optimizer takes the largest population") {
  check_agreement({{6, 3}, 1}, 1, kLargestPopulation, 3);
  check_agreement({repeated(40, 5), 3}, 2, kLargestPopulation, 2);
  check_agreement({repeated(1100, 3), 5}, 1, kLargestPopulation, 1);  // on several blocks
}

namespace {

// Losses that differ, so that every generation moves.
void check_large(const Space& space, std::int64_t instances, std::int64_t lambda, int generations) {
  Pair pair(space, instances, lambda);
  CHECK(tell_blocks(pair.shape()) > 1);
  for (int g = 0; g < generations; ++g) {
    CHECK(pair.ask());
    const std::vector<double> theta = pair.theta, mean = pair.mean, s = pair.s, step = pair.step;
    std::vector<double> losses;
    for (std::int64_t k = 0; k < instances * lambda; ++k) {
      losses.push_back(static_cast<double>((5 * k + g) % 7));
    }
    CHECK(pair.tell(losses));
    CHECK(pair.difference() <= 1e-9);
    // The last variables of each kind, too.
    CHECK((theta.empty() || !std::equal(theta.end() - 64, theta.end(), pair.theta.end() - 64)));
    CHECK((pair.mean.empty() || pair.mean.back() != mean.back()));
    CHECK(pair.s.back() != s.back());
    CHECK(pair.step != step);
  }
}

}  // namespace

TEST_CASE("CUDA: optimizer agrees for 100000 variables") {
  check_large({repeated(100'000, 5)}, 1, 2, 3);
  std::vector<std::int64_t> sizes = repeated(60'000, 2);
  for (std::size_t i = 0; i < sizes.size(); i += 7) sizes[i] = 1 + static_cast<std::int64_t>(i % 9);
  const Space mixed{sizes, 40'000};
  check_large(mixed, 1, 2, 3);
  check_large(mixed, 2, 5, 2);
  check_large({{}, 100'000}, 1, 2, 2);
  const Backward backward;
  check_large(mixed, 1, 2, 2);
}

TEST_CASE("CUDA: optimizer draws single samples") {
  for (const Space& space : {Space{repeated(30, 5)}, Space{{2, 7, 1, 3}, 5}, Space{{}, 1}}) {
    Pair pair(space, 3, 1);
    const std::vector<double> theta = pair.theta, mean = pair.mean;
    for (int g = 0; g < 20; ++g) {
      CHECK(pair.ask());
      // One sample alone is neither good nor bad.
      CHECK(pair.tell({1.0, static_cast<double>(g), kNan}));
      CHECK(pair.difference() == 0.0);
    }
    CHECK(pair.theta == theta);
    CHECK(pair.mean == mean);
  }
}

TEST_CASE("CUDA: optimizer moves each instance on its own") {
  // On one block each, and on two.
  for (std::int64_t variables : {20, 1300}) {
    constexpr std::int64_t kProblems = 3, kLambda = 4;
    Pair pair({repeated(variables, 4), 5}, kProblems, kLambda);
    CHECK(tell_blocks(pair.shape()) == (variables > 1000 ? 2 : 1));
    for (int g = 0; g < 12; ++g) {
      CHECK(pair.ask());
      const std::vector<double> theta = pair.theta;
      std::vector<double> losses = losses_of(pair, static_cast<std::uint64_t>(g));
      const auto row = [&](std::int64_t p) { return losses.begin() + p * kLambda; };
      const std::int64_t lucky = g % kProblems, tied = (g + 1) % kProblems;
      for (std::int64_t k = 0; k < kLambda; ++k) {
        row(lucky)[k] = static_cast<double>((k * 3 + g) % 4);
        row(tied)[k] = 7.0;
        row((g + 2) % kProblems)[k] = k % 2 == 0 ? kNan : kInfinity;
      }
      CHECK(pair.tell(losses));
      CHECK(pair.difference() <= 1e-9);
      for (std::int64_t p = 0; p < kProblems; ++p) {
        const std::int64_t size = pair.shape().theta_size;
        const bool moved = !std::equal(theta.begin() + p * size, theta.begin() + (p + 1) * size,
                                       pair.theta.begin() + p * size);
        CHECK(moved == (p == lucky));
      }
    }
  }
}
