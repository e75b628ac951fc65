// Concatenation of sources → ReLU → 1×1, on runs of pixels: device functions of the inputs and
// the output of a cell, factorized reductions and the stem.
#pragma once

#include "kernels/cuda/depthwise.h"
#include "kernels/cuda/norm.h"

namespace asng::cuda {

// One of the concatenated feature maps. It is read at pixel (stride·y + offset, stride·x + offset)
// of output pixel (y, x); positions beyond the edge are zeros. If x is null the source is left out.
// With kWindows x has `window` values per pixel, unpadded, and a pixel is read as the 3×3 window
// around it, without ReLU: 9·window values and zeros up to `channels`.
template <class V, bool kOfWindows = false>
struct Source {
  using Value = V;
  static constexpr bool kWindows = kOfWindows;

  const V* x = nullptr;
  const Compute<V>* norm = nullptr;  // see affine_vec4
  int channels = 0;                  // a multiple of 16
  int height = 0, width = 0;
  int stride = 1, offset = 0;
  int first = 0;  // where its channels begin in the packed weight
  int window = 0;
};

// Pixels of a run and channels of a source in a backward pass, and what they take of shared memory.
inline constexpr int kSourceChunk = 32;
ASNG_HD inline int pointwise_backward_pixels(int padded, int value_bytes) {
  int run = value_bytes == 8 ? 32 : 256;
  while (run > kTile && run * padded > 4096) run /= 2;
  return run;
}
ASNG_HD inline int pointwise_backward_values(int padded, int value_bytes) {
  const int values =
      pointwise_backward_pixels(padded, value_bytes) * (padded + 4 + kSourceChunk + 4);
  return values > 16 * kThreads ? values : 16 * kThreads;
}

// Splits and dynamic shared memory of a launch that calls pointwise_forward, for so many sums.
inline int pointwise_splits(const PointwiseShape& shape, int value_bytes, int sums) {
  const int run = pointwise_pixels(shape, value_bytes);
  return std::min((shape.pixels() + run - 1) / run, most_splits(sums));
}
inline size_t pointwise_bytes(const PointwiseShape& shape, int value_bytes) {
  return 3 * static_cast<size_t>(shape.padded) * sizeof(double) +
         static_cast<size_t>(pointwise_values(shape, value_bytes) * value_bytes);
}

// Pieces of a source's pixels on their way to shared memory: those that this thread loads of
// `count` pixels and `chunk` channels, no more than `kValues` values in all.
template <class S, int kValues>
class PixelPieces {
 public:
  using V = typename S::Value;
  using T = Compute<V>;

  // Pixels from `begin`, channels from `channel`; zeros behind the last pixel of the batch.
  __device__ __forceinline__ void load(const S& s, const PointwiseShape& shape, int begin,
                                       int count, int channel, int chunk) {
    const unsigned pieces = chunk / kPieceValues;
    const int pixels = min(count, shape.pixels() - begin);
    step_ = kThreads / pieces;
    first_ = threadIdx.x / pieces;
    count_ = count;
    piece_ = (threadIdx.x - first_ * pieces) * kPieceValues;
    channel_ = channel + piece_;
    inside_ = 0;
    const V* from = kept(s.x + channel_);
    // Where the first pixel lies, from which the others are counted.
    const Divisor across(shape.out_width), down(shape.out_height);
    int x = begin + first_, y = 0, image = 0;
    if (S::kWindows || s.stride != 1) {
      const unsigned line = static_cast<unsigned>(x) / across.divisor;
      image = line / down.divisor;
      x -= line * across.divisor;
      y = line - image * down.divisor;
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      int pixel = begin + first_ + i * step_;
      bool inside = first_ + i * step_ < pixels;
      if (S::kWindows || s.stride != 1) {
        const int lines = across(x + i * step_), images = down(y + lines);
        const int to_x = x + i * step_ - lines * shape.out_width,
                  to_y = y + lines - images * shape.out_height;
        if constexpr (S::kWindows) {
          load_window(s, pixel, to_y, to_x, inside, loaded_[i]);
          continue;
        }
        const int from_y = to_y * s.stride + s.offset, from_x = to_x * s.stride + s.offset;
        inside &= from_y < s.height && from_x < s.width;
        pixel = ((image + images) * s.height + from_y) * s.width + from_x;
      }
      // Those beyond the edge read the first pixel, so that no load waits for a branch.
      loaded_[i] = load_piece(pixel_at(from, inside ? pixel : 0, s.channels));
      inside_ |= static_cast<unsigned>(inside) << i;
    }
  }

