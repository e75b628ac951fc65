// Statistics of a non-affine batch normalization, from partial sums.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cpu/kernels.h"

namespace asng::cpu {

// The batch is cut into this many splits at most, whatever the number of threads, so that sums over
// splits do not depend on it.
inline constexpr int64_t kMaxSplits = 8;

inline int64_t split_count(int64_t images) { return images < kMaxSplits ? images : kMaxSplits; }

struct Split {
  int64_t first, count;
};

inline Split split(int64_t images, int64_t index) {
  const int64_t splits = split_count(images);
  const int64_t first = images * index / splits;
  return {first, images * (index + 1) / splits - first};
}

// Two sums per channel for every split of the batch.
class PartialSums {
 public:
  PartialSums() = default;
  PartialSums(int64_t splits, int64_t channels)
      : splits_(splits), channels_(channels), values_(static_cast<size_t>(2 * splits * channels)) {}

  // Adds what others of the same size have summed.
  void add(const PartialSums& others) {
    for (size_t i = 0; i < values_.size(); ++i) values_[i] += others.values_[i];
  }

  double* first(int64_t split) { return values_.data() + 2 * split * channels_; }
  double* second(int64_t split) { return first(split) + channels_; }
  double first_total(int64_t channel) const { return total(channel); }
  double second_total(int64_t channel) const { return total(channels_ + channel); }

 private:
  double total(int64_t offset) const {
    double sum = 0;
    for (int64_t p = 0; p < splits_; ++p) sum += values_[2 * p * channels_ + offset];
    return sum;
  }

  int64_t splits_ = 0, channels_ = 0;
  std::vector<double> values_;
};

// Normalization of stored values: normalized = stored·scale + shift; rstd = 1/√(variance + ε).
template <class T>
struct Norm {
  T* scale = nullptr;
  T* shift = nullptr;

  Affine<T> affine() const { return {scale, shift}; }
};

// From Σ z and Σ z² over `count` values per channel.
template <class T>
void finish_norm(const PartialSums& sums, int64_t count, int64_t channels, Norm<T> norm);

// From Σ g and Σ g·normalized, where the gradient is factor·g. `coefficients` receives the three
// vectors of NormGradient one after the other. A null scale of `stored` means that the stored
// values are already normalized.
template <class T>
NormGradient<T> finish_norm_gradient(const PartialSums& sums, int64_t count, int64_t channels,
                                     const T* rstd, Affine<T> stored, T factor, T* coefficients);

}  // namespace asng::cpu
