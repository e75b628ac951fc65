// What comes before a pass: every edge looked up once, and the weights it needs packed for the
// kernels, padded and in the order in which they are read.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels/cuda/launchers.h"
#include "kernels/cuda/mixture.h"

namespace asng::cuda {

namespace {

// Blocks of a slot, or of a matrix, at most.
constexpr int kMostParts = 16;

constexpr int kMatrices = std::extent_v<decltype(PlanJob<float>::matrices)>;

template <class T>
using PlanJobs = Jobs<PlanJob<T>>;
static_assert(PlanJobs<float>::kMost >= 8 && PlanJobs<double>::kMost >= 8);

// What an edge computes, without its multiplicity.
template <class T>
__device__ PlannedEdge read_edge(const PlanJob<T>& job, int slot) {
  const DagShape& s = job.shape;
  const int node = slot / s.edges % s.nodes;
  const int input = job.inputs[slot], operation = job.operations[slot];
  const OperationInfo info = operation_info(operation);
  const bool weightless = info.form == Form::kSeparable && !job.weights.has(info.separable);
  if (input < 0 || input >= s.inputs + node || info.form == Form::kNone || weightless) {
    return {0, kOperationCount, 1, Form::kNone, 0};
  }
  return {input, operation, 1, info.form, info.separable};
}

template <class T>
__device__ PlannedEdge look_up(const PlanJob<T>& job, int slot) {
  PlannedEdge edge = read_edge(job, slot);
  if (edge.form == Form::kNone) return edge;
  const int first = slot / job.shape.edges * job.shape.edges;
  // The first of equal edges stands for all.
  int equal = 0, earlier = 0;
#pragma unroll 2
  for (int other = first; other < first + job.shape.edges; ++other) {
    const int differs = (job.inputs[other] ^ edge.input) | (job.operations[other] ^ edge.operation);
    equal += differs == 0;
    earlier += differs == 0 && other < slot;
  }
  edge.multiplicity = earlier == 0 ? equal : 0;
  return edge;
}

// Tiles of 4×4 values of a matrix: what a thread loads at once, and writes in the other direction.
ASNG_HD int tile_count(const MatrixShape& s) { return s.padded / 4 * (s.depth() / 4); }

template <class T>
__device__ void pack_tile(const MatrixShape& s, const T* weight, bool backward, int tile,
                          T* packed) {
  const int depth = s.depth(), columns = s.columns();
  // Neighboring threads write neighboring values.
  const int across = (backward ? depth : s.padded) / 4;
  const int outer = tile / across, inner = tile - outer * across;
  const int row = (backward ? outer : inner) * 4, place = (backward ? inner : outer) * 4;
  const int source = place / s.padded_channels, channel = place - source * s.padded_channels;
  const int first_row = s.first_row(source), end_row = s.end_row(source);
  Vec4<T> rows[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int column = s.column(source, channel + j);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Where there is a zero, the load is of another weight: nothing stands between the loads.
      const bool real = (column >= 0) & (row + i >= first_row) & (row + i < end_row);
      const T value = weight[real ? static_cast<int64_t>(row + i) * columns + column : 0];
      rows[i].v[j] = real ? value : T(0);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (backward) {
      write_vec4(packed + static_cast<int64_t>(row + i) * depth + place, rows[i]);
    } else {
      write_vec4(packed + static_cast<int64_t>(place + i) * s.padded + row,
                 Vec4<T>{{rows[0].v[i], rows[1].v[i], rows[2].v[i], rows[3].v[i]}});
    }
  }
}

template <class T>
__device__ void pack(const Matrix<T>& m, bool backward, int first, int step) {
  for (int i = first; i < tile_count(m.shape); i += step) {
    pack_tile(m.shape, m.weight, backward, i, m.packed);
  }
}

// Four channels of an element of depthwise weights, (channels, elements) to (elements, padded).
template <class T>
__device__ void pack_element(const T* weight, int channels, int padded, int elements, int quad,
                             T* packed) {
  const int element = quad / (padded / 4), c = (quad - element * (padded / 4)) * 4;
  Vec4<T> values = fill_vec4(T(0));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const T value = weight[min(c + i, channels - 1) * elements + element];
    if (c + i < channels) values.v[i] = value;
  }
  write_vec4(packed + element * padded + c, values);
}

template <class T>
__device__ void pack_separable(const PlanJob<T>& job, const PlannedEdge& edge, int index, T* packed,
                               int first, int step) {
  const int channels = job.shape.channels, padded = job.shape.padded;
  const OperationInfo info = operation_info(edge.operation);
  const int kind = info.separable, elements = info.kernel * info.kernel;
  const MatrixShape shape = square_matrix(channels, padded);
  const int tiles = tile_count(shape), items = tiles + elements * (padded / 4);
  for (int i = first; i < 2 * items; i += step) {
    const int stage = i < items ? 0 : 1, item = i - stage * items;
    const int64_t matrix = static_cast<int64_t>(index) * 2 + stage;
    T* to = packed + stage * job.shape.stage_weights();
    if (item < tiles) {
      pack_tile(shape, job.weights.pointwise[kind] + matrix * channels * channels, job.backward,
                item, to);
    } else {
      pack_element(job.weights.depthwise[kind] + matrix * channels * elements, channels, padded,
                   elements, item - tiles, to + padded * padded);
    }
  }
}

// Blocks along x are those of a job's slots and matrices, and there may be more.
template <class T>
__device__ void plan(const PlanJob<T>& job) {
  const DagShape& s = job.shape;
  const int slots = s.slots(), block = blockIdx.x;
  const int first = blockIdx.y * kThreads + threadIdx.x, step = gridDim.y * kThreads;
  // From the last block on, which has the least to pack.
  const int all = step * gridDim.x, mine = all - 1 - (block * step + first);
  for (int i = mine; i < job.counter_count; i += all) job.counters[i] = 0;
  for (int i = mine; i < s.archs * s.states(); i += all) {
    const int arch = i / s.states(), state = i - arch * s.states();
    int32_t read = 0;
#pragma unroll 1
    for (int slot = s.slot(arch, 0, 0); slot < s.slot(arch + 1, 0, 0); ++slot) {
      const PlannedEdge edge = read_edge(job, slot);
      read |= edge.form != Form::kNone && edge.input == state;
    }
    job.used[i] = read;
  }
  if (block >= slots) {
    if (block >= slots + kMatrices) return;
    const Matrix<T>& matrix = job.matrices[block - slots];
    if (matrix.packed != nullptr) pack(matrix, job.backward, first, step);
    return;
  }
  const PlannedEdge edge = look_up(job, block);
  if (first == 0) job.plan[block] = edge;
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
__global__ __launch_bounds__(kThreads) void plan_kernel(const PlanJobs<T> all) {
  plan(all.jobs[blockIdx.z]);
}

// A factorized reduction whose rows for even and for odd pixels lie apart.
template <class T>
__device__ void pack_halves(const DagShape& s, const T* const* weights, bool backward, T* packed,
                            int first, int step) {
  const MatrixShape m = reduction_matrix(s.channels, s.padded);
  const int size = static_cast<int>(m.packed_size()), depth = m.depth();
  for (int i = first; i < size; i += step) {
    const int row = backward ? i / depth : i % m.padded,
              place = backward ? i % depth : i / m.padded;
    const int source = place / m.padded_channels, channel = place - source * m.padded_channels;
    const int first_row = m.first_row(source);
    const bool real = row >= first_row && row < m.end_row(source) && channel < m.channels;
    packed[i] = real ? weights[source][(row - first_row) * m.channels + channel] : T(0);
  }
}

// Both stages of a separable convolution, whose weights lie apart.
template <class T>
__device__ void pack_stages(const DagShape& s, int elements, const T* const* weights, bool backward,
                            T* packed, int first, int step) {
  const MatrixShape shape = square_matrix(s.channels, s.padded);
  const int tiles = tile_count(shape), items = tiles + elements * (s.padded / 4);
  for (int i = first; i < 2 * items; i += step) {
    const int stage = i < items ? 0 : 1, item = i - stage * items;
    T* to = packed + stage * s.stage_weights();
    if (item < tiles) {
      pack_tile(shape, weights[2 * stage + 1], backward, item, to);
    } else {
      pack_element(weights[2 * stage], s.channels, s.padded, elements, item - tiles,
                   to + s.padded * s.padded);
    }
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void plan_mixture_kernel(const MixturePlanJob<T> job) {
  const DagShape& s = job.shape;
  const typename MixturePlanJob<T>::Item& item = job.items[blockIdx.x];
  const int first = blockIdx.y * kThreads + threadIdx.x, step = gridDim.y * kThreads;
  for (int i = blockIdx.x * step + first; i < job.counter_count; i += gridDim.x * step) {
    job.counters[i] = 0;
  }
  const OperationInfo info = operation_info(item.operation);
  if (first == 0) {
    const int at = job.first + blockIdx.x;
    job.plan[at] = {item.input, item.operation, 1, info.form, info.separable};
    job.edges[at] = item.edge;
  }
  T* packed = job.packed + static_cast<int64_t>(item.edge.place) * s.slot_weights();
  if (info.form == Form::kSeparable) {
    pack_stages(s, info.kernel * info.kernel, item.weights, job.backward, packed, first, step);
  } else if (item.input < s.inputs && is_factorized(info.form, s.stride)) {
    pack_halves(s, item.weights, job.backward, packed, first, step);
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void pack_kernel(const Matrix<T> matrix, bool backward) {
  pack(matrix, backward, blockIdx.x * kThreads + threadIdx.x, gridDim.x * kThreads);
}

// Blocks for so many items of a thread.
int parts(int items) { return std::min((items + kThreads - 1) / kThreads, kMostParts); }

// What a thread packs at once of an edge's weights, at most.
int edge_items(const DagShape& s) {
  return 2 *
         (tile_count(square_matrix(s.channels, s.padded)) + kMostKernelElements * (s.padded / 4));
}

// Blocks that plan a cell.
template <class T>
dim3 plan_blocks(const PlanJob<T>& job) {
  int items = edge_items(job.shape);
  for (const Matrix<T>& matrix : job.matrices) items = std::max(items, tile_count(matrix.shape));
  return dim3(job.shape.slots() + kMatrices, parts(items));
}

}  // namespace

template <class T>
void make_plans(const std::vector<PlanJob<T>>& jobs, CudaStream stream) {
  for (size_t first = 0; first < jobs.size(); first += PlanJobs<T>::kMost) {
    PlanJobs<T> some;
    dim3 blocks(0, 0, 0);
    for (; blocks.z < PlanJobs<T>::kMost && first + blocks.z < jobs.size(); ++blocks.z) {
      const PlanJob<T>& job = some.jobs[blocks.z] = jobs[first + blocks.z];
      const dim3 needed = plan_blocks(job);
      blocks.x = std::max(blocks.x, needed.x);
      blocks.y = std::max(blocks.y, needed.y);
    }
    launch(plan_kernel<T>, blocks, kThreads, 0, stream, some);
  }
}

template <class T>
void plan_mixture(const MixturePlanJob<T>& job, CudaStream stream) {
  launch(plan_mixture_kernel<T>, dim3(job.count, parts(edge_items(job.shape))), kThreads, 0, stream,
         job);
}

template <class T>
void pack_matrix(const Matrix<T>& matrix, bool backward, CudaStream stream) {
  launch(pack_kernel<T>, parts(tile_count(matrix.shape)), kThreads, 0, stream, matrix, backward);
}

#define ASNG_INSTANTIATE(T)                                             \
  template void make_plans(const std::vector<PlanJob<T>>&, CudaStream); \
  template void plan_mixture(const MixturePlanJob<T>&, CudaStream);     \
  template void pack_matrix(const Matrix<T>&, bool, CudaStream);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cuda
