// The stem: a 3×3 convolution of the images as a product of their windows, then a normalisation
// with weight and bias.
#include "arena.h"
#include "cells.h"
#include "passes.h"
#include "pixel_sums.h"
#include "project.h"

namespace asng::cuda {

namespace {

template <class T>
struct StemJob {
  int images = 0, height = 0, width = 0, in_channels = 0, channels = 0, padded = 0;
  const T* x = nullptr;  // (images, height, width, in_channels)
  const T* packed = nullptr;
  const T* scale = nullptr;
  const T* bias = nullptr;
  T* norm = nullptr;  // (2, padded)
  T* z = nullptr;     // (images, height, width, padded)
  T* y = nullptr;     // the same
  double* partials = nullptr;
  unsigned* counter = nullptr;
  // Backward.
  const T* grad_y = nullptr;
  T* coefficients = nullptr;  // (3, padded)
  T* weight_parts = nullptr;  // (parts, padded, depth)
  int parts = 0;
  T* grad_scale = nullptr;
  T* grad_bias = nullptr;

  ASNG_HD int depth() const { return padded_channels(9 * in_channels); }
};

template <class T>
__device__ Source<T> window_source(const StemJob<T>& job) {
  Source<T> s;
  s.x = job.x;
  s.channels = job.depth();
  s.height = job.height;
  s.width = job.width;
  s.window = job.in_channels;
  return s;
}

template <class T>
__device__ ProjectShape project_shape(const StemJob<T>& job) {
  return {job.images, job.height, job.width, job.padded};
}

template <class T>
__global__ __launch_bounds__(kThreads) void stem_kernel(const StemJob<T> job, int parts) {
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * job.padded);
  clear(totals, 2 * job.padded);
  const ProjectShape shape = project_shape(job);
  project_forward([&](int) { return window_source(job); }, 1, shape, job.packed, blockIdx.x, parts,
                  job.z, totals, shared);
  if (sum_over_blocks(totals, 2 * job.padded, job.partials, job.counter, blockIdx.x, parts)) {
    finish_norm(totals, shape.pixels(), job.padded, job.norm);
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void stem_normalise_kernel(const StemJob<T> job) {
  const int64_t count = static_cast<int64_t>(job.images) * job.height * job.width * job.padded / 4;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int c = static_cast<int>(i % (job.padded / 4)) * 4;
    Quad<T> v = affine4(load4(job.z + i * 4), job.norm, job.padded, c);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      v.v[k] = c + k < job.channels ? v.v[k] * job.scale[c + k] + job.bias[c + k] : T(0);
    }
    store4(job.y + i * 4, v);
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void stem_reduce_kernel(const StemJob<T> job, int parts) {
  const int padded = job.padded, pixels = project_shape(job).pixels();
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * padded);
  clear(totals, 3 * padded);
  sum_gradient<T>(job.grad_y, job.z, job.norm, pixels, padded, blockIdx.x, parts, shared, totals);
  if (!sum_over_blocks(totals, 2 * padded, job.partials, job.counter, blockIdx.x, parts)) return;
  finish_gradient(totals, totals + padded, pixels, padded, job.norm, true, 1.0, job.coefficients);
  __syncthreads();
  for (int c = threadIdx.x; c < padded; c += kThreads) {
    const bool real = c < job.channels;
    for (int k = 0; k < 3; ++k) job.coefficients[k * padded + c] *= real ? job.scale[c] : T(0);
    if (!real) continue;
    job.grad_bias[c] = static_cast<T>(totals[c]);
    job.grad_scale[c] = static_cast<T>(totals[padded + c]);
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void stem_backward_kernel(const StemJob<T> job) {
  const int channel = blockIdx.y * kSourceChunk, depth = job.depth();
  // The images need no gradient, so neither does this product need a weight.
  project_backward(window_source(job), channel, min(depth - channel, kSourceChunk),
                   project_shape(job), job.grad_y, job.z, job.coefficients,
                   static_cast<const T*>(nullptr), depth, false, blockIdx.x, job.parts,
                   job.weight_parts + static_cast<int64_t>(blockIdx.x) * job.padded * depth,
                   dynamic_shared<T>(), [](int, int, const Quad<T>&) {});
}

template <class T>
int64_t pixel_count(const StemJob<T>& job) {
  return static_cast<int64_t>(job.images) * job.height * job.width;
}

template <class T>
struct Memory {
  StemJob<T> job;
  Matrix<T> matrix;
  MatrixGradient<T> gradient;

  Memory(Arena& arena, const StemShape& s, bool backward) {
    job.images = s.images;
    job.height = s.height;
    job.width = s.width;
    job.in_channels = s.in_channels;
    job.channels = s.channels;
    job.padded = s.padded;
    matrix.shape.rows = s.channels;
    matrix.shape.padded = s.padded;
    matrix.shape.channels = 9 * s.in_channels;
    matrix.shape.padded_channels = job.depth();
    matrix.shape.window = s.in_channels;
    job.partials = arena.take<double>(static_cast<int64_t>(kMaxParts) * 3 * s.padded);
    job.counter = arena.take<unsigned>(1);
    if (!backward) {
      job.packed = matrix.packed = arena.take<T>(matrix.shape.packed_size());
      return;
    }
    job.coefficients = arena.take<T>(3 * s.padded);
    job.parts = projection_part_count<T>(pixel_count(job), s.padded, job.depth());
    job.weight_parts = arena.take<T>(job.parts * matrix.shape.packed_size());
    gradient.shape = matrix.shape;
    gradient.weight_parts = job.weight_parts;
    gradient.groups = 1;
    gradient.parts = job.parts;
  }

  // Of `saved`, which a backward pass only reads.
  void set(const StemShape& s, const T* x, const T* scale, T* saved) {
    job.x = x;
    job.scale = scale;
    job.norm = saved;
    job.z = saved + 2 * s.padded;
  }
};

}  // namespace

template <class T>
size_t stem_scratch(const StemShape& shape, bool backward) {
  Arena arena(nullptr);
  Memory<T>(arena, shape, backward);
  return arena.used();
}

template <class T>
void stem_forward(const StemShape& shape, const T* weight, const T* scale, const T* bias,
                  const T* x, T* y, T* saved, void* scratch, CudaStream stream) {
  Arena arena(scratch);
  Memory<T> memory(arena, shape, false);
  memory.set(shape, x, scale, saved);
  memory.matrix.weight = weight;
  StemJob<T>& job = memory.job;
  job.bias = bias;
  job.y = y;
  fill_zero(job.counter, sizeof(unsigned), stream);
  pack_matrix(memory.matrix, false, stream);
  const int run = project_pixels(job.padded);
  const int64_t runs = (pixel_count(job) + run - 1) / run;
  const int parts = static_cast<int>(std::min<int64_t>(runs, kMaxParts));
  launch(stem_kernel<T>, parts, kThreads,
         3 * static_cast<size_t>(job.padded) * sizeof(double) + kProjectValues * sizeof(T), stream,
         job, parts);
  const int64_t blocks = (shape.out_size() / 4 + kThreads - 1) / kThreads;
  launch(stem_normalise_kernel<T>, static_cast<unsigned>(std::min<int64_t>(blocks, 4096)), kThreads,
         0, stream, job);
}

template <class T>
void stem_backward(const StemShape& shape, const T* scale, const T* x, const T* grad_y,
                   const T* saved, T* grad_weight, T* grad_scale, T* grad_bias, void* scratch,
                   CudaStream stream) {
  Arena arena(scratch);
  Memory<T> memory(arena, shape, true);
  memory.set(shape, x, scale, const_cast<T*>(saved));
  StemJob<T>& job = memory.job;
  job.grad_y = grad_y;
  job.grad_scale = grad_scale;
  job.grad_bias = grad_bias;
  fill_zero(job.counter, sizeof(unsigned), stream);
  const int parts = pixel_parts(pixel_count(job), job.padded);
  launch(stem_reduce_kernel<T>, parts, kThreads, pixel_sums_bytes(job.padded, sizeof(T)), stream,
         job, parts);
  launch(stem_backward_kernel<T>, dim3(job.parts, (job.depth() + kSourceChunk - 1) / kSourceChunk),
         kThreads, static_cast<size_t>(project_backward_values(job.padded, sizeof(T))) * sizeof(T),
         stream, job);
  WeightJob<T> sum;
  sum.matrices[0] = memory.gradient;
  sum.matrices[0].grad = grad_weight;
  sum_weight_parts(sum, stream);
}

#define ASNG_INSTANTIATE(T)                                                                     \
  template size_t stem_scratch<T>(const StemShape&, bool);                                      \
  template void stem_forward(const StemShape&, const T*, const T*, const T*, const T*, T*, T*,  \
                             void*, CudaStream);                                                \
  template void stem_backward(const StemShape&, const T*, const T*, const T*, const T*, T*, T*, \
                              T*, void*, CudaStream);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cuda
