// Small matmuls over the pixels of a tile.
//
// A tile holds its channels in blocks of kChannelBlock: value k of pixel p lies at
// a[k / 16 · block + p · lda + k % 16]. Pixels one after the other have block 16 and lda as many
// values as a pixel; blocks one after the other have lda 16, whatever the number of channels, so
// that every address in the inner loop is a constant offset.
#pragma once

#include "kernels/cpu/kernels.h"
#include "platform/simd.h"

namespace asng::cpu::ASNG_CAPABILITY {

// Pixels that a tile has at least, if the feature map has: enough to fill the blocks of a matmul.
inline constexpr int64_t kTilePixels = 64;

// P pixels × N vectors of out = a·b, all accumulators in registers; with kStats also the sums over
// the pixels of the values and of their squares.
template <class T, int P, int N, bool kStats>
ASNG_INLINE void matmul_block(int64_t depth, const T* a, int64_t lda, int64_t block, const T* b,
                              int64_t ldb, T* out, int64_t ldo, T* sum, T* squares) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> acc[P][N] = {};
  for (int64_t first = 0; first < depth; first += kChannelBlock, a += block) {
    for (int64_t k = 0; k < kChannelBlock; ++k, b += ldb) {
      Vec<T> w[N];
      for (int n = 0; n < N; ++n) w[n] = load(b + n * lanes);
      for (int p = 0; p < P; ++p) {
        const T value = a[p * lda + k];
        for (int n = 0; n < N; ++n) acc[p][n] += w[n] * value;
      }
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
ASNG_INLINE void matmul_columns(int64_t pixels, int64_t depth, const T* a, int64_t lda,
                                int64_t block, const T* b, int64_t ldb, T* out, int64_t ldo, T* sum,
                                T* squares) {
  int64_t p = 0;
  for (; p + P <= pixels; p += P) {
    matmul_block<T, P, N, kStats>(depth, a + p * lda, lda, block, b, ldb, out + p * ldo, ldo, sum,
                                  squares);
  }
  if constexpr (P > 4) {
    for (; p + 4 <= pixels; p += 4) {
      matmul_block<T, 4, N, kStats>(depth, a + p * lda, lda, block, b, ldb, out + p * ldo, ldo, sum,
                                    squares);
    }
  }
  for (; p < pixels; ++p) {
    matmul_block<T, 1, N, kStats>(depth, a + p * lda, lda, block, b, ldb, out + p * ldo, ldo, sum,
                                  squares);
  }
}

// out (pixels, columns) = a (pixels, depth) · b (depth, columns). With kStats, sum and squares
// (columns) receive the sums over the pixels. kPixel and kOut, if not 0, are the distances of
// pixels in a and in out.
template <class T, bool kStats, int kPixel, int kOut>
inline void matmul(int64_t pixels, int64_t depth, int64_t columns, const T* a, int64_t lda,
                   int64_t block, const T* b, int64_t ldb, T* out, int64_t ldo, T* sum,
                   T* squares) {
  constexpr int64_t lanes = kLanes<T>;
  lda = channels_of<kPixel>(lda);
  ldo = channels_of<kOut>(ldo);
  constexpr int wide = kManyRegisters ? 4 : 2;
  int64_t n = 0;
  for (; n + wide * lanes <= columns; n += wide * lanes) {
    matmul_columns<T, 4, wide, kStats>(pixels, depth, a, lda, block, b + n, ldb, out + n, ldo,
                                       sum + n, squares + n);
  }
  if constexpr (kManyRegisters) {
    for (; n + 2 * lanes <= columns; n += 2 * lanes) {
      matmul_columns<T, 8, 2, kStats>(pixels, depth, a, lda, block, b + n, ldb, out + n, ldo,
                                      sum + n, squares + n);
    }
  }
  for (; n < columns; n += lanes) {
    // More rows than address registers pay only if their distance is a constant.
    matmul_columns<T, kManyRegisters && kPixel != 0 ? 16 : 8, 1, kStats>(
        pixels, depth, a, lda, block, b + n, ldb, out + n, ldo, sum + n, squares + n);
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

// out (rows, columns) += a (pixels, rows)ᵀ · b (pixels, columns): the gradient of a matmul's
// weight. Rows and columns are multiples of kChannelBlock. kA and kB, if not 0, are the distances
// of pixels in a and b.
template <class T, int kA, int kB>
inline void outer_product(int64_t pixels, int64_t rows, int64_t columns, const T* a, int64_t lda,
                          const T* b, int64_t ldb, T* out, int64_t ldo) {
  constexpr int64_t lanes = kLanes<T>;
  lda = channels_of<kA>(lda);
  ldb = channels_of<kB>(ldb);
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
