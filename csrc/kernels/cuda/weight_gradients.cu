// Gradients of all weights: sums over the splits that blocks have written, in their order. One
// element is computed by a few threads, each of which takes some of the splits.
#include "kernels/cuda/launchers.h"

namespace asng::cuda {

namespace {

constexpr int kElements = 32, kSlices = 8;
// The depthwise and the pointwise weights of each separable convolution, the reduction, and the
// three matrices of a cell.
constexpr int kReduction = 2 * kSeparableCount, kMatrices = kReduction + 1;
constexpr int kSegments = kMatrices + 3;

// The gradients one behind the other, each cut into blocks of kElements elements.
template <class T>
struct Job {
  WeightJob<T> weights;
  int first_block[kSegments + 1];
  int64_t sizes[kSegments];
};

// This thread's terms of Σ over splits of from[split · stride].
template <class T>
__device__ T sum_splits(const T* from, int64_t stride, int splits) {
  T sum = 0;
#pragma unroll 4
  for (int p = threadIdx.y; p < splits; p += kSlices) sum += from[p * stride];
  return sum;
}

// Element `offset` of the packed gradient of operation `operation` on `input` of a node.
template <class T>
__device__ T edge_sum(const WeightJob<T>& job, int node, int input, int operation, int64_t offset) {
  const DagShape& s = job.shape;
  T sum = 0;
  for (int arch = 0; arch < s.archs; ++arch) {
    for (int e = 0; e < s.edges; ++e) {
      const int slot = s.slot(arch, node, e);
      const PlannedEdge edge = job.plan[slot];
      if (edge.multiplicity == 0 || edge.input != input || edge.operation != operation) continue;
      const int64_t stride = s.slot_weights();
      sum +=
          sum_splits(job.weight_splits + static_cast<int64_t>(slot) * job.splits * stride + offset,
                     stride, job.splits);
    }
  }
  return sum;
}

// Element `index` of depthwise (an even segment) or pointwise (an odd one) weights.
template <class T>
__device__ T separable_sum(const WeightJob<T>& job, int segment, int64_t index) {
  const DagShape& s = job.shape;
  const int kind = segment / 2, channels = s.channels;
  const bool depthwise = segment % 2 == 0;
  const int operation = operation_number(Form::kSeparable, kind);
  const int kernel = operation_info(operation).kernel;
  const int size = channels * (depthwise ? kernel * kernel : channels);
  const int matrix = static_cast<int>(index / size),
            rest = static_cast<int>(index - static_cast<int64_t>(matrix) * size);
  const int edge = matrix / 2, stage = matrix % 2;
  int node = 0;
  while (s.weight_index(node + 1, 0) <= edge) ++node;
  const int row = depthwise ? 0 : rest / channels;
  const int offset =
      depthwise ? s.padded * s.padded + rest : row * s.padded + rest - row * channels;
  return edge_sum(job, node, edge - s.weight_index(node, 0), operation,
                  stage * s.stage_weights() + offset);
}

template <class T>
__device__ T reduction_sum(const WeightJob<T>& job, int64_t index) {
  const DagShape& s = job.shape;
  // With stride 1 an identity has no weights, though the tensor may be there, and wrote no splits.
  if (s.stride == 1) return 0;
  const MatrixShape matrix = reduction_matrix(s.channels, s.padded);
  const int edge = static_cast<int>(index / matrix.size());
  const int rest = static_cast<int>(index - edge * matrix.size()), row = rest / s.channels;
  const int64_t offset =
      static_cast<int64_t>(row) * matrix.depth() + matrix.place(row, rest - row * s.channels);
  return edge_sum(job, edge / s.inputs, edge % s.inputs, operation_number(Form::kIdentity), offset);
}

template <class T>
__device__ T matrix_sum(const WeightJob<T>& job, const MatrixGradient<T>& m, int64_t index) {
  const int states = job.shape.states(), columns = m.shape.columns();
  const int row = static_cast<int>(index / columns);
  const int column = static_cast<int>(index - static_cast<int64_t>(row) * columns);
  const int place = m.shape.place(row, column);
  const int64_t offset = static_cast<int64_t>(row) * m.shape.depth() + place;
  T sum = 0;
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
    sum += sum_splits(m.weight_splits + group * m.splits * m.shape.packed_size() + offset,
                      m.shape.packed_size(), m.splits);
  }
  return sum;
}

template <class T>
__global__ __launch_bounds__(kElements* kSlices) void weights_kernel(const Job<T> job) {
  __shared__ T sums[kSlices][kElements];
  const int block = blockIdx.x;
  int segment = 0;
  while (block >= job.first_block[segment + 1]) ++segment;
  const int64_t index =
      static_cast<int64_t>(block - job.first_block[segment]) * kElements + threadIdx.x;
  const WeightJob<T>& weights = job.weights;
  T* grad = segment >= kMatrices    ? weights.matrices[segment - kMatrices].grad
            : segment == kReduction ? weights.grads.reduction
            : segment % 2 == 0      ? weights.grads.depthwise[segment / 2]
                                    : weights.grads.pointwise[segment / 2];
  const bool inside = index < job.sizes[segment];
  T sum = 0;
  if (inside) {
    sum = segment >= kMatrices ? matrix_sum(weights, weights.matrices[segment - kMatrices], index)
          : segment == kReduction ? reduction_sum(weights, index)
                                  : separable_sum(weights, segment, index);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || !inside) return;
  for (int s = 1; s < kSlices; ++s) sum += sums[s][threadIdx.x];
  grad[index] = sum;
}

}  // namespace

template <class T>
void sum_weight_splits(const WeightJob<T>& weights, CudaStream stream) {
  const DagShape& s = weights.shape;
  Job<T> job = {weights, {}, {}};
  const int64_t channels = s.channels, edges = s.nodes == 0 ? 0 : s.weight_count();
  for (const Operation& o : kOperations) {
    const OperationInfo info = operation_info(static_cast<int>(&o - kOperations));
    if (info.form != Form::kSeparable || !weights.grads.has(info.separable)) continue;
    job.sizes[2 * info.separable] = edges * 2 * channels * o.kernel * o.kernel;
    job.sizes[2 * info.separable + 1] = edges * 2 * channels * channels;
  }
  if (weights.grads.reduction != nullptr) {
    job.sizes[kReduction] = static_cast<int64_t>(s.nodes) * s.inputs * channels * channels;
  }
  for (int i = 0; i < 3; ++i) {
    if (weights.matrices[i].grad != nullptr)
      job.sizes[kMatrices + i] = weights.matrices[i].shape.size();
  }
  for (int i = 0; i < kSegments; ++i) {
    job.first_block[i + 1] =
        job.first_block[i] + static_cast<int>((job.sizes[i] + kElements - 1) / kElements);
  }
  if (job.first_block[kSegments] == 0) return;
  launch(weights_kernel<T>, job.first_block[kSegments], dim3(kElements, kSlices), 0, stream, job);
}

template void sum_weight_splits(const WeightJob<float>&, CudaStream);
template void sum_weight_splits(const WeightJob<double>&, CudaStream);

}  // namespace asng::cuda
