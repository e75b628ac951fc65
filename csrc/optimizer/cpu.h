// Algorithm 1 on the CPU, with the baselines: sampling (ask) and updating (tell).
#pragma once

#include <cstdint>
#include <limits>
#include <mutex>
#include <span>
#include <vector>

#include "core/adam.h"
#include "core/gaussian.h"
#include "core/step_size.h"
#include "core/utility.h"

namespace asng::host {

// Which variables there are and where their parameters lie.
struct Layout {
  // Categorical variable i has sizes[i] probabilities from theta + theta_offset[i] on, and
  // sizes[i] - 1 components of s from s + s_offset[i] on.
  std::vector<std::int64_t> sizes;
  std::vector<std::int64_t> theta_offset;
  std::vector<std::int64_t> s_offset;
  std::int64_t theta_size = 0;
  std::int64_t n_categorical_theta = 0;

  // Gaussian variable j; its two components of s are s[n_categorical_theta + j] and, n_gaussian
  // components later, the second.
  std::vector<double> low, high, std_min, std_max;
  double variance_ratio_min = 0.0;  // of step_gaussian

  // `stride` 0 packs the probabilities; otherwise variable i starts at i * stride.
  Layout(std::span<const std::int64_t> category_sizes, std::int64_t stride,
         std::span<const double> low, std::span<const double> high,
         std::span<const double> std_min);

  std::int64_t n_categorical() const { return static_cast<std::int64_t>(sizes.size()); }
  std::int64_t n_gaussian() const { return static_cast<std::int64_t>(low.size()); }
  std::int64_t n_theta() const { return n_categorical_theta + 2 * n_gaussian(); }
};

struct Parameters {
  double* theta;
  double* mean;
  double* variance;
};

// lambda samples, row-major; `losses` in the direction that is minimized, NaN like +inf.
struct Population {
  std::int64_t lambda;
  const std::int64_t* categorical;
  const double* gaussian;
  const double* losses;
  // Which variables each sample has, like the samples; null: all. What was drawn for those that it
  // does not have moves nothing: G is the sum in eq. (12) over the samples that have the variable.
  const bool* has_categorical = nullptr;
  const bool* has_gaussian = nullptr;
};

// The update, over memory that the caller owns. Buffers live as long as the layout, so that an
// update allocates nothing.
class Update {
 public:
  // How F^(1/2) is taken of a Gaussian whose mean is 0, where F is diagonal. The authors' code
  // pairs its two axes with each other's eigenvalues there; kAuthors repeats that.
  enum class RootAtZeroMean { kExact, kAuthors };

  explicit Update(const Layout& layout, RootAtZeroMean root_at_zero_mean = RootAtZeroMean::kExact);

  // Ranks the losses and forms G, F^(1/2) G and ||G||_F. Returns the norm; 0 if the update must
  // be skipped, because every utility is 0, the samples do not differ where it counts, or the norm
  // is not finite.
  double natural_gradient(const Layout& layout, const Parameters& parameters,
                          const Population& population);

  // The rest of an iteration of Algorithm 1 (lines 5 to 8). `norm` divides the step, and
  // `norm_in_s` what is accumulated; both are ||G||_F but for an offset. Returns epsilon.
  double adapt(const Layout& layout, const Parameters& parameters, double* s, StepSize& step,
               const StepSizeSettings& settings, std::span<const double> margin, double norm,
               double norm_in_s) const;

  // theta += step * G, then the projection onto the distributions with the given margins.
  void move(const Layout& layout, const Parameters& parameters, double step,
            std::span<const double> margin) const;

  // The same with the step of Adam on G / norm, which moves every variable: with their K-th
  // probabilities, which are parameters like the others, and Gaussians in (mu, mu^2 + sigma^2).
  // Moments lie like theta, then all first and all second components of the Gaussians.
  void move_by_adam(const Layout& layout, const Parameters& parameters, const AdamStep& step,
                    double norm, double* first_moment, double* second_moment,
                    std::span<const double> margin) const;

 private:
  bool rank(const Population& population);
  // The weighted samples that have variable `column` of `columns`.
  std::span<const Weighted> having(const bool* has, std::int64_t column, std::int64_t columns);
  double categorical_gradient(const Layout& layout, const double* theta,
                              const Population& population);
  double gradient_of_two(const Layout& layout, const double* theta, const Population& population);
  double gaussian_gradient(const Layout& layout, const Parameters& parameters,
                           const Population& population);

  RootAtZeroMean root_at_zero_mean_;
  std::vector<double> losses_, utility_;
  std::vector<std::int64_t> order_;
  std::vector<Weighted> weighted_;    // the samples whose utility is not 0
  std::vector<Weighted> having_;      // see having()
  std::vector<double> gradient_;      // G of the categorical variables, like theta
  std::vector<double> root_;          // F^(1/2) G, like s
  std::vector<std::int64_t> moving_;  // categorical variables with G != 0
  std::vector<std::int64_t> moving_last_;
  std::vector<GaussianGradient> gaussian_;
};

// The best evaluated sample.
struct Best {
  double loss = std::numeric_limits<double>::infinity();  // where no finite one was
  std::uint64_t generation = 0;                           // of its evaluation, from 1
  std::vector<std::int64_t> categorical;
  std::vector<double> gaussian;
};

// An optimizer that owns its state. Subclasses differ in what they make of a natural gradient.
class Optimizer {
 public:
  struct State {
    std::vector<double> theta, mean, variance;
    std::uint64_t seed = 0;
    std::uint64_t asked = 0;        // populations drawn: the random numbers' generation
    std::uint64_t generation = 0;   // populations evaluated, whether or not they moved theta
    std::uint64_t evaluations = 0;  // samples evaluated
    std::uint64_t moved = 0;        // the last generation that moved theta; 0 before
    Best best;
  };

  virtual ~Optimizer() = default;

  // Draws lambda samples: (lambda, n_categorical) category indices, (lambda, n_gaussian) values in
  // antithetic pairs.
  void ask(std::int64_t* categorical, double* gaussian);

  // Updates the distribution. Losses may be +inf or NaN, which tie for the last place. Returns
  // false if nothing moved. Throws std::invalid_argument for -inf and categories out of range,
  // before anything has changed.
  bool tell(const Population& population);

  const Layout& layout() const { return layout_; }
  const std::vector<double>& margin() const { return margin_; }
  std::int64_t lambda() const { return lambda_; }
  State& state() { return state_; }
  // For callers in several threads.
  std::mutex& turn() { return turn_; }

 protected:
  // Probabilities start uniform, Gaussians in the middle of their range with half of it as sigma.
  Optimizer(Layout layout, std::vector<double> margin, std::int64_t lambda, std::uint64_t seed);

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
  std::mutex turn_;
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
