// Batch normalization: sums over the pixels of a batch, statistics and coefficients from them, and
// the values normalized. Sums do not depend on the order in which blocks run: every block writes
// those of its split, and the block that finishes last adds them in the order of the splits, if
// they are many, those of some neighbors first. What runs once a block is short code rather than
// unrolled: it waits for its instructions, too.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/cuda/dag.h"

namespace asng::cuda {

// Adds the sums of `groups` groups, (groups, 2, columns), to the block's totals: the second of the
// two kinds lies `second` behind the first.
template <class T>
__device__ void add_groups(const T* values, int groups, int columns, double* totals, int second) {
  for (int j = threadIdx.x; j < 2 * columns; j += blockDim.x) {
    T sum = 0;
    for (int g = 0; g < groups; ++g) sum += values[g * 2 * columns + j];
    totals[j < columns ? j : second + j - columns] += static_cast<double>(sum);
  }
}

__device__ inline void clear(double* values, int count) {
#pragma unroll 1
  for (int j = threadIdx.x; j < count; j += blockDim.x) values[j] = 0;
}

// Splits whose sums a block adds at once.
inline constexpr int kNeighbors = 32;

// What a launch that computes so many sums, over no more blocks each than there are along x or than
// most_splits(), needs at most: counters, and partial sums of three kinds.
ASNG_HD constexpr int counters_of(int splits) { return (splits + kNeighbors - 1) / kNeighbors + 1; }
ASNG_HD constexpr int sum_counters(int sums) { return sums * counters_of(most_splits(sums)); }
ASNG_HD constexpr int64_t partial_values(int sums, int padded) {
  return static_cast<int64_t>(most_blocks(sums)) * 3 * padded;
}

// Writes to `totals` the sums of `count` parts, `distance` values apart.
__device__ inline void sum_parts(const double* parts, int64_t distance, int count, int columns,
                                 double* totals, double2* slices_of) {
  constexpr int kAtOnce = 16;  // loads of a thread
  const int t = threadIdx.x, threads = blockDim.x;
  const int pairs = columns / 2, width = min(pairs, threads), slices = threads / width;
  const int lane = t % width, slice = t / width;
  for (int first = 0; first < pairs; first += width) {
    const int pair = first + lane;
    const bool mine = slice < slices && pair < pairs;
    double2 sum = make_double2(0, 0);
    if (mine) {
      const int64_t step = slices * (distance / 2);
      const double2* from = reinterpret_cast<const double2*>(parts + slice * distance) + pair;
      for (int p = slice; p < count; p += kAtOnce * slices, from += kAtOnce * step) {
        double2 values[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          values[k] = make_double2(0, 0);
          if (p + k * slices < count) values[k] = __ldcg(from + k * step);
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          sum.x += values[k].x;
          sum.y += values[k].y;
        }
      }
    }
    slices_of[t] = sum;
    __syncthreads();
    if (mine && slice == 0) {
#pragma unroll 4
      for (int s = 1; s < slices; ++s) {
        sum.x += slices_of[s * width + lane].x;
        sum.y += slices_of[s * width + lane].y;
      }
      totals[2 * pair] = sum.x;
      totals[2 * pair + 1] = sum.y;
    }
    __syncthreads();
  }
}

// Writes this block's totals as split `split` of `splits` of the group whose sums and counters,
// counters_of(splits), these are. Returns true in the block that is the last one to do so, with the
// sums in `totals`. `shared` is shared memory for two doubles a thread, aligned to 16 bytes, whose
// contents are lost.
__device__ inline bool sum_over_blocks(double* totals, int columns, double* partials,
                                       unsigned* counters, int split, int splits, void* shared) {
  // First of neighbors; then the first of them stands for all.
  for (int64_t distance = columns;; distance *= kNeighbors) {
    const int place = split / kNeighbors, first = place * kNeighbors;
    const int count = min(splits - first, kNeighbors);
    __syncthreads();
#pragma unroll 1
    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
      partials[split * distance + j] = totals[j];
    }
    __syncthreads();
    bool last = false;
    if (threadIdx.x == 0) {
      // A fence also orders what the barrier has ordered before it, so one thread's is enough.
      __threadfence();
      last = atomicInc(counters + place, count - 1) == static_cast<unsigned>(count - 1);
      __threadfence();
    }
    if (__syncthreads_or(last) == 0) return false;
    sum_parts(partials + first * distance, distance, count, columns, totals,
              static_cast<double2*>(shared));
    if (splits <= kNeighbors) return true;
    split = place;
    splits = (splits + kNeighbors - 1) / kNeighbors;
    counters += splits;
  }
}

