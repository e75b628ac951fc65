#include "optimizer/cpu.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/categorical.h"
#include "core/philox.h"

namespace asng::host {

namespace {

// Sum of squares in eight interleaved terms: fast, and the same on every instruction set.
double squared_norm(const double* values, std::int64_t count) {
  double term[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) {
      term[lane] += values[i + lane] * values[i + lane];
    }
  }
  for (; i < count; ++i) {
    term[i % 8] += values[i] * values[i];
  }
  return ((term[0] + term[4]) + (term[2] + term[6])) + ((term[1] + term[5]) + (term[3] + term[7]));
}

double sum_of(std::span<const Weighted> weighted) {
  double sum = 0.0;
  for (const Weighted& w : weighted) sum += w.weight;
  return sum;
}

// asng::categorical_gradient of weights that sum to `rest`, as those of some samples do.
bool gradient_of_rest(std::span<const Weighted> weighted, double rest,
                      const std::int64_t* categories, std::int64_t stride, double canceled,
                      const double* theta, std::int64_t size, double* gradient) {
  for (const Weighted& w : weighted) gradient[categories[w.sample * stride]] += w.weight;
  bool any = false;
  for (std::int64_t j = 0; j < size; ++j) {
    gradient[j] -= rest * theta[j];  // eq. (12)
    any |= std::fabs(gradient[j]) > canceled;
  }
  return any;
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

Optimizer::Optimizer(Layout layout, std::vector<double> margin, std::int64_t lambda,
                     std::uint64_t seed)
    : layout_(std::move(layout)), margin_(std::move(margin)), lambda_(lambda), update_(layout_) {
  state_.seed = seed;
  state_.theta.resize(static_cast<std::size_t>(layout_.theta_size));
  for (std::size_t i = 0; i < layout_.sizes.size(); ++i) {
    for (std::int64_t j = 0; j < layout_.sizes[i]; ++j) {
      state_.theta[layout_.theta_offset[i] + j] = 1.0 / static_cast<double>(layout_.sizes[i]);
    }
  }
  for (std::size_t j = 0; j < layout_.low.size(); ++j) {
    state_.mean.push_back((layout_.low[j] + layout_.high[j]) / 2.0);
    state_.variance.push_back(layout_.std_max[j] * layout_.std_max[j]);
  }
}

void Optimizer::ask(std::int64_t* categorical, double* gaussian) {
  // Copies, which what is written to the samples cannot change.
  const std::uint64_t seed = state_.seed, asked = state_.asked;
  const double* theta = state_.theta.data();
  const std::int64_t n = layout_.n_categorical();
  for (std::int64_t k = 0; k < lambda_; ++k) {
    for (std::int64_t first = 0; first < n; first += 4) {
      const PhiloxBlock bits =
          philox(seed, draw_counter(Stream::kCategorical, asked, static_cast<std::uint32_t>(k),
                                    static_cast<std::uint32_t>(first / 4)));
      const std::int64_t last = std::min(first + 4, n);
      for (std::int64_t i = first; i < last; ++i) {
        categorical[k * n + i] = sample_category(theta + layout_.theta_offset[i], layout_.sizes[i],
                                                 uniform32(bits.word[i - first]));
      }
    }
  }
  const std::int64_t m = layout_.n_gaussian();
  for (std::int64_t pair = 0; 2 * pair < lambda_; ++pair) {
    double* upper = gaussian + 2 * pair * m;
    const bool mirrored = 2 * pair + 1 < lambda_;
    for (std::int64_t first = 0; first < m; first += 2) {
      double z[2];
      standard_normal_pair(
          philox(seed, draw_counter(Stream::kGaussian, asked, static_cast<std::uint32_t>(pair),
                                    static_cast<std::uint32_t>(first / 2))),
          z[0], z[1]);
      for (std::int64_t j = first; j < std::min(first + 2, m); ++j) {
        const double offset = std::sqrt(state_.variance[j]) * z[j - first];
        upper[j] = state_.mean[j] + offset;
        if (mirrored) {
          upper[m + j] = state_.mean[j] - offset;
        }
      }
    }
  }
  ++state_.asked;
}

bool Optimizer::tell(const Population& population) {
  check(population);
  ++state_.generation;
  state_.evaluations += static_cast<std::uint64_t>(population.lambda);
  for (std::int64_t k = 0; k < population.lambda; ++k) {
    if (population.losses[k] < state_.best.loss) {
      set_best(population, k);
    }
  }
  const Parameters parameters{state_.theta.data(), state_.mean.data(), state_.variance.data()};
  const double norm = update_.natural_gradient(layout_, parameters, population);
  if (!(norm > 0.0)) {
    return false;
  }
  move(update_, parameters, norm);
  state_.moved = state_.generation;
  return true;
}

void Optimizer::check(const Population& population) const {
  for (std::int64_t k = 0; k < population.lambda; ++k) {
    if (population.losses[k] == -std::numeric_limits<double>::infinity()) {
      throw std::invalid_argument("losses must not be infinitely good, but losses[" +
                                  std::to_string(k) + "] is");
    }
  }
  const std::int64_t n = layout_.n_categorical();
  const std::int64_t* sizes = layout_.sizes.data();
  const auto exists = [&](std::int64_t category, std::int64_t i) {
    return static_cast<std::uint64_t>(category) < static_cast<std::uint64_t>(sizes[i]);
  };
  for (std::int64_t k = 0; k < population.lambda; ++k) {
    const std::int64_t* categories = population.categorical + k * n;
    bool all_exist = true;
    for (std::int64_t i = 0; i < n; ++i) all_exist &= exists(categories[i], i);
    if (all_exist) continue;
    std::int64_t i = 0;
    while (exists(categories[i], i)) ++i;
    throw std::invalid_argument("samples.categorical[" + std::to_string(k) + ", " +
                                std::to_string(i) + "] must be in [0, " + std::to_string(sizes[i]) +
                                "), got " + std::to_string(categories[i]));
  }
  for (std::int64_t k = 0; k < population.lambda * layout_.n_gaussian(); ++k) {
    if (!std::isfinite(population.gaussian[k])) {
      throw std::invalid_argument("samples.numerical must be finite, got " +
                                  std::to_string(population.gaussian[k]));
    }
  }
}

void Optimizer::set_best(const Population& population, std::int64_t k) {
  const std::int64_t n = layout_.n_categorical();
  const std::int64_t m = layout_.n_gaussian();
  Best& best = state_.best;
  best.loss = population.losses[k];
  best.generation = state_.generation;
  best.categorical.assign(population.categorical + k * n, population.categorical + (k + 1) * n);
  best.gaussian.assign(population.gaussian + k * m, population.gaussian + (k + 1) * m);
}

Asng::Asng(Layout layout, std::vector<double> margin, std::int64_t lambda, std::uint64_t seed,
           double alpha, double delta_init, double Delta_max)
    : Optimizer(std::move(layout), std::move(margin), lambda, seed),
      s(static_cast<std::size_t>(this->layout().n_theta())),
      settings_{alpha, delta_init, Delta_max,
                std::sqrt(static_cast<double>(this->layout().n_theta()))} {
  step.Delta = settings_.bounded(1.0);
}

void Asng::move(Update& update, const Parameters& parameters, double norm) {
  update.adapt(layout(), parameters, s.data(), step, settings_, margin(), norm, norm);
}

Sng::Sng(Layout layout, std::vector<double> margin, std::int64_t lambda, std::uint64_t seed,
         double delta)
    : Optimizer(std::move(layout), std::move(margin), lambda, seed), delta_(delta) {}

void Sng::move(Update& update, const Parameters& parameters, double norm) {
  update.move(layout(), parameters, delta_ / norm, margin());  // eq. (14)
}

NaturalAdam::NaturalAdam(Layout layout, std::vector<double> margin, std::int64_t lambda,
                         std::uint64_t seed, const AdamSettings& settings)
    : Optimizer(std::move(layout), std::move(margin), lambda, seed),
      first_moment(
          static_cast<std::size_t>(this->layout().theta_size + 2 * this->layout().n_gaussian())),
      second_moment(first_moment.size()),
      settings_(settings) {}

void NaturalAdam::move(Update& update, const Parameters& parameters, double norm) {
  update.move_by_adam(layout(), parameters, AdamStep(settings_, ++updates), norm,
                      first_moment.data(), second_moment.data(), margin());
}

Update::Update(const Layout& layout, RootAtZeroMean root_at_zero_mean)
    : root_at_zero_mean_(root_at_zero_mean),
      gradient_(static_cast<std::size_t>(layout.theta_size)),
      root_(static_cast<std::size_t>(layout.n_theta())),
      gaussian_(static_cast<std::size_t>(layout.n_gaussian())) {
  moving_.reserve(layout.sizes.size());
}

double Update::natural_gradient(const Layout& layout, const Parameters& parameters,
                                const Population& population) {
  if (!rank(population)) {
    return 0.0;
  }
  const double norm = std::sqrt(categorical_gradient(layout, parameters.theta, population) +
                                gaussian_gradient(layout, parameters, population));  // eq. (12)
  return std::isfinite(norm) ? norm : 0.0;
}

double Update::adapt(const Layout& layout, const Parameters& parameters, double* s, StepSize& step,
                     const StepSizeSettings& settings, std::span<const double> margin, double norm,
                     double norm_in_s) const {
  const double beta = step.beta(settings);
  const double epsilon = step.delta(settings) / norm;  // eq. (14)
  move(layout, parameters, epsilon, margin);           // eq. (13)
  const Accumulation accumulate(beta, norm_in_s);
  const std::int64_t count = layout.n_theta();
  for (std::int64_t e = 0; e < count; ++e) {
    s[e] = accumulate(s[e], root_[e]);  // eq. (19)
  }
  step.adapt(settings, beta, squared_norm(s, count));  // eq. (20), eq. (21)
  return epsilon;
}

bool Update::rank(const Population& population) {
  const auto count = static_cast<std::size_t>(population.lambda);
  losses_.assign(population.losses, population.losses + count);
  for (double& loss : losses_) {
    loss = std::isnan(loss) ? std::numeric_limits<double>::infinity() : loss;
  }
  order_.resize(count);
  utility_.resize(count);
  weighted_.resize(count);
  std::iota(order_.begin(), order_.end(), std::int64_t{0});
  std::sort(order_.begin(), order_.end(),
            [&](std::int64_t a, std::int64_t b) { return losses_[a] < losses_[b]; });
  weighted_.resize(static_cast<std::size_t>(weigh_samples(
      losses_.data(), order_.data(), population.lambda, utility_.data(), weighted_.data())));
  return !weighted_.empty();
}

std::span<const Weighted> Update::having(const bool* has, std::int64_t column,
                                         std::int64_t columns) {
  if (has == nullptr) return weighted_;
  having_.clear();
  std::copy_if(weighted_.begin(), weighted_.end(), std::back_inserter(having_),
               [&](const Weighted& w) { return has[w.sample * columns + column]; });
  return having_;
}

double Update::categorical_gradient(const Layout& layout, const double* theta,
                                    const Population& population) {
  std::fill(gradient_.begin(), gradient_.end(), 0.0);
  std::fill(root_.begin(), root_.begin() + layout.n_categorical_theta, 0.0);
  moving_.clear();
  if (weighted_.size() == 2 && population.has_categorical == nullptr) {
    return gradient_of_two(layout, theta, population);
  }
  const double canceled = canceled_weight(population.lambda);
  const std::int64_t n = layout.n_categorical();
  double squared_norm = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::span<const Weighted> weighted = having(population.has_categorical, i, n);
    const std::int64_t* categories = population.categorical + i;
    const double* theta_i = theta + layout.theta_offset[i];
    double* gradient = gradient_.data() + layout.theta_offset[i];
    const double rest = population.has_categorical == nullptr ? 0.0 : sum_of(weighted);
    const bool moves = std::fabs(rest) > canceled
                           ? gradient_of_rest(weighted, rest, categories, n, canceled, theta_i,
                                              layout.sizes[i], gradient)
                           : asng::categorical_gradient(
                                 weighted.data(), static_cast<std::int64_t>(weighted.size()),
                                 categories, n, canceled, layout.sizes[i], gradient);
    if (moves) {
      moving_.push_back(i);
      squared_norm += categorical_fisher_root(theta_i, gradient, layout.sizes[i],
                                              root_.data() + layout.s_offset[i]);
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
    gradient_[layout.theta_offset[i] + category] = weight;  // eq. (12)
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
    const std::span<const Weighted> weighted = having(population.has_gaussian, j, n);
    gaussian_[j] =
        asng::gaussian_gradient(weighted.data(), static_cast<std::int64_t>(weighted.size()),
                                population.gaussian + j, n, mean, variance);
    const bool authors =
        root_at_zero_mean_ == RootAtZeroMean::kAuthors && std::fabs(2.0 * mean) < 1e-8;
    const auto fisher_root = authors ? authors_root_at_zero_mean : gaussian_fisher_root;
    squared_norm += fisher_root(mean, variance, gaussian_[j], root[j], root[n + j]);
  }
  return squared_norm;
}

void Update::move(const Layout& layout, const Parameters& parameters, double step,
                  std::span<const double> margin) const {
  for (std::int64_t i : moving_) {
    const std::int64_t begin = layout.theta_offset[i];
    step_categorical(parameters.theta + begin, gradient_.data() + begin, layout.sizes[i], step,
                     margin[i]);
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

}  // namespace asng::host
