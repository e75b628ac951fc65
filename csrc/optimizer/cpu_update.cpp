#include "optimizer/cpu_update.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/categorical.h"
#include "core/utility.h"

namespace asng::host {

namespace {

// Sum of squares in eight interleaved parts: fast, and the same on every instruction set.
double squared_norm(const double* values, std::int64_t count) {
  double part[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) {
      part[lane] += values[i + lane] * values[i + lane];
    }
  }
  for (; i < count; ++i) {
    part[i % 8] += values[i] * values[i];
  }
  return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

// Update::RootAtZeroMean::kAuthors
double authors_root_at_zero_mean(double mean, double variance, const GaussianGradient& gradient,
                                 double& root_first, double& root_second) {
  const double ratio = 4.0 * mean * mean + 2.0 * variance;
  root_first = gradient.mean / std::sqrt(variance * std::max(1.0, ratio));
  root_second =
      (2.0 * mean * gradient.mean + gradient.spread) / std::sqrt(variance * std::min(1.0, ratio));
  return root_first * root_first + root_second * root_second;
}

}  // namespace

Layout::Layout(std::span<const std::int64_t> category_sizes, std::int64_t stride,
               std::span<const double> low, std::span<const double> high,
               std::span<const double> std_min)
    : sizes(category_sizes.begin(), category_sizes.end()),
      low(low.begin(), low.end()),
      high(high.begin(), high.end()),
      std_min(std_min.begin(), std_min.end()) {
  for (std::int64_t size : sizes) {
    theta_offset.push_back(theta_size);
    s_offset.push_back(n_categorical_theta);
    theta_size += stride > 0 ? stride : size;
    n_categorical_theta += size - 1;
  }
  for (std::size_t j = 0; j < low.size(); ++j) {
    std_max.push_back((high[j] - low[j]) / 2.0);
  }
}

Update::Update(const Layout& layout, RootAtZeroMean root_at_zero_mean)
    : root_at_zero_mean_(root_at_zero_mean),
      gradient_(static_cast<std::size_t>(layout.theta_size)),
      root_(static_cast<std::size_t>(layout.n_theta())),
      gaussian_(static_cast<std::size_t>(layout.n_gaussian())) {
  moving_.reserve(layout.sizes.size());
}

bool Update::rank(const Population& population) {
  const auto count = static_cast<std::size_t>(population.lambda);
  order_.resize(count);
  utility_.resize(count);
  std::iota(order_.begin(), order_.end(), std::int64_t{0});
  std::sort(order_.begin(), order_.end(), [&](std::int64_t a, std::int64_t b) {
    return population.losses[a] < population.losses[b];
  });
  if (!rank_utilities(population.losses, order_.data(), population.lambda, utility_.data())) {
    return false;
  }
  weighted_.clear();
  for (std::size_t k = 0; k < count; ++k) {
    if (utility_[k] != 0.0) {
      weighted_.push_back(
          {static_cast<std::int64_t>(k), utility_[k] / static_cast<double>(population.lambda)});
    }
  }
  return true;
}

double Update::categorical_gradient(const Layout& layout, const double* theta,
                                    const Population& population) {
  std::fill(gradient_.begin(), gradient_.end(), 0.0);
  std::fill(root_.begin(), root_.begin() + layout.n_categorical_theta, 0.0);
  moving_.clear();
  if (weighted_.size() == 2) {
    return gradient_of_two(layout, theta, population);
  }
  const double canceled =
      kCanceledUtility / static_cast<double>(population.lambda * selected_count(population.lambda));
  const std::int64_t n = layout.n_categorical();
  double squared_norm = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    double* gradient = gradient_.data() + layout.theta_offset[i];
    // The utilities sum to 0, so sum_k w_k (T(c_k) - theta) = sum_k w_k T(c_k).
    std::int64_t lowest = layout.sizes[i];
    std::int64_t highest = 0;
    for (const Weighted& w : weighted_) {
      const std::int64_t category = population.categorical[w.sample * n + i];
      gradient[category] += w.weight;
      lowest = std::min(lowest, category);
      highest = std::max(highest, category);
    }
    if (lowest == highest) {
      gradient[lowest] = 0.0;
      continue;
    }
    double largest = 0.0;
    for (std::int64_t j = lowest; j <= highest; ++j) {
      gradient[j] = std::fabs(gradient[j]) > canceled ? gradient[j] : 0.0;
      largest = std::max(largest, std::fabs(gradient[j]));
    }
    if (largest > 0.0) {
      moving_.push_back(i);
      squared_norm += categorical_fisher_root(theta + layout.theta_offset[i], gradient,
                                              layout.sizes[i], root_.data() + layout.s_offset[i]);
    }
  }
  return squared_norm;
}

