// The stem: a 3×3 convolution of the images as a product of their windows, then a normalization
// with weight and bias.
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/pointwise.h"
#include "ops/stem/cuda.h"
#include "platform/memory.h"

namespace asng::cuda {

namespace {

template <class V>
struct StemJob {
  using T = Compute<V>;

  int images = 0, height = 0, width = 0, in_channels = 0, channels = 0, padded = 0;
  const V* x = nullptr;  // (images, height, width, in_channels)
  const T* packed = nullptr;
  const T* scale = nullptr;
  const T* bias = nullptr;
  T* norm = nullptr;  // (2, padded)
  V* z = nullptr;     // (images, height, width, padded)
  V* y = nullptr;     // the same
  double* partials = nullptr;
  unsigned* counters = nullptr;
  // Backward.
  const V* grad_y = nullptr;
  T* coefficients = nullptr;   // (3, padded)
  T* weight_splits = nullptr;  // (splits, padded, depth)
  int splits = 0;
  T* grad_scale = nullptr;
  T* grad_bias = nullptr;

  ASNG_HD int depth() const { return padded_channels(kStemKernelElements * in_channels); }
};

template <class V>
__device__ Source<V, true> window_source(const StemJob<V>& job) {
  Source<V, true> s;
  s.x = job.x;
  s.channels = job.depth();
  s.height = job.height;
  s.width = job.width;
  s.window = job.in_channels;
  return s;
}

template <class V>
ASNG_HD PointwiseShape pointwise_shape(const StemJob<V>& job) {
  return {job.images, job.height, job.width, job.padded};
}

template <bool kTensorCores, class V>
__global__ __launch_bounds__(kThreads) void stem_kernel(const StemJob<V> job, int splits) {
  using T = Compute<V>;
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * job.padded);
  clear(totals, 2 * job.padded);
  const PointwiseShape shape = pointwise_shape(job);
  pointwise_forward<kTensorCores>([&](int) { return window_source(job); }, 1, shape, job.packed,
                                  blockIdx.x, splits, job.z, totals, shared);
  if (sum_over_blocks(totals, 2 * job.padded, job.partials, job.counters, blockIdx.x, splits,
                      shared)) {
    finish_norm(totals, shape.pixels(), job.padded, job.norm);
  }
}

template <class V>
__global__ __launch_bounds__(kThreads) void stem_normalize_kernel(const StemJob<V> job) {
  using T = Compute<V>;
  constexpr int kValues = 4 * kWide<V>;
  const int pieces = job.padded / kValues;
  const int64_t count = static_cast<int64_t>(job.images) * job.height * job.width * pieces;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int first = static_cast<int>(i % pieces) * kValues;
    Vec4<T> v[kWide<V>];
    load_wide(job.z + i * kValues, v);
#pragma unroll
    for (int k = 0; k < kValues; ++k) {
      if (k % 4 == 0) v[k / 4] = affine_vec4(v[k / 4], job.norm, job.padded, first + k);
      const int c = first + k;
      T& value = v[k / 4].v[k % 4];
      value = c < job.channels ? value * job.scale[c] + job.bias[c] : T(0);
    }
    write_wide(job.y + i * kValues, v);
  }
}

template <class V>
__global__ __launch_bounds__(kThreads) void stem_reduce_kernel(const StemJob<V> job, int splits) {
  using T = Compute<V>;
  const int padded = job.padded, pixels = pointwise_shape(job).pixels();
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * padded);
  clear(totals, 3 * padded);
  sum_gradient(job.grad_y, job.z, job.norm, pixels, padded, blockIdx.x, splits, shared, totals);
  if (!sum_over_blocks(totals, 2 * padded, job.partials, job.counters, blockIdx.x, splits, shared))
    return;
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

template <bool kTensorCores, class V>
__global__ __launch_bounds__(kThreads) void stem_backward_kernel(const StemJob<V> job) {
  using T = Compute<V>;
  const int channel = blockIdx.y * kSourceChunk, depth = job.depth();
  // The images need no gradient, so neither does this product need a weight.
  pointwise_backward<kTensorCores>(
      window_source(job), channel, min(depth - channel, kSourceChunk), pointwise_shape(job),
      job.grad_y, job.z, job.coefficients, static_cast<const T*>(nullptr), depth, false, blockIdx.x,
      job.splits, job.weight_splits + static_cast<int64_t>(blockIdx.x) * job.padded * depth,
      dynamic_shared<T>(), [](int, int, const Vec4<T>&) {});
}

template <class V>
struct Memory {
  using T = Compute<V>;

  StemJob<V> job;
  Matrix<T> matrix;
  MatrixGradient<T> gradient;

