// Pointwise convolutions of a cell, forward: of its two inputs, and of its leaf nodes.
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/pointwise.h"

namespace asng::cuda {

namespace {

// Whether an edge of architectures [arch, end) reads the input.
template <class V>
__device__ bool is_used(const Dag<V>& dag, int arch, int end, int input) {
  for (int a = arch; a < end; ++a) {
    if (dag.used[a * dag.shape.states() + input] != 0) return true;
  }
  return false;
}

template <bool kTensorCores, class V>
__global__ __launch_bounds__(kThreads) void project_inputs_kernel(const CellJob<V> job,
                                                                  int splits) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y, which = blockIdx.z;
  const bool shared_input = job.is_shared(which);
  if (shared_input && arch > 0) return;
  if (!is_used(dag, arch, shared_input ? s.archs : arch + 1, which)) return;
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * s.padded);
  clear(totals, 2 * s.padded);
  const Input<V>& input = job.inputs[which];
  State<V> from = {input.x, nullptr, input.height, input.width};
  from.x += static_cast<int64_t>(arch) * s.images * input.height * input.width * input.padded;
  const auto sources = [&](int i) {
    Source<V> source = factorized_source(from, input.padded, i);
    if (!input.factorized) source.stride = 1;
    return source;
  };
  const State<V> to = dag.state(arch, which);
  const PointwiseShape shape = {s.images, s.height, s.width, s.padded};
  pointwise_forward<kTensorCores>(sources, input.factorized ? 2 : 1, shape, job.packed[which],
                                  blockIdx.x, splits, const_cast<V*>(to.x), totals, shared);
  if (sum_over_splits(dag, which * s.archs + arch, 2, splits, totals, shared)) {
    finish_norm(totals, shape.pixels(), s.padded, const_cast<T*>(to.norm));
  }
}

template <bool kTensorCores, class V>
__global__ __launch_bounds__(kThreads) void project_output_kernel(const CellJob<V> job,
                                                                  int splits) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y;
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * s.padded);
  clear(totals, 2 * s.padded);
  const auto sources = [&](int node) {
    Source<V> source;
    if (dag.used[arch * s.states() + s.inputs + node] != 0) return source;
    source.x = dag.state(arch, s.inputs + node).x;
    source.channels = s.padded;
    source.first = node * s.padded;
    return source;
  };
  const PointwiseShape shape = {s.images, s.out_height, s.out_width, s.padded};
  pointwise_forward<kTensorCores>(sources, s.nodes, shape, job.packed[2], blockIdx.x, splits,
                                  job.y + arch * s.out_size(), totals, shared);
  if (sum_over_splits(dag, arch, 2, splits, totals, shared)) {
    finish_norm(totals, shape.pixels(), s.padded, job.y_norms + arch * 2 * s.padded);
  }
}

}  // namespace

template <class V>
void project_inputs(const CellJob<V>& job, CudaStream stream) {
  const DagShape& s = job.dag.shape;
  const PointwiseShape shape = {s.images, s.height, s.width, s.padded};
  const int splits = pointwise_splits(shape, sizeof(Compute<V>), 2 * s.archs);
  const auto kernel = choose_kernel<V>(
      s.tf32, [](auto tensor_cores) { return &project_inputs_kernel<tensor_cores(), V>; });
  launch(kernel, dim3(splits, s.archs, 2), kThreads, pointwise_bytes(shape, sizeof(Compute<V>)),
         stream, job, splits);
}

template <class V>
void project_output(const CellJob<V>& job, CudaStream stream) {
  const DagShape& s = job.dag.shape;
  const PointwiseShape shape = {s.images, s.out_height, s.out_width, s.padded};
  const int splits = pointwise_splits(shape, sizeof(Compute<V>), s.archs);
  const auto kernel = choose_kernel<V>(
      s.tf32, [](auto tensor_cores) { return &project_output_kernel<tensor_cores(), V>; });
  launch(kernel, dim3(splits, s.archs), kThreads, pointwise_bytes(shape, sizeof(Compute<V>)),
         stream, job, splits);
  normalize(job.y, job.y_norms, s.out_size(), s.padded, s.archs, stream);
}

#define ASNG_INSTANTIATE(V)                                    \
  template void project_inputs(const CellJob<V>&, CudaStream); \
  template void project_output(const CellJob<V>&, CudaStream);
ASNG_EVERY_STORED_TYPE(ASNG_INSTANTIATE)

}  // namespace asng::cuda
