// The layout and the plans of cells that are computed in one launch each. See
// persistent_forward.cu.
#include <algorithm>

#include "kernels/cuda/persistent_forward_plan.h"
#include "kernels/cuda/persistent_strips.h"

namespace asng::cuda {

namespace {

using namespace nodes_of_cell;

// Looks up what the projections need.
template <class V>
__device__ void plan_projections(const Job<V>& job, int arch, float* norms, Plan<V>& plan) {
  const Dag<V>& dag = job.cell.dag;
  const DagShape& s = dag.shape;
  const int t = threadIdx.x, C = s.padded;
  if (t < kProjections) {
    float* kept = t < s.inputs ? const_cast<float*>(dag.state(arch, t).norm)
                               : job.cell.y_norms + arch * 2 * C;
    plan.projections[t] = {norms + t * 2 * C, kept};
    // What architectures share is kept as that of the first.
    bool needed = t == s.inputs;
    for (int a = 0; t < s.inputs && a < s.archs; ++a) {
      const bool counts = a == arch || (arch == 0 && (job.shared >> t & 1u) != 0);
      needed |= counts && dag.used[a * s.states() + t] != 0;
    }
    plan.needed[t] = needed;
  }
  const int node = t - 32;
  if (node >= 0 && node < s.nodes) {
    plan.read[node] = dag.used[arch * s.states() + s.inputs + node] != 0;
  }
}

// Looks up what the stages and terms need.
template <class V>
__device__ void plan_nodes(const Job<V>& job, int arch, float* norms, Plan<V>& plan) {
  const Dag<V>& dag = job.cell.dag;
  const DagShape& s = dag.shape;
  const int t = threadIdx.x, C = s.padded;
  const Schedule& schedule = plan.schedule;
  float* of_stages = norms + kProjections * 2 * C;
  const auto state = [&](int index) {
    State<V> state = dag.state(arch, index);
    if (index < s.inputs) state.norm = norms + index * 2 * C;
    return state;
  };
  make_schedule(dag, arch, plan.schedule);
  if (t < schedule.stages_before[schedule.phases]) {
    const int which = schedule.stages[t] / 2, node = which / kCellEdges, e = which % kCellEdges;
    const int stage = schedule.stages[t] % 2;
    const PlannedEdge edge = schedule.edges[which];
    float* norm = of_stages + which * 4 * C;
    const State<V> from =
        stage == 0 ? state(edge.input)
                   : State<V>{dag.stage(arch, node, e, 0), norm, s.out_height, s.out_width};
    plan.stages[t] = {from.x,
                      from.norm,
                      dag.stage(arch, node, e, stage),
                      dag.pointwise(arch, node, e, stage),
                      dag.depthwise(arch, node, e, stage),
                      {norm + stage * 2 * C, dag.norm(arch, node, e, stage)},
                      from.height,
                      from.width,
                      stage == 0 ? dag.stride(edge) : 1,
                      edge.separable,
                      dag.factorized(edge)};
  }
  const int which = t - 128;
  if (which >= 0 && which < s.nodes * kCellEdges) {
    const int node = which / kCellEdges, e = which % kCellEdges;
    const PlannedEdge edge = schedule.edges[which];
    const State<V> from = state(edge.input);
    const int last = schedule.stage_count[which] - 1;
    const int place = last >= 0               ? kProjections + which * 2 + last
                      : edge.input < s.inputs ? edge.input
                                              : -1;
    plan.terms[which] = {last < 0 ? from.x : dag.stage(arch, node, e, last),
                         edge.form == Form::kMaxPool ? dag.maxima(arch, node, e) : nullptr,
                         place < 0 ? -1 : job.layout.norms + place * 2 * C,
                         last < 0 ? edge.form : Form::kIdentity,
                         edge.multiplicity,
                         last < 0 ? from.height : s.out_height,
                         last < 0 ? from.width : s.out_width,
                         dag.stride(edge)};
  }
}

template <class V>
__global__ __launch_bounds__(kCellThreads) void cell_plan_kernel(const Jobs<Job<V>> all) {
  const Job<V>& job = all.jobs[blockIdx.x];
  const int arch = blockIdx.y;
  if (arch >= job.cell.dag.shape.archs) return;
  Plan<V>& plan = *dynamic_shared<Plan<V>>();
  float* const norms = counted_from<float>(Base::kShared) + job.layout.norms;
  plan_projections(job, arch, norms, plan);
  plan_nodes(job, arch, norms, plan);
  keep_plan(plan, job.plans() + arch);
}

// Rows of a strip, the same for all strips but for the last: as many as fit, even; 0: not even two.
template <class Need>
int strip_rows(int height, int available, Need need) {
  for (int strips = 1; strips <= height; ++strips) {
    const int rows = ((height + strips - 1) / strips + 1) / 2 * 2;
    if (need(rows) <= available) return rows;
  }
  return 0;
}

// Whether the kernel can be used for such a cell, and with which layout.
bool make_layout(const DagShape& s, Layout& l) {
  const int c = s.padded, edges = s.nodes * kCellEdges;
  l.norms = 0;
  l.sums = l.norms + (kProjections + 2 * edges) * 2 * c;
  l.red = l.sums + edges * 2 * c * 2;
  l.taps = l.red + kCellWarps * 2 * c;
  l.weight = l.taps + kMostKernelElements * c;
  l.images = l.weight + (s.stride == 2 ? 2 : 1) * c * (c + 8);
  const int available =
      static_cast<int>((largest_shared_bytes() - sizeof(Plan<float>)) / sizeof(float)) - l.images;
  const int pixel = c % 32 == 0 ? c : c + 4, row = c + 4;
  int most = 2 * (c > 32   ? kMeetingDoubles<64>
                  : c > 16 ? kMeetingDoubles<32>
                           : kMeetingDoubles<16>);
  bool fits = true;
  const auto choose = [&](auto need) {
    const int rows = strip_rows(s.out_height, available, need);
    fits = fits && rows > 0;
    most = rows > 0 ? std::max(most, need(rows)) : most;
    return rows;
  };
  const auto matrix = [&](int rows) { return (rows * s.out_width + 15) / 16 * 16 * row; };
  for (int stride = 1; stride <= s.stride; ++stride) {
    for (const Operation& o : kOperations) {
      if (o.form != Form::kSeparable) continue;
      const int separable = operation_info(static_cast<int>(&o - kOperations)).separable;
      l.rows[separable][stride - 1] = choose([&](int rows) {
        const int columns = row_pixels(c, reach(s.out_width, stride, o.extent()));
        return matrix(rows) + (reach(rows, stride, o.extent()) * columns + kBehindStrip) * pixel;
      });
    }
  }
  // A node may have pools of two inputs, of which one has stride 1.
  for (int stride = 1; stride <= 2; ++stride) {
    const int used = std::min(stride, s.stride);
    l.pool_rows[stride - 1] = choose([&](int rows) {
      return kCellEdges * reach(rows, used, kPoolKernel) * reach(s.out_width, used, kPoolKernel) *
                 pixel -
             (l.images - l.taps);
    });
  }
  l.reduction_rows = choose([&](int rows) { return 2 * matrix(rows); });
  l.size = l.images + most;
  return fits;
}

}  // namespace

template <class V>
Job<V> nodes_of_cell::make_job(const CellJob<V>& cell, const Handover& handover,
                               bool keeps_maxima) {
  Job<V> job = {cell, cell.dag.shape.shared, {}, handover, keeps_maxima};
  job.cell.dag.shape.shared = 0;
  make_layout(cell.dag.shape, job.layout);
  return job;
}

const char* whole_cell_forward_obstacle(const DagShape& s) {
  Layout layout;
  if (s.edges != kCellEdges || s.inputs != 2 || s.nodes < 1 || s.nodes > kMostNodes) {
    return "the number of its nodes or edges";
  }
  if (s.padded != 16 && s.padded != 32 && s.padded != 64) return "its number of channels";
  if (s.out_width % 4 != 0) return "the width of its images, which is not a multiple of 4";
  if (s.width > 64 || s.height > 64 || !make_layout(s, layout)) return "the size of its images";
  if (blocks_per_arch(s.images, s.archs) == 0) return "the number of its architectures";
  return nullptr;
}

int whole_cell_forward_columns(const DagShape& s) {
  return (kProjections + 2 * s.nodes * kCellEdges) * 2 * s.padded;
}

size_t whole_cell_plan_size() { return sizeof(Plan<float>); }

template <class V>
void plan_whole_cells(const std::vector<CellJob<V>>& all, CudaStream stream) {
  static_assert(sizeof(Plan<V>) == sizeof(Plan<float>));
  launch_plans<Plan<V>>(
      cell_plan_kernel<V>, all, [](const CellJob<V>& cell) { return make_job(cell, {}, true); },
      stream);
}

#define ASNG_INSTANTIATE(V)                                                          \
  template Job<V> nodes_of_cell::make_job(const CellJob<V>&, const Handover&, bool); \
  template void plan_whole_cells(const std::vector<CellJob<V>>&, CudaStream);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(BFloat16)
#undef ASNG_INSTANTIATE

}  // namespace asng::cuda
