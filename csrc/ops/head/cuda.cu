// Forward, a block computes the loss of one image for one architecture, and a second launch the
// means. Backward, such blocks write the gradient of the features, and others, one a class, those
// of the weights; all sums have an order of their own.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/block_sum.h"
#include "kernels/cuda/vec4.h"
#include "ops/head/cuda.h"

namespace asng::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// How many groups of threads share the pixels, of which each takes all quads of channels.
__host__ __device__ inline int pixel_groups(int padded) {
  return padded / 4 < kThreads ? kThreads / (padded / 4) : 1;
}

template <class V>
struct HeadJob {
  using T = Compute<V>;

  HeadShape shape;
  const V* features;
  const T* weight;  // (classes, channels)
  const T* bias;
  const int64_t* labels;
  T* saved;    // (pairs, channels + classes)
  T* losses;   // (pairs,)
  T* correct;  // the same
};

// The mean of every channel over the pixels. `sums` has room for pixel_groups · padded values.
template <class V, class T>
__device__ void mean_of_pixels(const HeadShape& shape, const V* image, T* sums, T* means) {
  const int quads = shape.padded / 4, width = min(quads, kThreads);
  const int groups = pixel_groups(shape.padded);
  const int lane = threadIdx.x % width, group = threadIdx.x / width;
  if (group < groups) {
    for (int quad = lane; quad < quads; quad += width) {
      Vec4<T> sum = fill_vec4(T(0));
#pragma unroll 4
      for (int pixel = group; pixel < shape.pixels; pixel += groups) {
        sum += load_vec4(image + static_cast<int64_t>(pixel) * shape.padded + 4 * quad);
      }
      store_vec4(sums + group * shape.padded + 4 * quad, sum);
    }
  }
  __syncthreads();
  for (int c = threadIdx.x; c < shape.channels; c += kThreads) {
    T sum = 0;
    for (int g = 0; g < groups; ++g) sum += sums[g * shape.padded + c];
    means[c] = sum / static_cast<T>(shape.pixels);
  }
  __syncthreads();
}

template <class T>
__device__ __forceinline__ T warp_max(T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, value, distance);
    value = other > value ? other : value;
  }
  return value;
}

template <class V>
__global__ __launch_bounds__(kThreads) void loss_kernel(const HeadJob<V> job) {
  using T = Compute<V>;
  const HeadShape& shape = job.shape;
  const int channels = shape.channels, classes = shape.classes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int pair = blockIdx.x;
  T* sums = dynamic_shared<T>();
  T* logits = sums + pixel_groups(shape.padded) * shape.padded;
  T* means = logits + classes;
  T* saved = job.saved + static_cast<int64_t>(pair) * (channels + classes);
  mean_of_pixels(shape, job.features + static_cast<int64_t>(pair) * shape.pixels * shape.padded,
                 sums, means);
  for (int c = threadIdx.x; c < channels; c += kThreads) saved[c] = means[c];
  for (int k = warp; k < classes; k += kWarps) {
    T sum = 0;
    for (int c = lane; c < channels; c += 32) {
      sum += means[c] * job.weight[static_cast<int64_t>(k) * channels + c];
    }
    sum = warp_sum(sum);
    if (lane == 0) logits[k] = sum + job.bias[k];
  }
  __syncthreads();
  if (warp > 0) return;
  const int64_t label = job.labels[pair % shape.images];
  const bool is_class = label >= 0 && label < classes;
  T largest = logits[0];
  for (int k = lane; k < classes; k += 32) largest = logits[k] > largest ? logits[k] : largest;
  largest = warp_max(largest);
  T sum = 0;
  for (int k = lane; k < classes; k += 32) sum += std::exp(logits[k] - largest);
  sum = warp_sum(sum);
  const T own = is_class ? logits[label] : static_cast<T>(NAN);
  // Of equal logits the first counts, as for argmax.
  bool beaten = !(own == largest);
  for (int k = lane; k < classes; k += 32) {
    beaten = beaten || (k < label && logits[k] == own);
    const T probability = std::exp(logits[k] - largest) / sum;
    saved[channels + k] = (probability - (k == label ? T(1) : T(0))) / static_cast<T>(shape.images);
  }
  beaten = __ballot_sync(0xffffffffu, beaten) != 0;
  if (lane == 0) {
    job.losses[pair] = std::log(sum) - (own - largest);
    job.correct[pair] = beaten ? T(0) : T(1);
  }
}

// One block for each architecture's loss, and one for the accuracy.
template <class T>
__global__ __launch_bounds__(kThreads) void mean_kernel(const HeadShape shape, const T* each,
                                                        const T* correct, T* losses,
                                                        float* accuracy) {
  const int arch = blockIdx.x;
  const bool is_loss = arch < shape.archs;
  const int64_t first = static_cast<int64_t>(arch) * shape.images;
  const T* values = is_loss ? each + first : correct;
  const int count = is_loss ? shape.images : shape.archs * shape.images;
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) sum += static_cast<double>(values[i]);
  sum = block_sum<kThreads>(sum) / count;
  if (threadIdx.x > 0) return;
  if (is_loss) {
    losses[arch] = static_cast<T>(sum);
  } else {
    *accuracy = static_cast<float>(sum);
  }
}

template <class V>
struct HeadGradients {
  using T = Compute<V>;

  HeadShape shape;
  const T* grad;    // (archs,)
  const T* weight;  // (classes, channels)
  const T* saved;   // (pairs, channels + classes)
  V* features;      // (pairs, pixels, padded)
  T* weights;       // (classes, channels)
  T* bias;
};

