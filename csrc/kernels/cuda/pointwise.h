// Concatenation of sources → ReLU → 1×1, on runs of pixels: device functions of the inputs and
// the output of a cell, factorized reductions and the stem.
#pragma once

#include "kernels/cuda/depthwise.h"
#include "kernels/cuda/norm.h"

namespace asng::cuda {

// One of the concatenated feature maps. It is read at pixel (stride·y + offset, stride·x + offset)
// of output pixel (y, x); positions beyond the edge are zeros. If x is null the source is left out.
template <class V>
struct Source {
  const V* x = nullptr;
  const Compute<V>* norm = nullptr;  // see affine_vec4
  int channels = 0;                  // a multiple of 16
  int height = 0, width = 0;
  int stride = 1, offset = 0;
  int first = 0;  // where its channels begin in the packed weight
  // Not 0: x has this number of values per pixel, unpadded, and a pixel is read as the 3×3 window
  // around it, without ReLU: 9·window values and zeros up to `channels`.
  int window = 0;
};

struct PointwiseShape {
  int images = 0, out_height = 0, out_width = 0, padded = 0;

  ASNG_HD int pixels() const { return images * out_height * out_width; }
};

// Pixels that a block works on at once, and what that takes of shared memory.
ASNG_HD inline int pointwise_pixels(int padded) { return padded > 32 ? 64 : 128; }
ASNG_HD inline int pointwise_backward_pixels(int padded, int value_bytes) {
  const int pixels = padded > 128 ? 16 : padded > 64 ? 32 : 64;
  return value_bytes == 8 && pixels > 16 ? pixels / 2 : pixels;
}
ASNG_HD inline int pointwise_backward_values(int padded, int value_bytes) {
  const int values = pointwise_backward_pixels(padded, value_bytes) * (padded + 4 + kSourceRow);
  return values > 16 * kThreads ? values : 16 * kThreads;
}

// Splits and dynamic shared memory of a launch that calls pointwise_forward.
inline int pointwise_splits(const PointwiseShape& shape) {
  const int run = pointwise_pixels(shape.padded);
  return std::min((shape.pixels() + run - 1) / run, kMaxSplits);
}
inline size_t pointwise_bytes(int padded, size_t value_bytes) {
  return 3 * static_cast<size_t>(padded) * sizeof(double) + kPointwiseValues * value_bytes;
}

// Pixel of the source that output pixel `pixel` reads, -1 beyond the edge.
template <class V>
__device__ int64_t source_pixel(const Source<V>& s, const PointwiseShape& shape, int pixel) {
  if (s.stride == 1) return pixel;
  const int line = pixel / shape.out_width, x = pixel - line * shape.out_width;
  const int image = line / shape.out_height, y = line - image * shape.out_height;
  const int sy = y * s.stride + s.offset, sx = x * s.stride + s.offset;
  if (sy >= s.height || sx >= s.width) return -1;
  return (static_cast<int64_t>(image) * s.height + sy) * s.width + sx;
}

template <class V>
__device__ Vec4<Compute<V>> window_vec4(const Source<V>& s, int pixel, int channel) {
  using T = Compute<V>;
  const int line = pixel / s.width, x = pixel - line * s.width, y = line % s.height;
  Vec4<T> v;
  for (int i = 0; i < 4; ++i) {
    const int element = (channel + i) / s.window, c = channel + i - element * s.window;
    const int dy = element / 3 - 1, dx = element % 3 - 1;
    const bool inside =
        element < 9 && y + dy >= 0 && y + dy < s.height && x + dx >= 0 && x + dx < s.width;
    const int64_t from = (static_cast<int64_t>(pixel) + dy * s.width + dx) * s.window + c;
    v.v[i] = inside ? load1(s.x + from) : T(0);
  }
  return v;
}

// `count` pixels from `begin`, channels [channel, channel + chunk) after ReLU; zeros behind the
// last pixel of the batch.
template <class V>
__device__ void load_pixels(const Source<V>& s, const PointwiseShape& shape, int begin, int count,
                            int channel, int chunk, Compute<V>* to) {
  constexpr int kValues = 4 * kWide<V>;
  const int pieces = chunk / kValues, pixels = shape.pixels();
  for (int i = threadIdx.x; i < count * pieces; i += kThreads) {
    const int p = i / pieces, c = (i - p * pieces) * kValues;
    Vec4<Compute<V>> v[kWide<V>] = {};
    if (begin + p < pixels) {
      const int64_t from = s.window != 0 ? -1 : source_pixel(s, shape, begin + p);
      if (from >= 0) load_wide(s.x + from * s.channels + channel + c, v);
#pragma unroll
      for (int k = 0; k < kWide<V>; ++k) {
        if (s.window != 0) v[k] = window_vec4(s, begin + p, channel + c + 4 * k);
        if (from >= 0) v[k] = relu_vec4(affine_vec4(v[k], s.norm, s.channels, channel + c + 4 * k));
      }
    }
#pragma unroll
    for (int k = 0; k < kWide<V>; ++k) store_vec4(to + p * kSourceRow + c + 4 * k, v[k]);
  }
}

// A matmul of a run of pixels, rows of shared memory, and up to 64 columns of a weight: every
// thread has the sums of two blocks of 4×4.
template <bool kTensorCores, class T>
class RunMatmul {
 public:
  __device__ RunMatmul(int rows, int columns) : across_(columns / 4), count_(rows / 4 * across_) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums_[s][i] = fill_vec4(T(0));
    }
  }

  __device__ void add(const T* left, int left_row, const T* right, int right_row, int depth) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int block = threadIdx.x + s * kThreads, down = block / across_;
      if (block >= count_) continue;
      multiply(left + down * 4 * left_row, left_row, right + (block - down * across_) * 4,
               right_row, depth, sums_[s]);
    }
  }

  // Puts the sums into shared memory if that is where they are read; the whole block takes part.
  __device__ void share(T*, int) const {}

  // Row i of block s of this thread.
  __device__ Vec4<T> sum(int s, int i, const T*, int) const { return sums_[s][i]; }

 private:
  Vec4<T> sums_[2][4];
  int across_, count_;
};