// The best and the worst sample only, as for lambda up to 4: the same as above without branches
// that the processor cannot foresee, which cost more than the arithmetic.
double Update::gradient_of_two(const Layout& layout, const double* theta,
                               const Population& population) {
  const std::int64_t n = layout.n_categorical();
  const std::int64_t* first = population.categorical + weighted_[0].sample * n;
  const std::int64_t* second = population.categorical + weighted_[1].sample * n;
  moving_.resize(static_cast<std::size_t>(n));
  moving_last_.resize(static_cast<std::size_t>(n));
  std::size_t count = 0;
  std::size_t count_last = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t last = layout.sizes[i] - 1;
    const bool differ = first[i] != second[i];
    const bool with_last = (first[i] == last) | (second[i] == last);
    moving_[count] = i;
    moving_last_[count_last] = i;
    count += differ & !with_last;
    count_last += differ & with_last;
  }
  double squared_norm = 0.0;
  const auto root_at = [&](std::int64_t i, std::int64_t category, double weight) {
    const double p = theta[layout.theta_offset[i] + category];
    const double root = weight / std::sqrt(p > kProbabilityFloor ? p : kProbabilityFloor);
    gradient_[layout.theta_offset[i] + category] = weight;
    root_[layout.s_offset[i] + category] = root;
    squared_norm += root * root;
  };
  for (std::size_t k = 0; k < count; ++k) {  // F^(1/2) G has two components that are not 0
    root_at(moving_[k], first[moving_[k]], weighted_[0].weight);
    root_at(moving_[k], second[moving_[k]], weighted_[1].weight);
  }
  for (std::size_t k = 0; k < count_last; ++k) {
    const std::int64_t i = moving_last_[k];
    double* gradient = gradient_.data() + layout.theta_offset[i];
    gradient[first[i]] = weighted_[0].weight;
    gradient[second[i]] = weighted_[1].weight;
    squared_norm += categorical_fisher_root(theta + layout.theta_offset[i], gradient,
                                            layout.sizes[i], root_.data() + layout.s_offset[i]);
  }
  std::copy_n(moving_last_.begin(), count_last,
              moving_.begin() + static_cast<std::ptrdiff_t>(count));
  moving_.resize(count + count_last);
  return squared_norm;
}

double Update::gaussian_gradient(const Layout& layout, const Parameters& parameters,
                                 const Population& population) {
  const std::int64_t n = layout.n_gaussian();
  double* root = root_.data() + layout.n_categorical_theta;
  double squared_norm = 0.0;
  for (std::int64_t j = 0; j < n; ++j) {
    const double mean = parameters.mean[j];
    const double variance = parameters.variance[j];
    GaussianGradient gradient{0.0, 0.0};
    double mean_size = 0.0;
    double spread_size = 0.0;
    for (const Weighted& w : weighted_) {
      const double offset = population.gaussian[w.sample * n + j] - mean;
      const double spread = offset * offset - variance;
      gradient.mean += w.weight * offset;
      gradient.spread += w.weight * spread;
      mean_size += std::fabs(w.weight * offset);
      spread_size += std::fabs(w.weight * spread);
    }
    if (std::fabs(gradient.mean) <= kCanceledUtility * mean_size) {
      gradient.mean = 0.0;
    }
    if (std::fabs(gradient.spread) <= kCanceledUtility * spread_size) {
      gradient.spread = 0.0;
    }
    gaussian_[j] = gradient;
    const bool authors =
        root_at_zero_mean_ == RootAtZeroMean::kAuthors && std::fabs(2.0 * mean) < 1e-8;
    const auto fisher_root = authors ? authors_root_at_zero_mean : gaussian_fisher_root;
    squared_norm += fisher_root(mean, variance, gradient, root[j], root[n + j]);
  }
  return squared_norm;
}

double Update::natural_gradient(const Layout& layout, const Parameters& parameters,
                                const Population& population) {
  if (!rank(population)) {
    return 0.0;
  }
  return std::sqrt(categorical_gradient(layout, parameters.theta, population) +
                   gaussian_gradient(layout, parameters, population));
}

void Update::move(const Layout& layout, const Parameters& parameters, double step,
                  std::span<const double> margin) const {
  for (std::int64_t i : moving_) {
    const std::int64_t size = layout.sizes[i];
    double* theta = parameters.theta + layout.theta_offset[i];
    const double* gradient = gradient_.data() + layout.theta_offset[i];
    for (std::int64_t j = 0; j < size; ++j) {
      theta[j] += step * gradient[j];
    }
    project_categorical(theta, size, margin[i]);
  }
  for (std::int64_t j = 0; j < layout.n_gaussian(); ++j) {
    step_gaussian(parameters.mean[j], parameters.variance[j], gaussian_[j], step, layout.low[j],
                  layout.high[j], layout.std_min[j], layout.std_max[j], layout.variance_ratio_min);
  }
}

void Update::move_by_adam(const Layout& layout, const Parameters& parameters, const AdamStep& step,
                          double norm, double* first_moment, double* second_moment,
                          std::span<const double> margin) const {
  const double scale = 1.0 / (norm + kAdamNormOffset);
  const auto moved = [&](double gradient, std::int64_t e) {
    step.accumulate(gradient * scale, first_moment[e], second_moment[e]);
    return step.move(first_moment[e], second_moment[e]);
  };
  for (std::int64_t i = 0; i < layout.n_categorical(); ++i) {
    const std::int64_t begin = layout.theta_offset[i];
    const std::int64_t end = begin + layout.sizes[i];
    for (std::int64_t e = begin; e < end; ++e) {
      parameters.theta[e] += moved(gradient_[e], e);
    }
    project_categorical(parameters.theta + begin, layout.sizes[i], margin[i]);
  }
  const std::int64_t n = layout.n_gaussian();
  for (std::int64_t j = 0; j < n; ++j) {
    const double mean = parameters.mean[j];
    const GaussianGradient& gradient = gaussian_[j];
    const double first = moved(gradient.mean, layout.theta_size + j);
    const double second =
        moved(2.0 * mean * gradient.mean + gradient.spread, layout.theta_size + n + j);
    step_gaussian(parameters.mean[j], parameters.variance[j], {first, second - 2.0 * mean * first},
                  1.0, layout.low[j], layout.high[j], layout.std_min[j], layout.std_max[j],
                  layout.variance_ratio_min);
  }
}

double Update::accumulate(const Layout& layout, double* s, double beta, double norm) const {
  const double keep = 1.0 - beta;
  const double add = std::sqrt(beta * (2.0 - beta)) / norm;
  const std::int64_t count = layout.n_theta();
  for (std::int64_t i = 0; i < count; ++i) {
    s[i] = keep * s[i] + add * root_[i];
  }
  return squared_norm(s, count);
}

}  // namespace asng::host
