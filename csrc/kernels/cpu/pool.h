// 3×3 pooling with padding 1, forward and backward.
#pragma once

#include <limits>

#include "kernels/cpu/depthwise.h"
#include "kernels/cpu/kernels.h"
#include "platform/simd.h"

namespace asng::cpu::ASNG_CAPABILITY {

static_assert(kPoolKernel == 3);

// Where a row is written: to `out`, added to `base` if there is one, which may be `out` itself.
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
  const int64_t line = width * channels;
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const AffineVectors<T, 1> map(affine, c);
    for (int64_t i = c; i < line; i += channels) {
      Vec<T> v = map(0, load(rows + i));
#pragma GCC unroll 2
      for (int r = 1; r < R; ++r) {
        const Vec<T> w = map(0, load(rows + r * line + i));
        v = kMax ? larger<T>(v, w) : v + w;
      }
      store(columns + i, v);
    }
  }
}

// factor · row y of the pool of one feature map. `columns` is (width + 2) pixels.
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
  pool(image, height, width, channels, affine, y, out_width, max ? factor : factor / kPoolPixels,
       columns, out);
}

// Of every pixel's window in one row the largest value, and which of the three it is: 0, 1, 2. Of
// equal ones the first, as in PyTorch. `padded` is (width + 2) pixels, its padding already set.
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

// Distributes a row of output gradients over the rows of their windows: for each pixel to the row
// with the largest value, of equal ones the first. Adds to `received` what each of the R rows gets.
template <class T, int R>
inline void max_across(const T* const* best, const T* grad, int64_t size, T* const* received) {
  const Vec<T> zero = {};
  for (int64_t i = 0; i < size; i += kLanes<T>) {
    const Vec<T> g = load(grad + i);
    Vec<T> top = load(best[0] + i), left[R];
    left[0] = g;
#pragma GCC unroll 2
    for (int r = 1; r < R; ++r) {
      const Vec<T> v = load(best[r] + i);
      const auto wins = (v > top) | (v != v);
      top = wins ? v : top;
      left[r] = wins ? g : zero;
#pragma GCC unroll 2
      for (int k = 0; k < r; ++k) left[k] = wins ? zero : left[k];
    }
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) add_to(received[r] + i, left[r]);
  }
}

// Distributes what a row has received over its pixels: to all three of a window, or for the maximum
// to the one in `along`. `received` and `along` have a padding of one pixel, which is zero in
// `received`, and so has `spread`, a row to work in.
template <class T, int S, bool kMax>
inline void to_pixels(const T* along, const T* received, int64_t out_width, int64_t width,
                      int64_t channels, T factor, T* spread, Row<T> out) {
  const Vec<T> zero = {};
  if constexpr (S != 1) fill_with(spread, (width + 2) * channels, T(0));
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    if constexpr (S == 1) {
      for (int64_t i = c; i < width * channels; i += channels) {
        Vec<T> total = {};
#pragma GCC unroll 3
        for (int k = 0; k < 3; ++k) {
          // The window whose pixel k this is lies as far on the other side.
          const int64_t at = i + (2 - k) * channels;
          const Vec<T> g = load(received + at);
          total += kMax ? (load(along + at) == zero + T(k) ? g : zero) : g;
        }
        out.put(i, total * factor);
      }
      continue;
    }
    for (int64_t x = 0; x < out_width; ++x) {
      const int64_t at = (x + 1) * channels + c;
      const Vec<T> g = load(received + at);
      for (int k = 0; k < 3; ++k) {
        add_to(spread + (x * S + k) * channels + c,
               kMax ? (load(along + at) == zero + T(k) ? g : zero) : g);
      }
    }
    for (int64_t i = c; i < width * channels; i += channels) {
      out.put(i, load(spread + channels + i) * factor);
    }
  }
}

// Rows to work in: two with padding, and three each of the largest values along a row of the
// feature map, of where they are, and of the gradients that the row has received; the latter two
// have padding.
template <class T>
struct PoolBuffers {
  T *padded, *spread, *best[3], *along[3], *received[3];
};

