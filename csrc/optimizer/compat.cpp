#include "optimizer/compat.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/categorical.h"

namespace asng::host {

CompatUpdate::CompatUpdate(Layout layout, std::vector<double> margin, double alpha,
                           double delta_init, double Delta_max)
    : layout_(std::move(layout)),
      margin_(std::move(margin)),
      no_margin_(margin_.size(), 0.0),
      settings_{alpha, delta_init, Delta_max, std::sqrt(static_cast<double>(layout_.n_theta()))},
      update_(layout_, Update::RootAtZeroMean::kAuthors),
      variance_(layout_.low.size()) {}

Parameters CompatUpdate::read(const Arrays& arrays) {
  for (std::size_t j = 0; j < variance_.size(); ++j) {
    variance_[j] = arrays.second_moment[j] - arrays.mean[j] * arrays.mean[j];
  }
  return {arrays.theta, arrays.mean, variance_.data()};
}

void CompatUpdate::write(const Arrays& arrays) const {
  for (std::size_t j = 0; j < variance_.size(); ++j) {
    arrays.second_moment[j] = arrays.mean[j] * arrays.mean[j] + variance_[j];
  }
}

CompatUpdate::Adapted CompatUpdate::adapt(const Arrays& arrays, double* s, StepSize step,
                                          const Population& population, bool range_restriction,
                                          double offset, bool offset_in_accumulation) {
  step.Delta = settings_.bounded(step.Delta);
  const Parameters parameters = read(arrays);
  const double delta = step.delta(settings_);
  const double norm = update_.natural_gradient(layout_, parameters, population);
  if (!(norm > 0.0)) {
    return {false, step, delta, 0.0};
  }
  const double eps = update_.adapt(layout_, parameters, s, step, settings_,
                                   range_restriction ? margin_ : no_margin_, norm + offset,
                                   offset_in_accumulation ? norm + offset : norm);
  write(arrays);
  return {true, step, delta, eps};
}

double CompatUpdate::step(const Arrays& arrays, double delta, const Population& population,
                          bool range_restriction, double offset) {
  const Parameters parameters = read(arrays);
  const double norm = update_.natural_gradient(layout_, parameters, population);
  if (!(norm > 0.0)) {
    return 0.0;
  }
  const double eps = delta / (norm + offset);  // eq. (14)
  update_.move(layout_, parameters, eps, range_restriction ? margin_ : no_margin_);
  write(arrays);
  return eps;
}

bool CompatUpdate::step_adam(const Arrays& arrays, double* first_moment, double* second_moment,
                             const AdamSettings& settings, std::uint64_t updates,
                             const Population& population, bool range_restriction) {
  const Parameters parameters = read(arrays);
  const double norm = update_.natural_gradient(layout_, parameters, population);
  if (!(norm > 0.0)) {
    return false;
  }
  update_.move_by_adam(layout_, parameters, AdamStep(settings, updates), norm, first_moment,
                       second_moment, range_restriction ? margin_ : no_margin_);
  write(arrays);
  return true;
}

void CompatUpdate::one_hot(const double* theta, const double* uniforms, bool* out) const {
  const std::int64_t width = stride();
  for (std::int64_t i = 0; i < layout_.n_categorical(); ++i) {
    bool* row = out + i * width;
    std::fill(row, row + width, false);
    row[sample_category(theta + i * width, layout_.sizes[static_cast<std::size_t>(i)],
                        uniforms[i])] = true;
  }
}

}  // namespace asng::host