// Every pixel has the same gradient.
template <class V>
__device__ void features_gradient(const HeadGradients<V>& job, int pair) {
  using T = Compute<V>;
  constexpr int kValues = 4 * kWide<V>;
  const HeadShape& shape = job.shape;
  const int channels = shape.channels, classes = shape.classes;
  T* pixel = dynamic_shared<T>();
  T* logits = pixel + shape.padded;
  const T factor = job.grad[pair / shape.images] / static_cast<T>(shape.pixels);
  const T* saved = job.saved + static_cast<int64_t>(pair) * (channels + classes) + channels;
  for (int k = threadIdx.x; k < classes; k += kThreads) logits[k] = factor * saved[k];
  __syncthreads();
  for (int c = threadIdx.x; c < shape.padded; c += kThreads) {
    T sum = 0;
    if (c < channels) {
#pragma unroll 8
      for (int k = 0; k < classes; ++k) {
        sum += logits[k] * job.weight[static_cast<int64_t>(k) * channels + c];
      }
    }
    pixel[c] = sum;
  }
  __syncthreads();
  V* to = job.features + static_cast<int64_t>(pair) * shape.pixels * shape.padded;
  const int pieces = shape.padded / kValues;
  for (int i = threadIdx.x; i < shape.pixels * pieces; i += kThreads) {
    const int c = i % pieces * kValues;
    Vec4<T> value[kWide<V>];
#pragma unroll
    for (int j = 0; j < kWide<V>; ++j) value[j] = load_vec4(pixel + c + 4 * j);
    write_wide(to + static_cast<int64_t>(i) * kValues, value);
  }
}

// Of a class, whose share of the loss's gradient every pair has in `factors`.
template <class V>
__device__ void weights_gradient(const HeadGradients<V>& job, int k) {
  using T = Compute<V>;
  const HeadShape& shape = job.shape;
  const int channels = shape.channels, row = channels + shape.classes;
  const int width = min(channels, kThreads), slices = kThreads / width;
  const int lane = threadIdx.x % width, slice = threadIdx.x / width;
  const int pairs = shape.archs * shape.images;
  T* factors = dynamic_shared<T>();
  T* sums = factors + kThreads;
  T bias = 0;
  for (int column = 0; column < channels; column += width) {
    const int c = column + lane;
    const bool mine = slice < slices && c < channels;
    T sum = 0;
    for (int first = 0; first < pairs; first += kThreads) {
      const int own = first + threadIdx.x, count = min(pairs - first, kThreads);
      const T* saved = job.saved + static_cast<int64_t>(first) * row;
      factors[threadIdx.x] =
          own < pairs ? job.grad[own / shape.images] * saved[threadIdx.x * row + channels + k]
                      : T(0);
      __syncthreads();
      if (mine) {
#pragma unroll 8
        for (int i = slice; i < count; i += slices) sum += factors[i] * saved[i * row + c];
      }
      if (column == 0 && threadIdx.x < 32) {
        for (int i = threadIdx.x; i < kThreads; i += 32) bias += factors[i];
      }
      __syncthreads();
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (mine && slice == 0) {
      for (int s = 1; s < slices; ++s) sum += sums[s * width + lane];
      job.weights[static_cast<int64_t>(k) * channels + c] = sum;
    }
  }
  if (threadIdx.x >= 32) return;
  bias = warp_sum(bias);
  if (threadIdx.x == 0) job.bias[k] = bias;
}

template <class V>
__global__ __launch_bounds__(kThreads) void backward_kernel(const HeadGradients<V> job) {
  const int block = blockIdx.x;
  // The classes' come first: they take longer.
  if (block < job.shape.classes) {
    weights_gradient(job, block);
  } else {
    features_gradient(job, block - job.shape.classes);
  }
}

}  // namespace

template <class V>
void head_forward(const HeadShape& shape, const V* features, const Compute<V>* weight,
                  const Compute<V>* bias, const int64_t* labels, Compute<V>* losses,
                  float* accuracy, Compute<V>* saved, Compute<V>* scratch, CudaStream stream) {
  using T = Compute<V>;
  T* correct = scratch + shape.pairs();
  const HeadJob<V> job = {shape, features, weight, bias, labels, saved, scratch, correct};
  const size_t values = static_cast<size_t>(pixel_groups(shape.padded)) * shape.padded +
                        shape.classes + shape.channels;
  launch(loss_kernel<V>, static_cast<unsigned>(shape.pairs()), kThreads, values * sizeof(T), stream,
         job);
  launch(mean_kernel<T>, static_cast<unsigned>(shape.archs + 1), kThreads, 0, stream, shape,
         static_cast<const T*>(scratch), static_cast<const T*>(correct), losses, accuracy);
}

template <class V>
void head_backward(const HeadShape& shape, const Compute<V>* grad, const Compute<V>* weight,
                   const Compute<V>* saved, V* grad_features, Compute<V>* grad_weight,
                   Compute<V>* grad_bias, CudaStream stream) {
  using T = Compute<V>;
  const HeadGradients<V> job = {shape, grad, weight, saved, grad_features, grad_weight, grad_bias};
  const size_t values = std::max(2 * kThreads, shape.padded + shape.classes);
  launch(backward_kernel<V>, static_cast<unsigned>(shape.pairs() + shape.classes), kThreads,
         values * sizeof(T), stream, job);
}

#define ASNG_INSTANTIATE(V)                                                                       \
  template void head_forward<V>(const HeadShape&, const V*, const Compute<V>*, const Compute<V>*, \
                                const int64_t*, Compute<V>*, float*, Compute<V>*, Compute<V>*,    \
                                CudaStream);                                                      \
  template void head_backward<V>(const HeadShape&, const Compute<V>*, const Compute<V>*,          \
                                 const Compute<V>*, V*, Compute<V>*, Compute<V>*, CudaStream);
ASNG_EVERY_STORED_TYPE(ASNG_INSTANTIATE)

}  // namespace asng::cuda
