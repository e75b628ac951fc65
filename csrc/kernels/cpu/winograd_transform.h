// The transforms of Winograd convolution with the points 0, 1, -1, 2, -2, 1/2, -1/2 and ∞.
//
// As polynomials: a row of r kernel elements is evaluated at the eight points, eight inputs become
// what the product of two polynomials is dual to, and `outputs` = 9 - r results are collected.
// The inputs' transform is the same for every split of the eight. `evaluate` and `collect` are
// each other's transpose, so they serve for gradients as well.
#pragma once

#include "kernels/cpu/winograd.h"
#include "platform/simd.h"

#if ASNG_VECTOR_BYTES == 64
#include <immintrin.h>
#endif

namespace asng::cpu::ASNG_CAPABILITY {

// The first `count` lanes, zeros in the rest; nothing beyond is read or written.
template <class T>
ASNG_INLINE Vec<T> load_some(const T* p, int64_t count) {
  if (count >= kLanes<T>) return load(p);
#if ASNG_VECTOR_BYTES == 64
  const unsigned mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 4) {
    return reinterpret_cast<Vec<T>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p));
  } else {
    return reinterpret_cast<Vec<T>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p));
  }
#else
  Vec<T> v = {};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
#endif
}

template <class T>
ASNG_INLINE void store_some(T* p, Vec<T> v, int64_t count) {
  if (count >= kLanes<T>) {
    store(p, v);
    return;
  }
#if ASNG_VECTOR_BYTES == 64
  const unsigned mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), reinterpret_cast<__m512>(v));
  } else {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), reinterpret_cast<__m512d>(v));
  }
#else
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
#endif
}

// Eight inputs, `step` apart, to eight.
template <class T, int step>
ASNG_INLINE void transform_inputs(const Vec<T>* x, Vec<T>* y) {
  const Vec<T> x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step], x4 = x[4 * step];
  const Vec<T> x5 = x[5 * step], x6 = x[6 * step], x7 = x[7 * step];
  const Vec<T> even1 = x2 + x6 - T(4.25) * x4, odd1 = x1 + x5 - T(4.25) * x3;
  const Vec<T> even2 = x6 + T(0.25) * x2 - T(1.25) * x4;
  const Vec<T> odd2 = T(0.5) * x1 - T(2.5) * x3 + T(2) * x5;
  const Vec<T> even3 = x6 + T(4) * x2 - T(5) * x4;
  const Vec<T> odd3 = T(2) * x1 - T(2.5) * x3 + T(0.5) * x5;
  y[0] = x0 - x6 + T(5.25) * (x4 - x2);
  y[1] = even1 + odd1;
  y[2] = even1 - odd1;
  y[3] = even2 + odd2;
  y[4] = even2 - odd2;
  y[5] = even3 + odd3;
  y[6] = even3 - odd3;
  y[7] = x7 - x1 + T(5.25) * (x3 - x5);
}

// The polynomial with `count` coefficients at the eight points.
template <class T, int count, int step>
ASNG_INLINE void evaluate(const Vec<T>* x, Vec<T>* y) {
  constexpr T points[3] = {T(1), T(2), T(0.5)};
  y[0] = x[0];
  for (int p = 0; p < 3; ++p) {
    Vec<T> even = x[0], odd = points[p] * x[step];
    T power = points[p];
    for (int i = 2; i < count; ++i) {
      power *= points[p];
      if (i % 2 == 0) {
        even += power * x[i * step];
      } else {
        odd += power * x[i * step];
      }
    }
    y[2 * p + 1] = even + odd;
    y[2 * p + 2] = even - odd;
  }
  y[7] = x[(count - 1) * step];
}

// The transpose of `evaluate`.
template <class T, int count, int step>
ASNG_INLINE void collect(const Vec<T>* y, Vec<T>* x) {
  constexpr T points[3] = {T(1), T(2), T(0.5)};
  Vec<T> sum[3], difference[3];
  for (int p = 0; p < 3; ++p) {
    sum[p] = y[2 * p + 1] + y[2 * p + 2];
    difference[p] = y[2 * p + 1] - y[2 * p + 2];
  }
  T power[3] = {T(1), T(1), T(1)};
  for (int i = 0; i < count; ++i) {
    Vec<T> v = i % 2 == 0 ? sum[0] : difference[0];
    for (int p = 1; p < 3; ++p) v += power[p] * (i % 2 == 0 ? sum[p] : difference[p]);
    if (i == 0) v += y[0];
    if (i == count - 1) v += y[7];
    x[i * step] = v;
    for (int p = 1; p < 3; ++p) power[p] *= points[p];
  }
}

