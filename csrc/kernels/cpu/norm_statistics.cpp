#include "kernels/cpu/norm_statistics.h"

#include <cmath>

namespace asng::cpu {

template <class T>
void finish_norm(const PartialSums& sums, int64_t count, int64_t channels, Norm<T> norm) {
  for (int64_t c = 0; c < channels; ++c) {
    const double mean = sums.first_total(c) / static_cast<double>(count);
    const double square = sums.second_total(c) / static_cast<double>(count);
    const double difference = square - mean * mean;
    // Rounding may make it negative; a NaN must stay one.
    const double variance = difference < 0 ? 0 : difference;
    const double rstd = 1 / std::sqrt(variance + kEpsilon);
    norm.scale[c] = static_cast<T>(rstd);
    norm.shift[c] = static_cast<T>(-mean * rstd);
  }
}

template <class T>
NormGradient<T> finish_norm_gradient(const PartialSums& sums, int64_t count, int64_t channels,
                                     const T* rstd, Affine<T> stored, T factor, T* coefficients) {
  T *a = coefficients, *b = a + channels, *constant = b + channels;
  for (int64_t c = 0; c < channels; ++c) {
    // rstd · (g − mean(g) − x̂ · mean(g·x̂)) with x̂ = z·scale + shift.
    const double outer = static_cast<double>(rstd[c]) * static_cast<double>(factor);
    const double mean = sums.first_total(c) / static_cast<double>(count);
    const double dot = sums.second_total(c) / static_cast<double>(count);
    const double scale = stored.scale == nullptr ? 1 : static_cast<double>(stored.scale[c]);
    const double shift = stored.scale == nullptr ? 0 : static_cast<double>(stored.shift[c]);
    a[c] = static_cast<T>(outer);
    b[c] = static_cast<T>(-outer * dot * scale);
    constant[c] = static_cast<T>(-outer * (mean + dot * shift));
  }
  return {a, b, constant};
}

#define ASNG_INSTANTIATE(T)                                                                        \
  template void finish_norm<T>(const PartialSums&, int64_t, int64_t, Norm<T>);                     \
  template NormGradient<T> finish_norm_gradient<T>(const PartialSums&, int64_t, int64_t, const T*, \
                                                   Affine<T>, T, T*);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cpu
