// Products of an image with a 1×1 weight, and with another image, backward.
#pragma once

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/persistent_backward_image.h"

namespace asng::cuda::gradients_of_nodes {

// A factor of a product on the tensor cores. Where products may not round their factors to TF32,
// it is the sum of two numbers of TF32, which leaves an error like that of float32.
template <bool kExact, int kCount>
struct Factor {
  unsigned upper[kCount], lower[kExact ? kCount : 1];

  __device__ __forceinline__ void set(int i, float x) {
    upper[i] = to_tf32(x);
    if constexpr (kExact) lower[i] = to_tf32(x - __uint_as_float(upper[i]));
  }
  // What `rounded` has made.
  __device__ __forceinline__ void set_rounded(int i, float x) {
    kExact ? set(i, x) : static_cast<void>(upper[i] = __float_as_uint(x));
  }
};

// As factors are kept.
template <bool kExact>
__device__ __forceinline__ float rounded(float x) {
  return kExact ? x : __uint_as_float(to_tf32(x));
}
template <bool kExact>
__device__ __forceinline__ Vec4<float> rounded(const Vec4<float>& x) {
  return {{rounded<kExact>(x.v[0]), rounded<kExact>(x.v[1]), rounded<kExact>(x.v[2]),
           rounded<kExact>(x.v[3])}};
}

template <bool kExact>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const Factor<kExact, 4>& a,
                                             const Factor<kExact, 2>& b) {
  if constexpr (kExact) {
    mma_tf32(sums, a.lower, b.upper);
    mma_tf32(sums, a.upper, b.lower);
  }
  mma_tf32(sums, a.upper, b.upper);
}

// Starts to copy a weight, (C, row).
template <int C>
__device__ __forceinline__ void start_weight(const float* from, int row, float* to) {
#pragma unroll 1
  for (int i = threadIdx.x * 4; i < C * C; i += kCellThreads * 4) {
    copy_async16(to + i / C * Cut<C>::kRow + i % C, from + i / C * row + i % C);
  }
}

// Rounds what this thread has copied of a weight.
template <int C, bool kExact>
__device__ __forceinline__ void finish_weight(float* weight) {
#pragma unroll 1
  for (int i = threadIdx.x * 4; !kExact && i < C * C; i += kCellThreads * 4) {
    float* at = weight + i / C * Cut<C>::kRow + i % C;
    store_vec4(at, rounded<kExact>(load_vec4(at)));
  }
}

// The warp's terms of Σ gz ⊗ depth over the pixels of a tile, whose first one is at (y, x) of the
// image; depth[i] is the value of pixel i of the lane's column.
template <bool kExact, int C, bool kStrips>
__device__ __forceinline__ void add_outer(const Rows<C, kStrips>& rows, const float* grads, int y,
                                          int x, const float2 (&depth)[4],
                                          float (&sums)[C / 16][2][4]) {
  constexpr int kBorder = Cut<C>::kBorder;
  const int g = Cut<C>::lane() / 4, t = Cut<C>::lane() % 4, row_values = rows.values();
  const float* tile = grads + (y + kBorder) * row_values + x * C;
#pragma unroll
  for (int m = 0; m < C / 16; ++m) {
    const float* upper = tile + Cut<C>::place(kBorder + t, m * 16 + g);
    const float* lower = tile + Cut<C>::place(kBorder + t, m * 16 + 8 + g);
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      Factor<kExact, 2> right[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        right[0].set(i, depth[2 * s + i].x);
        right[1].set(i, depth[2 * s + i].y);
      }
      Factor<kExact, 4> left;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        left.set_rounded(2 * i, upper[(2 * s + i) * row_values]);
        left.set_rounded(2 * i + 1, lower[(2 * s + i) * row_values]);
      }
      multiply_add(sums[m][0], left, right[0]);
      multiply_add(sums[m][1], left, right[1]);
    }
  }
}

