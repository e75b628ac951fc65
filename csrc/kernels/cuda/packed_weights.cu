// What comes before a pass: every edge looked up once, and the weights it needs packed for the
// kernels, padded and in the order in which they are read.
#include "kernels/cuda/launchers.h"

namespace asng::cuda {

namespace {

constexpr int kBlocksPerSlot = 4;

template <class T>
__device__ PlannedEdge look_up(const PlanJob<T>& job, int slot) {
  const DagShape& s = job.shape;
  const int node = slot / s.edges % s.nodes, first = slot / s.edges * s.edges;
  const OperationInfo info = operation_info(job.operations[slot]);
  PlannedEdge edge = {job.inputs[slot], job.operations[slot], 1, info.form, info.separable};
  const bool weightless = info.form == Form::kSeparable && !job.weights.has(info.separable);
  if (edge.input < 0 || edge.input >= s.inputs + node || info.form == Form::kNone || weightless) {
    return {0, kOperationCount, 1, Form::kNone, 0};
  }
  for (int other = first; other < first + s.edges; ++other) {
    if (other == slot || job.inputs[other] != edge.input ||
        job.operations[other] != edge.operation) {
      continue;
    }
    // The first of equal edges stands for all.
    edge.multiplicity = other < slot ? 0 : edge.multiplicity + 1;
    if (edge.multiplicity == 0) break;
  }
  return edge;
}

template <class T>
__device__ void pack(const Matrix<T>& m, bool backward, int first, int step) {
  const MatrixShape& s = m.shape;
  const int depth = s.depth(), columns = s.columns();
  for (int64_t i = first; i < s.packed_size(); i += step) {
    const int outer = static_cast<int>(i / (backward ? depth : s.padded));
    const int inner =
        static_cast<int>(i - static_cast<int64_t>(outer) * (backward ? depth : s.padded));
    const int row = backward ? outer : inner, column = s.column(row, backward ? inner : outer);
    m.packed[i] = column < 0 ? T(0) : m.weight[static_cast<int64_t>(row) * columns + column];
  }
}

template <class T>
__device__ void pack_separable(const PlanJob<T>& job, const PlannedEdge& edge, int index, T* packed,
                               int first, int step) {
  const int channels = job.shape.channels, padded = job.shape.padded;
  const OperationInfo info = operation_info(edge.operation);
  const int kind = info.separable, elements = info.kernel * info.kernel;
  for (int stage = 0; stage < 2; ++stage, packed += job.shape.stage_weights()) {
    const int64_t matrix = static_cast<int64_t>(index) * 2 + stage;
    const T* pointwise = job.weights.pointwise[kind] + matrix * channels * channels;
    const T* depthwise = job.weights.depthwise[kind] + matrix * channels * elements;
    for (int i = first; i < padded * padded; i += step) {
      const int outer = i / padded, inner = i - outer * padded;
      const int row = job.backward ? outer : inner, column = job.backward ? inner : outer;
      packed[i] = row < channels && column < channels ? pointwise[row * channels + column] : T(0);
    }
    for (int i = first; i < elements * padded; i += step) {
      const int element = i / padded, c = i - element * padded;
      packed[padded * padded + i] = c < channels ? depthwise[c * elements + element] : T(0);
    }
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void plan_kernel(const PlanJob<T> job) {
  const DagShape& s = job.shape;
  const int slots = s.slots(), block = blockIdx.x;
  const int first = blockIdx.y * kThreads + threadIdx.x, step = gridDim.y * kThreads;
  if (block == 0) {
    for (int i = first; i < slots; i += step) job.plan[i] = look_up(job, i);
    for (int i = first; i < job.counter_count; i += step) job.counters[i] = 0;
    for (int i = first; i < s.archs * s.states(); i += step) {
      const int arch = i / s.states(), state = i - arch * s.states();
      int32_t read = 0;
      for (int slot = s.slot(arch, 0, 0); slot < s.slot(arch + 1, 0, 0); ++slot) {
        const PlannedEdge edge = look_up(job, slot);
        read |= edge.form != Form::kNone && edge.input == state;
      }
      job.used[i] = read;
    }
  }
  if (block >= slots) {
    const Matrix<T>& matrix = job.matrices[block - slots];
    if (matrix.packed != nullptr) pack(matrix, job.backward, first, step);
    return;
  }
  const PlannedEdge edge = look_up(job, block);
  if (edge.multiplicity == 0) return;
  const int node = block / s.edges % s.nodes;
  T* packed = job.packed + static_cast<int64_t>(block) * s.slot_weights();
  if (edge.form == Form::kSeparable) {
    pack_separable(job, edge, s.weight_index(node, edge.input), packed, first, step);
  } else if (edge.input < s.inputs && is_factorized(edge.form, s.stride)) {
    const int64_t index = static_cast<int64_t>(node) * s.inputs + edge.input;
    const Matrix<T> matrix = {reduction_matrix(s.channels, s.padded),
                              job.weights.reduction + index * s.channels * s.channels, packed};
    pack(matrix, job.backward, first, step);
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void pack_kernel(const Matrix<T> matrix, bool backward) {
  pack(matrix, backward, blockIdx.x * kThreads + threadIdx.x, gridDim.x * kThreads);
}

}  // namespace

template <class T>
void make_plan(const PlanJob<T>& job, CudaStream stream) {
  launch(plan_kernel<T>, dim3(job.shape.slots() + 3, kBlocksPerSlot), kThreads, 0, stream, job);
}

template <class T>
void pack_matrix(const Matrix<T>& matrix, bool backward, CudaStream stream) {
  launch(pack_kernel<T>, kBlocksPerSlot, kThreads, 0, stream, matrix, backward);
}

#define ASNG_INSTANTIATE(T)                               \
  template void make_plan(const PlanJob<T>&, CudaStream); \
  template void pack_matrix(const Matrix<T>&, bool, CudaStream);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cuda
