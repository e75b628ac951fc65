// Gradients of all weights: sums over the splits that blocks have written, in their order. Four
// neighbors in a packed matrix are computed by a few threads, each of which takes some of the
// splits.
#include <algorithm>

#include "kernels/cuda/launchers.h"
#include "kernels/cuda/mixture.h"

namespace asng::cuda {

namespace {

constexpr int kLanes = 32, kSlices = 16;
constexpr int kAtOnce = 8;  // loads of a thread
constexpr int kBlockValues = 4 * kLanes;
// The depthwise and the pointwise weights of each separable convolution, the reduction, and the
// three matrices of a cell.
constexpr int kReduction = 2 * kSeparableCount, kMatrices = kReduction + 1;
constexpr int kSegments = kMatrices + 3;

// A gradient: matrices one behind the other, each of which takes so many blocks.
template <class T>
struct Segment {
  MatrixShape shape;
  T* grad = nullptr;
  int first_block = 0, blocks = 0;
  int operation = 0;
};

template <class T>
struct Job {
  WeightJob<T> weights;
  Segment<T> segments[kSegments] = {};
  int blocks = 0;

  void add(int number, const MatrixShape& shape, int matrices, T* grad, int operation) {
    const int64_t values = grad == nullptr ? 0 : static_cast<int64_t>(shape.rows) * shape.depth();
    const int of_matrix = static_cast<int>((values + kBlockValues - 1) / kBlockValues);
    segments[number] = {shape, grad, blocks, of_matrix, operation};
    blocks += matrices * of_matrix;
  }
};

// Adds this thread's terms of Σ over splits of from[split · stride].
template <class T>
__device__ void add_splits(const T* from, int64_t stride, int splits, Vec4<T>& sum) {
  for (int first = threadIdx.y; first < splits; first += kAtOnce * kSlices) {
    Vec4<T> values[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int split = first + k * kSlices;
      values[k] = fill_vec4(T(0));
      if (split < splits) values[k] = load_vec4(from + split * stride);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) sum += values[k];
  }
}

// Values from `offset` on of the packed gradient of an operation on an input of a node. All lanes
// of a warp look at the edges together, also those for which there is nothing to add.
template <class T>
__device__ Vec4<T> edge_sum(const WeightJob<T>& job, int node, int input, int operation,
                            int64_t offset, bool inside) {
  const DagShape& s = job.shape;
  const int64_t stride = s.slot_weights();
  const int edges = s.archs * s.edges;
  Vec4<T> sum = fill_vec4(T(0));
  for (int first = 0; first < edges; first += kLanes) {
    const int number = first + threadIdx.x, arch = number / s.edges;
    const int own = s.slot(arch, node, number - arch * s.edges);
    bool counts = false;
    if (number < edges) {
      const PlannedEdge edge = job.plan[own];
      counts = (edge.multiplicity != 0) & (edge.input == input) & (edge.operation == operation);
    }
    for (unsigned left = __ballot_sync(0xffffffffu, counts); left != 0; left &= left - 1) {
      const int slot = __shfl_sync(0xffffffffu, own, __ffs(left) - 1);
      const T* from = job.weight_splits + slot * job.splits * stride + offset;
      if (inside) add_splits(from, stride, job.splits, sum);
    }
  }
  return sum;
}

// The same of depthwise (an even segment) or pointwise (an odd one) weights.
template <class T>
__device__ Vec4<T> separable_sum(const WeightJob<T>& job, int segment, int operation, int matrix,
                                 int64_t offset, bool inside) {
  const DagShape& s = job.shape;
  const int edge = matrix / 2, stage = matrix % 2;
  int node = 0;
  while (s.weight_index(node + 1, 0) <= edge) ++node;
  const int first = stage * s.stage_weights() + (segment % 2 == 0 ? s.padded * s.padded : 0);
  return edge_sum(job, node, edge - s.weight_index(node, 0), operation, first + offset, inside);
}

template <class T>
__device__ Vec4<T> matrix_sum(const WeightJob<T>& job, const MatrixGradient<T>& m, int64_t offset) {
  const int states = job.shape.states();
  const int place = static_cast<int>(offset % m.shape.depth());
  Vec4<T> sum = fill_vec4(T(0));
  for (int group = 0; group < m.groups; ++group) {
    // A group counts if one of the architectures that it stands for uses it.
    bool counts = m.state == kAllCount;
    for (int arch = m.shared ? 0 : group; arch < (m.shared ? job.shape.archs : group + 1); ++arch) {
      if (m.state == kLeafNodes) {
        const int state = job.shape.inputs + place / m.shape.padded_channels;
        counts |= job.used[arch * states + state] == 0;
      } else if (m.state != kAllCount) {
        counts |= job.used[arch * states + m.state] != 0;
      }
    }
    if (!counts) continue;
    add_splits(m.weight_splits + group * m.splits * m.shape.packed_size() + offset,
               m.shape.packed_size(), m.splits, sum);
  }
  return sum;
}

template <class T>
__global__ __launch_bounds__(kLanes* kSlices) void weights_kernel(const Job<T> job) {
  __shared__ Vec4<T> sums[kSlices][kLanes];
  wait_for_earlier_kernels();
  const WeightJob<T>& weights = job.weights;
  const DagShape& s = weights.shape;
  int number = 0;
  while (number + 1 < kSegments &&
         static_cast<int>(blockIdx.x) >= job.segments[number + 1].first_block)
    ++number;
  const Segment<T>& segment = job.segments[number];
  const MatrixShape& shape = segment.shape;
  const int block = blockIdx.x - segment.first_block, matrix = block / segment.blocks;
  const int first = (block - matrix * segment.blocks) * kBlockValues;
  const int offset = first + 4 * threadIdx.x, depth = shape.depth();
  const bool inside = offset < shape.rows * depth;
  Vec4<T> sum = fill_vec4(T(0));
  if (number >= kMatrices) {
    if (inside) sum = matrix_sum(weights, weights.matrices[number - kMatrices], offset);
  } else if (number < kReduction) {
    sum = separable_sum(weights, number, segment.operation, matrix, offset, inside);
  } else if (s.stride == 2) {
    // With stride 1 an identity has no weights, though the tensor may be there, and wrote no
    // splits.
    sum =
        edge_sum(weights, matrix / s.inputs, matrix % s.inputs, segment.operation, offset, inside);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  const int value = threadIdx.y * kLanes + threadIdx.x, at = first + value;
  const int row = at / depth, place = at - row * depth, source = place / shape.padded_channels;
  if (value >= kBlockValues || row < shape.first_row(source) || row >= shape.end_row(source))
    return;
  const int column = shape.column(source, place - source * shape.padded_channels);
  if (column < 0) return;
  T total = 0;
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice) total += sums[slice][value / 4].v[value % 4];
  segment.grad[matrix * shape.size() + static_cast<int64_t>(row) * shape.columns() + column] =
      total;
}

// Blocks of each of an edge's four weights along x, edges along y.
template <class T>
__global__ __launch_bounds__(kLanes* kSlices) void mixture_weights_kernel(
    const MixtureWeightJob<T> job) {
  __shared__ Vec4<T> sums[kSlices][kLanes];
  const DagShape& s = job.shape;
  const typename MixtureWeightJob<T>::Item& item = job.items[blockIdx.y];
  const OperationInfo info = operation_info(item.operation);
  const bool separable = info.form == Form::kSeparable;
  const int which = blockIdx.x % 4, first = static_cast<int>(blockIdx.x) / 4 * kBlockValues;
  // Of a factorized reduction the packed rows, of both sorts of pixels, are those of one matrix.
  const MatrixShape shape =
      separable ? square_matrix(s.channels, s.padded) : reduction_matrix(s.channels, s.padded);
  const bool depthwise = separable && which % 2 == 0;
  const int depth = shape.depth();
  const int size = depthwise ? s.channels * info.kernel * info.kernel : shape.rows * depth;
  if (first >= size || (!separable && which > 0)) return;
  const int offset = first + 4 * threadIdx.x;
  const int place = which / 2 * s.stage_weights() + (depthwise ? s.padded * s.padded : 0);
  Vec4<T> sum = fill_vec4(T(0));
  if (offset < size) {
    const int64_t stride = s.slot_weights();
    add_splits(job.weight_splits + item.place * job.splits * stride + place + offset, stride,
               job.splits, sum);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  const int value = threadIdx.y * kLanes + threadIdx.x, at = first + value;
  if (value >= kBlockValues || at >= size) return;
  T total = 0;
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice) total += sums[slice][value / 4].v[value % 4];
  if (depthwise) {
    item.grads[which][at] = total;
    return;
  }
  const int row = at / depth, column = at - row * depth, source = column / s.padded;
  const int channel = column - source * s.padded, first_row = shape.first_row(source);
  if (row < first_row || row >= shape.end_row(source) || channel >= s.channels) return;
  item.grads[separable ? which : source][(row - first_row) * s.channels + channel] = total;
}

}  // namespace

template <class T>
void sum_mixture_weights(const MixtureWeightJob<T>& job, CudaStream stream) {
  const DagShape& s = job.shape;
  const int values = s.channels * std::max(kMostKernelElements, 2 * s.padded);
  launch(mixture_weights_kernel<T>,
         dim3(4 * ((values + kBlockValues - 1) / kBlockValues), job.count), dim3(kLanes, kSlices),
         0, stream, job);
}

template void sum_mixture_weights(const MixtureWeightJob<float>&, CudaStream);
template void sum_mixture_weights(const MixtureWeightJob<double>&, CudaStream);

template <class T>
void sum_weight_splits(const WeightJob<T>& weights, CudaStream stream) {
  const DagShape& s = weights.shape;
  Job<T> job = {weights};
  const int edges = s.nodes == 0 ? 0 : s.weight_count();
  for (int kind = 0; kind < kSeparableCount; ++kind) {
    const int operation = operation_number(Form::kSeparable, kind);
    const int kernel = operation_info(operation).kernel;
    const bool has = weights.grads.has(kind);
    // A row of all elements of all channels.
    MatrixShape elements;
    elements.rows = elements.padded = 1;
    elements.channels = s.channels * kernel * kernel;
    elements.padded_channels = s.padded * kernel * kernel;
    job.add(2 * kind, elements, 2 * edges, has ? weights.grads.depthwise[kind] : nullptr,
            operation);
    job.add(2 * kind + 1, square_matrix(s.channels, s.padded), 2 * edges,
            has ? weights.grads.pointwise[kind] : nullptr, operation);
  }
  job.add(kReduction, reduction_matrix(s.channels, s.padded), s.nodes * s.inputs,
          weights.grads.reduction, operation_number(Form::kIdentity));
  for (int i = 0; i < 3; ++i) {
    job.add(kMatrices + i, weights.matrices[i].shape, 1, weights.matrices[i].grad, 0);
  }
  if (job.blocks == 0) return;
  launch_early(weights_kernel<T>, job.blocks, dim3(kLanes, kSlices), 0, stream, job);
}

template void sum_weight_splits(const WeightJob<float>&, CudaStream);
template void sum_weight_splits(const WeightJob<double>&, CudaStream);

}  // namespace asng::cuda
