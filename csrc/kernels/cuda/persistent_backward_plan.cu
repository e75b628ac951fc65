// How the gradients of all nodes are computed in one launch: the places of everything in shared
// memory, and the plans of what is done in which order, each made by a block. See
// persistent_backward.cu.
#include <algorithm>
#include <climits>

#include "kernels/cuda/persistent_backward_image.h"

namespace asng::cuda {

namespace {

using namespace gradients_of_nodes;

// Numbers what is listed in the order of the keys, which differ, and counts what comes before each
// round, up to `rounds`. `t` counts the threads that do this; others have numbers out of range.
__device__ __noinline__ void rank(List& list, int t, int rounds) {
  const int before = t - kKeys;
  if (t >= 0 && t < kMostListed && list.keys[t] != INT_MAX) {
    int earlier = 0;
#pragma unroll 2
    for (int i = 0; i < kMostListed; ++i) earlier += list.keys[i] < list.keys[t];
    list.ranks[t] = earlier;
  } else if (before >= 0 && before <= rounds) {
    int earlier = 0;
#pragma unroll 2
    for (int i = 0; i < kMostListed; ++i) earlier += list.keys[i] < before * kKeys;
    list.before[before] = earlier;
  }
}

__device__ inline int node_of(int edge) { return edge / kCellEdges; }

// Looks up what is to be done, and when; for all threads of the block.
template <class V>
__device__ void make_plan(const Job<V>& job, int arch, Plan<V>& plan) {
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const Layout& l = job.layout;
  const int t = threadIdx.x, edges = s.nodes * kCellEdges, C = s.padded;
  float* const shared = counted_from<float>(Base::kShared);
  if (t == 0) {
    plan.shape = s;
    plan.layout = l;
  }
  if (t < edges) {
    const PlannedEdge edge = dag.plan[s.slot(arch, 0, 0) + t];
    plan.edges[t] = edge;
    plan.stage_count[t] = stage_count(dag, edge);
  }
  for (int i = t; i < kMostListed; i += kCellThreads) {
    for (List* list : {&plan.stage_list, &plan.item_list, &plan.completion_list, &plan.pass_list}) {
      list->keys[i] = INT_MAX;
    }
  }
  __syncthreads();
  const auto reads = [&](int i) {
    return plan.edges[i].multiplicity != 0 && plan.edges[i].form != Form::kNone;
  };
  const auto round_of = [&](int i) { return plan.complete[s.inputs + node_of(i)]; };
  const auto waits = [&](int i, int which) {
    return which == 0 && plan.complete[plan.edges[i].input] > round_of(i) + plan.stage_count[i];
  };
  if (t < 32) {
    // Lanes are edges and, at the same time, states.
    const int own_input = t < edges && reads(t) ? plan.edges[t].input : -1;
    const int own_count = t < edges ? plan.stage_count[t] : 0;
    int complete = 0;
    unsigned normalized = 0, passing = 0;
#pragma unroll 1
    for (int i = edges - 1; i >= 0; --i) {
      const int input = __shfl_sync(~0u, own_input, i), count = __shfl_sync(~0u, own_count, i);
      const int round = __shfl_sync(~0u, complete, s.inputs + node_of(i)) + count;
      if (t != input) continue;
      complete = max(complete, round);
      (count > 0 ? normalized : passing) |= 1u << i;
    }
    if (t < s.states()) {
      plan.complete[t] = complete;
      plan.normalized[t] = normalized;
      plan.passing[t] = passing;
    }
  }
  __syncthreads();
  const int last_round = kMostPhases - 1;
  // Stages and items, of which a stage of an edge is one each; an input's own normalization is an
  // item as well.
  const int i = t / 2, which = t % 2, input = t - 2 * edges;
  const bool is_stage = t < 2 * edges && which < plan.stage_count[i];
  const bool is_input_item = input >= 0 && input < s.inputs && !s.is_shared(input) &&
                             (plan.normalized[input] | plan.passing[input]) != 0;
  if (is_stage) {
    const int round = round_of(i) + plan.stage_count[i] - which;
    plan.stage_list.keys[t] = round * kKeys + (waits(i, which) ? 2 : which) * kMostEdges + i;
    plan.item_list.keys[t] = (round - 1) * kKeys + t;
  }
  if (is_input_item) plan.item_list.keys[t] = plan.complete[input] * kKeys + t;
  const int state = t - 64, passing = t - 96;
  if (state >= 0 && state < s.states()) {
    const int first = (state - s.inputs) * kCellEdges;
    const bool sums = state < s.inputs ? !s.is_shared(state) &&
                                             (plan.normalized[state] | plan.passing[state]) != 0
                                       : plan.stage_count[first] + plan.stage_count[first + 1] > 0;
    if (sums || plan.passing[state] != 0) {
      plan.completion_list.keys[state] = plan.complete[state] * kKeys + s.states() - state;
    }
  }
  if (passing >= 0 && passing < edges && reads(passing) && plan.stage_count[passing] == 0) {
    plan.pass_list.keys[passing] = plan.edges[passing].input * kKeys + passing;
  }
  __syncthreads();
  rank(plan.stage_list, t, last_round + 1);
  rank(plan.item_list, t - 128, last_round + 1);
  rank(plan.completion_list, t - 256, last_round + 1);
  rank(plan.pass_list, t - 384, s.states());
  __syncthreads();
  const auto norm_place = [&](int edge, int stage) { return l.norms + (edge * 2 + stage) * 2 * C; };
  const auto input_norm_place = [&](int input) {
    return dag.input_norms == nullptr ? -1 : l.norms + (edges * 2 + input) * 2 * C;
  };
  const auto coefficients_place = [&](int edge) { return l.coefficients + edge * 3 * C; };
  const auto grad_of = [&](int state) {
    return state >= s.inputs
               ? job.gradients.node(s, arch, state - s.inputs)
               : job.input_grads + (static_cast<int64_t>(state) * s.archs + arch) * s.in_size();
  };
  const auto item_of = [&](int candidate, int round) {
    return plan.item_list.ranks[candidate] - plan.item_list.before[round];
  };
  if (is_stage) {
    const PlannedEdge edge = plan.edges[i];
    const int node = node_of(i), e = i % kCellEdges;
    const bool first = which == 0, last = which == plan.stage_count[i] - 1;
    const State<V> from = dag.stage_input(arch, node, e, which, edge);
    V* intermediate = job.gradients.intermediate + (arch * s.edges * s.nodes + i) * s.out_size();
    bool writes = true;
    for (unsigned rest = plan.normalized[edge.input]; first && rest != 0; rest &= rest - 1) {
      writes &= plan.stage_list.keys[2 * (__ffs(rest) - 1)] >= plan.stage_list.keys[t];
    }
    int elements = 0;
    if (edge.form == Form::kSeparable) {
      with_window(edge.separable, [&](auto w) { elements = w.kernel * w.kernel; });
    }
    plan.stages[plan.stage_list.ranks[t]] = {
        from.x,
        last ? job.gradients.node(s, arch, node) : intermediate,
        dag.stage(arch, node, e, which),
        first ? grad_of(edge.input) : intermediate,
        dag.pointwise(arch, node, e, which),
        dag.depthwise(arch, node, e, which),
        counted_from(Base::kOfBlock, job.gradients.weight_split(s, arch, node, e, 0)) +
            which * s.stage_weights(),
        !first                   ? norm_place(i, 0)
        : edge.input >= s.inputs ? -1
                                 : input_norm_place(edge.input),
        coefficients_place(i),
        from.height,
        from.width,
        first ? dag.stride(edge) : 1,
        edge.separable,
        elements,
        from.width == s.out_width ? l.per_row : l.per_input_row,
        elements == 0 ? 0 : ~0u / elements + 1,
        first ? -1 : item_of(2 * i, round_of(i) + 1),
        writes,
        waits(i, which),
        dag.factorized(edge)};
    plan.items[plan.item_list.ranks[t]] = {shared + coefficients_place(i),
                                           last ? static_cast<double>(edge.multiplicity) : 1.0,
                                           l.share, norm_place(i, which), false};
  }
  if (is_input_item) {
    plan.items[plan.item_list.ranks[t]] = {
        job.input_coefficients + (static_cast<int64_t>(input) * s.archs + arch) * 3 * C, 1.0,
        l.input_share, input_norm_place(input), true};
  }
  if (state >= 0 && state < s.states() && plan.completion_list.keys[state] != INT_MAX) {
    const bool is_input = state < s.inputs;
    const State<V> of = dag.state(arch, state);
    Completion<V> completion = {grad_of(state),
                                {nullptr, nullptr},
                                {-1, -1},
                                {-1, -1},
                                of.height,
                                of.width,
                                is_input ? s.stride : 1,
                                plan.pass_list.before[state],
                                plan.pass_list.before[state + 1] - plan.pass_list.before[state],
                                plan.normalized[state] != 0 || plan.passing[state] == 0};
    if (is_input && !s.is_shared(state)) {
      completion.z[0] = completion.z[1] = of.x;
      completion.norms[0] = input_norm_place(state);
      completion.items[0] = item_of(2 * edges + state, plan.complete[state]);
    }
    for (int e = 0; !is_input && e < kCellEdges; ++e) {
      const int node = state - s.inputs, edge = node * kCellEdges + e;
      const int last = plan.stage_count[edge] - 1;
      if (last < 0) continue;
      completion.z[e] = dag.stage(arch, node, e, last);
      if (completion.z[1 - e] == nullptr) completion.z[1 - e] = completion.z[e];
      completion.norms[e] = norm_place(edge, last);
      completion.items[e] = item_of(2 * edge + last, plan.complete[state]);
    }
    plan.completions[plan.completion_list.ranks[state]] = completion;
  }
  if (passing >= 0 && passing < edges && plan.pass_list.keys[passing] != INT_MAX) {
    const PlannedEdge edge = plan.edges[passing];
    const int node = node_of(passing);
    const bool max_pool = edge.form == Form::kMaxPool;
    plan.passes[plan.pass_list.ranks[passing]] = {
        job.gradients.node(s, arch, node),
        max_pool ? dag.maxima(arch, node, passing % kCellEdges) : nullptr, edge.form,
        edge.multiplicity};
  }
}

template <class V>
__global__ __launch_bounds__(kCellThreads) void nodes_plan_kernel(const Jobs<Job<V>> all) {
  const Job<V>& job = all.jobs[blockIdx.x];
  const int arch = blockIdx.y;
  if (arch >= job.dag.shape.archs) return;
  Plan<V>& plan = *dynamic_shared<Plan<V>>();
  make_plan(job, arch, plan);
  keep_plan(plan, job.plans + arch);
}

// What the sums of warps and blocks take.
template <int C>
constexpr int sum_values() {
  return std::max({kCellWarps * (kMostKernelElements + 2) * kSumRow,
                   kCellWarps * (1 + kCellEdges) * C, 2 * kMeetingDoubles<C>});
}

template <class V>
bool fits(const Layout& l) {
  return layout_bytes<V>(l) <= largest_shared_bytes();
}

// `source` and `grads` are what images take.
template <class V>
Layout place_all(const DagShape& s, int source, int grads) {
  const int c = s.padded, edges = s.nodes * kCellEdges;
  const int sums = c == 16 ? sum_values<16>() : c == 32 ? sum_values<32>() : sum_values<64>();
  Layout l;
  l.per_row = ~0u / s.out_width + 1;
  l.per_input_row = ~0u / s.width + 1;
  l.share = 1 / (static_cast<double>(s.images) * s.out_height * s.out_width);
  l.input_share = 1 / (static_cast<double>(s.images) * s.height * s.width);
  l.coefficients = 0;
  l.norms = l.coefficients + edges * 3 * c;
  l.totals = l.norms + (edges * 2 + s.inputs) * 2 * c;
  l.taps = l.totals + 2 * (edges + s.inputs) * 2 * c;
  l.weight = l.taps + kMostKernelElements * c;
  l.source = l.weight + c * (c + 4);
  l.grads = l.source + source;
  l.matrix = l.grads + grads;
  l.rows = 0;
  // As many copies as there are warps that share a part of the weight, if there is room.
  for (l.copies = 256 / c;; l.copies /= 2) {
    l.size = l.matrix + std::max(l.copies * c * c, sums);
    l.ahead = fits<V>(l);
    if (l.ahead) break;
    l.size = std::max(l.matrix + l.copies * c * c, l.source + sums);
    if (l.copies == 1 || (l.copies == 2 && fits<V>(l))) break;
  }
  l.scratch = l.ahead ? l.matrix : l.source;
  return l;
}

// Images are whole if there is room, and otherwise in strips that are as high as they may be: first
// of all such that images may come while sums are taken.
template <class V>
Layout make_layout(const DagShape& s) {
  const int c = s.padded, width = kWholeRow / c;
  if (s.out_width <= width) {
    const int grads = (tiled(s.out_height) + 4) * (width + 4) * c;
    const int source = s.stride == 2 ? std::max(grads, s.height * 2 * width * c) : grads;
    const Layout l = place_all<V>(s, source, grads);
    if (fits<V>(l)) return l;
  }
  Layout best;
  for (int rows = 4; rows <= tiled(s.out_height); rows += 4) {
    const int grads = (rows + 4) * (s.out_width + 4) * c;
    const int source =
        s.stride == 2 ? std::max(grads, (2 * rows + 3) * 2 * s.out_width * c) : grads;
    Layout l = place_all<V>(s, source, grads);
    l.rows = rows;
    if (rows > 4 && (!fits<V>(l) || l.ahead < best.ahead)) break;
    best = l;
  }
  return best;
}

}  // namespace

template <class V>
Job<V> gradients_of_nodes::make_job(const NodesJob<V>& nodes, const Handover& handover) {
  return {nodes.dag,
          nodes.gradients,
          nodes.input_grads,
          nodes.input_coefficients,
          make_layout<V>(nodes.dag.shape),
          handover,
          static_cast<Plan<V>*>(nodes.plan),
          nodes.scratch};
}

const char* nodes_backward_obstacle(const DagShape& s) {
  if (s.edges != kCellEdges || s.inputs != 2 || s.nodes < 1 || s.nodes > kMostNodes) {
    return "the number of its nodes or edges";
  }
  if (s.padded != 16 && s.padded != 32 && s.padded != 64) return "its number of channels";
  if (s.out_width % 4 != 0) return "the width of its images, which is not a multiple of 4";
  if (s.width > 64 || s.height > 64) return "the size of its images";
  if (!fits<float>(make_layout<float>(s))) {
    return "the size of its images, of which not even four rows fit in shared memory";
  }
  if (blocks_per_arch(s.images, s.archs) == 0) return "the number of its architectures";
  return nullptr;
}

int nodes_backward_columns(const DagShape& s) {
  return (2 * s.nodes * kCellEdges + s.inputs) * 2 * s.padded;
}

size_t nodes_plan_size() { return sizeof(Plan<float>); }

template <class V>
void plan_nodes(const std::vector<NodesJob<V>>& all, CudaStream stream) {
  static_assert(sizeof(Plan<V>) == sizeof(Plan<float>));
  launch_plans<Plan<V>>(
      nodes_plan_kernel<V>, all, [](const NodesJob<V>& nodes) { return make_job(nodes, {}); },
      stream);
}

#define ASNG_INSTANTIATE(V)                                                          \
  template Job<V> gradients_of_nodes::make_job(const NodesJob<V>&, const Handover&); \
  template void plan_nodes(const std::vector<NodesJob<V>>&, CudaStream);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(BFloat16)
#undef ASNG_INSTANTIATE

}  // namespace asng::cuda