  Memory(Arena& arena, const StemShape& s, bool backward) {
    job.images = static_cast<int>(s.images);
    job.height = static_cast<int>(s.height);
    job.width = static_cast<int>(s.width);
    job.in_channels = static_cast<int>(s.in_channels);
    job.channels = static_cast<int>(s.channels);
    job.padded = static_cast<int>(s.padded);
    matrix.shape.rows = job.channels;
    matrix.shape.padded = job.padded;
    matrix.shape.channels = kStemKernelElements * job.in_channels;
    matrix.shape.padded_channels = job.depth();
    matrix.shape.window = job.in_channels;
    job.partials = arena.take<double>(partial_values(1, job.padded));
    job.counters = arena.take<unsigned>(sum_counters(1));
    if (!backward) {
      job.packed = matrix.packed = arena.take<T>(matrix.shape.packed_size());
      return;
    }
    job.coefficients = arena.take<T>(3 * s.padded);
    job.splits = pointwise_split_count<V>(s.pixels(), job.padded, job.depth());
    job.weight_splits = arena.take<T>(job.splits * matrix.shape.packed_size());
    gradient.shape = matrix.shape;
    gradient.weight_splits = job.weight_splits;
    gradient.groups = 1;
    gradient.splits = job.splits;
  }

  // Of `saved`, which a backward pass only reads.
  void set(const StemShape& s, const V* x, const T* scale, T* saved) {
    job.x = x;
    job.scale = scale;
    job.norm = saved;
    job.z = reinterpret_cast<V*>(saved + 2 * s.padded);
  }
};

}  // namespace

template <class V>
size_t stem_scratch(const StemShape& shape, bool backward) {
  Arena arena(nullptr);
  Memory<V>(arena, shape, backward);
  return arena.used();
}

template <class V>
void stem_forward(const StemShape& shape, bool tf32, const Compute<V>* weight,
                  const Compute<V>* scale, const Compute<V>* bias, const V* x, V* y,
                  Compute<V>* saved, void* scratch, CudaStream stream) {
  using T = Compute<V>;
  Arena arena(scratch);
  Memory<V> memory(arena, shape, false);
  memory.set(shape, x, scale, saved);
  memory.matrix.weight = weight;
  StemJob<V>& job = memory.job;
  job.bias = bias;
  job.y = y;
  fill_zero(job.counters, sum_counters(1) * sizeof(unsigned), stream);
  pack_matrix(memory.matrix, false, stream);
  const int splits = pointwise_splits(pointwise_shape(job), sizeof(T), 1);
  const auto kernel =
      choose_kernel<V>(tf32, [](auto tensor_cores) { return &stem_kernel<tensor_cores(), V>; });
  launch(kernel, splits, kThreads, pointwise_bytes(pointwise_shape(job), sizeof(T)), stream, job,
         splits);
  const int64_t pieces = shape.out_size() / (4 * kWide<V>);
  const int64_t blocks = (pieces + kThreads - 1) / kThreads;
  launch(stem_normalize_kernel<V>, static_cast<unsigned>(std::min<int64_t>(blocks, 4096)), kThreads,
         0, stream, job);
}

template <class V>
void stem_backward(const StemShape& shape, bool tf32, const Compute<V>* scale, const V* x,
                   const V* grad_y, const Compute<V>* saved, Compute<V>* grad_weight,
                   Compute<V>* grad_scale, Compute<V>* grad_bias, void* scratch,
                   CudaStream stream) {
  using T = Compute<V>;
  Arena arena(scratch);
  Memory<V> memory(arena, shape, true);
  memory.set(shape, x, scale, const_cast<T*>(saved));
  StemJob<V>& job = memory.job;
  job.grad_y = grad_y;
  job.grad_scale = grad_scale;
  job.grad_bias = grad_bias;
  fill_zero(job.counters, sum_counters(1) * sizeof(unsigned), stream);
  const int splits = pixel_splits(shape.pixels(), job.padded, 1);
  launch(stem_reduce_kernel<V>, splits, kThreads, pixel_sums_bytes(job.padded, sizeof(T)), stream,
         job, splits);
  const auto kernel = choose_kernel<V>(
      tf32, [](auto tensor_cores) { return &stem_backward_kernel<tensor_cores(), V>; });
  launch(kernel, dim3(job.splits, (job.depth() + kSourceChunk - 1) / kSourceChunk), kThreads,
         static_cast<size_t>(pointwise_backward_values(job.padded, sizeof(T))) * sizeof(T), stream,
         job);
  WeightJob<T> sum;
  sum.matrices[0] = memory.gradient;
  sum.matrices[0].grad = grad_weight;
  sum_weight_splits(sum, stream);
}

#define ASNG_INSTANTIATE(V)                                                                       \
  template size_t stem_scratch<V>(const StemShape&, bool);                                        \
  template void stem_forward<V>(const StemShape&, bool, const Compute<V>*, const Compute<V>*,     \
                                const Compute<V>*, const V*, V*, Compute<V>*, void*, CudaStream); \
  template void stem_backward<V>(const StemShape&, bool, const Compute<V>*, const V*, const V*,   \
                                 const Compute<V>*, Compute<V>*, Compute<V>*, Compute<V>*, void*, \
                                 CudaStream);
ASNG_EVERY_STORED_TYPE(ASNG_INSTANTIATE)

}  // namespace asng::cuda
