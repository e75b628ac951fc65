// 3×3 pooling with a margin of one pixel, forward and backward.
#pragma once

#include <limits>

#include "depthwise.h"
#include "kernels.h"
#include "simd.h"

namespace asng::cpu::ASNG_CAPABILITY {

// Number of pixels of a 3×3 window, which average pooling divides by everywhere: zeros beyond the
// edge count.
inline constexpr int kWindow = 9;

// Where a row goes: to `out`, added to `base` if there is one, which may be `out` itself.
template <class T>
struct Row {
  T* out;
  const T* base;

  ASNG_INLINE void put(int64_t i, Vec<T> v) const {
    store(out + i, base != nullptr ? load(base + i) + v : v);
  }
};

// A row that is written for the first time, or added to.
template <class T>
ASNG_INLINE Row<T> row_of(T* out, bool accumulate) {
  return {out, accumulate ? out : nullptr};
}

// The larger one; NaN wins, as in PyTorch.
template <class T>
ASNG_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
  return (b > a) | (b != b) ? b : a;
}

// Pools R rows into one: the columns of windows.
template <class T, bool kMax, int R>
inline void pool_columns(const T* rows, int64_t width, int64_t channels, Affine<T> affine,
                         T* columns) {
  const Vec<T> zero = {};
  const int64_t line = width * channels;
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const bool mapped = affine.scale != nullptr;
    const Vec<T> scale = mapped ? load(affine.scale + c) : zero + T(1);
    const Vec<T> shift = mapped ? load(affine.shift + c) : zero;
    for (int64_t i = c; i < line; i += channels) {
      Vec<T> v = load(rows + i) * scale + shift;
#pragma GCC unroll 2
      for (int r = 1; r < R; ++r) {
        const Vec<T> w = load(rows + r * line + i) * scale + shift;
        v = kMax ? larger<T>(v, w) : v + w;
      }
      store(columns + i, v);
    }
  }
}

// factor · row y of the pool of one image. `columns` is (width + 2) pixels.
template <class T, int S, bool kMax>
inline void pool_row(const T* image, int64_t height, int64_t width, int64_t channels,
                     Affine<T> affine, int64_t y, int64_t out_width, T factor, T* columns,
                     Row<T> out) {
  const int64_t first = y * S > 0 ? y * S - 1 : 0;
  const int64_t last = y * S + 1 < height ? y * S + 1 : height - 1;
  const T* rows = image + first * width * channels;
  const T edge = kMax ? -std::numeric_limits<T>::infinity() : T(0);
  T* inside = columns + channels;
  fill_with(columns, channels, edge);
  fill_with(inside + width * channels, channels, edge);
  switch (last - first) {
    case 0:
      pool_columns<T, kMax, 1>(rows, width, channels, affine, inside);
      break;
    case 1:
      pool_columns<T, kMax, 2>(rows, width, channels, affine, inside);
      break;
    default:
      pool_columns<T, kMax, 3>(rows, width, channels, affine, inside);
  }
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    for (int64_t i = 0; i < out_width; ++i) {
      const T* from = columns + i * S * channels + c;
      const Vec<T> a = load(from), b = load(from + channels), d = load(from + 2 * channels);
      out.put(i * channels + c, (kMax ? larger<T>(larger<T>(a, b), d) : a + b + d) * factor);
    }
  }
}

template <class T>
inline void pool_any_row(bool max, int64_t stride, const T* image, int64_t height, int64_t width,
                         int64_t channels, Affine<T> affine, int64_t y, int64_t out_width, T factor,
                         T* columns, Row<T> out) {
  const auto pool = max ? (stride == 1 ? &pool_row<T, 1, true> : &pool_row<T, 2, true>)
                        : (stride == 1 ? &pool_row<T, 1, false> : &pool_row<T, 2, false>);
  pool(image, height, width, channels, affine, y, out_width, max ? factor : factor / kWindow,
       columns, out);
}

// Of every pixel's window in one row the largest value, and which of the three it is: 0, 1, 2. Of
// equal ones the first, as in PyTorch. `padded` is (width + 2) pixels, its margins already set.
template <class T, int S>
inline void max_along(const T* row, int64_t width, int64_t channels, Affine<T> affine, T* padded,
                      int64_t out_width, T* best, T* place) {
  const Vec<T> zero = {};
  pool_columns<T, true, 1>(row, width, channels, affine, padded + channels);
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    for (int64_t i = 0; i < out_width; ++i) {
      const T* from = padded + i * S * channels + c;
      const Vec<T> a = load(from), b = load(from + channels), d = load(from + 2 * channels);
      const auto second = (b > a) | (b != b);
      const Vec<T> two = second ? b : a;
      const auto third = (d > two) | (d != d);
      store(best + i * channels + c, third ? d : two);
      store(place + i * channels + c, third ? zero + T(2) : second ? zero + T(1) : zero);
    }
  }
}