template <>
class RunMatmul<true, float> : public TileMatmul {
 public:
  __device__ RunMatmul(int rows, int columns) : TileMatmul(rows, columns), across_(columns / 4) {}

  __device__ void share(float* shared, int row) const {
    __syncthreads();
    store(shared, row);
    __syncthreads();
  }

  __device__ Vec4<float> sum(int s, int i, const float* shared, int row) const {
    const int block = threadIdx.x + s * kThreads, down = block / across_;
    return load_vec4(shared + (down * 4 + i) * row + (block - down * across_) * 4);
  }

 private:
  int across_;
};

// This block's split of a pointwise convolution: z (pixels, padded), and 2·padded sums of z and z²
// added to `totals`. `sources(i)` for i < count; `weight` is (depth, padded).
template <bool kTensorCores, class V, class Sources>
__device__ void pointwise_forward(const Sources& sources, int count, const PointwiseShape& shape,
                                  const Compute<V>* weight, int split, int splits, V* z,
                                  double* totals, Compute<V>* shared) {
  using T = Compute<V>;
  const int pixels = shape.pixels(), padded = shape.padded;
  const int run = pointwise_pixels(padded);
  T* groups = shared + 128 * kSourceRow;
  for (int out = 0; out < padded; out += 64) {
    const int width = min(padded - out, 64), across = width / 4, blocks = run / 4 * across;
    for (int begin = split * run; begin < pixels; begin += splits * run) {
      RunMatmul<kTensorCores, T> matmul(run, width);
      for (int i = 0; i < count; ++i) {
        const Source<V> source = sources(i);
        if (source.x == nullptr) continue;
        for (int channel = 0; channel < source.channels; channel += kSourceChunk) {
          const int chunk = min(source.channels - channel, kSourceChunk);
          __syncthreads();
          load_pixels(source, shape, begin, run, channel, chunk, shared);
          __syncthreads();
          matmul.add(shared, kSourceRow,
                     weight + static_cast<int64_t>(source.first + channel) * padded + out, padded,
                     chunk);
        }
      }
      matmul.share(shared, width + 4);
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const int block = threadIdx.x + s * kThreads, down = block / across;
        if (block >= blocks) continue;
        const int column = (block - down * across) * 4;
        Vec4<T> sum = fill_vec4(T(0)), squares = fill_vec4(T(0));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int pixel = begin + down * 4 + i;
          if (pixel >= pixels) continue;
          const Vec4<T> kept =
              store_rounded(z + static_cast<int64_t>(pixel) * padded + out + column,
                            matmul.sum(s, i, shared, width + 4));
          sum += kept;
          add_product(squares, kept, kept);
        }
        store_vec4(groups + down * 2 * width + column, sum);
        store_vec4(groups + (down * 2 + 1) * width + column, squares);
      }
      __syncthreads();
      add_groups(groups, run / 4, width, totals + out, padded);
    }
  }
}

