#include "optimizer/cpu.h"

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "optimizer/cpu_sample.h"

namespace asng::host {

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
  draw_samples(layout_, {state_.theta.data(), state_.mean.data(), state_.variance.data()},
               state_.seed, state_.asked, lambda_, categorical, gaussian);
  ++state_.asked;
}

void Optimizer::check(const Population& population) const {
  for (std::int64_t k = 0; k < population.lambda; ++k) {
    if (population.losses[k] == -std::numeric_limits<double>::infinity()) {
      throw std::invalid_argument("losses must not be infinitely good, but losses[" +
                                  std::to_string(k) + "] is");
    }
  }
  const std::int64_t n = layout_.n_categorical();
  for (std::int64_t k = 0; k < population.lambda; ++k) {
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t category = population.categorical[k * n + i];
      if (static_cast<std::uint64_t>(category) >= static_cast<std::uint64_t>(layout_.sizes[i])) {
        throw std::invalid_argument("samples.categorical[" + std::to_string(k) + ", " +
                                    std::to_string(i) + "] must be in [0, " +
                                    std::to_string(layout_.sizes[i]) + "), got " +
                                    std::to_string(category));
      }
    }
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

bool Optimizer::tell(const Population& population) {
  check(population);
  losses_.assign(population.losses, population.losses + population.lambda);
  std::size_t best = 0;
  for (std::size_t k = 0; k < losses_.size(); ++k) {
    losses_[k] = std::isnan(losses_[k]) ? std::numeric_limits<double>::infinity() : losses_[k];
    best = losses_[k] < losses_[best] ? k : best;
  }
  Population ranked = population;
  ranked.losses = losses_.data();
  const Parameters parameters{state_.theta.data(), state_.mean.data(), state_.variance.data()};
  ++state_.generation;
  state_.evaluations += static_cast<std::uint64_t>(population.lambda);
  if (losses_[best] < state_.best.loss) {
    set_best(ranked, static_cast<std::int64_t>(best));
  }
  const double norm = update_.natural_gradient(layout_, parameters, ranked);
  if (!(norm > 0.0) || !std::isfinite(norm)) {
    return false;
  }
  move(update_, parameters, norm);
  state_.moved = state_.generation;
  return true;
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
  const double delta = step.delta(settings_);
  const double beta = step.beta(settings_);
  update.move(layout(), parameters, delta / norm, margin());
  step.adapt(settings_, beta, update.accumulate(layout(), s.data(), beta, norm));
}

Sng::Sng(Layout layout, std::vector<double> margin, std::int64_t lambda, std::uint64_t seed,
         double delta)
    : Optimizer(std::move(layout), std::move(margin), lambda, seed), delta_(delta) {}

void Sng::move(Update& update, const Parameters& parameters, double norm) {
  update.move(layout(), parameters, delta_ / norm, margin());
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

}  // namespace asng::host
