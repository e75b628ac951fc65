// Images in shared memory as kernels of whole cells work on them, in strips of rows: filling them,
// and the convolutions of a strip. All functions are to be called by all threads of the block; what
// they read must be there, and what they write is for a barrier to hand on.
#pragma once

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/persistent.h"

namespace asng::cuda {

// Values from one pixel to the next: of an image, so that threads that read every fourth pixel do
// not meet in a bank, and of the rows of a matrix, likewise for the fragments of a product.
template <int C>
inline constexpr int kPixel = C % 32 == 0 ? C : C + 4;
template <int C>
inline constexpr int kRow = C + 4;

__device__ __forceinline__ void store_shared(float* to, const Vec4<float>& v) {
  store_shared(to, v.v[0], v.v[1], v.v[2], v.v[3]);
}

// Threads that are four channels of one pixel apart, and the pixels in between.
template <int C>
inline constexpr int kQuads = C / 4;
template <int C>
inline constexpr int kStep = kCellThreads / kQuads<C>;

// Pixels (top …, left …) of an image after normalization and, if asked for, ReLU; zeros beyond the
// edge. `columns` is at least 2.
template <int C, bool kRelu, class V>
__device__ void fill_image(const State<V>& from, int image, int top, int left, int rows,
                           int columns, float* to) {
  constexpr int kFlight = 8;  // loads on their way at once
  const int c = threadIdx.x % kQuads<C> * 4, count = rows * columns;
  const unsigned per_row = ~0u / columns + 1;
  Vec4<float> scale = fill_vec4(1.0f), shift = fill_vec4(0.0f);
  if (from.norm != nullptr) {
    scale = load_vec4(from.norm + c);
    shift = load_vec4(from.norm + C + c);
  }
  const V* x = from.x + static_cast<int64_t>(image) * from.height * from.width * C + c;
  for (int first = threadIdx.x / kQuads<C>; first < count; first += kFlight * kStep<C>) {
    Vec4<float> values[kFlight];
    unsigned inside = 0;
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int place = first + i * kStep<C>;
      const int row = static_cast<int>(multiply_high(place, per_row));
      const int y = top + row, at = left + place - row * columns;
      const bool is_inside = place < count &&
                             static_cast<unsigned>(y) < static_cast<unsigned>(from.height) &&
                             static_cast<unsigned>(at) < static_cast<unsigned>(from.width);
      inside |= static_cast<unsigned>(is_inside) << i;
      values[i] = is_inside ? load_vec4(x + (y * from.width + at) * C) : fill_vec4(0.0f);
    }
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int place = first + i * kStep<C>;
      if (place >= count) break;
      Vec4<float> value = shift;
      add_product(value, values[i], scale);
      if (kRelu) value = relu_vec4(value);
      if ((inside >> i & 1) == 0) value = fill_vec4(0.0f);
      store_shared(to + place * kPixel<C> + c, value);
    }
  }
}

// The depthwise convolution of `rows` rows of `width` pixels, both even and the width a multiple of
// 4, to rows of a matrix. `taps` is (kernel elements, C).
template <int C, int K, int S, int D, bool kRounded>
__device__ void depthwise_strip(const float* source, int columns, const float* taps, int rows,
                                int width, float* to) {
  constexpr int kRows = 2, kSpan = 3 * S + (K - 1) * D + 1;
  const int c = threadIdx.x % kQuads<C> * 4, across = width / 4;
  const int runs = rows / kRows * across;
  for (int run = threadIdx.x / kQuads<C>; run < runs; run += kStep<C>) {
    const int down = run / across, y = down * kRows, x = (run - down * across) * 4;
    Vec4<float> sums[kRows][4];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int p = 0; p < 4; ++p) sums[r][p] = fill_vec4(0.0f);
    }
    const float* from = source + (y * S * columns + x * S) * kPixel<C> + c;
#pragma unroll
    for (int line = 0; line < (kRows - 1) * S + (K - 1) * D + 1; ++line) {
      // Rows of the output that read this line.
      bool reads = false;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int tap = line - r * S;
        reads |= tap >= 0 && tap % D == 0 && tap / D < K;
      }
      if (!reads) continue;
      Vec4<float> v[kSpan];
#pragma unroll
      for (int i = 0; i < kSpan; ++i) {
        v[i] = load_vec4(from + (line * columns + i) * kPixel<C>);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int tap = line - r * S;
        if (tap < 0 || tap % D != 0 || tap / D >= K) continue;
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const Vec4<float> w = load_vec4(taps + (tap / D * K + k) * C + c);
#pragma unroll
          for (int p = 0; p < 4; ++p) add_product(sums[r][p], v[p * S + k * D], w);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        if constexpr (kRounded) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            sums[r][p].v[i] = __uint_as_float(to_tf32(sums[r][p].v[i]));
          }
        }
        store_shared(to + ((y + r) * width + x + p) * kRow<C> + c, sums[r][p]);
      }
    }
  }
}

