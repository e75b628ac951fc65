// A cell, forward, in one launch: see persistent.h. First come the projections of its inputs, then
// its nodes, in each phase first those whose edges are all there, then the next stage of every edge
// whose input is, and last the projection of its output. A node that nothing reads yet is computed
// while blocks wait for each other.
#include "kernels/cuda/persistent_forward_node.h"
#include "kernels/cuda/persistent_forward_stage.h"

namespace asng::cuda {

namespace {

using namespace nodes_of_cell;

template <class V, int C, bool kTensorCores>
__global__ __launch_bounds__(kCellThreads, 1) void cell_forward_kernel(const Job<V> job) {
  const CellJob<V>& cell = job.cell;
  const Dag<V>& dag = cell.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y;
  Plan<V>& plan = *dynamic_shared<Plan<V>>();
  const Schedule& schedule = plan.schedule;
  float* shared = reinterpret_cast<float*>(&plan + 1);
  double* totals = reinterpret_cast<double*>(shared + job.layout.sums);
  start_plan(job.plans(), plan);
  plan.bases.set(dag.plan, dag.input_norms, nullptr, 0, shared);
  for (int i = threadIdx.x; i < s.nodes * kCellEdges * 2 * C; i += kCellThreads) totals[i] = 0;
  begin(job.handover);
  wait_for_copies();
  __syncthreads();
  plan.add_bases();
  __syncthreads();
  // Phase −1 is that of the inputs, and the one behind the last that of the output.
  int earlier = 0;
  for (int phase = -1; phase < 0 || phase <= schedule.phases; ++phase) {
    const bool of_inputs = phase < 0, of_output = !of_inputs && phase == schedule.phases;
    const bool of_nodes = !of_inputs && !of_output;
    int begin = 0, end = 0;
    if (of_inputs) {
      begin = plan.needed[0] ? 0 : 1;
      end = plan.needed[1] ? 2 : 1;
    } else if (of_output) {
      begin = kProjections - 1;
      end = kProjections;
    } else {
      begin = schedule.stages_before[phase];
      end = schedule.stages_before[phase + 1];
    }
#pragma unroll 1
    for (int part = 0; part < 2; ++part) {
      for (int image = blockIdx.x; image < s.images; image += gridDim.x) {
        for (int i = of_nodes ? schedule.nodes_before[phase] : 0;
             i < (of_nodes ? schedule.nodes_before[phase + 1] : 0); ++i) {
          const int node = schedule.nodes[i];
          if (schedule.waits[node] != (part == 1)) continue;
          combine<C>(job, plan.terms + node * kCellEdges,
                     dag.nodes + (static_cast<int64_t>(node) * s.archs + arch) * s.out_size(),
                     image, shared);
        }
        for (int i = begin; i < (part == 0 ? end : begin); ++i) {
          double* to = totals + (i - begin) * 2 * C;
          if (of_nodes) {
            compute_stage<C, kTensorCores>(job, plan.stages[i], image, to, shared);
          } else {
            project<C, kTensorCores>(job, plan, i, image, to, shared);
          }
        }
      }
      if (part == 0 && begin < end) {
        hand_over_sums<C>(job.handover, earlier, end - begin, totals);
      }
    }
    if (begin == end) continue;
    const double share = 1 / (static_cast<double>(s.images) *
                              (of_inputs ? s.height * s.width : s.out_height * s.out_width));
    add_up_sums<C>(
        job.handover, earlier, end - begin, reinterpret_cast<double*>(shared + job.layout.images),
        [&](int item, int c, double sum, double squares) {
          const int i = begin + item;
          const Norm norm = of_nodes ? plan.stages[i].norm_of_z : plan.projections[i];
          const double mean = sum * share, difference = squares * share - mean * mean;
          // Rounding may make it negative; a NaN must stay one.
          const float rstd =
              1.0f / sqrtf(static_cast<float>((difference < 0 ? 0 : difference) + kEpsilon));
          const float shift = static_cast<float>(-mean * static_cast<double>(rstd));
          norm.here[c] = rstd;
          norm.here[C + c] = shift;
          if (blockIdx.x == 0) {
            norm.kept[c] = rstd;
            norm.kept[C + c] = shift;
          }
        });
    earlier += end - begin;
  }
  const int pixels = s.out_height * s.out_width;
  V* y = cell.y + arch * s.out_size();
  for (int image = blockIdx.x; image < s.images; image += gridDim.x) {
    normalize_image<C>(y + static_cast<int64_t>(image) * pixels * C,
                       plan.projections[kProjections - 1].here, pixels);
  }
}

template <class V, int C>
auto choose_channels(bool tf32) {
  return choose_kernel<V>(
      tf32, [](auto tensor_cores) { return &cell_forward_kernel<V, C, tensor_cores()>; });
}

}  // namespace

template <class V>
void whole_cell_forward(const CellJob<V>& cell, const Handover& handover, bool keeps_maxima,
                        CudaStream stream) {
  const DagShape& s = cell.dag.shape;
  const Job<V> job = make_job(cell, handover, keeps_maxima);
  const auto kernel = s.padded == 16   ? choose_channels<V, 16>(s.tf32)
                      : s.padded == 32 ? choose_channels<V, 32>(s.tf32)
                                       : choose_channels<V, 64>(s.tf32);
  launch_cooperative(kernel, dim3(handover.blocks, s.archs), kCellThreads,
                     sizeof(Plan<V>) + job.layout.size * sizeof(float), stream, job);
}

template void whole_cell_forward(const CellJob<float>&, const Handover&, bool, CudaStream);
template void whole_cell_forward(const CellJob<BFloat16>&, const Handover&, bool, CudaStream);

}  // namespace asng::cuda
