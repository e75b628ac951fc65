// A node: the sum of its operations. Identities, pools and normalisations cost one pass together.
#pragma once

#include <limits>

#include "depthwise.h"
#include "scratch.h"
#include "separable.h"

namespace asng::cpu::ASNG_CAPABILITY {

// Number of pixels of a 3×3 window, which average pooling divides by everywhere: zeros beyond the
// edge count.
inline constexpr int kWindow = 9;

// The larger one; NaN wins, as in PyTorch.
template <class T>
ASNG_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
  return (b > a) | (b != b) ? b : a;
}

// P neighbouring windows of a padded image: columns first, which neighbours share.
template <class T, int P, int S, bool kMax>
ASNG_INLINE void pool_pixels(const T* in, int64_t row, int64_t channels, Vec<T>* out) {
  constexpr int columns = (P - 1) * S + 3;
  Vec<T> column[columns];
#pragma GCC unroll 32
  for (int i = 0; i < columns; ++i) {
    const Vec<T> a = load(in + i * channels), b = load(in + row + i * channels);
    const Vec<T> c = load(in + 2 * row + i * channels);
    column[i] = kMax ? larger<T>(larger<T>(a, b), c) : a + b + c;
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    const Vec<T> a = column[p * S], b = column[p * S + 1], c = column[p * S + 2];
    out[p] = kMax ? larger<T>(larger<T>(a, b), c) : a + b + c;
  }
}

template <class T, int S, bool kMax>
inline void pool_row(const T* in, int64_t row, int64_t width, int64_t channels, T factor,
                     bool write, T* out) {
  constexpr int wide = 4;
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    int64_t i = 0;
    for (; i + wide <= width; i += wide) {
      Vec<T> v[wide];
      pool_pixels<T, wide, S, kMax>(in + i * S * channels + c, row, channels, v);
      T* to = out + i * channels + c;
#pragma GCC unroll 4
      for (int p = 0; p < wide; ++p) {
        store(to + p * channels, write ? v[p] * factor : load(to + p * channels) + v[p] * factor);
      }
    }
    for (; i < width; ++i) {
      Vec<T> v[1];
      pool_pixels<T, 1, S, kMax>(in + i * S * channels + c, row, channels, v);
      T* to = out + i * channels + c;
      store(to, write ? v[0] * factor : load(to) + v[0] * factor);
    }
  }
}

// out = or += factor · the pool of one row of windows, which begin at `in`.
template <class T>
inline void pool_any_row(bool max, int64_t stride, const T* in, int64_t row, int64_t width,
                         int64_t channels, T factor, bool write, T* out) {
  if (max) {
    stride == 1 ? pool_row<T, 1, true>(in, row, width, channels, factor, write, out)
                : pool_row<T, 2, true>(in, row, width, channels, factor, write, out);
  } else {
    factor /= kWindow;
    stride == 1 ? pool_row<T, 1, false>(in, row, width, channels, factor, write, out)
                : pool_row<T, 2, false>(in, row, width, channels, factor, write, out);
  }
}

template <class T>
ASNG_INLINE bool is_pool(const Summand<T>& s) {
  return s.piece == Piece::kAveragePool || s.piece == Piece::kMaxPool;
}

template <class T>
ASNG_INLINE int64_t padded_size(const Summand<T>& s, int64_t channels) {
  return is_pool(s) ? (s.height + 2) * (s.width + 2) * channels : 0;
}

template <class T>
ASNG_INLINE T edge_value(const Summand<T>& s) {
  return s.piece == Piece::kMaxPool ? -std::numeric_limits<T>::infinity() : T(0);
}

// Adds a summand's row to `out`, or writes it if it is the first.
template <class T>
inline void combine_row(const Summand<T>& s, const T* x, const T* padded, int64_t y, int64_t width,
                        int64_t channels, bool first, T* out) {
  const Vec<T> zero = {};
  const int64_t row = (s.width + 2) * channels;
  if (is_pool(s)) {
    pool_any_row(s.piece == Piece::kMaxPool, s.stride, padded + y * s.stride * row, row, width,
                 channels, s.factor, first, out);
    return;
  }
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const bool affine = s.affine.scale != nullptr;
    const Vec<T> scale = (affine ? load(s.affine.scale + c) : zero + T(1)) * s.factor;
    const Vec<T> shift = (affine ? load(s.affine.shift + c) : zero) * s.factor;
    for (int64_t i = c; i < width * channels; i += channels) {
      const Vec<T> v = load(x + i) * scale + shift;
      store(out + i, first ? v : load(out + i) + v);
    }
  }
}

