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

// Threads that are four channels of one pixel apart, and the pixels in between.
template <int C>
inline constexpr int kQuads = C / 4;
template <int C>
inline constexpr int kStep = kCellThreads / kQuads<C>;

// Rows [top, top + rows) of an image, (height, width, C) from `x` on, normalized unless `norm` is
// null, after ReLU, between margins of zeros: `margin` pixels on the left, and `columns` in all.
// Not inlined, so that it has registers for itself.
template <int C, class V>
__device__ __noinline__ void fill_image(const V* x, const float* norm, int height, int width,
                                        int top, int margin, int rows, int columns, float* to) {
  constexpr int kFlight = C == 16 ? 8 : 4;  // loads on their way at once
  const int c = threadIdx.x % kQuads<C> * 4, slot = threadIdx.x / kQuads<C>;
  const int begin = max(top, 0), end = min(top + rows, height), count = (end - begin) * width;
  const unsigned per_row = ~0u / width + 1;
  Vec4<float> scale = fill_vec4(1.0f), shift = fill_vec4(0.0f);
  if (norm != nullptr) {
    scale = load_vec4(norm + c);
    shift = load_vec4(norm + C + c);
  }
  x = in_global(x) + begin * width * C + c;
  float* inside = to + ((begin - top) * columns + margin) * kPixel<C> + c;
  int first = slot;
  do {
    Vec4<float> values[kFlight];
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      // Those behind the last one load it again, so that no load waits for a branch.
      values[i] = load_vec4(x + min(first + i * kStep<C>, count - 1) * C);
    }
    if (first == slot) {
      // While they are on their way, the margins: whole rows above and below, and what is left of
      // a row.
      const Vec4<float> outside = fill_vec4(0.0f);
      const int above = (begin - top) * columns, below = (top + rows - end) * columns;
      for (int i = slot; i < above + below; i += kStep<C>) {
        const int at = i < above ? i : i + (end - begin) * columns;
        store_vec4(to + at * kPixel<C> + c, outside);
      }
      const int sides = columns - width;
      for (int i = slot; i < (end - begin) * sides; i += kStep<C>) {
        const int row = i / sides, place = i - row * sides;
        const int at = above + row * columns + (place < margin ? place : place + width);
        store_vec4(to + at * kPixel<C> + c, outside);
      }
    }
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int pixel = first + i * kStep<C>;
      if (pixel >= count) break;
      Vec4<float> value = shift;
      add_product(value, values[i], scale);
#pragma unroll
      for (int j = 0; j < 4; ++j) value.v[j] = max_or_nan(value.v[j], 0.0f);
      const int row = static_cast<int>(multiply_high(pixel, per_row));
      store_vec4(inside + (row * columns + pixel - row * width) * kPixel<C>, value);
    }
    first += kFlight * kStep<C>;
  } while (first < count);
}

// From a row of a weight (C, C) in shared memory to the next.
template <int C>
inline constexpr int kWeightRow = C + 8;

// Starts to copy `count` values, a multiple of 4.
__device__ inline void start_copy(const float* from, int count, float* to) {
  for (int i = threadIdx.x * 4; i < count; i += kCellThreads * 4) copy_async16(to + i, from + i);
}

// The same of the `rows` rows of a weight.
template <int C>
__device__ void start_weight_copy(const float* from, int rows, float* to) {
  for (int i = threadIdx.x * 4; i < rows * C; i += kCellThreads * 4) {
    copy_async16(to + i / C * kWeightRow<C> + i % C, from + i);
  }
}

// Pixels from one row of a strip to the next, of which the first `count` are needed: such that
// tiles of a depthwise convolution that half a warp has each do not meet in a bank.
ASNG_HD constexpr int row_pixels(int channels, int count) {
  return channels == 16 ? count + (6 - count % 4) % 4 : count;
}

// What the last tile of a row reads behind the strip, in pixels, where the row ends before the
// tile.
inline constexpr int kBehindStrip = 8;