// Every second pixel of an image, in both directions from `offset` on, after normalization and
// ReLU, to rows of a matrix.
template <int C, bool kRounded, class V>
__device__ void fill_every_second(const State<V>& from, int image, int top, int offset, int pixels,
                                  int width, float* to) {
  const int c = threadIdx.x % kQuads<C> * 4;
  const V* x = from.x + static_cast<int64_t>(image) * from.height * from.width * C + c;
#pragma unroll 4
  for (int p = threadIdx.x / kQuads<C>; p < pixels; p += kStep<C>) {
    const int row = p / width, y = (top + row) * 2 + offset, at = (p - row * width) * 2 + offset;
    Vec4<float> value = fill_vec4(0.0f);
    if (y < from.height && at < from.width) {
      value = relu_vec4(affine_vec4(load_vec4(x + (y * from.width + at) * C), from.norm, C, c));
    }
    if constexpr (kRounded) {
#pragma unroll
      for (int i = 0; i < 4; ++i) value.v[i] = __uint_as_float(to_tf32(value.v[i]));
    }
    store_shared(to + p * kRow<C> + c, value);
  }
}

// Products of `pixels` rows of a matrix and a weight (kSources·C, C); with two sources there are
// two matrices, `distance` values apart. On the tensor cores or not: how threads divide them, and
// with which channels each of them works.
template <int C, bool kTensorCores>
struct PixelMatmul;

template <int C>
struct PixelMatmul<C, true> {
  // Groups of warps that have columns of their own, and how many pairs of 8 columns one has.
  static constexpr int kGroups = C == 64 ? 4 : 1, kPairs = C / 16 / kGroups;
  // Rows of sums that are left when the threads of a warp have added up theirs.
  static constexpr int kSums = kCellWarps / kGroups;

  static __device__ int channel(int pair) {
    return (static_cast<int>(threadIdx.x) / 32 % kGroups * kPairs + pair) * 16 +
           threadIdx.x % 4 * 4;
  }
  static __device__ int sums_row() { return threadIdx.x / 32 / kGroups; }
  // Adds up over the threads that have the same channels; true in one of them.
  static __device__ bool add_up(float& sum) {
#pragma unroll
    for (int other = 4; other < 32; other *= 2) sum += __shfl_xor_sync(~0u, sum, other);
    return threadIdx.x % 32 < 4;
  }

  // Calls emit(pair, pixel, value) for each pixel, with four channels from channel(pair) on.
  template <int kSources, class Emit>
  static __device__ void run(const float* left, int distance, const float* weight, int pixels,
                             Emit emit) {
    constexpr int kDepth = C / 8;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int warp = threadIdx.x / 32, first_pair = warp % kGroups * kPairs;
    // Columns are in such an order that a thread's sums are neighbors.
    const auto right = [&](int k, int pair, int j, unsigned (&b)[2]) {
      const float* from =
          weight + (k * 8 + t) * C + (first_pair + pair) * 16 + g / 2 * 4 + j * 2 + g % 2;
      b[0] = to_tf32(from[0]);
      b[1] = to_tf32(from[4 * C]);
    };
    unsigned held[kSources == 1 ? kDepth : 1][kPairs][2][2];
    if constexpr (kSources == 1) {
#pragma unroll
      for (int k = 0; k < kDepth; ++k) {
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
          for (int j = 0; j < 2; ++j) right(k, pair, j, held[k][pair][j]);
        }
      }
    }
    for (int m = warp / kGroups * 16; m < pixels; m += kSums * 16) {
      float sums[kPairs][2][4] = {};
#pragma unroll
      for (int source = 0; source < kSources; ++source) {
        const float* rows = left + source * distance + (m + g) * kRow<C> + t;
#pragma unroll
        for (int k = 0; k < kDepth; ++k) {
          unsigned a[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const bool exists = m + g + i % 2 * 8 < pixels;
            a[i] = exists ? __float_as_uint(rows[i % 2 * 8 * kRow<C> + k * 8 + i / 2 * 4]) : 0;
          }
#pragma unroll
          for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              if constexpr (kSources == 1) {
                mma_tf32(sums[pair][j], a, held[k][pair][j]);
              } else {
                unsigned b[2];
                right(source * kDepth + k, pair, j, b);
                mma_tf32(sums[pair][j], a, b);
              }
            }
          }
        }
      }
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int pixel = m + g + half * 8;
          if (pixel >= pixels) continue;
          const Vec4<float> value = {{sums[pair][0][2 * half], sums[pair][0][2 * half + 1],
                                      sums[pair][1][2 * half], sums[pair][1][2 * half + 1]}};
          emit(pair, pixel, value);
        }
      }
    }
  }
};

template <int C>
struct PixelMatmul<C, false> {
  static constexpr int kPairs = 1, kSums = kCellWarps;

  static __device__ int channel(int) { return threadIdx.x % kQuads<C> * 4; }
  static __device__ int sums_row() { return threadIdx.x / 32; }
  static __device__ bool add_up(float& sum) {
#pragma unroll
    for (int other = kQuads<C>; other < 32; other *= 2) sum += __shfl_xor_sync(~0u, sum, other);
    return threadIdx.x % 32 < kQuads<C>;
  }

  // `pixels` is a multiple of 4.
  template <int kSources, class Emit>
  static __device__ void run(const float* left, int distance, const float* weight, int pixels,
                             Emit emit) {
    const int c = channel(0);
    for (int m = threadIdx.x / kQuads<C> * 4; m < pixels; m += kStep<C> * 4) {
      Vec4<float> sums[4] = {};
#pragma unroll
      for (int source = 0; source < kSources; ++source) {
        multiply(left + source * distance + m * kRow<C>, kRow<C>, weight + source * C * C + c, C, C,
                 sums);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) emit(0, m + i, sums[i]);
    }
  }
};

}  // namespace asng::cuda