// The same of `kinds` sums per channel, where the partial sums and the counters are those of group
// `group` of a dag: every group has some for as many splits as there are blocks along x.
template <class V>
__device__ bool sum_over_splits(const Dag<V>& dag, int group, int kinds, int split, int splits,
                                double* totals, void* shared) {
  const int padded = dag.shape.padded, blocks = gridDim.x;
  return sum_over_blocks(totals, kinds * padded,
                         dag.partials + static_cast<int64_t>(group) * blocks * 3 * padded,
                         dag.counters + group * counters_of(blocks), split, splits, shared);
}

// The same where the splits are the blocks along x.
template <class V>
__device__ bool sum_over_splits(const Dag<V>& dag, int group, int kinds, int splits, double* totals,
                                void* shared) {
  return sum_over_splits(dag, group, kinds, blockIdx.x, splits, totals, shared);
}

// From Σ z and Σ z² over `count` values per channel: normalized = z·scale + shift.
template <class T>
__device__ void finish_norm(const double* sums, double count, int padded, T* norm) {
  const double share = 1 / count;
#pragma unroll 1
  for (int c = threadIdx.x; c < padded; c += blockDim.x) {
    const double mean = sums[c] * share;
    const double difference = sums[padded + c] * share - mean * mean;
    // Rounding may make it negative; a NaN must stay one.
    const double rstd = 1 / sqrt((difference < 0 ? 0 : difference) + kEpsilon);
    norm[c] = static_cast<T>(rstd);
    norm[padded + c] = static_cast<T>(-mean * rstd);
  }
}

// Gradient of a normalization's input, a·g + b·z + c, where g/factor is the gradient of its output
// as summed: from Σ g and Σ g·normalized. `coefficients` receives a, b and c of all channels. Where
// the stored z are normalized already, `is_raw` is false. Done by so many threads of the block.
template <class T>
__device__ void finish_gradient(const double* sums, const double* dots, double count, int padded,
                                const T* norm, bool is_raw, double factor, T* coefficients,
                                int thread = threadIdx.x, int threads = blockDim.x) {
  const double share = 1 / count;
#pragma unroll 1
  for (int c = thread; c < padded; c += threads) {
    // rstd · (g − mean(g) − x̂ · mean(g·x̂)) with x̂ = z·scale + shift.
    const double outer = static_cast<double>(norm[c]) * factor;
    const double mean = sums[c] * share, dot = dots[c] * share;
    const double scale = is_raw ? static_cast<double>(norm[c]) : 1;
    const double shift = is_raw ? static_cast<double>(norm[padded + c]) : 0;
    coefficients[c] = static_cast<T>(outer);
    coefficients[padded + c] = static_cast<T>(-outer * dot * scale);
    coefficients[2 * padded + c] = static_cast<T>(-outer * (mean + dot * shift));
  }
}

// What affine_vec4 does, with the scales and shifts of four channels in registers.
template <class T>
struct Affine {
  Vec4<T> scale, shift;

  __device__ Vec4<T> operator()(Vec4<T> x) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) x.v[i] = x.v[i] * scale.v[i] + shift.v[i];
    return x;
  }
};