// The gradient of one feature map's max pool is that of the first of the largest values of each
// window: it is added to its row, and from there to its pixel. Row r of the feature map is number r
// mod 3 of the buffers.
template <class T, int S>
inline void max_backward(const Term<T>& s, const T* image, const T* grad, int64_t channels,
                         int64_t out_height, int64_t out_width, const PoolBuffers<T>& buffers,
                         T* out) {
  const int64_t line = s.width * channels, out_line = out_width * channels;
  int64_t read = 0, finished = 0;
  for (int64_t y = 0; y < out_height; ++y) {
    const int64_t first = y * S > 0 ? y * S - 1 : 0;
    const int64_t last = y * S + 1 < s.height ? y * S + 1 : s.height - 1;
    for (; read <= last; ++read) {
      max_along<T, S>(image + read * line, s.width, channels, s.affine, buffers.padded, out_width,
                      buffers.best[read % 3], buffers.along[read % 3] + channels);
      fill_with(buffers.received[read % 3] + channels, out_line, T(0));
    }
    const T* best[3];
    T* received[3];
    for (int64_t r = first; r <= last; ++r) {
      best[r - first] = buffers.best[r % 3];
      received[r - first] = buffers.received[r % 3] + channels;
    }
    const auto across = last - first == 0   ? &max_across<T, 1>
                        : last - first == 1 ? &max_across<T, 2>
                                            : &max_across<T, 3>;
    across(best, grad + y * out_line, out_line, received);
    // Rows that the next window does not reach have received everything.
    const int64_t end = y + 1 < out_height ? (y + 1) * S - 1 : s.height;
    for (; finished < end; ++finished) {
      to_pixels<T, S, true>(buffers.along[finished % 3], buffers.received[finished % 3], out_width,
                            s.width, channels, s.factor, buffers.spread,
                            row_of(out + finished * line, s.accumulate));
    }
  }
}

// The gradient of one feature map's average pool: a row gets that of every window that it is in.
template <class T, int S>
inline void average_backward(const Term<T>& s, const T* grad, int64_t channels, int64_t out_height,
                             int64_t out_width, const PoolBuffers<T>& buffers, T* out) {
  const int64_t line = s.width * channels, out_line = out_width * channels;
  T* received = buffers.received[0] + channels;
  for (int64_t r = 0; r < s.height; ++r) {
    const Row<T> to = row_of(out + r * line, s.accumulate);
    if (S == 1) {
      // The windows that a pixel is in are centered at those that its own window holds.
      pool_any_row(false, 1, grad, s.height, s.width, channels, Affine<T>{}, r, s.width, s.factor,
                   buffers.padded, to);
      continue;
    }
    const int64_t first = r > 0 ? (r + S - 2) / S : 0;
    const int64_t last = (r + 1) / S < out_height ? (r + 1) / S : out_height - 1;
    fill_with(received, out_line, T(0));
    for (int64_t y = first; y <= last; ++y) {
      for (int64_t i = 0; i < out_line; i += kLanes<T>) {
        add_to(received + i, load(grad + y * out_line + i));
      }
    }
    to_pixels<T, S, false>(nullptr, buffers.received[0], out_width, s.width, channels,
                           s.factor / kPoolPixels, buffers.spread, to);
  }
}

// Gradient of the input of one feature map's pool, from `grad`, that of its output.
template <class T>
inline void pool_backward(const Term<T>& s, int64_t channels, int64_t out_height, int64_t out_width,
                          int64_t image, const T* grad, const PoolBuffers<T>& buffers) {
  const int64_t size = s.height * s.width * channels;
  T* out = s.grad + image * size;
  if (s.form == Form::kMaxPool) {
    (s.stride == 1 ? &max_backward<T, 1> : &max_backward<T, 2>)(s, s.x + image * size, grad,
                                                                channels, out_height, out_width,
                                                                buffers, out);
    return;
  }
  (s.stride == 1 ? &average_backward<T, 1> : &average_backward<T, 2>)(s, grad, channels, out_height,
                                                                      out_width, buffers, out);
}

}  // namespace asng::cpu::ASNG_CAPABILITY
