// Batch normalization: sums over the pixels of a batch, statistics and coefficients from them, and
// the values normalized. Sums do not depend on the order in which blocks run: every block writes
// those of its split, and the block that finishes last adds them in the order of the splits.
#pragma once

#include <algorithm>
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

// Writes this block's totals as split `split` of `splits` of the group whose sums and counter these
// are. Returns true in the block that is the last one to do so, with the sums in `totals`. `shared`
// is shared memory for 2·kThreads doubles, aligned to 16 bytes, whose contents are lost.
__device__ inline bool sum_over_blocks(double* totals, int columns, double* partials,
                                       unsigned* counter, int split, int splits, void* shared) {
  double2* slices_of = static_cast<double2*>(shared);
  const int t = threadIdx.x;
  __syncthreads();
  for (int j = t; j < columns; j += kThreads) {
    partials[static_cast<int64_t>(split) * columns + j] = totals[j];
  }
  __threadfence();
  __syncthreads();
  const bool last = t == 0 && atomicInc(counter, splits - 1) == static_cast<unsigned>(splits - 1);
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
      for (int p = slice; p < splits; p += slices) {
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

// The same of `kinds` sums per channel, where the partial sums and the counter are those of group
// `group` of a dag, whose splits are the blocks along x.
template <class V>
__device__ bool sum_over_splits(const Dag<V>& dag, int group, int kinds, int splits, double* totals,
                                void* shared) {
  const int padded = dag.shape.padded;
  return sum_over_blocks(totals, kinds * padded,
                         dag.partials + static_cast<int64_t>(group) * kMaxSplits * 3 * padded,
                         dag.counters + group, blockIdx.x, splits, shared);
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
__device__ __forceinline__ Vec4<T> norm_gradient_vec4(const Vec4<T>& g, const Vec4<T>& z,
                                                      const T* coefficients, int padded,
                                                      int channel) {
  const Vec4<T> a = load_vec4(coefficients + channel),
                b = load_vec4(coefficients + padded + channel);
  Vec4<T> sum = load_vec4(coefficients + 2 * padded + channel);
  add_product(sum, a, g);
  add_product(sum, b, z);
  return sum;
}

// Calls visit(pixel, channel, sums) for this block's split of the pixels and all their channels,
// which adds to the three sums, and adds those to `totals` (3, padded). `shared` has room for
// 12·kThreads values.
template <class T, class Visit>
__device__ void sum_pixels(int pixels, int padded, int split, int splits, T* shared, double* totals,
                           Visit visit) {
  const int quads = padded / 4, width = min(quads, kThreads), slots = kThreads / width;
  const int lane = threadIdx.x % width, slot = threadIdx.x / width;
  for (int first = 0; first < quads; first += width) {
    const int quad = first + lane;
    if (slot < slots && quad < quads) {
      Vec4<T> sums[3] = {fill_vec4(T(0)), fill_vec4(T(0)), fill_vec4(T(0))};
      for (int pixel = split * slots + slot; pixel < pixels; pixel += splits * slots) {
        visit(pixel, quad * 4, sums);
      }
#pragma unroll
      for (int k = 0; k < 3; ++k) store_vec4(shared + ((slot * 3 + k) * width + lane) * 4, sums[k]);
    }
    __syncthreads();
    const int columns = min(width, quads - first) * 4;
    for (int j = threadIdx.x; j < 3 * columns; j += kThreads) {
      const int k = j / columns, c = j - k * columns;
      double sum = 0;
      for (int s = 0; s < slots; ++s)
        sum += static_cast<double>(shared[(s * 3 + k) * width * 4 + c]);
      totals[k * padded + first * 4 + c] += sum;
    }
    __syncthreads();
  }
}

inline size_t pixel_sums_bytes(int padded, size_t value_bytes) {
  return 3 * static_cast<size_t>(padded) * sizeof(double) + 12 * kThreads * value_bytes;
}

inline int pixel_splits(int64_t pixels, int padded) {
  const int slots = padded / 4 < kThreads ? kThreads / (padded / 4) : 1;
  const int64_t splits = (pixels + slots - 1) / slots;
  return static_cast<int>(splits < kMaxSplits ? splits : kMaxSplits);
}

// Adds Σ g and Σ g·normalized to the totals.
template <class V, class T>
__device__ void sum_gradient(const V* g, const V* z, const T* norm, int pixels, int padded,
                             int split, int splits, T* shared, double* totals) {
  sum_pixels(pixels, padded, split, splits, shared, totals,
             [&](int pixel, int c, Vec4<T>(&sums)[3]) {
               const int64_t at = static_cast<int64_t>(pixel) * padded + c;
               const Vec4<T> grad = load_vec4(g + at);
               sums[0] += grad;
               add_product(sums[1], grad, affine_vec4(load_vec4(z + at), norm, padded, c));
             });
}

template <class V>
__global__ __launch_bounds__(kThreads) void normalize_kernel(V* images, const Compute<V>* norms,
                                                             int64_t size, int padded) {
  constexpr int kValues = 4 * kWide<V>;
  V* x = images + blockIdx.y * size;
  const Compute<V>* norm = norms + blockIdx.y * 2 * padded;
  const int pieces = padded / kValues;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size / kValues;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int c = static_cast<int>(i % pieces) * kValues;
    Vec4<Compute<V>> v[kWide<V>];
    load_wide(x + i * kValues, v);
#pragma unroll
    for (int k = 0; k < kWide<V>; ++k) v[k] = affine_vec4(v[k], norm, padded, c + 4 * k);
    write_wide(x + i * kValues, v);
  }
}

// Normalizes `archs` batches of `size` values each where they are; `norms` is (archs, 2, padded).
template <class V>
void normalize(V* images, const Compute<V>* norms, int64_t size, int padded, int archs,
               CudaStream stream) {
  const int64_t pieces = size / (4 * kWide<V>), blocks = (pieces + kThreads - 1) / kThreads;
  launch(normalize_kernel<V>, dim3(static_cast<unsigned>(std::min<int64_t>(blocks, 4096)), archs),
         kThreads, 0, stream, images, norms, size, padded);
}

}  // namespace asng::cuda