template <class T>
void combine_forward(const Combine<T>& task) {
  const int64_t channels = task.channels, line = task.out_width * channels;
  int64_t size = 0;
  for (int64_t s = 0; s < task.summand_count; ++s) size += padded_size(task.summands[s], channels);
  T* buffer = static_cast<T*>(scratch(static_cast<size_t>(size) * sizeof(T)));
  T* at = buffer;
  for (int64_t s = 0; s < task.summand_count; ++s) {
    const int64_t part = padded_size(task.summands[s], channels);
    fill_with(at, part, edge_value(task.summands[s]));
    at += part;
  }
  for (int64_t image = 0; image < task.images; ++image) {
    at = buffer;
    for (int64_t s = 0; s < task.summand_count; ++s) {
      const Summand<T>& summand = task.summands[s];
      if (is_pool(summand)) {
        const T* x = summand.x + image * summand.height * summand.width * channels;
        fill_padded<T, false, 0>(x, summand.affine, summand.height, summand.width, channels, 1, at);
      }
      at += padded_size(summand, channels);
    }
    T* out = task.out + image * task.out_height * line;
    for (int64_t y = 0; y < task.out_height; ++y) {
      at = buffer;
      for (int64_t s = 0; s < task.summand_count; ++s) {
        const Summand<T>& summand = task.summands[s];
        const T* x = summand.x + (image * task.out_height + y) * line;
        combine_row(summand, x, at, y, task.out_width, channels, s == 0, out + y * line);
        at += padded_size(summand, channels);
      }
    }
  }
}

// Position in its window of each maximum of one row; of equal ones the first, as in PyTorch.
template <class T>
inline void argmax_row(const T* in, int64_t row, int64_t stride, int64_t width, int64_t channels,
                       T* place) {
  const Vec<T> zero = {};
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    for (int64_t i = 0; i < width; ++i) {
      const T* window = in + i * stride * channels + c;
      Vec<T> best = load(window), at = zero;
#pragma GCC unroll 9
      for (int k = 1; k < kWindow; ++k) {
        const Vec<T> v = load(window + k / 3 * row + k % 3 * channels);
        const auto wins = (v > best) | (v != v);
        best = wins ? v : best;
        at = wins ? zero + T(k) : at;
      }
      store(place + i * channels + c, at);
    }
  }
}

// With stride 1 a pixel's gradient is gathered from the nine windows that it is in: place and grad
// are padded.
template <class T>
inline void max_gather_row(const T* place, const T* grad, int64_t row, int64_t width,
                           int64_t channels, T factor, bool write, T* out) {
  const Vec<T> zero = {};
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    for (int64_t i = 0; i < width; ++i) {
      Vec<T> total = {};
#pragma GCC unroll 9
      for (int k = 0; k < kWindow; ++k) {
        // The window whose position k is this pixel lies as far on the other side.
        const int64_t at = (2 - k / 3) * row + (i + 2 - k % 3) * channels + c;
        total += load(place + at) == zero + T(k) ? load(grad + at) : zero;
      }
      T* to = out + i * channels + c;
      store(to, write ? total * factor : load(to) + total * factor);
    }
  }
}

// Adds an output pixel's gradient to the pixels of its window, in a padded image.
template <class T>
inline void pool_scatter_row(bool max, const T* grad, const T* place, T* spread, int64_t row,
                             int64_t stride, int64_t width, int64_t channels) {
  const Vec<T> zero = {};
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    for (int64_t i = 0; i < width; ++i) {
      const Vec<T> g = load(grad + i * channels + c), at = load(place + i * channels + c);
      T* to = spread + i * stride * channels + c;
      for (int k = 0; k < kWindow; ++k) {
        add_to(to + k / 3 * row + k % 3 * channels, !max || at == zero + T(k) ? g : zero);
      }
    }
  }
}