template <class T>
__device__ __forceinline__ Affine<T> load_affine(const T* norm, int padded, int channel) {
  Affine<T> affine = {fill_vec4(T(1)), fill_vec4(T(0))};
  if (norm != nullptr) {
    affine = {load_vec4(norm + channel), load_vec4(norm + padded + channel)};
  }
  return affine;
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

// Calls visit(item, channel, sums) for this block's split of some items, groups of pixels, and all
// their channels, which adds to the three sums, and adds those to `totals` (3, padded). `shared`
// has room for 12 values a thread.
template <class T, class Visit>
__device__ void sum_items(int items, int padded, int split, int splits, T* shared, double* totals,
                          Visit visit) {
  const int threads = blockDim.x, quads = padded / 4;
  const int width = min(quads, threads), slots = threads / width;
  const int lane = threadIdx.x % width, slot = threadIdx.x / width;
  for (int first = 0; first < quads; first += width) {
    const int quad = first + lane;
    const bool mine = slot < slots && quad < quads;
    Vec4<T> sums[3] = {fill_vec4(T(0)), fill_vec4(T(0)), fill_vec4(T(0))};
    if (mine) {
      for (int item = split * slots + slot; item < items; item += splits * slots) {
        visit(item, quad * 4, sums);
      }
    }
    const auto sums_of = [&](int of) { return shared + (of * width + lane) * 12; };
    // Slots are added to those in the other half of them.
    for (int count = slots; count > 1;) {
      const int half = (count + 1) / 2;
      if (mine && slot >= half && slot < count) {
#pragma unroll
        for (int k = 0; k < 3; ++k) store_vec4(sums_of(slot) + 4 * k, sums[k]);
      }
      __syncthreads();
      if (mine && slot + half < count) {
#pragma unroll
        for (int k = 0; k < 3; ++k) sums[k] += load_vec4(sums_of(slot + half) + 4 * k);
      }
      count = half;
    }
    if (mine && slot == 0) {
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        for (int i = 0; i < 4; ++i) {
          totals[k * padded + quad * 4 + i] += static_cast<double>(sums[k].v[i]);
        }
      }
    }
    __syncthreads();
  }
}

inline size_t item_sums_bytes(int padded, int threads, size_t value_bytes) {
  return 3 * static_cast<size_t>(padded) * sizeof(double) + 12 * threads * value_bytes;
}
inline size_t pixel_sums_bytes(int padded, size_t value_bytes) {
  return item_sums_bytes(padded, kThreads, value_bytes);
}

// Splits of items over blocks of so many threads, such that every thread has some, `most` at most.
inline int item_splits(int64_t items, int padded, int threads, int most) {
  const int slots = std::max(threads / (padded / 4), 1);
  return static_cast<int>(std::min<int64_t>((items + slots - 1) / slots, most));
}

// Pixels of a thread in sum_gradient that are under way at once.
inline constexpr int kPixelsAtOnce = 4;

ASNG_HD inline int pixel_groups(int64_t pixels) {
  return static_cast<int>((pixels + kPixelsAtOnce - 1) / kPixelsAtOnce);
}
// In a launch that computes so many sums.
inline int pixel_splits(int64_t pixels, int padded, int sums) {
  return item_splits(pixel_groups(pixels), padded, kThreads, most_splits(sums));
}

// Adds Σ g and Σ g·normalized to the totals.
template <class V, class T>
__device__ void sum_gradient(const V* g, const V* z, const T* norm, int pixels, int padded,
                             int split, int splits, T* shared, double* totals) {
  const int groups = pixel_groups(pixels);
  sum_items(groups, padded, split, splits, shared, totals,
            [&](int group, int c, Vec4<T>(&sums)[3]) {
              const Affine<T> affine = load_affine(norm, padded, c);
              Vec4<T> grads[kPixelsAtOnce], values[kPixelsAtOnce];
#pragma unroll
              for (int k = 0; k < kPixelsAtOnce; ++k) {
                // Neighboring threads have neighboring pixels.
                const int pixel = group + k * groups;  // the last ones may be one too many
                const int64_t at = static_cast<int64_t>(min(pixel, pixels - 1)) * padded + c;
                grads[k] = load_vec4(g + at);
                values[k] = load_vec4(z + at);
              }
#pragma unroll
              for (int k = 0; k < kPixelsAtOnce; ++k) {
                if (group + k * groups >= pixels) continue;
                sums[0] += grads[k];
                add_product(sums[1], grads[k], affine(values[k]));
              }
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
    // In 32 bits, which are enough to count pieces.
    const int c =
        static_cast<int>(static_cast<unsigned>(i) % static_cast<unsigned>(pieces)) * kValues;
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
