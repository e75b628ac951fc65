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
template <class T, int count, int from_step, int to_step>
ASNG_INLINE void evaluate(const Vec<T>* x, Vec<T>* y) {
  constexpr T points[3] = {T(1), T(2), T(0.5)};
  y[0] = x[0];
  for (int p = 0; p < 3; ++p) {
    Vec<T> even = x[0], odd = points[p] * x[from_step];
    T power = points[p];
    for (int i = 2; i < count; ++i) {
      power *= points[p];
      if (i % 2 == 0) {
        even += power * x[i * from_step];
      } else {
        odd += power * x[i * from_step];
      }
    }
    y[(2 * p + 1) * to_step] = even + odd;
    y[(2 * p + 2) * to_step] = even - odd;
  }
  y[7 * to_step] = x[(count - 1) * from_step];
}

// The transpose of `evaluate`.
template <class T, int count, int from_step, int to_step>
ASNG_INLINE void collect(const Vec<T>* y, Vec<T>* x) {
  constexpr T points[3] = {T(1), T(2), T(0.5)};
  Vec<T> sum[3], difference[3];
  for (int p = 0; p < 3; ++p) {
    sum[p] = y[(2 * p + 1) * from_step] + y[(2 * p + 2) * from_step];
    difference[p] = y[(2 * p + 1) * from_step] - y[(2 * p + 2) * from_step];
  }
  T power[3] = {T(1), T(1), T(1)};
  for (int i = 0; i < count; ++i) {
    Vec<T> v = i % 2 == 0 ? sum[0] : difference[0];
    for (int p = 1; p < 3; ++p) v += power[p] * (i % 2 == 0 ? sum[p] : difference[p]);
    if (i == 0) v += y[0];
    if (i == count - 1) v += y[7 * from_step];
    x[i * to_step] = v;
    for (int p = 1; p < 3; ++p) power[p] *= points[p];
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

template <class T, bool kMasked>
inline void read_tiles(const TiledSource<T>& source, const TileRange& range, int64_t dy, int64_t dx,
                       int64_t first_column, int64_t columns, T* tiles, int64_t matrix,
                       const T* zeros) {
  constexpr int side = kTileSide;
  Window<T, side> window;
  for (int64_t t = range.begin; t < range.end; ++t) {
    if (range.first + t < range.total) {
      const Tile tile = tile_at(range, range.first + t);
      window.point(source, tile.sample, tile.y * range.outputs - range.halo,
                   tile.x * range.outputs - range.halo, dy, dx, zeros);
    } else {
      window.clear(zeros);
    }
    for (int64_t c = 0; c < source.channels; c += kLanes<T>) {
      const int64_t count = source.channels - c;
      Vec<T> partial[side * side];
      for (int i = 0; i < side; ++i) {
        Vec<T> v[side];
        for (int j = 0; j < side; ++j) v[j] = window.template get<kMasked>(i * side + j, c, count);
        transform_inputs<T, 1>(v, partial + i * side);
      }
      T* to = tiles + panel_place<T>(range.rows, t, first_column + c, columns);
      for (int j = 0; j < side; ++j) {
        Vec<T> v[side];
        transform_inputs<T, side>(partial + j, v);
        for (int i = 0; i < side; ++i) store(to + (i * side + j) * matrix, v[i]);
      }
    }
  }
}

template <class T, int outputs, bool kMasked>
inline void read_output_tiles(const TiledSource<T>& source, const TileRange& range, int64_t columns,
                              T* tiles, int64_t matrix, const T* zeros) {
  constexpr int side = kTileSide;
  Window<T, outputs> window;
  for (int64_t t = range.begin; t < range.end; ++t) {
    if (range.first + t < range.total) {
      const Tile tile = tile_at(range, range.first + t);
      window.point(source, tile.sample, tile.y * outputs, tile.x * outputs, 0, 0, zeros);
    } else {
      window.clear(zeros);
    }
    for (int64_t c = 0; c < source.channels; c += kLanes<T>) {
      const int64_t count = source.channels - c;
      Vec<T> partial[outputs * side];
      for (int i = 0; i < outputs; ++i) {
        Vec<T> v[outputs];
        for (int j = 0; j < outputs; ++j) {
          v[j] = window.template get<kMasked>(i * outputs + j, c, count);
        }
        evaluate<T, outputs, 1, 1>(v, partial + i * side);
      }
      T* to = tiles + panel_place<T>(range.rows, t, c, columns);
      for (int j = 0; j < side; ++j) {
        Vec<T> v[side];
        evaluate<T, outputs, side, 1>(partial + j, v);
        for (int i = 0; i < side; ++i) store(to + (i * side + j) * matrix, v[i]);
      }
    }
  }
}

template <class T, int outputs>
inline void write_tiles(const T* tiles, int64_t matrix, const TileRange& range, int64_t dy,
                        int64_t dx, int64_t first_column, int64_t columns,
                        const TiledResult<T>& result) {
  constexpr int side = kTileSide;
  const Vec<T> zero = {};
  for (int64_t t = range.begin; t < range.end && range.first + t < range.total; ++t) {
    const Tile tile = tile_at(range, range.first + t);
    for (int64_t c = 0; c < result.channels; c += kLanes<T>) {
      const int64_t count = result.channels - c;
      const T* from = tiles + panel_place<T>(range.rows, t, first_column + c, columns);
      Vec<T> partial[outputs * side];
      for (int j = 0; j < side; ++j) {
        Vec<T> v[side];
        for (int i = 0; i < side; ++i) v[i] = load(from + (i * side + j) * matrix);
        collect<T, outputs, 1, side>(v, partial + j);
      }
      for (int i = 0; i < outputs; ++i) {
        const int64_t row = (tile.y * outputs + i) * result.stride + dy;
        if (row >= result.height) break;
        Vec<T> v[outputs];
        collect<T, outputs, 1, 1>(partial + i * side, v);
        for (int j = 0; j < outputs; ++j) {
          const int64_t column = (tile.x * outputs + j) * result.stride + dx;
          if (column >= result.width) break;
          const int64_t at =
              ((tile.sample * result.height + row) * result.width + column) * result.channels + c;
          Vec<T> value = v[j];
          if (result.added != nullptr) value += load_some(result.added + at, count);
          if (result.relu) value = value < zero ? zero : value;
          store_some(result.y + at, value, count);
        }
      }
    }
  }
}

template <class T, int kernel_side>
inline void read_kernel(const T* w, const WeightView& view, int64_t count, T* to, int64_t matrix) {
  constexpr int side = kTileSide;
  Vec<T> partial[kernel_side * side];
  for (int i = 0; i < kernel_side; ++i) {
    Vec<T> v[kernel_side];
    for (int j = 0; j < kernel_side; ++j) {
      v[j] = Vec<T>{};
      if (view.rows[i] < 0 || view.columns[j] < 0) continue;
      const T* element = w + view.rows[i] * view.kernel + view.columns[j];
      for (int64_t n = 0; n < count; ++n) v[j][n] = element[n * view.n_stride];
    }
    evaluate<T, kernel_side, 1, 1>(v, partial + i * side);
  }
  for (int j = 0; j < side; ++j) {
    Vec<T> v[side];
    evaluate<T, kernel_side, side, 1>(partial + j, v);
    for (int i = 0; i < side; ++i) {
      store<T>(to + (i * side + j) * matrix, v[i] * (kScale<T>[i] * kScale<T>[j]));
    }
  }
}

template <class T, int kernel_side>
inline void write_kernel(const T* from, int64_t matrix, const WeightView& view, int64_t count,
                         T* w) {
  constexpr int side = kTileSide;
  Vec<T> partial[kernel_side * side];
  for (int j = 0; j < side; ++j) {
    Vec<T> v[side];
    for (int i = 0; i < side; ++i) {
      v[i] = load(from + (i * side + j) * matrix) * (kScale<T>[i] * kScale<T>[j]);
    }
    collect<T, kernel_side, 1, side>(v, partial + j);
  }
  for (int i = 0; i < kernel_side; ++i) {
    Vec<T> v[kernel_side];
    collect<T, kernel_side, 1, 1>(partial + i * side, v);
    for (int j = 0; j < kernel_side; ++j) {
      if (view.rows[i] < 0 || view.columns[j] < 0) continue;
      T* element = w + view.rows[i] * view.kernel + view.columns[j];
      for (int64_t n = 0; n < count; ++n) element[n * view.n_stride] = v[j][n];
    }
  }
}

}  // namespace asng::cpu::ASNG_CAPABILITY
