// The kernel for the gradients of all nodes: see persistent_backward.cu.
#pragma once

#include "kernels/cuda/persistent_backward_stage.h"
#include "kernels/cuda/persistent_backward_state.h"

namespace asng::cuda::gradients_of_nodes {

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

template <class V, int C, bool kStrided, bool kExact, bool kStrips>
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
  if (!kStrided && l.ahead) {
    const Span span = rows_of<C>(Piece<false>{first_image}, l, s.out_height, 1);
    fill_borders(l, Rows<C, kStrips>{s.out_width, l.per_row}, span, tiled(s.out_height), true,
                 shared);
  }
  wait_for_copies();
  __syncthreads();
  plan.add_bases();
  __syncthreads();
  const int stages = plan.stage_list.before[kMostPhases];
  const auto start = [&](int number, const Piece<kStrips>& piece) {
    if (number < stages) start_stage<C, V>(number, piece);
  };
  if (l.ahead) start(0, {first_image});
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
        Piece<kStrips> piece = {image};
        bool left = true;
        while (left) {
          if (!l.ahead) {
            __syncthreads();
            start(i, piece);
          }
          const Piece<kStrips> own = piece;
          left = piece.descend(l, s.out_height);
          const auto next = [&] {
            if (!l.ahead) return;
            if (left) return start(i, piece);
            const int further = image + gridDim.x;
            further < s.images ? start(i, {further}) : start(i + 1, {first_image});
          };
          if (kStrided && stage.reduces) {
            compute_reduction<C, kExact>(job, stage, own, shared, next);
          } else {
            compute_stage<C, kStrided, kExact>(job, stage, own, totals, shared, next);
          }
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

template <class V>
using Kernel = void (*)(const Job<V>);
// Where images are in strips. In a file of its own, as it takes long to compile.
template <class V>
Kernel<V> choose_for_strips(const DagShape& shape);

}  // namespace asng::cuda::gradients_of_nodes
