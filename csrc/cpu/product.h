// Small matrix products over the pixels of a tile.
#pragma once

#include "simd.h"

namespace asng::cpu::ASNG_CAPABILITY {

// P pixels × N vectors of out = a·b, all accumulators in registers; with kStats also the sums over
// the pixels of the values and of their squares.
template <class T, int P, int N, bool kStats>
ASNG_INLINE void product_block(int64_t depth, const T* a, int64_t lda, const T* b, int64_t ldb,
                               T* out, int64_t ldo, T* sum, T* squares) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> acc[P][N] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> w[N];
    for (int n = 0; n < N; ++n) w[n] = load(b + k * ldb + n * lanes);
    for (int p = 0; p < P; ++p) {
      const T value = a[p * lda + k];
      for (int n = 0; n < N; ++n) acc[p][n] += w[n] * value;
    }
  }
  for (int p = 0; p < P; ++p) {
    for (int n = 0; n < N; ++n) store(out + p * ldo + n * lanes, acc[p][n]);
  }
  if constexpr (kStats) {
    for (int n = 0; n < N; ++n) {
      Vec<T> s = acc[0][n], q = acc[0][n] * acc[0][n];
      for (int p = 1; p < P; ++p) {
        s += acc[p][n];
        q += acc[p][n] * acc[p][n];
      }
      add_to(sum + n * lanes, s);
      add_to(squares + n * lanes, q);
    }
  }
}

template <class T, int P, int N, bool kStats>
ASNG_INLINE void product_columns(int64_t pixels, int64_t depth, const T* a, int64_t lda, const T* b,
                                 int64_t ldb, T* out, int64_t ldo, T* sum, T* squares) {
  int64_t p = 0;
  for (; p + P <= pixels; p += P) {
    product_block<T, P, N, kStats>(depth, a + p * lda, lda, b, ldb, out + p * ldo, ldo, sum,
                                   squares);
  }
  if constexpr (P > 4) {
    for (; p + 4 <= pixels; p += 4) {
      product_block<T, 4, N, kStats>(depth, a + p * lda, lda, b, ldb, out + p * ldo, ldo, sum,
                                     squares);
    }
  }
  for (; p < pixels; ++p) {
    product_block<T, 1, N, kStats>(depth, a + p * lda, lda, b, ldb, out + p * ldo, ldo, sum,
                                   squares);
  }
}

// out (pixels, columns) = a (pixels, depth) · b (depth, columns). With kStats, sum and squares
// (columns) receive the sums over the pixels.
// C is the depth and the number of columns, and all rows lie next to each other; 0: see there.
template <class T, bool kStats, int C>
inline void product(int64_t pixels, int64_t depth, int64_t columns, const T* a, int64_t lda,
                    const T* b, int64_t ldb, T* out, int64_t ldo, T* sum, T* squares) {
  constexpr int64_t lanes = kLanes<T>;
  depth = channels_of<C>(depth);
  columns = channels_of<C>(columns);
  lda = channels_of<C>(lda);
  ldb = channels_of<C>(ldb);
  ldo = channels_of<C>(ldo);
  constexpr int wide = kManyRegisters ? 4 : 2;
  int64_t n = 0;
  for (; n + wide * lanes <= columns; n += wide * lanes) {
    product_columns<T, 4, wide, kStats>(pixels, depth, a, lda, b + n, ldb, out + n, ldo, sum + n,
                                        squares + n);
  }
  if constexpr (kManyRegisters) {
    for (; n + 2 * lanes <= columns; n += 2 * lanes) {
      product_columns<T, 8, 2, kStats>(pixels, depth, a, lda, b + n, ldb, out + n, ldo, sum + n,
                                       squares + n);
    }
  }
  for (; n < columns; n += lanes) {
    // More rows than address registers pay only if their distance is a constant.
    product_columns<T, kManyRegisters && C != 0 ? 16 : 8, 1, kStats>(
        pixels, depth, a, lda, b + n, ldb, out + n, ldo, sum + n, squares + n);
  }
}

// R rows × N vectors of out += aᵀ·b.
template <class T, int R, int N>
ASNG_INLINE void outer_block(int64_t pixels, const T* a, int64_t lda, const T* b, int64_t ldb,
                             T* out, int64_t ldo) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> acc[R][N];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) acc[r][n] = load(out + r * ldo + n * lanes);
  }
  for (int64_t p = 0; p < pixels; ++p) {
    Vec<T> v[N];
    for (int n = 0; n < N; ++n) v[n] = load(b + p * ldb + n * lanes);
    for (int r = 0; r < R; ++r) {
      const T value = a[p * lda + r];
      for (int n = 0; n < N; ++n) acc[r][n] += v[n] * value;
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) store(out + r * ldo + n * lanes, acc[r][n]);
  }
}

// out (rows, columns) += a (pixels, rows)ᵀ · b (pixels, columns): the gradient of a product's
// weight. Rows and columns are multiples of kChannelBlock. C as in `product`.
template <class T, int C>
inline void outer_product(int64_t pixels, int64_t rows, int64_t columns, const T* a, int64_t lda,
                          const T* b, int64_t ldb, T* out, int64_t ldo) {
  constexpr int64_t lanes = kLanes<T>;
  rows = channels_of<C>(rows);
  columns = channels_of<C>(columns);
  lda = channels_of<C>(lda);
  ldb = channels_of<C>(ldb);
  ldo = channels_of<C>(ldo);
  constexpr int wide = kManyRegisters ? 4 : 2;
  int64_t n = 0;
  for (; n + wide * lanes <= columns; n += wide * lanes) {
    for (int64_t r = 0; r < rows; r += 4) {
      outer_block<T, 4, wide>(pixels, a + r, lda, b + n, ldb, out + r * ldo + n, ldo);
    }
  }
  if constexpr (kManyRegisters) {
    for (; n + 2 * lanes <= columns; n += 2 * lanes) {
      for (int64_t r = 0; r < rows; r += 8) {
        outer_block<T, 8, 2>(pixels, a + r, lda, b + n, ldb, out + r * ldo + n, ldo);
      }
    }
  }
  for (; n < columns; n += lanes) {
    constexpr int tall = kManyRegisters ? 16 : 8;
    for (int64_t r = 0; r < rows; r += tall) {
      outer_block<T, tall, 1>(pixels, a + r, lda, b + n, ldb, out + r * ldo + n, ldo);
    }
  }
}

}  // namespace asng::cpu::ASNG_CAPABILITY
