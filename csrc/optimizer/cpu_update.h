// The update of Algorithm 1 on the CPU, over memory that the caller owns.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/adam.h"
#include "core/gaussian.h"
#include "core/step_size.h"

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
  // places later, the second.
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

// lambda samples, row-major; `losses` in the direction that is minimized, without NaN.
struct Population {
  std::int64_t lambda;
  const std::int64_t* categorical;
  const double* gaussian;
  const double* losses;
};

// Buffers that live as long as the layout, so that an update allocates nothing.
class Update {
 public:
  // How F^(1/2) is taken of a Gaussian whose mean is 0, where F is diagonal. The authors' code
  // pairs its two axes with each other's eigenvalues there; kAuthors repeats that.
  enum class RootAtZeroMean { kExact, kAuthors };

  explicit Update(const Layout& layout, RootAtZeroMean root_at_zero_mean = RootAtZeroMean::kExact);

  // Ranks the losses and forms G, F^(1/2) G and ||G||_F. Returns the norm; 0 if the update must
  // be skipped, because every utility is 0 or because the samples do not differ where it counts.
  double natural_gradient(const Layout& layout, const Parameters& parameters,
                          const Population& population);

  // theta += step * G, then the projection onto the distributions with the given margins.
  void move(const Layout& layout, const Parameters& parameters, double step,
            std::span<const double> margin) const;

  // The same with the step of Adam on G / norm, which moves every variable: with their K-th
  // probabilities, which are parameters like the others, and Gaussians in (mu, mu^2 + sigma^2).
  // Moments lie like theta, then all first and all second components of the Gaussians.
  void move_by_adam(const Layout& layout, const Parameters& parameters, const AdamStep& step,
                    double norm, double* first_moment, double* second_moment,
                    std::span<const double> margin) const;

  // s <- (1 - beta) s + sqrt(beta (2 - beta)) F^(1/2) G / ||G||_F (eq. 19, normalized). Returns
  // ||s||^2.
  double accumulate(const Layout& layout, double* s, double beta, double norm) const;

 private:
  bool rank(const Population& population);
  double categorical_gradient(const Layout& layout, const double* theta,
                              const Population& population);
  double gradient_of_two(const Layout& layout, const double* theta, const Population& population);
  double gaussian_gradient(const Layout& layout, const Parameters& parameters,
                           const Population& population);

  struct Weighted {
    std::int64_t sample;
    double weight;  // utility / lambda
  };
  RootAtZeroMean root_at_zero_mean_;
  std::vector<std::int64_t> order_;
  std::vector<double> utility_;
  std::vector<Weighted> weighted_;    // the samples whose utility is not 0
  std::vector<double> gradient_;      // G of the categorical variables, like theta
  std::vector<double> root_;          // F^(1/2) G, like s
  std::vector<std::int64_t> moving_;  // categorical variables with G != 0
  std::vector<std::int64_t> moving_last_;
  std::vector<GaussianGradient> gaussian_;
};

}  // namespace asng::host