// This block's split of a pointwise convolution's gradients for channels [channel, channel + chunk)
// of one source: the weight's, written to `weight_part` (padded, depth), and the source's, of which
// emit(pixel, channel of the source, value) receives those that ReLU passes. `g` is the gradient of
// the normalized output, `weight` (padded, depth).
template <bool kTensorCores, class V, class Emit>
__device__ void pointwise_backward(const Source<V>& source, int channel, int chunk,
                                   const PointwiseShape& shape, const V* g, const V* z,
                                   const Compute<V>* coefficients, const Compute<V>* weight,
                                   int depth, bool source_needs_grad, int split, int splits,
                                   Compute<V>* weight_split, Compute<V>* shared, Emit emit) {
  using T = Compute<V>;
  const int pixels = shape.pixels(), padded = shape.padded, row = padded + 4;
  const int run = pointwise_backward_pixels(padded, sizeof(T));
  T* grads = shared;
  T* values = shared + run * row;
  const int column = source.first + channel, quads = padded / 4, across = chunk / 4;
  PixelOuterProduct<kTensorCores, T> matmul(padded, chunk);
  for (int begin = split * run; begin < pixels; begin += splits * run) {
    __syncthreads();
    for (int i = threadIdx.x; i < run * quads; i += kThreads) {
      const int p = i / quads, quad = (i - p * quads) * 4;
      const int64_t at = static_cast<int64_t>(begin + p) * padded + quad;
      const bool inside = begin + p < pixels;
      store_vec4(grads + p * row + quad,
                 inside ? norm_gradient_vec4(load_vec4(g + at), load_vec4(z + at), coefficients,
                                             padded, quad)
                        : fill_vec4(T(0)));
    }
    load_pixels(source, shape, begin, run, channel, chunk, values);
    __syncthreads();
    matmul.add(grads, row, values, kSourceRow, run, weight_split + column, depth,
               begin == split * run);
    if constexpr (kTensorCores) {
      if (source_needs_grad) {
        TileMatmul passed(run, chunk);
        passed.add(grads, row, weight + column, depth, padded);
        __syncthreads();
        passed.store_where_positive(values, kSourceRow);
        __syncthreads();
      }
    }
    for (int block = threadIdx.x; source_needs_grad && block < run / 4 * across;
         block += kThreads) {
      const int down = block / across, quad = (block - down * across) * 4;
      Vec4<T> sums[4] = {fill_vec4(T(0)), fill_vec4(T(0)), fill_vec4(T(0)), fill_vec4(T(0))};
      if constexpr (!kTensorCores) {
        multiply(grads + down * 4 * row, row, weight + column + quad, depth, padded, sums);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int pixel = begin + down * 4 + i;
        if (pixel >= pixels) continue;
        const Vec4<T> x = load_vec4(values + (down * 4 + i) * kSourceRow + quad);
        if constexpr (kTensorCores) {
          sums[i] = x;
        } else {
#pragma unroll
          for (int c = 0; c < 4; ++c) sums[i].v[c] = x.v[c] > T(0) ? sums[i].v[c] : T(0);
        }
        emit(pixel, channel + quad, sums[i]);
      }
    }
  }
  __syncthreads();
  matmul.finish(weight_split + column, depth, shared, split * run < pixels);
  __syncthreads();
}

// The two sources of a factorized reduction: even pixels, then odd ones.
template <class V>
__device__ Source<V> factorized_source(const State<V>& from, int channels, int which) {
  Source<V> s;
  s.x = from.x;
  s.norm = from.norm;
  s.channels = channels;
  s.height = from.height;
  s.width = from.width;
  s.stride = 2;
  s.offset = which;
  s.first = which * channels;
  return s;
}

}  // namespace asng::cuda
