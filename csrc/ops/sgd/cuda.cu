// Weights are many and small: a launch covers as many as fit into a kernel's parameters, in chunks
// of which each lies within one of them. The norm is the sum of parts, one a block, which every
// block of the update adds in the same order.
#include <algorithm>
#include <cmath>

#include "ops/sgd/clip.h"
#include "ops/sgd/cuda.h"

namespace asng::cuda {

namespace {

constexpr int kThreads = 256;
// In flight at once, of each of the three arrays.
constexpr int kPerThread = 8;
constexpr int kChunk = kThreads * kPerThread;
// Blocks of the update read all parts, so there are not too many; blocks that write them may take
// several chunks.
constexpr int64_t kMostParts = 1024;

// Parameters of a kernel are 4 KiB at most.
constexpr int kMostTensors = 96;
template <class T>
struct Table {
  SgdTensor<T> tensors[kMostTensors];
  unsigned first_chunk[kMostTensors + 1];  // of each tensor; behind the last, their number
  int count = 0;

  int64_t chunks() const { return first_chunk[count]; }
  int64_t parts() const { return std::min(chunks(), kMostParts); }
};

template <class T>
std::vector<Table<T>> tables_of(const std::vector<SgdTensor<T>>& tensors) {
  std::vector<Table<T>> tables;
  for (const SgdTensor<T>& tensor : tensors) {
    if (tensor.size == 0) continue;
    if (tables.empty() || tables.back().count == kMostTensors) {
      tables.emplace_back();
      tables.back().first_chunk[0] = 0;
    }
    Table<T>& table = tables.back();
    const int64_t chunks = (tensor.size + kChunk - 1) / kChunk;
    table.first_chunk[table.count + 1] =
        table.first_chunk[table.count] + static_cast<unsigned>(chunks);
    table.tensors[table.count++] = tensor;
  }
  return tables;
}

// A chunk of a tensor: where it begins, and how many elements it has.
template <class T>
struct Chunk {
  SgdTensor<T> tensor;
  int size;
};

template <class T>
__device__ Chunk<T> find_chunk(const Table<T>& table, unsigned chunk) {
  int low = 0, high = table.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.first_chunk[middle] <= chunk) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  SgdTensor<T> tensor = table.tensors[low];
  const int64_t begin = static_cast<int64_t>(chunk - table.first_chunk[low]) * kChunk;
  tensor.weight += begin;
  tensor.velocity += begin;
  tensor.gradient += begin;
  const int64_t left = tensor.size - begin;
  return {tensor, left < kChunk ? static_cast<int>(left) : kChunk};
}

template <class T>
__device__ __forceinline__ void load_chunk(const T* from, int size, T (&to)[kPerThread]) {
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int i = k * kThreads + threadIdx.x;
    to[k] = i < size ? from[i] : T(0);
  }
}

template <class T>
__device__ __forceinline__ void store_chunk(T* to, int size, const T (&from)[kPerThread]) {
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int i = k * kThreads + threadIdx.x;
    if (i < size) to[i] = from[k];
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void squares_kernel(const Table<T> table, double* parts) {
  double sum = 0;
  for (unsigned i = blockIdx.x; i < table.first_chunk[table.count]; i += gridDim.x) {
    const Chunk<T> chunk = find_chunk(table, i);
    T gradient[kPerThread];
    load_chunk(chunk.tensor.gradient, chunk.size, gradient);
    T squares = 0;
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) squares += gradient[k] * gradient[k];
    sum += static_cast<double>(squares);
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

template <class T>
__global__ __launch_bounds__(kThreads) void update_kernel(const Table<T> table,
                                                          const SgdSettings settings,
                                                          const double* parts, int count) {
  // The chunk is on its way while the parts are added.
  const Chunk<T> chunk = find_chunk(table, blockIdx.x);
  T gradient[kPerThread], weight[kPerThread], velocity[kPerThread];
  load_chunk(chunk.tensor.gradient, chunk.size, gradient);
  load_chunk<T>(chunk.tensor.weight, chunk.size, weight);
  load_chunk<T>(chunk.tensor.velocity, chunk.size, velocity);
  const T rate = static_cast<T>(*settings.learning_rate);
  const T clip = static_cast<T>(clip_factor<kThreads>(parts, count, settings.max_norm));
  const T decay = static_cast<T>(settings.weight_decay);
  const T momentum = static_cast<T>(settings.momentum);
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    velocity[k] = momentum * velocity[k] + (clip * gradient[k] + decay * weight[k]);
    weight[k] -= rate * velocity[k];
  }
  store_chunk(chunk.tensor.velocity, chunk.size, velocity);
  store_chunk(chunk.tensor.weight, chunk.size, weight);
}

}  // namespace

template <class T>
int64_t sgd_scratch(const std::vector<SgdTensor<T>>& tensors) {
  int64_t parts = 0;
  for (const Table<T>& table : tables_of(tensors)) parts += table.parts();
  return parts;
}

template <class T>
void sgd_step(const std::vector<SgdTensor<T>>& tensors, const SgdSettings& settings,
              double* scratch, CudaStream stream) {
  const std::vector<Table<T>> tables = tables_of(tensors);
  int parts = 0;
  for (const Table<T>& table : tables) {
    launch(squares_kernel<T>, static_cast<unsigned>(table.parts()), kThreads, 0, stream, table,
           scratch + parts);
    parts += static_cast<int>(table.parts());
  }
  for (const Table<T>& table : tables) {
    launch(update_kernel<T>, static_cast<unsigned>(table.chunks()), kThreads, 0, stream, table,
           settings, scratch, parts);
  }
}

#define ASNG_INSTANTIATE(T)                                                                \
  template int64_t sgd_scratch<T>(const std::vector<SgdTensor<T>>&);                       \
  template void sgd_step<T>(const std::vector<SgdTensor<T>>&, const SgdSettings&, double*, \
                            CudaStream);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)

}  // namespace asng::cuda
