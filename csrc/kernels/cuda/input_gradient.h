// Where the projections of a cell's inputs leave the inputs' gradients.
#pragma once

#include "kernels/cuda/launchers.h"
#include "kernels/cuda/tile.h"
#include "platform/reductions.h"

namespace asng::cuda {

// Writes zeros to the block's pixels of the gradient.
template <class V>
__device__ void clear_gradient(V* grad, int64_t size, int block, int blocks) {
  for (int64_t i = static_cast<int64_t>(block) * blockDim.x + threadIdx.x; i < size / 4;
       i += static_cast<int64_t>(blocks) * blockDim.x) {
    write_vec4(grad + i * 4, fill_vec4(Compute<V>(0)));
  }
}

// To what is in global memory, where no other thread adds to it.
__device__ __forceinline__ void add_vec4(float* to, const Vec4<float>& value) {
  add_in_memory(to, make_float4(value.v[0], value.v[1], value.v[2], value.v[3]));
}
__device__ __forceinline__ void add_vec4(double* to, const Vec4<double>& value) {
#pragma unroll
  for (int i = 0; i < 4; ++i) atomicAdd(to + i, value.v[i]);
}
__device__ __forceinline__ void add_vec4(BFloat16* to, const Vec4<float>& value) {
  add_in_memory(to, to_halves(value));
}

// The gradient of a factorized input: the one of output pixel (y, x) is written to the even or
// the odd of its four pixels, and zeros to one of the others.
template <class V>
__device__ void write_factorized(const Input<V>& input, const PointwiseShape& shape, int which,
                                 V* to, int pixel, int c, const Vec4<Compute<V>>& value) {
  using T = Compute<V>;
  const int line = pixel / shape.out_width, x = pixel - line * shape.out_width;
  const int image = line / shape.out_height, y = line - image * shape.out_height;
  const auto write = [&](int sy, int sx, const Vec4<T>& v) {
    if (sy >= input.height || sx >= input.width) return;
    const int64_t at = (static_cast<int64_t>(image) * input.height + sy) * input.width + sx;
    write_vec4(to + at * input.padded + c, v);
  };
  write(2 * y + which, 2 * x + which, value);
  write(2 * y + which, 2 * x + 1 - which, fill_vec4(T(0)));
}

// Writes the gradient of an input, of output pixel `pixel`, or adds it to what is there. `which` is
// the source, of a factorized input.
template <class V>
__device__ __forceinline__ void write_gradient(const Input<V>& input, const PointwiseShape& shape,
                                               int which, V* to, int pixel, int c,
                                               const Vec4<Compute<V>>& value) {
  if (input.factorized) {
    write_factorized(input, shape, which, to, pixel, c, value);
  } else {
    to += static_cast<int64_t>(pixel) * input.padded + c;
    input.adds ? add_vec4(to, value) : write_vec4(to, value);
  }
}

}  // namespace asng::cuda