// Buffers of a pool's backward pass, each a padded image.
template <class T>
struct PoolBuffers {
  T *x, *place, *grad;
};

// grad of one image of a pool: grad_x = or += what comes from `grad`.
template <class T>
inline void pool_backward(const Summand<T>& s, const Combine<T>& task, int64_t image, const T* grad,
                          const PoolBuffers<T>& buffers) {
  const int64_t channels = task.channels, size = s.height * s.width * channels;
  const int64_t row = (s.width + 2) * channels, line = task.out_width * channels;
  const bool max = s.piece == Piece::kMaxPool, gather = s.stride == 1;
  T* out = s.grad + image * size;
  // Gathering needs a margin around the places, which no window's position may equal.
  T* place = gather ? buffers.place + row + channels : buffers.place;
  const int64_t place_row = gather ? row : line;
  if (max) {
    fill_padded<T, false, 0>(s.x + image * size, s.affine, s.height, s.width, channels, 1,
                             buffers.x);
    for (int64_t y = 0; y < task.out_height; ++y) {
      argmax_row(buffers.x + y * s.stride * row, row, s.stride, task.out_width, channels,
                 place + y * place_row);
    }
  }
  if (gather) {
    fill_padded<T, false, 0>(grad, {}, s.height, s.width, channels, 1, buffers.grad);
    for (int64_t y = 0; y < s.height; ++y) {
      T* to = out + y * line;
      if (max) {
        max_gather_row(buffers.place + y * row, buffers.grad + y * row, row, s.width, channels,
                       s.factor, !s.accumulate, to);
      } else {
        pool_any_row(false, 1, buffers.grad + y * row, row, s.width, channels, s.factor,
                     !s.accumulate, to);
      }
    }
    return;
  }
  fill_with(buffers.grad, (s.height + 2) * row, T(0));
  for (int64_t y = 0; y < task.out_height; ++y) {
    pool_scatter_row(max, grad + y * line, place + y * line, buffers.grad + y * s.stride * row, row,
                     s.stride, task.out_width, channels);
  }
  const T factor = max ? s.factor : s.factor / kWindow;
  for (int64_t y = 0; y < s.height; ++y) {
    const T* from = buffers.grad + (y + 1) * row + channels;
    T* to = out + y * s.width * channels;
    for (int64_t i = 0; i < s.width * channels; i += kLanes<T>) {
      const Vec<T> g = load(from + i) * factor;
      store(to + i, s.accumulate ? load(to + i) + g : g);
    }
  }
}

template <class T>
inline void identity_backward(const Summand<T>& s, int64_t size, const T* grad) {
  for (int64_t i = 0; i < size; i += kLanes<T>) {
    const Vec<T> g = load(grad + i) * s.factor;
    store(s.grad + i, s.accumulate ? load(s.grad + i) + g : g);
  }
}

template <class T>
void combine_backward(const Combine<T>& task) {
  const int64_t channels = task.channels, pixels = task.out_height * task.out_width;
  int64_t size = 0;
  for (int64_t s = 0; s < task.summand_count; ++s) {
    const int64_t part = padded_size(task.summands[s], channels);
    size = part > size ? part : size;
  }
  T* x = static_cast<T*>(scratch(static_cast<size_t>(3 * size) * sizeof(T)));
  const PoolBuffers<T> buffers = {x, x + size, x + 2 * size};
  for (int64_t s = 0; s < task.summand_count; ++s) {
    const Summand<T>& summand = task.summands[s];
    if (summand.piece == Piece::kIdentity) {
      identity_backward(summand, task.images * pixels * channels, task.grad);
    }
    if (!is_pool(summand)) continue;
    fill_with(buffers.x, size, edge_value(summand));
    fill_with(buffers.place, size, T(-1));
    fill_with(buffers.grad, size, T(0));
    for (int64_t image = 0; image < task.images; ++image) {
      pool_backward(summand, task, image, task.grad + image * pixels * channels, buffers);
    }
  }
}

}  // namespace asng::cpu::ASNG_CAPABILITY