// Position in its window, 0 to 8, of each maximum of one row, from those along up to three rows.
template <class T>
inline void max_across(const T* const* best, const T* const* along, const bool* inside,
                       int64_t size, T* place) {
  for (int64_t i = 0; i < size; i += kLanes<T>) {
    const int start = inside[0] ? 0 : 1;
    Vec<T> top = load(best[start] + i), at = load(along[start] + i) + T(3 * start);
    for (int r = start + 1; r < 3; ++r) {
      if (!inside[r]) continue;
      const Vec<T> v = load(best[r] + i);
      const auto wins = (v > top) | (v != v);
      top = wins ? v : top;
      at = wins ? load(along[r] + i) + T(3 * r) : at;
    }
    store(place + i, at);
  }
}

// With stride 1 a pixel's gradient is gathered from the nine windows that it is in: place and grad
// are padded.
template <class T>
inline void max_gather_row(const T* place, const T* grad, int64_t row, int64_t width,
                           int64_t channels, T factor, Row<T> out) {
  const Vec<T> zero = {};
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    for (int64_t i = 0; i < width; ++i) {
      Vec<T> total = {};
#pragma GCC unroll 9
      for (int k = 0; k < kWindow; ++k) {
        // The window whose position k is this pixel lies as far on the other side.
        const int64_t at = (2 - k / 3) * row + (i + 2 - k % 3) * channels + c;
        total = load(place + at) == zero + T(k) ? total + load(grad + at) : total;
      }
      out.put(i * channels + c, total * factor);
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

// Buffers of a pool's backward pass: two padded images, a padded row, and three rows twice.
template <class T>
struct PoolBuffers {
  T *place, *grad, *padded, *best[3], *along[3];
};

// Positions of the maxima of one image, rows `place_row` apart.
template <class T, int S>
inline void max_places(const Summand<T>& s, const T* image, int64_t channels, int64_t out_height,
                       int64_t out_width, const PoolBuffers<T>& buffers, T* place,
                       int64_t place_row) {
  int64_t done = -1;  // rows up to here are in the buffers, row r at r mod 3
  for (int64_t y = 0; y < out_height; ++y) {
    const T *best[3], *along[3];
    bool inside[3];
    for (int64_t k = 0; k < 3; ++k) {
      const int64_t r = y * S + k - 1;
      inside[k] = r >= 0 && r < s.height;
      if (!inside[k]) continue;
      best[k] = buffers.best[r % 3];
      along[k] = buffers.along[r % 3];
      if (r <= done) continue;
      done = r;
      max_along<T, S>(image + r * s.width * channels, s.width, channels, s.affine, buffers.padded,
                      out_width, buffers.best[r % 3], buffers.along[r % 3]);
    }
    max_across(best, along, inside, out_width * channels, place + y * place_row);
  }
}

// Gradient of the input of one image's pool, from `grad`, that of its output.
template <class T>
inline void pool_backward(const Summand<T>& s, int64_t channels, int64_t out_height,
                          int64_t out_width, int64_t image, const T* grad,
                          const PoolBuffers<T>& buffers) {
  const int64_t size = s.height * s.width * channels;
  const int64_t row = (s.width + 2) * channels, line = out_width * channels;
  const bool max = s.piece == Piece::kMaxPool, gather = s.stride == 1;
  T* out = s.grad + image * size;
  if (gather && !max) {
    // The windows that a pixel is in are centred at those that its own window holds.
    for (int64_t y = 0; y < s.height; ++y) {
      pool_any_row(false, 1, grad, s.height, s.width, channels, Affine<T>{}, y, s.width, s.factor,
                   buffers.padded, row_of(out + y * line, s.accumulate));
    }
    return;
  }
  // Gathering needs a margin around the places, which no window's position may equal.
  T* place = gather ? buffers.place + row + channels : buffers.place;
  const int64_t place_row = gather ? row : line;
  if (max) {
    const T* x = s.x + image * size;
    gather ? max_places<T, 1>(s, x, channels, out_height, out_width, buffers, place, place_row)
           : max_places<T, 2>(s, x, channels, out_height, out_width, buffers, place, place_row);
  }
  if (gather) {
    fill_padded<T, false, 0>(grad, {}, s.height, s.width, channels, 1, buffers.grad);
    for (int64_t y = 0; y < s.height; ++y) {
      max_gather_row(buffers.place + y * row, buffers.grad + y * row, row, s.width, channels,
                     s.factor, row_of(out + y * line, s.accumulate));
    }
    return;
  }
  fill_with(buffers.grad, (s.height + 2) * row, T(0));
  for (int64_t y = 0; y < out_height; ++y) {
    pool_scatter_row(max, grad + y * line, place + y * line, buffers.grad + y * s.stride * row, row,
                     s.stride, out_width, channels);
  }
  const T factor = max ? s.factor : s.factor / kWindow;
  for (int64_t y = 0; y < s.height; ++y) {
    const T* from = buffers.grad + (y + 1) * row + channels;
    const Row<T> to = row_of(out + y * s.width * channels, s.accumulate);
    for (int64_t i = 0; i < s.width * channels; i += kLanes<T>) to.put(i, load(from + i) * factor);
  }
}

}  // namespace asng::cpu::ASNG_CAPABILITY
