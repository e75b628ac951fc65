#include "optimizer/cpu_sample.h"

#include <algorithm>
#include <cmath>

#include "core/categorical.h"
#include "core/philox.h"

namespace asng::host {

void draw_samples(const Layout& layout, const Parameters& parameters, std::uint64_t seed,
                  std::uint64_t asked, std::int64_t lambda, std::int64_t* categorical,
                  double* gaussian) {
  const std::int64_t n = layout.n_categorical();
  for (std::int64_t k = 0; k < lambda; ++k) {
    for (std::int64_t first = 0; first < n; first += 4) {
      const PhiloxBlock bits =
          philox(seed, draw_counter(Stream::kCategorical, asked, static_cast<std::uint32_t>(k),
                                    static_cast<std::uint32_t>(first / 4)));
      const std::int64_t last = std::min(first + 4, n);
      for (std::int64_t i = first; i < last; ++i) {
        categorical[k * n + i] = sample_category(parameters.theta + layout.theta_offset[i],
                                                 layout.sizes[i], uniform32(bits.word[i - first]));
      }
    }
  }
  const std::int64_t m = layout.n_gaussian();
  for (std::int64_t pair = 0; 2 * pair < lambda; ++pair) {
    double* upper = gaussian + 2 * pair * m;
    const bool mirrored = 2 * pair + 1 < lambda;
    for (std::int64_t first = 0; first < m; first += 2) {
      double z[2];
      standard_normal_pair(
          philox(seed, draw_counter(Stream::kGaussian, asked, static_cast<std::uint32_t>(pair),
                                    static_cast<std::uint32_t>(first / 2))),
          z[0], z[1]);
      for (std::int64_t j = first; j < std::min(first + 2, m); ++j) {
        const double offset = std::sqrt(parameters.variance[j]) * z[j - first];
        upper[j] = parameters.mean[j] + offset;
        if (mirrored) {
          upper[m + j] = parameters.mean[j] - offset;
        }
      }
    }
  }
}

}  // namespace asng::host
