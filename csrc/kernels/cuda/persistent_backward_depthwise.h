// Depthwise convolutions of an image in shared memory, again and backward.
#pragma once

#include "kernels/cuda/persistent_backward_products.h"

namespace asng::cuda::gradients_of_nodes {

// Σ gz ⊗ depth over the warp's tiles of a piece, `depth` being the depthwise convolution of the
// source, whose row `first` is the first one of the piece.
template <int K, int S, int D, bool kExact, int C, bool kStrips>
__device__ __forceinline__ void weight_outer(const Rows<C, kStrips>& rows, int out_height,
                                             int first, int height, int width, const float* source,
                                             const float* grads, const float* taps,
                                             float (&sums)[C / 16][2][4]) {
  using Around = Rows<C, kStrips>;
  constexpr int kReach = K / 2 * D;
  constexpr int kColumnsAround = Around::template kColumnsAround<S>;
  const int row_values = rows.template values<S>();
  const int t = Cut<C>::lane() % 4, c = Cut<C>::channel();
  const int tiles = tiled(out_height) * rows.width / 16;
  // Read once for all tiles: what is read of shared memory takes the time.
  float2 w[K][K];
#pragma unroll
  for (int i = 0; i < K * K; ++i) w[i / K][i % K] = load_pair(taps + i * C + c);
#pragma unroll 1
  for (int tile = Cut<C>::turn(); tile < tiles; tile += Cut<C>::kTurns) {
    const int down = rows.row_of(tile * 4), y = down * 4, x = tile * 4 - down * rows.width;
    const float* corner =
        source + (y * S + Around::template kRowsAround<S> - kReach) * row_values + x * S * C;
    float2 depth[4] = {};
#pragma unroll
    for (int kx = 0; kx < K; ++kx) {
      const int column = t * S + kx * D - kReach;
      const float* at = corner + Cut<C>::place(column + kColumnsAround, c);
      const bool inside =
          S == 1 || static_cast<unsigned>(x * S + column) < static_cast<unsigned>(width);
#pragma unroll
      for (int i = 0; i < 3 * S + (K - 1) * D + 1; ++i) {
        bool used = false;
#pragma unroll
        for (int ky = 0; ky < K; ++ky) {
#pragma unroll
          for (int r = 0; r < 4; ++r) used |= r * S + ky * D == i;
        }
        if (!used) continue;
        const bool exists = S == 1 || (inside && static_cast<unsigned>(first + y * S - kReach + i) <
                                                     static_cast<unsigned>(height));
        const float2 v = exists ? load_pair(at + i * row_values) : make_float2(0, 0);
#pragma unroll
        for (int ky = 0; ky < K; ++ky) {
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            if (r * S + ky * D == i) add_product(depth[r], w[ky][kx], v);
          }
        }
      }
    }
    add_outer<kExact>(rows, grads, y, x, depth, sums);
  }
}

// Through the depthwise convolution and ReLU, whose output is `source`, of which a piece has
// `height` rows: for each pixel of the warp's tiles calls begin(y, x), for what is there before,
// and emit(y, x, that, value, source); and adds the gradients of the kernel elements to the first
// K·K of `elements`.
template <int K, int S, int D, int C, bool kStrips, class Begin, class Emit>
__device__ __forceinline__ void transposed(const Rows<C, kStrips>& rows, int height, int width,
                                           const float* source, const float* depth,
                                           const float* taps, float2 (&elements)[K * K + 2],
                                           Begin begin, Emit emit) {
  using Around = Rows<C, kStrips>;
  constexpr int kReach = K / 2 * D, kBorder = Cut<C>::kBorder;
  constexpr int kSourceRows = Around::template kRowsAround<S>;
  constexpr int kSourceColumns = Around::template kColumnsAround<S>;
  const int row_values = rows.values(), source_row = rows.template values<S>();
  const int t = Cut<C>::lane() % 4, c = Cut<C>::channel();
  const int tiles = tiled(height) * rows.width / 16;
  for (int tile = Cut<C>::turn(); tile < tiles; tile += Cut<C>::kTurns) {
    const int down = rows.row_of(tile * 4), y = down * 4, left = tile * 4 - down * rows.width;
    const float* corner = depth + (y / S + kBorder) * row_values + left * C;
#pragma unroll
    for (int odd = 0; odd < S; ++odd) {
      const int x = (left + t) * S + odd;
      const float* own = source + (y + kSourceRows) * source_row + left * S * C +
                         Cut<C>::place(t * S + odd + kSourceColumns, c);
      float2 value[4], sums[4] = {}, before[4];
      bool exists[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        exists[r] = y + r < height && (S == 1 || x < width);
        value[r] = S == 1 || exists[r] ? load_pair(own + r * source_row) : make_float2(0, 0);
        before[r] = exists[r] ? begin(y + r, x) : make_float2(0, 0);
      }
#pragma unroll
      for (int kx = 0; kx < K; ++kx) {
        // Of the output pixels that this tap connects with the column, in steps of the stride.
        const int from = odd + kReach - kx * D;
        if (from % S != 0) continue;
        const float* at = corner + Cut<C>::place(t + from / S + kBorder, c);
        float2 w[K];
#pragma unroll
        for (int ky = 0; ky < K; ++ky) w[ky] = load_pair(taps + (ky * K + kx) * C + c);
#pragma unroll
        for (int i = -kReach; i <= 3 + kReach; ++i) {
          bool used = false;
#pragma unroll
          for (int ky = 0; ky < K; ++ky) {
#pragma unroll
            for (int r = 0; r < 4; ++r) used |= r + kReach - ky * D == i * S;
          }
          if (!used) continue;
          const float2 v = load_pair(at + i * row_values);
#pragma unroll
          for (int ky = 0; ky < K; ++ky) {
#pragma unroll
            for (int r = 0; r < 4; ++r) {
              if (r + kReach - ky * D != i * S) continue;
              add_product(sums[r], w[ky], v);
              add_product(elements[ky * K + kx], value[r], v);
            }
          }
        }
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float2 passed =
            make_float2(value[r].x > 0 ? sums[r].x : 0.0f, value[r].y > 0 ? sums[r].y : 0.0f);
        if (exists[r]) emit(y + r, x, before[r], passed, value[r]);
      }
    }
  }
}

// Calls visit(Window, its stride) for a stage.
template <bool kStrided, class V, class Visit>
__device__ __forceinline__ void with_stage(const Stage<V>& stage, Visit visit) {
  with_window(stage.separable, [&](auto window) {
    if constexpr (kStrided) {
      if (stage.stride == 2) return visit(window, std::integral_constant<int, 2>());
    }
    visit(window, std::integral_constant<int, 1>());
  });
}

}  // namespace asng::cuda::gradients_of_nodes
