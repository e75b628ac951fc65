// Sums over the pixels of a batch that do not depend on the order in which blocks run: every block
// writes its part, and the block that finishes last adds the parts up in their order.
#pragma once

#include <cmath>

#include "kernels/cuda/dag.h"

namespace asng::cuda {

// Adds the sums of `groups` groups, (groups, 2, columns), to the block's totals: the second of the
// two kinds lies `second` behind the first.
template <class T>
__device__ void add_groups(const T* values, int groups, int columns, double* totals, int second) {
  for (int j = threadIdx.x; j < 2 * columns; j += kThreads) {
    T sum = 0;
    for (int g = 0; g < groups; ++g) sum += values[g * 2 * columns + j];
    totals[j < columns ? j : second + j - columns] += static_cast<double>(sum);
  }
}

__device__ inline void clear(double* values, int count) {
  for (int j = threadIdx.x; j < count; j += kThreads) values[j] = 0;
}

// Writes this block's totals as part `part` of `parts` of the group whose parts and counter these
// are. Returns true in the block that is the last one to do so, with the sums in `totals`. `shared`
// is shared memory for 2·kThreads doubles, aligned to 16 bytes, whose contents are lost.
__device__ inline bool sum_over_blocks(double* totals, int columns, double* partials,
                                       unsigned* counter, int part, int parts, void* shared) {
  double2* slices_of = static_cast<double2*>(shared);
  const int t = threadIdx.x;
  __syncthreads();
  for (int j = t; j < columns; j += kThreads) {
    partials[static_cast<int64_t>(part) * columns + j] = totals[j];
  }
  __threadfence();
  __syncthreads();
  const bool last = t == 0 && atomicInc(counter, parts - 1) == static_cast<unsigned>(parts - 1);
  if (__syncthreads_or(last) == 0) return false;
  __threadfence();
  const int pairs = columns / 2, width = min(pairs, kThreads), slices = kThreads / width;
  const int lane = t % width, slice = t / width;
  for (int first = 0; first < pairs; first += width) {
    const int pair = first + lane;
    const bool mine = slice < slices && pair < pairs;
    double2 sum = make_double2(0, 0);
    if (mine) {
      const double2* from = reinterpret_cast<const double2*>(partials) + pair;
#pragma unroll 8
      for (int p = slice; p < parts; p += slices) {
        const double2 value = __ldcg(from + static_cast<int64_t>(p) * pairs);
        sum.x += value.x;
        sum.y += value.y;
      }
    }
    slices_of[t] = sum;
    __syncthreads();
    if (mine && slice == 0) {
      for (int s = 1; s < slices; ++s) {
        sum.x += slices_of[s * width + lane].x;
        sum.y += slices_of[s * width + lane].y;
      }
      totals[2 * pair] = sum.x;
      totals[2 * pair + 1] = sum.y;
    }
    __syncthreads();
  }
  return true;
}

// From Σ z and Σ z² over `count` values per channel: normalized = z·scale + shift.
template <class T>
__device__ void finish_norm(const double* sums, double count, int padded, T* norm) {
  for (int c = threadIdx.x; c < padded; c += kThreads) {
    const double mean = sums[c] / count;
    const double difference = sums[padded + c] / count - mean * mean;
    // Rounding may make it negative; a NaN must stay one.
    const double rstd = 1 / sqrt((difference < 0 ? 0 : difference) + kEpsilon);
    norm[c] = static_cast<T>(rstd);
    norm[padded + c] = static_cast<T>(-mean * rstd);
  }
}

// Gradient of a normalization's input, a·g + b·z + c, where g/factor is the gradient of its output
// as summed: from Σ g and Σ g·normalized. `coefficients` receives a, b and c of all channels. Where
// the stored z are normalized already, `is_raw` is false.
template <class T>
__device__ void finish_gradient(const double* sums, const double* dots, double count, int padded,
                                const T* norm, bool is_raw, double factor, T* coefficients) {
  for (int c = threadIdx.x; c < padded; c += kThreads) {
    // rstd · (g − mean(g) − x̂ · mean(g·x̂)) with x̂ = z·scale + shift.
    const double outer = static_cast<double>(norm[c]) * factor;
    const double mean = sums[c] / count, dot = dots[c] / count;
    const double scale = is_raw ? static_cast<double>(norm[c]) : 1;
    const double shift = is_raw ? static_cast<double>(norm[padded + c]) : 0;
    coefficients[c] = static_cast<T>(outer);
    coefficients[padded + c] = static_cast<T>(-outer * dot * scale);
    coefficients[2 * padded + c] = static_cast<T>(-outer * (mean + dot * shift));
  }
}

// a·g + b·z + c
template <class T>
__device__ __forceinline__ Vec4<T> norm_gradient4(const Vec4<T>& g, const Vec4<T>& z,
                                                  const T* coefficients, int padded, int channel) {
  const Vec4<T> a = load_vec4(coefficients + channel),
                b = load_vec4(coefficients + padded + channel);
  Vec4<T> sum = load_vec4(coefficients + 2 * padded + channel);
  add_product(sum, a, g);
  add_product(sum, b, z);
  return sum;
}

}  // namespace asng::cuda