// Transforms count² values get(i, j), rows first, to a whole tile: put(i, j, value).
template <class T, int count, class Get, class Put>
ASNG_INLINE void expand(Get get, Put put) {
  constexpr int side = kTileSide;
  Vec<T> partial[count * side];
  for (int i = 0; i < count; ++i) {
    Vec<T> v[count];
    for (int j = 0; j < count; ++j) v[j] = get(i, j);
    if constexpr (count == side) {
      transform_inputs<T, 1>(v, partial + i * side);
    } else {
      evaluate<T, count, 1>(v, partial + i * side);
    }
  }
  for (int j = 0; j < side; ++j) {
    Vec<T> v[side];
    if constexpr (count == side) {
      transform_inputs<T, side>(partial + j, v);
    } else {
      evaluate<T, count, side>(partial + j, v);
    }
    for (int i = 0; i < side; ++i) put(i, j, v[i]);
  }
}

// From a whole tile back to count² values, of which the first `rows` rows are wanted.
template <class T, int count, class Get, class Put>
ASNG_INLINE void contract(int64_t rows, Get get, Put put) {
  constexpr int side = kTileSide;
  Vec<T> partial[count * side];
  for (int j = 0; j < side; ++j) {
    Vec<T> v[side];
    for (int i = 0; i < side; ++i) v[i] = get(i, j);
    collect<T, count, side>(v, partial + j);
  }
  for (int i = 0; i < count && i < rows; ++i) {
    Vec<T> v[count];
    collect<T, count, 1>(partial + i * side, v);
    for (int j = 0; j < count; ++j) put(i, j, v[j]);
  }
}

// What interpolation divides by, at the points in order.
template <class T>
inline constexpr T kScale[kTileSide] = {T(1),         T(-2) / T(9),  T(-2) / T(9),  T(1) / T(90),
                                        T(1) / T(90), T(32) / T(45), T(32) / T(45), T(1)};

struct Tile {
  int64_t sample, y, x;
};

ASNG_INLINE Tile tile_at(const TileRange& range, int64_t index) {
  const int64_t x = index % range.tiles_x, rest = index / range.tiles_x;
  return {rest / range.tiles_y, rest % range.tiles_y, x};
}

// Where column c of row t is in a matrix of `rows` × `columns`.
template <class T>
ASNG_INLINE int64_t panel_place(int64_t rows, int64_t t, int64_t column, int64_t columns) {
  constexpr int64_t panel = 2 * kLanes<T>;
  const int64_t begin = column / panel * panel;
  const int64_t width = columns - begin < panel ? columns - begin : panel;
  return begin * rows + t * width + column - begin;
}

// side² pixels of the phase from (y, x) on, counted in the phase; zeros beyond the edges.
template <class T, int side>
struct Window {
  const T* pixel[side * side];
  const T* relu_mask[side * side];

  ASNG_INLINE void point(const TiledSource<T>& source, int64_t sample, int64_t y, int64_t x,
                         int64_t dy, int64_t dx, const T* zeros) {
    const int64_t first = sample * source.height * source.width;
    for (int i = 0; i < side; ++i) {
      const int64_t row = (y + i) * source.stride + dy;
      for (int j = 0; j < side; ++j) {
        const int64_t column = (x + j) * source.stride + dx;
        const bool inside = row >= 0 && row < source.height && column >= 0 && column < source.width;
        const int64_t at = (first + row * source.width + column) * source.channels;
        pixel[i * side + j] = inside ? source.x + at : zeros;
        relu_mask[i * side + j] =
            inside && source.relu_mask != nullptr ? source.relu_mask + at : zeros;
      }
    }
  }

  ASNG_INLINE void clear(const T* zeros) {
    for (int i = 0; i < side * side; ++i) pixel[i] = relu_mask[i] = zeros;
  }

  template <bool kMasked>
  ASNG_INLINE Vec<T> get(int64_t i, int64_t channel, int64_t count) const {
    const Vec<T> v = load_some(pixel[i] + channel, count), zero = {};
    if constexpr (!kMasked) return v;
    return load_some(relu_mask[i] + channel, count) <= zero ? zero : v;
  }
};

