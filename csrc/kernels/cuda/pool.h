// 3×3 pools, of patches of pixels and four channels at a time, forward and backward.
#pragma once

#include <cmath>

#include "kernels/cuda/norm.h"
#include "kernels/cuda/patch.h"

namespace asng::cuda {

// Adds a 3×3 pool with stride S of some output pixels one above the other, times `factor`; zeros
// beyond the edge count for the average. Of equal maxima the first counts, and NaN wins, as in
// PyTorch. Where maxima are kept, keep(pixel, their positions) is called.
template <int S, bool kMax, int kPixels, class V, class Keep>
__device__ __forceinline__ void pool_forward(const State<V>& from, int padded, const Pixel& first,
                                             int c, Compute<V> factor,
                                             Vec4<Compute<V>> (&to)[kPixels], Keep keep) {
  using T = Compute<V>;
  constexpr int kRows = (kPixels - 1) * S + kPoolKernel;
  // Nothing is less than what stands beyond the edge, so where all is equal to it that is not found
  // greater, and the first pixel of the window that is inside of the image is the maximum.
  const T none = kMax ? -static_cast<T>(INFINITY) : T(0);
  const int top = first.y * S - 1, left = first.x * S - 1;
  const V* image = image_of(from.x, first.image, from.height, from.width, padded, c);
  const int line = from.width * padded;
  Vec4<T> values[kRows][kPoolKernel];
  // What lies beyond the edge is read from the edge, so that nothing stands between the loads.
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const V* row = image + min(max(top + r, 0), from.height - 1) * line;
#pragma unroll
    for (int q = 0; q < kPoolKernel; ++q) {
      values[r][q] = load_vec4(row + min(max(left + q, 0), from.width - 1) * padded);
    }
  }
  if (from.norm != nullptr) {
    const Affine<T> affine = load_affine(from.norm, padded, c);
#pragma unroll
    for (int i = 0; i < kRows * kPoolKernel; ++i) {
      Vec4<T>& value = values[i / kPoolKernel][i % kPoolKernel];
      value = affine(value);
    }
  }
  // Every row of the input once, which windows one above the other have in common.
  Vec4<T> result[kPixels];
  int place[kPixels][4];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const bool in_image = is_within(top + r, from.height);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      T of_row = none;
      int column = left < 0 ? 1 : 0;
      const auto add = [](T v, int at, T& sum, int& at_most) {
        if (!kMax) {
          sum += v;
        } else if (v > sum || v != v) {
          sum = v;
          at_most = at;
        }
      };
#pragma unroll
      for (int q = 0; q < kPoolKernel; ++q) {
        const bool inside = in_image && is_within(left + q, from.width);
        const T v = inside ? values[r][q].v[i] : none;
        q == 0 ? static_cast<void>(of_row = v) : add(v, q, of_row, column);
      }
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        const int ky = r - p * S;
        if (ky == 0) {
          result[p].v[i] = of_row;
          place[p][i] = p == 0 && top < 0 ? kPoolKernel + (left < 0 ? 1 : 0) : column;
        } else if (ky > 0 && ky < kPoolKernel) {
          add(of_row, ky * kPoolKernel + column, result[p].v[i], place[p][i]);
        }
      }
    }
  }
  const T scale = kMax ? factor : factor / T(kPoolPixels);
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    if (kMax) keep(p, place[p][0] | place[p][1] << 8 | place[p][2] << 16 | place[p][3] << 24);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[p].v[i] += scale * result[p].v[i];
    }
  }
}

// Adds the gradient of a patch of a pool's input, from that of its output, `grad`, times `factor`.
// `maxima` is what the forward pass has kept of a max pool, null for an average pool.
template <int S, class V>
__device__ __forceinline__ void pool_backward(const DagShape& s, const V* grad,
                                              const uint32_t* maxima, Compute<V> factor,
                                              const Pixel& first, int c,
                                              Vec4<Compute<V>> (&to)[InputPatches<S>::kPixels]) {
  using T = Compute<V>;
  Vec4<T> sums[InputPatches<S>::kPixels] = {};
  grad = image_of(grad, first.image, s.out_height, s.out_width, s.padded, c);
  const auto load = [&](int at, bool there) {
    Vec4<T> value = fill_vec4(T(0));
    if (there) value = load_vec4(grad + at);
    return value;
  };
  T scale = factor;
  if (maxima == nullptr) {
    scale /= T(kPoolPixels);
    visit_readers<kPoolKernel, 1, S>(s, first, load,
                                     [&](int i, int, int, const Vec4<T>& g) { sums[i] += g; });
  } else {
    maxima = image_of(maxima, first.image, s.out_height, s.out_width, s.padded / 4, c / 4);
    struct Maximum {
      Vec4<T> grad;
      uint32_t places;
    };
    visit_readers<kPoolKernel, 1, S>(
        s, first,
        [&](int at, bool there) {
          Maximum m = {load(at, there), 0};
          if (there) m.places = maxima[at / 4];
          return m;
        },
        [&](int i, int ky, int kx, const Maximum& m) {
          const uint32_t place = ky * kPoolKernel + kx;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if ((m.places >> 8 * j & 0xff) == place) sums[i].v[j] += m.grad.v[j];
          }
        });
  }
#pragma unroll
  for (int i = 0; i < InputPatches<S>::kPixels; ++i) add_product(to[i], sums[i], fill_vec4(scale));
}

}  // namespace asng::cuda