  // After normalization and ReLU, as a factor in rows of shared memory.
  template <bool kTensorCores>
  __device__ __forceinline__ void store(const S& s, T* to, int row) const {
    const WideAffine<V> affine(s.norm, s.channels, channel_);
    to += first_ * row + piece_;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      Vec4<T> v[kWide<V>];
      unpack(loaded_[i], v);
#pragma unroll
      for (int k = 0; k < kWide<V>; ++k) {
        Vec4<T> value = affine.shift[k];
        add_product(value, v[k], affine.scale[k]);
        if constexpr (S::kWindows) {
          value = v[k];
        } else {
          value = relu_vec4(value);
#pragma unroll
          for (int c = 0; c < 4; ++c) value.v[c] = (inside_ >> i & 1u) != 0 ? value.v[c] : T(0);
        }
        if (first_ + i * step_ < count_) {
          store_vec4(to + 4 * k, as_factor<kTensorCores>(value));
        }
      }
      to += step_ * row;
    }
  }

 private:
  static constexpr int kPieceValues = 4 * kWide<V>;
  static constexpr int kPieces = kValues / (kPieceValues * kThreads);

  __device__ void load_window(const S& s, int pixel, int y, int x, bool inside,
                              Piece<V>& to) const {
#pragma unroll
    for (int i = 0; i < kPieceValues; ++i) {
      const int element = (channel_ + i) / s.window, c = channel_ + i - element * s.window;
      const int dy = element / 3 - 1, dx = element % 3 - 1;
      const bool there = inside && element < 9 && y + dy >= 0 && y + dy < s.height && x + dx >= 0 &&
                         x + dx < s.width;
      const int64_t from = (static_cast<int64_t>(pixel) + dy * s.width + dx) * s.window + c;
      set_value(to, i, there ? s.x[from] : V{});
    }
  }

  Piece<V> loaded_[kPieces];
  int first_, step_, count_, piece_, channel_;
  unsigned inside_;
};

// This block's split of a pointwise convolution: z (pixels, padded), and 2·padded sums of z and z²
// added to `totals`. `sources(i)` for i < count; `weight` is (depth, padded).
template <bool kTensorCores, class V, class Sources>
__device__ __forceinline__ void pointwise_forward(const Sources& sources, int count,
                                                  const PointwiseShape& shape,
                                                  const Compute<V>* weight, int split, int splits,
                                                  V* z, double* totals, Compute<V>* shared) {
  using T = Compute<V>;
  using S = decltype(sources(0));
  const int pixels = shape.pixels(), padded = shape.padded;
  const int run = pointwise_pixels(shape, sizeof(T)), most = pointwise_chunk(run, sizeof(T));
  const int row = most + 4;
  T* groups = shared + run * row;
  T* weights = groups + run / 2 * min(padded, 64);
#pragma unroll 1
  for (int out = 0; out < padded; out += 64) {
    const int width = min(padded - out, 64), weight_row = width + 8;
#pragma unroll 1
    for (int begin = split * run; begin < pixels; begin += splits * run) {
      Matmul<kTensorCores, T> matmul(run, width);
      PixelPieces<S, pointwise_budget(sizeof(T))> pieces;
      // A chunk is multiplied while the next one and its part of the weight are loaded.
      S next;
      int index = -1, channel = 0;
      T* buffer = weights;
      const auto advance = [&] {
        channel += most;
        while (channel >= next.channels || next.x == nullptr) {
          if (++index >= count) return;
          next = sources(index);
          channel = 0;
        }
        const int chunk = min(next.channels - channel, most);
        copy_rows(weight + static_cast<int64_t>(next.first + channel) * padded + out, padded, chunk,
                  width, weight_row, buffer);
        pieces.load(next, shape, begin, run, channel, chunk);
      };
      advance();
#pragma unroll 1
      while (index < count) {
        const int chunk = min(next.channels - channel, most);
        const T* right = buffer;
        pieces.template store<kTensorCores>(next, shared, row);
        wait_for_copies();
        __syncthreads();
        buffer = buffer == weights ? weights + most * weight_row : weights;
        advance();
        matmul.add(shared, row, right, weight_row, chunk);
        __syncthreads();
      }
      matmul.sum_each(groups, [&](int i, int c, const Vec4<T>& value) {
        return begin + i < pixels
                   ? store_rounded(z + static_cast<int64_t>(begin + i) * padded + out + c, value)
                   : fill_vec4(T(0));
      });
      __syncthreads();
      add_groups(groups, matmul.groups(), width, totals + out, padded);
      __syncthreads();
    }
  }
}

