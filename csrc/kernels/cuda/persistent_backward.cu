// All nodes of a cell, backward, in one launch: see persistent.h. The gradient of a state is added
// up where it will lie, edge after edge, by the block that has the image; so nothing is gathered
// from other blocks but the sums of normalizations. In each round come first the stages whose
// coefficients are there, from the last to the first of an edge:
//   the gradient of the stage's output before its normalization, gz = a·g + b·z + c, and the input
//   after ReLU, both of a whole image in shared memory;
//   the depthwise convolution of the input, in registers, and with it the 1×1 weight's gradient
//   Σ gz ⊗ depth on the tensor cores;
//   the gradient of the depthwise output, gz · weight, in the place of gz;
//   from that, in one pass, the gradients of the depthwise weight and of the input.
// Then come the states of which all readers are done, and what they pass on through identities and
// pools. A stage whose gradients complete no state in its round is computed while blocks wait for
// each other. What a stage reads is on its way to shared memory while the one before it ends, and
// while states are completed and blocks meet.
#include "kernels/cuda/persistent_backward_stage.h"
#include "kernels/cuda/persistent_backward_state.h"

namespace asng::cuda {

namespace {

using namespace gradients_of_nodes;

// Starts to copy the scales and shifts of all normalizations.
template <int C, class V>
__device__ void start_norms(const Job<V>& job, float* to) {
  const DagShape& s = job.dag.shape;
  constexpr int kOfNode = kCellEdges * 2 * 2 * C;
  const int nodes = s.nodes * kOfNode;
#pragma unroll 1
  for (int i = threadIdx.x * 4; i < nodes + s.inputs * 2 * C; i += kCellThreads * 4) {
    const int input = (i - nodes) / (2 * C), rest = i < nodes ? i % kOfNode : i % (2 * C);
    const float* from = i < nodes ? job.dag.norm(blockIdx.y, i / kOfNode, 0, 0)
                                  : job.dag.state(blockIdx.y, input).norm;
    if (from != nullptr) copy_async16(to + i, from + rest);
  }
}

// Starts to bring a block's first image nearer. As in Cut, what follows from numbers of threads and
// blocks is computed where it is needed.
template <class V>
__device__ void prefetch_image(const V* images, int values) {
  const char* bytes =
      reinterpret_cast<const char*>(images + static_cast<int64_t>(opaque(blockIdx.x)) * values);
#pragma unroll 1
  for (int i = opaque(threadIdx.x) * 128; i < values * static_cast<int>(sizeof(V));
       i += kCellThreads * 128) {
    prefetch(bytes + i);
  }
}

template <class V, int C, bool kStrided, bool kExact>
__global__ __launch_bounds__(kCellThreads, 1) void nodes_backward_kernel(const Job<V> job) {
  const DagShape& s = job.dag.shape;
  const Layout& l = job.layout;
  const int first_image = opaque(blockIdx.x);
  Plan<V>& plan = *dynamic_shared<Plan<V>>();
  float* shared = reinterpret_cast<float*>(&plan + 1);
  double* totals = reinterpret_cast<double*>(shared + l.totals);
  start_plan(job.plans, plan);
  plan.bases.set(job.dag.plan, job.dag.input_norms, job.scratch,
                 s.slot_weights() * static_cast<int64_t>(sizeof(float)), shared);
  begin(job.handover);
  start_norms<C>(job, shared + l.norms);
  for (int i = threadIdx.x; i < (s.nodes * kCellEdges + s.inputs) * 2 * C; i += kCellThreads) {
    totals[i] = 0;
  }
  if (!kStrided && l.ahead) fill_borders<C>(l, s.out_height, s.out_width, true, shared);
  wait_for_copies();
  __syncthreads();
  plan.add_bases();
  __syncthreads();
  const int stages = plan.stage_list.before[kMostPhases];
  const auto start = [&](int number, int image) {
    if (number < stages) start_stage<C, V>(number, image);
  };
  if (l.ahead) start(0, first_image);
  for (int round = 0;; ++round) {
    const int first_completion = plan.completion_list.before[round];
    const int completions = plan.completion_list.before[round + 1];
#pragma unroll 1
    for (int i = first_completion; i < completions; ++i) {
      const Completion<V>& state = plan.completions[i];
      for (int e = 0; e < kCellEdges; ++e) {
        if (state.items[e] >= 0) prefetch_image(state.z[e], state.height * state.width * C);
      }
    }
    const int first_item = plan.item_list.before[round];
    const int items = plan.item_list.before[round + 1] - first_item;
    const int end = plan.stage_list.before[round + 1];
    bool handed_over = false;
    for (int i = plan.stage_list.before[round];; ++i) {
      if (!handed_over && (i == end || plan.stages[i].waits)) {
        handed_over = true;
#pragma unroll 1
        for (int j = first_completion; j < completions; ++j) {
          for (int image = first_image; image < s.images; image += gridDim.x) {
            __syncthreads();
            if (kStrided && plan.completions[j].stride == 2) {
              complete_state<C, 2, V>(j, image);
            } else {
              complete_state<C, 1, V>(j, image);
            }
          }
        }
        if (items > 0) hand_over_sums<C>(job.handover, first_item, items, totals);
      }
      if (i == end) break;
      const Stage<V>& stage = plan.stages[i];
      for (int image = first_image; image < s.images; image += gridDim.x) {
        if (!l.ahead) {
          __syncthreads();
          start(i, image);
        }
        const auto next = [&] {
          const int further = image + gridDim.x;
          if (l.ahead) further < s.images ? start(i, further) : start(i + 1, first_image);
        };
        if (kStrided && stage.reduces) {
          compute_reduction<C, kExact>(job, stage, image, shared, next);
        } else {
          compute_stage<C, kStrided, kExact>(job, stage, image, totals, shared, next);
        }
      }
    }
    if (items == 0) break;
    add_up_sums<C>(job.handover, first_item, items, reinterpret_cast<double*>(shared + l.scratch),
                   [&](int number, int c, double sum, double dots) {
                     // rstd · (g − mean(g) − x̂ · mean(g·x̂)) with x̂ = z·scale + shift.
                     const Item& item = plan.items[first_item + number];
                     const float* norm = shared + item.norm;
                     const double scale = static_cast<double>(norm[c]), outer = scale * item.factor;
                     const double mean = sum * item.share, dot = dots * item.share;
                     if (item.once && blockIdx.x != 0) return;
                     item.coefficients[c] = static_cast<float>(outer);
                     item.coefficients[C + c] = static_cast<float>(-outer * dot * scale);
                     item.coefficients[2 * C + c] = static_cast<float>(
                         -outer * (mean + dot * static_cast<double>(norm[C + c])));
                   });
  }
}

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
auto choose_channels(const DagShape& s) {
  return choose_kernel<V>(s.tf32, [&](auto rounds) {
    return s.stride == 2 ? &nodes_backward_kernel<V, C, true, !rounds()>
                         : &nodes_backward_kernel<V, C, false, !rounds()>;
  });
}

}  // namespace

template <class V>
void nodes_backward(const NodesJob<V>& nodes, const Handover& handover, CudaStream stream) {
  const DagShape& s = nodes.dag.shape;
  const Job<V> job = make_job(nodes, handover);
  const auto kernel = s.padded == 16   ? choose_channels<V, 16>(s)
                      : s.padded == 32 ? choose_channels<V, 32>(s)
                                       : choose_channels<V, 64>(s);
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
