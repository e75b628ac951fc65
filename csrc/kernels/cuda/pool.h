// 3×3 pools, a pixel and four channels at a time, forward and backward.
#pragma once

#include "kernels/cuda/depthwise.h"

namespace asng::cuda {

// A 3×3 pool at an output pixel; zeros beyond the edge count for the average. Of equal maxima the
// first counts, and NaN wins, as in PyTorch. Where maxima are kept, `maxima` is not null.
template <class V>
__device__ Vec4<Compute<V>> pool_forward(const State<V>& from, int padded, int stride, bool max,
                                         int image, int y, int x, int c, uint32_t* maxima) {
  using T = Compute<V>;
  Vec4<T> sum = fill_vec4(T(0));
  uint32_t place[4] = {0, 0, 0, 0};
  bool found = false;
#pragma unroll
  for (int k = 0; k < kPoolPixels; ++k) {
    const int sy = y * stride - 1 + k / 3, sx = x * stride - 1 + k % 3;
    if (sy < 0 || sy >= from.height || sx < 0 || sx >= from.width) continue;
    const int64_t pixel = (static_cast<int64_t>(image) * from.height + sy) * from.width + sx;
    const Vec4<T> v = affine_vec4(load_vec4(from.x + pixel * padded + c), from.norm, padded, c);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!max) {
        sum.v[i] += v.v[i];
      } else if (!found || v.v[i] > sum.v[i] || v.v[i] != v.v[i]) {
        sum.v[i] = v.v[i];
        place[i] = k;
      }
    }
    found = true;
  }
  if (max && maxima != nullptr) {
    *maxima = place[0] | place[1] << 8 | place[2] << 16 | place[3] << 24;
  }
#pragma unroll
  for (int i = 0; !max && i < 4; ++i) sum.v[i] /= T(kPoolPixels);
  return sum;
}

// The gradient of pixel (y, x) of a pool's input, from that of its output, `grad`, times `factor`.
// `maxima` is what the forward pass has kept of a max pool, null for an average pool.
template <class V>
__device__ Vec4<Compute<V>> pool_backward(const DagShape& s, const V* grad, const uint32_t* maxima,
                                          int factor, int stride, int image, int y, int x, int c) {
  using T = Compute<V>;
  const bool max = maxima != nullptr;
  Vec4<T> sum = fill_vec4(T(0));
#pragma unroll 3
  for (int k = 0; k < kPoolPixels; ++k) {
    const int oy = window_at(y, k / 3, 1, stride, s.out_height);
    const int ox = window_at(x, k % 3, 1, stride, s.out_width);
    if (oy < 0 || ox < 0) continue;
    const int64_t pixel = (static_cast<int64_t>(image) * s.out_height + oy) * s.out_width + ox;
    const int64_t at = pixel * s.padded + c;
    const Vec4<T> g = load_vec4(grad + at);
    if (!max) {
      sum += g;
      continue;
    }
    const uint32_t places = maxima[at / 4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((places >> 8 * i & 0xff) == static_cast<uint32_t>(k)) sum.v[i] += g.v[i];
    }
  }
  const T scale = max ? static_cast<T>(factor) : static_cast<T>(factor) / T(kPoolPixels);
#pragma unroll
  for (int i = 0; i < 4; ++i) sum.v[i] *= scale;
  return sum;
}

}  // namespace asng::cuda