// The depthwise convolution of `rows` rows of `width` pixels, a multiple of 4, to rows of a matrix.
// `taps` is (kernel elements, C). A thread has one channel, so that its tile may be large where
// there are enough threads for the others: what is read of shared memory takes the time. The last
// tiles may be one row too many.
template <int C, int K, int S, int D, bool kRounded>
__device__ void depthwise_strip(const float* source, int columns, const float* taps, int rows,
                                int width, float* to) {
  constexpr int kRows = S == 1 && D == 1 ? 2 : 1, kRun = C == 64 ? 4 : 8;
  constexpr int kSpan = (kRun - 1) * S + (K - 1) * D + 1;
  const int c = threadIdx.x % C, across = (width + kRun - 1) / kRun;
  const int down = (rows + kRows - 1) / kRows;
  for (int tile = threadIdx.x / C; tile < across * down; tile += kCellThreads / C) {
    const int right = tile / down, x = right * kRun, y = (tile - right * down) * kRows;
    float sums[kRows][kRun] = {};
    const float* from = source + (y * columns + x) * S * kPixel<C> + c;
    // A line of taps is loaded once, for the first row and on the next line for the second.
    float line_taps[K] = {};
#pragma unroll 1
    for (int line = 0; line < K + kRows - 1; ++line) {
      float v[kSpan];
#pragma unroll
      for (int i = 0; i < kSpan; ++i) v[i] = from[(line * D * columns + i) * kPixel<C>];
      const auto add = [&](float (&to)[kRun]) {
#pragma unroll
        for (int k = 0; k < K; ++k) {
#pragma unroll
          for (int p = 0; p < kRun; ++p) to[p] += v[p * S + k * D] * line_taps[k];
        }
      };
      if (kRows == 2 && line > 0) add(sums[kRows - 1]);
      if (kRows == 2 && line == K) break;
#pragma unroll
      for (int k = 0; k < K; ++k) line_taps[k] = taps[(line * K + k) * C + c];
      add(sums[0]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float* row = to + ((y + r) * width + x) * kRow<C> + c;
#pragma unroll
      for (int p = 0; p < kRun; ++p) {
        const float sum = sums[r][p];
        if (x + p / 4 * 4 < width) {
          row[p * kRow<C>] = kRounded ? __uint_as_float(to_tf32(sum)) : sum;
        }
      }
    }
  }
}

// Every second pixel of an image, in both directions from `offset` on, after normalization and
// ReLU, to rows of a matrix.
template <int C, bool kRounded, class V>
__device__ void fill_every_second(const V* x, const float* norm, int height, int width, int top,
                                  int offset, int pixels, int out_width, float* to) {
  const int c = threadIdx.x % kQuads<C> * 4;
#pragma unroll 4
  for (int p = threadIdx.x / kQuads<C>; p < pixels; p += kStep<C>) {
    const int row = p / out_width, y = (top + row) * 2 + offset;
    const int at = (p - row * out_width) * 2 + offset;
    Vec4<float> value = fill_vec4(0.0f);
    if (y < height && at < width) {
      value = relu_vec4(affine_vec4(load_vec4(x + (y * width + at) * C + c), norm, C, c));
    }
    if constexpr (kRounded) {
#pragma unroll
      for (int i = 0; i < 4; ++i) value.v[i] = __uint_as_float(to_tf32(value.v[i]));
    }
    store_vec4(to + p * kRow<C> + c, value);
  }
}

// Products of `pixels` rows of a matrix and a weight (kSources·C, C), whose rows are kWeightRow
// apart; with two sources there are two matrices, `distance` values apart. On the tensor cores or
// not: how threads divide them, and with which channels each of them works.
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
  // Threads of a warp that are a multiple of this apart have the same channels.
  static constexpr int kSame = 4;

  // Calls emit(pair, pixel, value) for each pixel, with four channels from channel(pair) on.
  template <int kSources, class Emit>
  static __device__ void run(const float* left, int distance, const float* weight, int pixels,
                             Emit emit) {
    constexpr int kDepth = C / 8;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int warp = threadIdx.x / 32, first_pair = warp % kGroups * kPairs;
    // Columns are in such an order that a thread's sums are neighbors.
    const auto right = [&](int k, int pair, int j, unsigned (&b)[2]) {
      const float* from = weight + (k * 8 + t) * kWeightRow<C> + (first_pair + pair) * 16 +
                          g / 2 * 4 + j * 2 + g % 2;
      b[0] = to_tf32(from[0]);
      b[1] = to_tf32(from[4 * kWeightRow<C>]);
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
  static constexpr int kPairs = 1, kSums = kCellWarps, kSame = kQuads<C>;

  static __device__ int channel(int) { return threadIdx.x % kQuads<C> * 4; }
  static __device__ int sums_row() { return threadIdx.x / 32; }

  // `pixels` is a multiple of 4.
  template <int kSources, class Emit>
  static __device__ void run(const float* left, int distance, const float* weight, int pixels,
                             Emit emit) {
    const int c = channel(0);
    for (int m = threadIdx.x / kQuads<C> * 4; m < pixels; m += kStep<C> * 4) {
      Vec4<float> sums[4] = {};
#pragma unroll
      for (int source = 0; source < kSources; ++source) {
        multiply(left + source * distance + m * kRow<C>, kRow<C>,
                 weight + source * C * kWeightRow<C> + c, kWeightRow<C>, C, sums);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) emit(0, m + i, sums[i]);
    }
  }
};

// Sums for a normalization, of values and of their products with others, in the registers of
// a thread, of the channels that it has in a Matmul.
template <int C, bool kTensorCores>
struct PixelSums {
  using Matmul = PixelMatmul<C, kTensorCores>;
  Vec4<float> sum[Matmul::kPairs] = {}, products[Matmul::kPairs] = {};

  __device__ void add(int pair, const Vec4<float>& value, const Vec4<float>& other) {
    sum[pair] += value;
    add_product(products[pair], value, other);
  }
  // Adds those of all threads to `totals` (2·C); `red` is shared memory.
  __device__ void add_up(float* red, double* totals) {
#pragma unroll
    for (int pair = 0; pair < Matmul::kPairs; ++pair) {
      float values[8];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        values[i] = sum[pair].v[i];
        values[4 + i] = products[pair].v[i];
      }
      // Of two threads each hands half of its values to the other.
      int count = 8, first = 0;
#pragma unroll
      for (int other = 16; other >= Matmul::kSame; other /= 2) {
        const bool upper = (threadIdx.x & other) != 0;
        count /= 2;
#pragma unroll
        for (int i = 0; i < count; ++i) {
          const float own = upper ? values[count + i] : values[i];
          const float others = upper ? values[i] : values[count + i];
          values[i] = own + __shfl_xor_sync(~0u, others, other);
        }
        first += upper ? count : 0;
      }
      float* row = red + Matmul::sums_row() * 2 * C + Matmul::channel(pair);
#pragma unroll
      for (int i = 0; i < count; ++i) row[(first + i) / 4 * C + (first + i) % 4] = values[i];
    }
    __syncthreads();
    static_assert(2 * C <= kCellThreads);
    const int j = threadIdx.x;
    if (j >= 2 * C) return;
    float total = 0;
#pragma unroll
    for (int row = 0; row < Matmul::kSums; ++row) total += red[row * 2 * C + j];
    totals[j] += static_cast<double>(total);
  }
};

}  // namespace asng::cuda
