// Projections of a cell, forward: of its two inputs, and of the nodes that no node reads.
#include "passes.h"
#include "project.h"

namespace asng::cuda {

namespace {

// Whether an edge of architectures [arch, end) reads the input.
template <class T>
__device__ bool is_used(const Graph<T>& graph, int arch, int end, int input) {
  for (int a = arch; a < end; ++a) {
    if (graph.used[a * graph.shape.states() + input] != 0) return true;
  }
  return false;
}

// For sums whose blocks are parts of group `group`.
template <class T>
__device__ bool finish(const Graph<T>& graph, int group, int parts, double* totals) {
  const int padded = graph.shape.padded;
  return sum_over_blocks(totals, 2 * padded,
                         graph.partials + static_cast<int64_t>(group) * kMaxParts * 3 * padded,
                         graph.counters + group, blockIdx.x, parts);
}

template <class T>
__global__ __launch_bounds__(kThreads) void project_inputs_kernel(const CellJob<T> job, int parts) {
  const Graph<T>& graph = job.graph;
  const GraphShape& s = graph.shape;
  const int arch = blockIdx.y, which = blockIdx.z;
  const bool shared_input = job.is_shared(which);
  if (shared_input && arch > 0) return;
  if (!is_used(graph, arch, shared_input ? s.archs : arch + 1, which)) return;
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * s.padded);
  clear(totals, 2 * s.padded);
  const Input<T>& input = job.inputs[which];
  State<T> from = {input.x, nullptr, input.height, input.width};
  from.x += static_cast<int64_t>(arch) * s.images * input.height * input.width * input.padded;
  const auto sources = [&](int i) {
    Source<T> source = factorized_source(from, input.padded, i);
    if (!input.factorized) source.stride = 1;
    return source;
  };
  const State<T> to = graph.state(arch, which);
  const ProjectShape shape = {s.images, s.height, s.width, s.padded};
  project_forward(sources, input.factorized ? 2 : 1, shape, job.packed[which], blockIdx.x, parts,
                  const_cast<T*>(to.x), totals, shared);
  if (finish(graph, which * s.archs + arch, parts, totals)) {
    finish_norm(totals, shape.pixels(), s.padded, const_cast<T*>(to.norm));
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void project_output_kernel(const CellJob<T> job, int parts) {
  const Graph<T>& graph = job.graph;
  const GraphShape& s = graph.shape;
  const int arch = blockIdx.y;
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * s.padded);
  clear(totals, 2 * s.padded);
  const auto sources = [&](int node) {
    Source<T> source;
    if (graph.used[arch * s.states() + s.inputs + node] != 0) return source;
    source.x = graph.state(arch, s.inputs + node).x;
    source.channels = s.padded;
    source.first = node * s.padded;
    return source;
  };
  const ProjectShape shape = {s.images, s.out_height, s.out_width, s.padded};
  project_forward(sources, s.nodes, shape, job.packed[2], blockIdx.x, parts,
                  job.y + arch * s.out_size(), totals, shared);
  if (finish(graph, arch, parts, totals)) {
    finish_norm(totals, shape.pixels(), s.padded, job.y_norms + arch * 2 * s.padded);
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void normalise_kernel(T* images, const T* norms,
                                                             int64_t size, int padded) {
  T* x = images + blockIdx.y * size;
  const T* norm = norms + blockIdx.y * 2 * padded;
  const int quads = padded / 4;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size / 4;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    store4(x + i * 4, affine4(load4(x + i * 4), norm, padded, static_cast<int>(i % quads) * 4));
  }
}

int part_count(const ProjectShape& shape) {
  const int run = project_pixels(shape.padded);
  return std::min((shape.pixels() + run - 1) / run, kMaxParts);
}

template <class T>
size_t bytes(int padded) {
  return 3 * static_cast<size_t>(padded) * sizeof(double) + kProjectValues * sizeof(T);
}

}  // namespace

template <class T>
void project_inputs(const CellJob<T>& job, CudaStream stream) {
  const GraphShape& s = job.graph.shape;
  const int parts = part_count({s.images, s.height, s.width, s.padded});
  launch(project_inputs_kernel<T>, dim3(parts, s.archs, 2), kThreads, bytes<T>(s.padded), stream,
         job, parts);
}

template <class T>
void project_output(const CellJob<T>& job, CudaStream stream) {
  const GraphShape& s = job.graph.shape;
  const int parts = part_count({s.images, s.out_height, s.out_width, s.padded});
  launch(project_output_kernel<T>, dim3(parts, s.archs), kThreads, bytes<T>(s.padded), stream, job,
         parts);
  const int64_t blocks = (s.out_size() / 4 + kThreads - 1) / kThreads;
  launch(normalise_kernel<T>, dim3(static_cast<unsigned>(std::min<int64_t>(blocks, 4096)), s.archs),
         kThreads, 0, stream, job.y, job.y_norms, s.out_size(), s.padded);
}

#define ASNG_INSTANTIATE(T)                                    \
  template void project_inputs(const CellJob<T>&, CudaStream); \
  template void project_output(const CellJob<T>&, CudaStream);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cuda
