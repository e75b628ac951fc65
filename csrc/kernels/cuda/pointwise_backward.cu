// Pointwise convolutions of a cell, backward: of its output, first of all, and of its inputs, last.
#include "kernels/cuda/input_gradient.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/pointwise.h"

namespace asng::cuda {

namespace {

template <class V>
__global__ __launch_bounds__(kThreads) void reduce_output_kernel(const CellJob<V> job, int splits) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y, pixels = static_cast<int>(s.out_size() / s.padded);
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * s.padded);
  clear(totals, 3 * s.padded);
  // The output is stored as normalized.
  sum_gradient(job.grad_y + arch * s.out_size(), job.y + arch * s.out_size(),
               static_cast<const T*>(nullptr), pixels, s.padded, blockIdx.x, splits, shared,
               totals);
  if (sum_over_splits(dag, arch, 2, splits, totals, shared)) {
    finish_gradient(totals, totals + s.padded, pixels, s.padded, job.y_norms + arch * 2 * s.padded,
                    false, 1.0, job.y_coefficients + arch * 3 * s.padded);
  }
}

template <bool kTensorCores, class V>
__global__ __launch_bounds__(
    kThreads, resident_blocks(sizeof(Compute<V>) ==
                              4)) void output_backward_kernel(const CellJob<V> job,
                                                              const Gradients<V> gradients) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y, chunks = (s.padded + kSourceChunk - 1) / kSourceChunk;
  const int node = blockIdx.z / chunks, channel = blockIdx.z % chunks * kSourceChunk;
  if (dag.used[arch * s.states() + s.inputs + node] != 0) return;
  const int depth = job.depth(2), splits = job.splits[2];
  Source<V> source;
  source.x = dag.state(arch, s.inputs + node).x;
  source.channels = s.padded;
  source.first = node * s.padded;
  V* to = gradients.node(s, arch, node);
  T* weight_split =
      job.weight_splits[2] + (static_cast<int64_t>(arch) * splits + blockIdx.x) * s.padded * depth;
  pointwise_backward<kTensorCores>(
      source, channel, min(s.padded - channel, kSourceChunk),
      PointwiseShape{s.images, s.out_height, s.out_width, s.padded},
      job.grad_y + arch * s.out_size(), job.y + arch * s.out_size(),
      job.y_coefficients + arch * 3 * s.padded, job.packed[2], depth, true, blockIdx.x, splits,
      weight_split, dynamic_shared<T>(), [&](int pixel, int c, const Vec4<T>& value) {
        write_vec4(to + static_cast<int64_t>(pixel) * s.padded + c, value);
      });
}

template <bool kTensorCores, class V>
__global__ __launch_bounds__(kThreads,
                             resident_blocks(sizeof(Compute<V>) ==
                                             4)) void inputs_backward_kernel(const CellJob<V> job) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y / 2, which = blockIdx.y % 2;
  const bool shared_input = job.is_shared(which);
  if (shared_input && arch > 0) return;
  const Input<V>& input = job.inputs[which];
  const int chunks = (input.padded + kSourceChunk - 1) / kSourceChunk;
  const int part_of = blockIdx.z / chunks, channel = blockIdx.z % chunks * kSourceChunk;
  if (part_of >= (input.factorized ? 2 : 1) || static_cast<int>(blockIdx.x) >= job.splits[which]) {
    return;
  }
  const int64_t size = static_cast<int64_t>(s.images) * input.height * input.width * input.padded;
  V* grad = input.grad == nullptr ? nullptr : input.grad + arch * size;
  bool used = false;
  for (int a = arch; a < (shared_input ? s.archs : arch + 1); ++a) {
    used |= dag.used[a * s.states() + which] != 0;
  }
  if (!used) {
    if (grad != nullptr && blockIdx.z == 0 && !input.adds) {
      clear_gradient(grad, size, blockIdx.x, job.splits[which]);
    }
    return;
  }
  const PointwiseShape shape = {s.images, s.height, s.width, s.padded};
  const State<V> from = {input.x + arch * size, nullptr, input.height, input.width};
  Source<V> source = factorized_source(from, input.padded, part_of);
  if (!input.factorized) source.stride = 1;
  const int depth = job.depth(which), splits = job.splits[which];
  const int64_t group = static_cast<int64_t>(which) * s.archs + arch;
  T* weight_split = job.weight_splits[which] +
                    (static_cast<int64_t>(arch) * splits + blockIdx.x) * s.padded * depth;
  pointwise_backward<kTensorCores>(
      source, channel, min(input.padded - channel, kSourceChunk), shape,
      job.input_grads + group * s.in_size(), dag.state(arch, which).x,
      job.input_coefficients + group * 3 * s.padded, job.packed[which], depth, grad != nullptr,
      blockIdx.x, splits, weight_split, dynamic_shared<T>(),
      [&](int pixel, int c, const Vec4<T>& value) {
        write_gradient(input, shape, part_of, grad, pixel, c, value);
      });
}

