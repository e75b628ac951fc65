// Padded feature maps and the K×K windows over them, with stride S and dilation D: kernel element
// (ky, kx) of output pixel (y, x) meets pixel (S·y + D·ky, S·x + D·kx) of the padded map.
#pragma once

#include "kernels/cpu/norm.h"

namespace asng::cpu::ASNG_CAPABILITY {

// Copies a feature map into the middle of a padded one, through the affine map and, with kRelu,
// ReLU.
template <class T, bool kRelu, int C>
inline void fill_padded(const T* x, Affine<T> affine, int64_t height, int64_t width,
                        int64_t channels, int64_t pad, T* padded) {
  channels = channels_of<C>(channels);
  const int64_t padded_width = width + 2 * pad;
  for_channels<T>(channels, [&](int64_t first, auto vectors) ASNG_INLINE_LAMBDA {
    constexpr int N = vectors.value;
    const AffineVectors<T, N> map(affine, first);
    for (int64_t y = 0; y < height; ++y) {
      const T* from = x + y * width * channels + first;
      T* to = padded + ((y + pad) * padded_width + pad) * channels + first;
      for (int64_t i = 0; i < width * channels; i += channels) {
        for (int n = 0; n < N; ++n) {
          const Vec<T> v = map(n, load(from + i + n * kLanes<T>));
          store(to + i + n * kLanes<T>, kRelu ? relu<T>(v) : v);
        }
      }
    }
  });
}

// Zeros around the feature map in the middle of a padded one.
template <class T>
inline void clear_padding(T* padded, int64_t height, int64_t width, int64_t channels, int64_t pad) {
  const int64_t row = (width + 2 * pad) * channels, side = pad * channels;
  fill_with(padded, pad * row + side, T(0));
  for (int64_t y = pad; y < pad + height - 1; ++y) {
    fill_with(padded + (y + 1) * row - side, 2 * side, T(0));
  }
  fill_with(padded + (pad + height) * row - side, side + pad * row, T(0));
}

// P pixels × N vectors of channels. Enough sums at a time that none waits for its last addition,
// and no more than there are registers for. A value is loaded once and used by every window it is
// in.
template <class T, int K, int S, int D, int P, int N>
ASNG_INLINE void depthwise_pixels(const T* in, int64_t row, int64_t channels, const T* weight,
                                  T* out, const T* ahead) {
  Vec<T> acc[N][P] = {};
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) prefetch(ahead + p * channels);
#pragma GCC unroll 5
  for (int ky = 0; ky < K; ++ky) {
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      const T* line = in + ky * D * row + n * kLanes<T>;
      Vec<T> w[K];
#pragma GCC unroll 5
      for (int kx = 0; kx < K; ++kx) {
        w[kx] = load(weight + (ky * K + kx) * channels + n * kLanes<T>);
      }
#pragma GCC unroll 32
      for (int i = 0; i < (P - 1) * S + (K - 1) * D + 1; ++i) {
        const Vec<T> v = load(line + i * channels);
#pragma GCC unroll 5
        for (int kx = 0; kx < K; ++kx) {
          const int p = (i - kx * D) / S;
          if (i >= kx * D && (i - kx * D) % S == 0 && p < P) acc[n][p] += w[kx] * v;
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) store(out + p * channels + n * kLanes<T>, acc[n][p]);
  }
}

// One row of a depthwise convolution. `in` is the first pixel of the first window in a padded map
// whose rows are `row` values apart; `weight` is (K², channels). `ahead` is as long as the row and
// will be read soon.
template <class T, int K, int S, int D, int C>
inline void depthwise_row(const T* in, int64_t row, const T* weight, T* out, int64_t width,
                          int64_t channels, const T* ahead) {
  channels = channels_of<C>(channels);
  // A block of channels has two vectors at least where registers are few.
  constexpr int wide = kManyRegisters ? 8 : 4, vectors = kManyRegisters ? 1 : 2;
  for (int64_t c = 0; c < channels; c += vectors * kLanes<T>) {
    int64_t x = 0;
    for (; x + wide <= width; x += wide) {
      depthwise_pixels<T, K, S, D, wide, vectors>(in + x * S * channels + c, row, channels,
                                                  weight + c, out + x * channels + c,
                                                  ahead + x * channels + c);
    }
    for (; x + 2 <= width; x += 2) {
      depthwise_pixels<T, K, S, D, 2, vectors>(in + x * S * channels + c, row, channels, weight + c,
                                               out + x * channels + c, ahead + x * channels + c);
    }
    for (; x < width; ++x) {
      depthwise_pixels<T, K, S, D, 1, vectors>(in + x * S * channels + c, row, channels, weight + c,
                                               out + x * channels + c, ahead + x * channels + c);
    }
  }
}

// Rows of kernel elements whose gradients are accumulated together.
template <int kBegin, int kCount>
struct ElementRows {
  static constexpr int begin = kBegin, count = kCount;
};

// What P pixels from x on add to the gradients of rows [kBegin, kBegin + kRows) of kernel elements,
// accumulated in registers. A value is loaded once and used by every element that meets it.
template <class T, int K, int S, int D, int kBegin, int kRows, int P>
ASNG_INLINE void depthwise_elements_pixels(const T* in, int64_t row, const T* grad, int64_t x,
                                           int64_t channels, Vec<T>* acc, const T* ahead) {
  Vec<T> g[P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    g[p] = load(grad + (x + p) * channels);
    if constexpr (kBegin == 0) prefetch(ahead + (x + p) * channels);
  }
#pragma GCC unroll 5
  for (int ky = 0; ky < kRows; ++ky) {
    const T* line = in + (kBegin + ky) * D * row + x * S * channels;
#pragma GCC unroll 16
    for (int i = 0; i < (P - 1) * S + (K - 1) * D + 1; ++i) {
      const Vec<T> v = load(line + i * channels);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        const int kx = (i - p * S) / D;
        if (i >= p * S && (i - p * S) % D == 0 && kx < K) acc[ky * K + kx] += g[p] * v;
      }
    }
  }
}

