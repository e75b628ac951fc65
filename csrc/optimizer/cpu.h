// Optimizers that own their state: sampling (ask) and updating (tell). They differ in what they
// make of a natural gradient.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "core/adam.h"
#include "core/step_size.h"
#include "optimizer/cpu_update.h"

namespace asng::host {

// The sample of the smallest loss that was told.
struct Best {
  double loss = std::numeric_limits<double>::infinity();  // where no finite one was
  std::uint64_t generation = 0;                           // that it was told in, from 1
  std::vector<std::int64_t> categorical;
  std::vector<double> gaussian;
};

class Optimizer {
 public:
  struct State {
    std::vector<double> theta, mean, variance;
    std::uint64_t seed = 0;
    std::uint64_t asked = 0;        // populations drawn: the random numbers' generation
    std::uint64_t generation = 0;   // populations told, whether or not they moved theta
    std::uint64_t evaluations = 0;  // samples told
    std::uint64_t moved = 0;        // the last generation that moved theta; 0 before
    Best best;
  };

  virtual ~Optimizer() = default;

  // Draws lambda samples: (lambda, n_categorical) category indices, (lambda, n_gaussian) values.
  void ask(std::int64_t* categorical, double* gaussian);

  // Updates the distribution. Losses may be +inf or NaN, which tie for the last place. Returns
  // false if nothing moved. Throws std::invalid_argument for -inf and categories out of range,
  // before anything has changed.
  bool tell(const Population& population);

  const Layout& layout() const { return layout_; }
  const std::vector<double>& margin() const { return margin_; }
  std::int64_t lambda() const { return lambda_; }
  State& state() { return state_; }

 protected:
  // Probabilities start uniform, Gaussians in the middle of their range with half of it as sigma.
  Optimizer(Layout layout, std::vector<double> margin, std::int64_t lambda, std::uint64_t seed);
  Optimizer(const Optimizer&) = default;
  Optimizer(Optimizer&&) = default;

  // Moves the distribution by the natural gradient that `update` holds, of Fisher norm `norm`.
  virtual void move(Update& update, const Parameters& parameters, double norm) = 0;

 private:
  void check(const Population& population) const;
  void set_best(const Population& population, std::int64_t k);

  Layout layout_;
  std::vector<double> margin_;
  std::int64_t lambda_;
  State state_;
  Update update_;
  std::vector<double> losses_;
};

// Algorithm 1: steps of length delta, which adapts.
class Asng final : public Optimizer {
 public:
  Asng(Layout layout, std::vector<double> margin, std::int64_t lambda, std::uint64_t seed,
       double alpha, double delta_init, double Delta_max);

  const StepSizeSettings& settings() const { return settings_; }
  std::vector<double> s;
  StepSize step;

 private:
  void move(Update& update, const Parameters& parameters, double norm) override;

  StepSizeSettings settings_;
};

// Stochastic natural gradient: steps of constant length delta.
class Sng final : public Optimizer {
 public:
  Sng(Layout layout, std::vector<double> margin, std::int64_t lambda, std::uint64_t seed,
      double delta);

 private:
  void move(Update& update, const Parameters& parameters, double norm) override;

  double delta_;
};

// Adam on the natural gradient divided by its norm.
class NaturalAdam final : public Optimizer {
 public:
  NaturalAdam(Layout layout, std::vector<double> margin, std::int64_t lambda, std::uint64_t seed,
              const AdamSettings& settings);

  // Like theta, then all first and all second components of the Gaussians.
  std::vector<double> first_moment, second_moment;
  std::uint64_t updates = 0;  // that moved the distribution

 private:
  void move(Update& update, const Parameters& parameters, double norm) override;

  AdamSettings settings_;
};

}  // namespace asng::host