// Gradients of what a normalization reads, of `count` pixels, as a factor in shared memory; `g` are
// those of what it returns. Pixel i is place(i), negative for zeros.
template <bool kTensorCores, class V, class Place>
__device__ __forceinline__ void load_gradients(const V* g, const V* z,
                                               const Compute<V>* coefficients, int padded,
                                               int count, int row, Compute<V>* to, Place place) {
  using T = Compute<V>;
  constexpr int kAtOnce = sizeof(T) == 8 ? 2 : 4;
  each_quad(padded / 4, [&](int slot, int step, int c) {
    const V* from_g = kept(g + c);
    const V* from_z = kept(z + c);
    T* at = to + slot * row + c;
    const Vec4<T> of_grad = load_vec4(coefficients + c),
                  of_value = load_vec4(coefficients + padded + c),
                  constant = load_vec4(coefficients + 2 * padded + c);
#pragma unroll 1
    for (int first = slot; first < count; first += kAtOnce * step) {
      Vec4<T> grads[kAtOnce], values[kAtOnce];
      bool inside[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int pixel = place(first + i * step);
        inside[i] = pixel >= 0;
        grads[i] = read_vec4(pixel_at(from_g, max(pixel, 0), padded));
        values[i] = read_vec4(pixel_at(from_z, max(pixel, 0), padded));
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        Vec4<T> sum = constant;
        add_product(sum, of_grad, grads[i]);
        add_product(sum, of_value, values[i]);
#pragma unroll
        for (int k = 0; k < 4; ++k) sum.v[k] = inside[i] ? sum.v[k] : T(0);
        if (first + i * step < count) store_vec4(at, as_factor<kTensorCores>(sum));
        at += step * row;
      }
    }
  });
}

// This block's split of a pointwise convolution's gradients for channels [channel, channel + chunk)
// of one source: the weight's, written to `weight_part` (padded, depth), and the source's, of which
// emit(pixel, channel of the source, value) receives those that ReLU passes. `g` is the gradient of
// the normalized output, `weight` (padded, depth).
template <bool kTensorCores, class S, class V, class Emit>
__device__ __forceinline__ void pointwise_backward(
    const S& source, int channel, int chunk, const PointwiseShape& shape, const V* g, const V* z,
    const Compute<V>* coefficients, const Compute<V>* weight, int depth, bool source_needs_grad,
    int split, int splits, Compute<V>* weight_split, Compute<V>* shared, Emit emit) {
  using T = Compute<V>;
  const int pixels = shape.pixels(), padded = shape.padded, row = padded + 4;
  const int run = pointwise_backward_pixels(padded, sizeof(T));
  constexpr int kRow = kSourceChunk + 4, kAtOnce = pointwise_budget(sizeof(T));
  T* grads = shared;
  T* values = shared + run * row;
  const int column = source.first + channel, part = kAtOnce / chunk;
  PixelOuterProduct<kTensorCores, T> outer(padded, chunk);
#pragma unroll 1
  for (int begin = split * run; begin < pixels; begin += splits * run) {
    __syncthreads();
#pragma unroll 1
    for (int first = 0; first < run; first += part) {
      PixelPieces<S, kAtOnce> pieces;
      pieces.load(source, shape, begin + first, min(run - first, part), channel, chunk);
      pieces.template store<kTensorCores>(source, values + first * kRow, kRow);
    }
    load_gradients<kTensorCores>(g, z, coefficients, padded, run, row, grads,
                                 [&](int p) { return begin + p < pixels ? begin + p : -1; });
    __syncthreads();
    outer.add(grads, row, values, kRow, run, weight_split + column, depth, begin == split * run);
    const int passes = source_needs_grad ? Matmul<kTensorCores, T>::passes(run, chunk) : 0;
#pragma unroll 1
    for (int pass = 0; pass < passes; ++pass) {
      Matmul<kTensorCores, T> matmul(run, chunk, pass);
      matmul.add(grads, row, weight + column, depth, padded);
      matmul.each([&](int i, int c, const Vec4<T>& sum) {
        if (begin + i >= pixels) return;
        const Vec4<T> x = load_vec4(values + i * kRow + c);
        Vec4<T> passed;
#pragma unroll
        for (int k = 0; k < 4; ++k) passed.v[k] = x.v[k] > T(0) ? sum.v[k] : T(0);
        emit(begin + i, channel + c, passed);
      });
    }
  }
  __syncthreads();
  outer.finish(weight_split + column, depth, shared, split * run < pixels);
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
