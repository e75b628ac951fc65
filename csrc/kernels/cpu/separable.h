// One stage of a separable convolution, a feature map at a time.
//
// The padded feature map with ReLU applied lies in a buffer that the cache keeps; the depthwise
// rows of a tile are written to a buffer in L1 that the pointwise convolution reads. Nothing but
// the input and the output touches memory in the forward pass. The backward pass computes the
// depthwise rows again rather than reading them back.
#pragma once

#include "kernels/cpu/depthwise.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/norm.h"
#include "platform/memory.h"

namespace asng::cpu::ASNG_CAPABILITY {

ASNG_INLINE int64_t tile_rows(int64_t height, int64_t width) {
  const int64_t rows = (kTilePixels + width - 1) / width;
  return rows < height ? rows : height;
}

template <class T, int K, int S, int D, int C>
void separable_forward_impl(const SeparableForward<T>& task) {
  const Shape& s = task.shape;
  const int64_t channels = channels_of<C>(s.channels), pad = D * (K / 2);
  const int64_t row = (s.width + 2 * pad) * channels;
  const int64_t padded_size = (s.height + 2 * pad) * row;
  const int64_t rows = tile_rows(s.out_height, s.out_width);
  T *padded = nullptr, *tile = nullptr, *sum = nullptr, *squares = nullptr;
  take_scratch([&](Arena& arena) {
    padded = arena.take<T>(padded_size);
    tile = arena.take<T>(rows * s.out_width * channels);
    sum = arena.take<T>(channels);
    squares = arena.take<T>(channels);
  });
  clear_padding(padded, s.height, s.width, channels, pad);
  fill_with(sum, channels, T(0));
  fill_with(squares, channels, T(0));
  for (int64_t image = 0; image < s.images; ++image) {
    fill_padded<T, true, C>(task.x + image * s.height * s.width * channels, task.affine, s.height,
                            s.width, channels, pad, padded);
    T* z = task.z + image * s.out_height * s.out_width * channels;
    const T* next = task.x + (image + 1) * s.height * s.width * channels;
    for (int64_t begin = 0; begin < s.out_height; begin += rows) {
      const int64_t end = begin + rows < s.out_height ? begin + rows : s.out_height;
      for (int64_t y = begin; y < end; ++y) {
        depthwise_row<T, K, S, D, C>(padded + y * S * row, row, task.depthwise,
                                     tile + (y - begin) * s.out_width * channels, s.out_width,
                                     channels, next + y * S * s.width * channels);
      }
      matmul<T, true, C, C>((end - begin) * s.out_width, channels, channels, tile, channels,
                            kChannelBlock, task.pointwise, channels,
                            z + begin * s.out_width * channels, channels, sum, squares);
    }
    flush(sum, task.sum, channels);
    flush(squares, task.sum_squares, channels);
  }
}

// Writes or adds the gradient of one row of the input where ReLU let it pass; also its sums.
template <class T, int C>
inline void masked_row(const T* grad, const T* activated, int64_t width, int64_t channels,
                       bool accumulate, T* out, T* sum, T* dot) {
  channels = channels_of<C>(channels);
  const Vec<T> zero = {};
  for_channels<T>(channels, [&](int64_t first, auto vectors) ASNG_INLINE_LAMBDA {
    constexpr int N = vectors.value;
    Vec<T> s[N] = {}, d[N] = {};
    for (int64_t p = first; p < width * channels; p += channels) {
      for (int n = 0; n < N; ++n) {
        const int64_t i = p + n * kLanes<T>;
        const Vec<T> x = load(activated + i);
        const Vec<T> g = x > zero ? load(grad + i) : zero;
        s[n] += g;
        d[n] += g * x;
        store(out + i, accumulate ? load(out + i) + g : g);
      }
    }
    for (int n = 0; n < N; ++n) {
      add_to(sum + first + n * kLanes<T>, s[n]);
      add_to(dot + first + n * kLanes<T>, d[n]);
    }
  });
}

template <class T, int K, int S, int D, int C>
void separable_backward_impl(const SeparableBackward<T>& task) {
  const Shape& s = task.shape;
  const int64_t channels = channels_of<C>(s.channels), pad = D * (K / 2);
  const int64_t row = (s.width + 2 * pad) * channels;
  const int64_t padded_size = (s.height + 2 * pad) * row;
  const int64_t grad_row = (s.out_width + 2 * pad) * channels;
  const int64_t grad_size = (s.out_height + 2 * pad) * grad_row;
  const int64_t rows = tile_rows(s.out_height, s.out_width);
  const int64_t line = s.out_width * channels;
  const bool wants_weights = task.grad_pointwise != nullptr;
  // x: the input after ReLU. depth: gradients of the depthwise output. With stride 1 the input's
  // gradient is a convolution of `depth` and needs one row; otherwise it is scattered into
  // `spread`.
  T *x = nullptr, *depth = nullptr, *spread = nullptr, *tile = nullptr, *gz = nullptr;
  T *sum = nullptr, *dot = nullptr;
  take_scratch([&](Arena& arena) {
    x = arena.take<T>(padded_size);
    depth = arena.take<T>(grad_size);
    spread = arena.take<T>(S == 1 ? s.width * channels : padded_size);
    tile = arena.take<T>(rows * line);
    gz = arena.take<T>(rows * line);
    sum = arena.take<T>(channels);
    dot = arena.take<T>(channels);
  });
  clear_padding(x, s.height, s.width, channels, pad);
  clear_padding(depth, s.out_height, s.out_width, channels, pad);
  fill_with(sum, channels, T(0));
  fill_with(dot, channels, T(0));
  for (int64_t image = 0; image < s.images; ++image) {
    const int64_t in_offset = image * s.height * s.width * channels;
    const int64_t out_offset = image * s.out_height * line;
    fill_padded<T, true, C>(task.x + in_offset, task.affine, s.height, s.width, channels, pad, x);
    if constexpr (S != 1) fill_with(spread, padded_size, T(0));
    const T* next = task.x + in_offset + s.height * s.width * channels;
    for (int64_t begin = 0; begin < s.out_height; begin += rows) {
      const int64_t end = begin + rows < s.out_height ? begin + rows : s.out_height;
      const int64_t pixels = (end - begin) * s.out_width;
      norm_gradient<T, C>(task.grad + out_offset + begin * line, task.z + out_offset + begin * line,
                          task.norm, pixels, channels, gz);
      if (wants_weights) {
        for (int64_t y = begin; y < end; ++y) {
          depthwise_row<T, K, S, D, C>(x + y * S * row, row, task.depthwise,
                                       tile + (y - begin) * line, s.out_width, channels,
                                       task.grad + out_offset + (y + end - begin) * line);
        }
        outer_product<T, C, C>(pixels, channels, channels, gz, channels, tile, channels,
                               task.grad_pointwise, channels);
      }
      for (int64_t y = begin; y < end; ++y) {
        T* target = depth + (y + pad) * grad_row + pad * channels;
        matmul<T, false, C, C>(s.out_width, channels, channels, gz + (y - begin) * line, channels,
                               kChannelBlock, task.pointwise, channels, target, channels, nullptr,
                               nullptr);
        if (wants_weights) {
          depthwise_weight_row<T, K, S, D, C>(x + y * S * row, row, target, s.out_width, channels,
                                              task.grad_depthwise,
                                              task.z + out_offset + (y + end - begin) * line);
        }
        if constexpr (S != 1) {
          depthwise_scatter_row<T, K, S, D, C>(target, task.depthwise, spread + y * S * row, row,
                                               s.out_width, channels);
        }
      }
    }
    for (int64_t y = 0; y < s.height; ++y) {
      const T* grad = spread;
      if constexpr (S == 1) {
        depthwise_row<T, K, 1, D, C>(depth + y * grad_row, grad_row, task.flipped, spread, s.width,
                                     channels, next + y * s.width * channels);
      } else {
        grad = spread + (y + pad) * row + pad * channels;
      }
      masked_row<T, C>(grad, x + (y + pad) * row + pad * channels, s.width, channels,
                       task.accumulate, task.grad_x + in_offset + y * s.width * channels, sum, dot);
    }
    if (task.sum != nullptr) {
      flush(sum, task.sum, channels);
      flush(dot, task.dot, channels);
    }
  }
}

template <class T, int K, int D>
void separable_forward_of(const SeparableForward<T>& task) {
  with_channels<T>(task.shape.channels, [&](auto c) {
    task.shape.stride == 2 ? separable_forward_impl<T, K, 2, D, c.value>(task)
                           : separable_forward_impl<T, K, 1, D, c.value>(task);
  });
}

template <class T, int K, int D>
void separable_backward_of(const SeparableBackward<T>& task) {
  with_channels<T>(task.shape.channels, [&](auto c) {
    task.shape.stride == 2 ? separable_backward_impl<T, K, 2, D, c.value>(task)
                           : separable_backward_impl<T, K, 1, D, c.value>(task);
  });
}

template <class T>
void separable_forward(const SeparableForward<T>& task) {
  with_window(task.shape.separable,
              [&](auto w) { separable_forward_of<T, w.kernel, w.dilation>(task); });
}

template <class T>
void separable_backward(const SeparableBackward<T>& task) {
  with_window(task.shape.separable,
              [&](auto w) { separable_backward_of<T, w.kernel, w.dilation>(task); });
}

}  // namespace asng::cpu::ASNG_CAPABILITY