template <class T>
size_t backward_bytes(int padded) {
  return static_cast<size_t>(pointwise_backward_values(padded, sizeof(T))) * sizeof(T);
}

}  // namespace

template <class V>
void reduce_output(const CellJob<V>& job, CudaStream stream) {
  const DagShape& s = job.dag.shape;
  const int splits = pixel_splits(s.out_size() / s.padded, s.padded, s.archs);
  launch(reduce_output_kernel<V>, dim3(splits, s.archs), kThreads,
         pixel_sums_bytes(s.padded, sizeof(Compute<V>)), stream, job, splits);
}

template <class V>
void project_output_backward(const CellJob<V>& job, const Gradients<V>& gradients,
                             CudaStream stream) {
  const DagShape& s = job.dag.shape;
  const int chunks = (s.padded + kSourceChunk - 1) / kSourceChunk;
  const auto kernel = choose_kernel<V>(
      s.tf32, [](auto tensor_cores) { return &output_backward_kernel<tensor_cores(), V>; });
  launch(kernel, dim3(job.splits[2], s.archs, s.nodes * chunks), kThreads,
         backward_bytes<Compute<V>>(s.padded), stream, job, gradients);
}

template <class V>
void project_inputs_backward(const CellJob<V>& job, CudaStream stream) {
  const DagShape& s = job.dag.shape;
  int chunks = 0;
  for (const Input<V>& input : job.inputs) {
    const int of_source = (input.padded + kSourceChunk - 1) / kSourceChunk;
    chunks = std::max(chunks, of_source * (input.factorized ? 2 : 1));
  }
  const auto kernel = choose_kernel<V>(
      s.tf32, [](auto tensor_cores) { return &inputs_backward_kernel<tensor_cores(), V>; });
  launch(kernel, dim3(std::max(job.splits[0], job.splits[1]), 2 * s.archs, chunks), kThreads,
         backward_bytes<Compute<V>>(s.padded), stream, job);
}

template <class V>
int pointwise_split_count(int64_t pixels, int padded, int depth) {
  const int run = pointwise_backward_pixels(padded, sizeof(Compute<V>));
  const int64_t runs = (pixels + run - 1) / run;
  const int64_t most = std::max(16, std::min(kManySplits, (1 << 20) / (padded * depth)));
  return static_cast<int>(std::min(runs, most));
}

#define ASNG_INSTANTIATE(V)                                                                  \
  template void reduce_output(const CellJob<V>&, CudaStream);                                \
  template void project_output_backward(const CellJob<V>&, const Gradients<V>&, CudaStream); \
  template void project_inputs_backward(const CellJob<V>&, CudaStream);                      \
  template int pointwise_split_count<V>(int64_t, int, int);
ASNG_EVERY_STORED_TYPE(ASNG_INSTANTIATE)

}  // namespace asng::cuda