// Tiles of size² values, those of the range with their halo.
template <class T, int size, bool kMasked>
inline void read_tiles(const TiledSource<T>& source, const TileRange& range, int64_t dy, int64_t dx,
                       int64_t first_column, int64_t columns, T* tiles, int64_t matrix,
                       const T* zeros) {
  Window<T, size> window;
  for (int64_t t = range.begin; t < range.end; ++t) {
    if (range.first + t < range.total) {
      const Tile tile = tile_at(range, range.first + t);
      window.point(source, tile.sample, tile.y * range.outputs - range.halo,
                   tile.x * range.outputs - range.halo, dy, dx, zeros);
    } else {
      window.clear(zeros);
    }
    for (int64_t c = 0; c < source.channels; c += kLanes<T>) {
      T* to = tiles + panel_place<T>(range.rows, t, first_column + c, columns);
      expand<T, size>(
          [&](int i, int j) ASNG_INLINE_LAMBDA {
            return window.template get<kMasked>(i * size + j, c, source.channels - c);
          },
          [&](int i, int j, Vec<T> v)
              ASNG_INLINE_LAMBDA { store(to + (i * kTileSide + j) * matrix, v); });
    }
  }
}

template <class T, int outputs>
inline void write_tiles(const T* tiles, int64_t matrix, const TileRange& range, int64_t dy,
                        int64_t dx, int64_t first_column, int64_t columns,
                        const TiledResult<T>& result) {
  const Vec<T> zero = {};
  for (int64_t t = range.begin; t < range.end && range.first + t < range.total; ++t) {
    const Tile tile = tile_at(range, range.first + t);
    const int64_t y = tile.y * outputs * result.stride + dy;
    const int64_t x = tile.x * outputs * result.stride + dx;
    const int64_t rows = (result.height - y + result.stride - 1) / result.stride;
    for (int64_t c = 0; c < result.channels; c += kLanes<T>) {
      const int64_t count = result.channels - c;
      const T* from = tiles + panel_place<T>(range.rows, t, first_column + c, columns);
      contract<T, outputs>(
          rows,
          [&](int i, int j)
              ASNG_INLINE_LAMBDA { return load(from + (i * kTileSide + j) * matrix); },
          [&](int i, int j, Vec<T> value) ASNG_INLINE_LAMBDA {
            const int64_t row = y + i * result.stride, column = x + j * result.stride;
            if (column >= result.width) return;
            const int64_t at =
                ((tile.sample * result.height + row) * result.width + column) * result.channels + c;
            if (result.added != nullptr) value += load_some(result.added + at, count);
            if (result.relu) value = value < zero ? zero : value;
            store_some(result.y + at, value, count);
          });
    }
  }
}

// Where element (i, j) of a phase's kernel is in the weight; null where there is none.
template <class W>
ASNG_INLINE W* kernel_element(W* w, const WeightView& view, int i, int j) {
  if (view.rows[i] < 0 || view.columns[j] < 0) return nullptr;
  return w + view.rows[i] * view.kernel + view.columns[j];
}

template <class T, int kernel_side>
inline void read_kernel(const T* w, const WeightView& view, int64_t count, T* to, int64_t matrix) {
  expand<T, kernel_side>(
      [&](int i, int j) ASNG_INLINE_LAMBDA {
        Vec<T> v = {};
        const T* element = kernel_element(w, view, i, j);
        for (int64_t n = 0; element != nullptr && n < count; ++n) v[n] = element[n * view.n_stride];
        return v;
      },
      [&](int i, int j, Vec<T> v) ASNG_INLINE_LAMBDA {
        store<T>(to + (i * kTileSide + j) * matrix, v * (kScale<T>[i] * kScale<T>[j]));
      });
}

template <class T, int kernel_side>
inline void write_kernel(const T* from, int64_t matrix, const WeightView& view, int64_t count,
                         T* w) {
  contract<T, kernel_side>(
      kernel_side,
      [&](int i, int j) ASNG_INLINE_LAMBDA {
        return load(from + (i * kTileSide + j) * matrix) * (kScale<T>[i] * kScale<T>[j]);
      },
      [&](int i, int j, Vec<T> v) ASNG_INLINE_LAMBDA {
        T* element = kernel_element(w, view, i, j);
        for (int64_t n = 0; element != nullptr && n < count; ++n) element[n * view.n_stride] = v[n];
      });
}

}  // namespace asng::cpu::ASNG_CAPABILITY
