// All nodes of a cell, backward, in one launch: see persistent.h. The gradient of a state is added
// up where it will lie, edge after edge, by the block that has the image; so nothing is gathered
// from other blocks but the sums of normalizations. In each round come first the stages whose
// coefficients are there, from the last to the first of an edge:
//   the gradient of the stage's output before its normalization, gz = a·g + b·z + c, and the input
//   after ReLU, both of a whole image in shared memory, or of a strip of one that is too large;
//   the depthwise convolution of the input, in registers, and with it the 1×1 weight's gradient
//   Σ gz ⊗ depth on the tensor cores;
//   the gradient of the depthwise output, gz · weight, in the place of gz;
//   from that, in one pass, the gradients of the depthwise weight and of the input.
// Then come the states of which all readers are done, and what they pass on through identities and
// pools. A stage whose gradients complete no state in its round is computed while blocks wait for
// each other. What a stage reads is on its way to shared memory while the one before it ends, and
// while states are completed and blocks meet.
#include "kernels/cuda/persistent_backward_nodes.h"

namespace asng::cuda {

namespace {

using namespace gradients_of_nodes;

// The gradient of an input that all architectures share, from those that each of them has for it:
// their sum, and the sums for its normalization.
template <class V>
__global__ __launch_bounds__(kThreads) void shared_inputs_kernel(const Job<V> job, int splits) {
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const int index = blockIdx.y;
  if (!s.is_shared(index)) return;
  double* totals = dynamic_shared<double>();
  float* shared = reinterpret_cast<float*>(totals + 3 * s.padded);
  clear(totals, 3 * s.padded);
  const State<V> state = dag.state(0, index);
  V* grads = job.input_grads + static_cast<int64_t>(index) * s.archs * s.in_size();
  bool used = false;
  for (int a = 0; a < s.archs; ++a) used |= dag.used[a * s.states() + index] != 0;
  if (!used) return;
  __syncthreads();
  const int pixels = static_cast<int>(s.in_size() / s.padded);
  sum_items(pixels, s.padded, blockIdx.x, splits, shared, totals,
            [&](int pixel, int c, Vec4<float>(&sums)[3]) {
              const int64_t at = static_cast<int64_t>(pixel) * s.padded + c;
              Vec4<float> grad = fill_vec4(0.0f);
#pragma unroll 4
              for (int a = 0; a < s.archs; ++a) {
                if (dag.used[a * s.states() + index] == 0) continue;
                grad += load_vec4(grads + a * s.in_size() + at);
              }
              grad = store_rounded(grads + at, grad);
              sums[0] += grad;
              add_product(sums[1], grad,
                          affine_vec4(load_vec4(state.x + at), state.norm, s.padded, c));
            });
  if (!sum_over_splits(dag, index, 2, splits, totals, shared)) return;
  finish_gradient(totals, totals + s.padded, pixels, s.padded, state.norm, true, 1.0,
                  job.input_coefficients + static_cast<int64_t>(index) * s.archs * 3 * s.padded);
}

template <class V, int C>
Kernel<V> choose_for_whole(const DagShape& s) {
  return choose_kernel<V>(s.tf32, [&](auto rounds) {
    return s.stride == 2 ? &nodes_backward_kernel<V, C, true, !rounds(), false>
                         : &nodes_backward_kernel<V, C, false, !rounds(), false>;
  });
}

}  // namespace

template <class V>
void nodes_backward(const NodesJob<V>& nodes, const Handover& handover, CudaStream stream) {
  const DagShape& s = nodes.dag.shape;
  const Job<V> job = make_job(nodes, handover);
  const Kernel<V> kernel = job.layout.rows > 0 ? choose_for_strips<V>(s)
                           : s.padded == 16    ? choose_for_whole<V, 16>(s)
                           : s.padded == 32    ? choose_for_whole<V, 32>(s)
                                               : choose_for_whole<V, 64>(s);
  launch_cooperative(kernel, dim3(handover.blocks, s.archs), kCellThreads,
                     layout_bytes<V>(job.layout), stream, job);
  if (s.shared == 0) return;
  const int splits = pixel_splits(s.in_size() / s.padded, s.padded, s.inputs);
  launch(shared_inputs_kernel<V>, dim3(splits, s.inputs), kThreads,
         pixel_sums_bytes(s.padded, sizeof(float)), stream, job, splits);
}

template void nodes_backward(const NodesJob<float>&, const Handover&, CudaStream);
template void nodes_backward(const NodesJob<BFloat16>&, const Handover&, CudaStream);

}  // namespace asng::cuda
