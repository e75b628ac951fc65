// Batch normalization where values are read and written: the affine map, its gradient and the sums
// for it. Statistics and coefficients come from norm_statistics.h.
#pragma once

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/kernels.h"
#include "platform/simd.h"

namespace asng::cpu::ASNG_CAPABILITY {

// The affine map of N vectors of channels from channel `first` on; as stored without one.
template <class T, int N>
struct AffineVectors {
  Vec<T> scale[N], shift[N];

  ASNG_INLINE AffineVectors(Affine<T> affine, int64_t first) {
    const bool mapped = affine.scale != nullptr;
    const Vec<T> zero = {};
    for (int n = 0; n < N; ++n) {
      const int64_t c = first + n * kLanes<T>;
      scale[n] = mapped ? load(affine.scale + c) : zero + T(1);
      shift[n] = mapped ? load(affine.shift + c) : zero;
    }
  }

  ASNG_INLINE Vec<T> operator()(int n, Vec<T> v) const { return v * scale[n] + shift[n]; }
};

// Applies the map where the values are.
template <class T>
void normalize(T* x, int64_t pixels, int64_t channels, Affine<T> affine) {
  for_channels<T>(channels, [&](int64_t first, auto vectors) ASNG_INLINE_LAMBDA {
    constexpr int N = vectors.value;
    const AffineVectors<T, N> map(affine, first);
    for (int64_t p = first; p < pixels * channels; p += channels) {
      for (int n = 0; n < N; ++n) {
        T* to = x + p + n * kLanes<T>;
        store(to, map(n, load(to)));
      }
    }
  });
}

// Pixels [begin, end) of N vectors of channels. A number of gradients known to the compiler keeps
// the sums in registers.
template <class T, int kGrads, int N>
ASNG_INLINE void reduce_pixels(const Reduce<T>& task, int64_t begin, int64_t end, int64_t first) {
  const AffineVectors<T, N> map(task.affine, first);
  const int64_t count = kGrads == 0 ? task.grad_count : kGrads;
  Vec<T> s[N] = {}, d[N] = {};
  for (int64_t p = begin; p < end; ++p) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const int64_t i = p * task.channels + first + n * kLanes<T>;
      Vec<T> g = load(task.grads[0] + i);
      for (int64_t k = 1; k < count; ++k) g += load(task.grads[k] + i);
      s[n] += g;
      d[n] += g * map(n, load(task.z + i));
    }
  }
  for (int n = 0; n < N; ++n) {
    add_wide<T>(task.sum + first + n * kLanes<T>, s[n]);
    add_wide<T>(task.dot + first + n * kLanes<T>, d[n]);
  }
}

// Sums for the gradient of a normalization, see Reduce.
template <class T>
void reduce(const Reduce<T>& task) {
  for (int64_t begin = 0; begin < task.pixels; begin += kTilePixels) {
    const int64_t end = begin + kTilePixels < task.pixels ? begin + kTilePixels : task.pixels;
    for_channels<T>(task.channels, [&](int64_t first, auto vectors) ASNG_INLINE_LAMBDA {
      constexpr int N = vectors.value;
      switch (task.grad_count) {
        case 1:
          return reduce_pixels<T, 1, N>(task, begin, end, first);
        case 2:
          return reduce_pixels<T, 2, N>(task, begin, end, first);
        default:
          return reduce_pixels<T, 0, N>(task, begin, end, first);
      }
    });
  }
}

// gz = a·g + b·z + c for `pixels` pixels.
template <class T, int C>
inline void norm_gradient(const T* grad, const T* z, NormGradient<T> norm, int64_t pixels,
                          int64_t channels, T* out) {
  channels = channels_of<C>(channels);
  for_channels<T>(channels, [&](int64_t first, auto vectors) ASNG_INLINE_LAMBDA {
    constexpr int N = vectors.value;
    Vec<T> a[N], b[N], constant[N];
    for (int n = 0; n < N; ++n) {
      const int64_t c = first + n * kLanes<T>;
      a[n] = load(norm.a + c);
      b[n] = load(norm.b + c);
      constant[n] = load(norm.c + c);
    }
    for (int64_t p = 0; p < pixels; ++p) {
      for (int n = 0; n < N; ++n) {
        const int64_t i = p * channels + first + n * kLanes<T>;
        store(out + i, load(grad + i) * a[n] + (load(z + i) * b[n] + constant[n]));
      }
    }
  });
}

}  // namespace asng::cpu::ASNG_CAPABILITY