template <class T, int K, int S, int D, int kBegin, int kRows>
ASNG_INLINE void depthwise_elements(const T* in, int64_t row, const T* grad, int64_t width,
                                    int64_t channels, T* grad_weight, const T* ahead) {
  Vec<T> acc[kRows * K];
  grad_weight += kBegin * K * channels;
#pragma GCC unroll 25
  for (int k = 0; k < kRows * K; ++k) acc[k] = load(grad_weight + k * channels);
  int64_t x = 0;
  for (; x + 4 <= width; x += 4) {
    depthwise_elements_pixels<T, K, S, D, kBegin, kRows, 4>(in, row, grad, x, channels, acc, ahead);
  }
  for (; x < width; ++x) {
    depthwise_elements_pixels<T, K, S, D, kBegin, kRows, 1>(in, row, grad, x, channels, acc, ahead);
  }
#pragma GCC unroll 25
  for (int k = 0; k < kRows * K; ++k) store(grad_weight + k * channels, acc[k]);
}

// grad_weight (K², channels) += what one row of output gradients and its windows contribute.
template <class T, int K, int S, int D, int C>
inline void depthwise_weight_row(const T* in, int64_t row, const T* grad, int64_t width,
                                 int64_t channels, T* grad_weight, const T* ahead) {
  channels = channels_of<C>(channels);
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const auto elements = [&](auto rows) ASNG_INLINE_LAMBDA {
      depthwise_elements<T, K, S, D, rows.begin, rows.count>(in + c, row, grad + c, width, channels,
                                                             grad_weight + c, ahead + c);
    };
    if constexpr (kManyRegisters || K == 3) {
      elements(ElementRows<0, K>{});
    } else {
      elements(ElementRows<0, 2>{});
      elements(ElementRows<2, 2>{});
      elements(ElementRows<4, 1>{});
    }
  }
}

// Adds each output pixel's gradient, times the kernel elements, to the pixels of its window in a
// padded map.
template <class T, int K, int S, int D, int C>
inline void depthwise_scatter_row(const T* grad, const T* weight, T* padded, int64_t row,
                                  int64_t width, int64_t channels) {
  channels = channels_of<C>(channels);
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    for (int64_t x = 0; x < width; ++x) {
      const Vec<T> g = load(grad + x * channels + c);
      for (int ky = 0; ky < K; ++ky) {
        T* line = padded + ky * D * row + x * S * channels + c;
        for (int kx = 0; kx < K; ++kx) {
          add_to(line + kx * D * channels, g * load(weight + (ky * K + kx) * channels + c));
        }
      }
    }
  }
}

}  // namespace asng::cpu::ASNG_CAPABILITY
