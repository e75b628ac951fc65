// The update behind asng_ext.compat: parameters live in the caller's NumPy arrays, rows of theta
// padded to the largest number of categories, samples one-hot.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "core/adam.h"
#include "core/step_size.h"
#include "optimizer/cpu.h"

namespace asng::host {

class CompatUpdate {
 public:
  CompatUpdate(Layout layout, std::vector<double> margin, double alpha = 1.5,
               double delta_init = 1.0, double Delta_max = std::numeric_limits<double>::infinity());

  // Where the caller keeps the distribution. theta: (d, stride); second_moment: mu^2 + sigma^2.
  struct Arrays {
    double* theta;
    double* mean;
    double* second_moment;
  };

  struct Adapted {
    bool moved;
    StepSize step;
    double delta;  // delta_init / Delta before the update
    double eps;    // the factor that multiplied the natural gradient
  };

  // ASNG, with the settings given to the constructor. `offset` is added to the norm in eps, and to
  // that in the accumulation if `offset_in_accumulation`.
  Adapted adapt(const Arrays& arrays, double* s, StepSize step, const Population& population,
                bool range_restriction, double offset, bool offset_in_accumulation);

  // SNG. Returns the factor that multiplied the natural gradient; 0 if nothing moved.
  double step(const Arrays& arrays, double delta, const Population& population,
              bool range_restriction, double offset);

  // Adam, with moments like theta; `updates` counts this one. Returns whether anything moved.
  bool step_adam(const Arrays& arrays, double* first_moment, double* second_moment,
                 const AdamSettings& settings, std::uint64_t updates, const Population& population,
                 bool range_restriction);

  // One-hot rows (d, stride) for uniforms in [0, 1), one per variable.
  void one_hot(const double* theta, const double* uniforms, bool* out) const;

  // Categories of `count` one-hot samples (d, stride); the first that is set.
  template <typename T>
  const std::int64_t* categories(const T* one_hot, std::int64_t count) {
    const std::int64_t d = layout_.n_categorical();
    categories_.resize(static_cast<std::size_t>(count * d));
    for (std::int64_t k = 0; k < count * d; ++k) {
      const std::int64_t size = layout_.sizes[static_cast<std::size_t>(k % d)];
      const T* row = one_hot + k * stride();
      std::int64_t category = 0;
      while (category + 1 < size && row[category] == T{}) {
        ++category;
      }
      categories_[static_cast<std::size_t>(k)] = category;
    }
    return categories_.data();
  }

  const Layout& layout() const { return layout_; }
  std::int64_t stride() const {
    return layout_.sizes.empty() ? 0 : layout_.theta_size / layout_.n_categorical();
  }

 private:
  Parameters read(const Arrays& arrays);
  void write(const Arrays& arrays) const;

  Layout layout_;
  std::vector<double> margin_;
  std::vector<double> no_margin_;
  StepSizeSettings settings_;
  Update update_;
  std::vector<double> variance_;
  std::vector<std::int64_t> categories_;
};

}  // namespace asng::host