// Adds up the warps' terms of a weight's gradient in the copies of `matrix`, in turns, and writes
// the sum to `to`, (C, row), or adds it to what is there. Ends with a barrier behind the last read
// of what the terms were made of.
template <int C>
__device__ __forceinline__ void finish_outer(const float (&sums)[C / 16][2][4], float* matrix,
                                             int copies, float* to, int row, bool adds) {
  using Place = Cut<C>;
  const int lane = Place::lane(), g = lane / 4, t = lane % 4, own = Place::turn();
  // Halves of a row change places in every second one, so that neighboring rows are in different
  // banks.
  const auto swapped = [](int row, int column) { return C == 16 ? column : column ^ row % 2 * 16; };
  float* copy = matrix + own % copies * C * C + g * C + swapped(g, Place::group() + 4 * t);
#pragma unroll 1
  for (int first = 0; first < Place::kTurns; first += copies) {
    if (own >= first && own < first + copies) {
#pragma unroll
      for (int m = 0; m < C / 16; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          // Columns of the two products take turns.
          Vec4<float> value = {{sums[m][0][2 * half], sums[m][1][2 * half],
                                sums[m][0][2 * half + 1], sums[m][1][2 * half + 1]}};
          float* at = copy + (m * 16 + half * 8) * C;
          if (first > 0) value += load_vec4(at);
          store_vec4(at, value);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < C * C / 4; i += kCellThreads) {
    const int down = i / (C / 4), across = i % (C / 4) * 4;
    const float* from = matrix + down * C + swapped(down, across);
    Vec4<float> sum = load_vec4(from);
#pragma unroll 4
    for (int k = 1; k < copies; ++k) sum += load_vec4(from + k * C * C);
    float* at = to + down * row + across;
    if (adds) sum += load_vec4(at);
    write_vec4(at, sum);
  }
}

// Calls emit(place, value) for each pair of neighboring values of grads · weight and their place in
// an image. Between reading and writing a pixel's values, `emit` may take the place of grads.
template <bool kExact, int C, bool kStrips, class Emit>
__device__ __forceinline__ void multiply_weight(const float* grads, const float* weight, int height,
                                                const Rows<C, kStrips>& image, Emit emit) {
  constexpr int kBorder = Cut<C>::kBorder, kRow = Cut<C>::kRow, kTurns = Cut<C>::kTurns;
  const int lane = Cut<C>::lane(), g = lane / 4, t = lane % 4, pixels = height * image.width;
  const int turn = Cut<C>::turn(), group = Cut<C>::group();
  const int pitch = image.values() / C;
  for (int first = 0; first < pixels; first += kTurns * 16) {
    const int pixel = first + turn * 16 + g;
    int places[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int y = image.row_of(pixel + 8 * half), x = pixel + 8 * half - y * image.width;
      places[half] = ((y + kBorder) * pitch + x - g % 4) * C;
    }
    float sums[2][4] = {};
    if (pixel < pixels) {
      const float* columns = weight + 2 * t * kRow + group + g;
#pragma unroll
      for (int k = 0; k < C; k += 8) {
        const float* rows = grads + Cut<C>::place(kBorder + g % 4, k) + 2 * t;
        const float2 upper = load_pair(rows + places[0]), lower = load_pair(rows + places[1]);
        Factor<kExact, 4> left;
        left.set_rounded(0, upper.x);
        left.set_rounded(1, lower.x);
        left.set_rounded(2, upper.y);
        left.set_rounded(3, lower.y);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          Factor<kExact, 2> right;
          right.set_rounded(0, columns[k * kRow + 8 * j]);
          right.set_rounded(1, columns[(k + 1) * kRow + 8 * j]);
          multiply_add(sums[j], left, right);
        }
      }
    }
    Cut<C>::kGroups == 1 ? __syncwarp() : __syncthreads();
    if (pixel >= pixels) continue;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int at = Cut<C>::place(kBorder + g % 4, group + 8 * j) + 2 * t;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        emit(at + places[half], make_float2(sums[j][2 * half], sums[j][2 * half + 1]));
      }
    }
  }
}

}  // namespace asng::cuda::gradients_of_nodes
