// Forward passes of nodes and cells.
#include "ops/cell/cuda_layout.h"

namespace asng::cuda {

template <class V>
size_t node_scratch(const asng::DagShape& shape, bool save, bool backward) {
  Arena arena(nullptr);
  Node<V>(arena, shape, false, save, nullptr, backward);
  return arena.used();
}

template <class V>
void node_forward(const asng::DagShape& shape, bool tf32,
                  const OperationWeights<const Compute<V>>& weights, const Choices& choices,
                  const V* bank, V* out, Compute<V>* saved, void* scratch, CudaStream stream) {
  Arena arena(scratch);
  Node<V> node(arena, shape, tf32, saved != nullptr, saved, false);
  node.set(weights, choices, bank);
  node.dag.nodes = out;
  make_plans<Compute<V>>({node.plan}, stream);
  for (int stage = 0; stage < 2; ++stage) stage_forward(node.dag, 0, stage, stream);
  combine_forward(node.dag, 0, saved != nullptr, stream);
}

template <class V>
size_t cell_plan_size(const CellShape& shape, bool backward) {
  Arena of_plan(nullptr), arena(nullptr);
  Cell<V>(of_plan, arena, shape, false, true, nullptr, backward);
  return of_plan.used();
}

template <class V>
void plan_cells(const std::vector<CellToPlan<V>>& cells, bool backward, CudaStream stream) {
  std::vector<PlanJob<Compute<V>>> jobs;
  std::vector<CellJob<V>> whole;
  std::vector<NodesJob<V>> nodes;
  for (const CellToPlan<V>& c : cells) {
    Arena of_plan(c.plan), arena(counted_from<char>(Base::kScratch));
    Cell<V> cell(of_plan, arena, c.shape, false, true, counted_from<Compute<V>>(Base::kSaved),
                 backward);
    cell.set(c.weights, c.choices);
    jobs.push_back(cell.plan);
    // What reads these weights is given the beginning of the plan, with the edges.
    cell.job.dag.packed = counted_from<Compute<V>>(Base::kPlanned) +
                          (cell.job.dag.packed - static_cast<Compute<V>*>(c.plan));
    if constexpr (std::is_same_v<Compute<V>, float>) {
      if (cell.handover.blocks == 0) continue;
      backward ? nodes.push_back(cell.nodes(nullptr)) : whole.push_back(cell.job);
    }
  }
  make_plans(jobs, stream);
  if constexpr (std::is_same_v<Compute<V>, float>) {
    plan_whole_cells(whole, stream);
    plan_nodes(nodes, stream);
  }
}

template <class V>
size_t cell_scratch(const CellShape& shape, bool save, bool backward, bool planned) {
  Arena of_plan(nullptr), arena(nullptr);
  Cell<V>(of_plan, arena, shape, false, save, nullptr, backward);
  return arena.used() + (planned ? 0 : of_plan.used());
}

template <class V>
void cell_forward(const CellShape& shape, bool tf32, const CellWeights<const Compute<V>>& weights,
                  const Choices& choices, const V* prev_prev, const V* prev, V* y,
                  Compute<V>* saved, void* scratch, CudaStream stream, void* plan) {
  if (plan == nullptr) plan = take_plan<V>(shape, weights, choices, false, scratch, stream);
  Arena of_plan(plan), arena(scratch);
  Cell<V> cell(of_plan, arena, shape, tf32, saved != nullptr, saved, false);
  cell.set(prev_prev, prev, y);
  if constexpr (std::is_same_v<Compute<V>, float>) {
    if (cell.handover.blocks > 0) {
      return whole_cell_forward(cell.job, cell.handover, saved != nullptr, stream);
    }
  }
  project_inputs(cell.job, stream);
  for (int node = 0; node < shape.nodes; ++node) {
    for (int stage = 0; stage < 2; ++stage) stage_forward(cell.job.dag, node, stage, stream);
    combine_forward(cell.job.dag, node, saved != nullptr, stream);
  }
  project_output(cell.job, stream);
}

#define ASNG_INSTANTIATE(V)                                                                   \
  template size_t node_scratch<V>(const asng::DagShape&, bool, bool);                         \
  template void node_forward<V>(const asng::DagShape&, bool,                                  \
                                const OperationWeights<const Compute<V>>&, const Choices&,    \
                                const V*, V*, Compute<V>*, void*, CudaStream);                \
  template size_t cell_plan_size<V>(const CellShape&, bool);                                  \
  template void plan_cells<V>(const std::vector<CellToPlan<V>>&, bool, CudaStream);           \
  template size_t cell_scratch<V>(const CellShape&, bool, bool, bool);                        \
  template void cell_forward<V>(const CellShape&, bool, const CellWeights<const Compute<V>>&, \
                                const Choices&, const V*, const V*, V*, Compute<V>*, void*,   \
                                CudaStream, void*);
ASNG_EVERY_STORED_TYPE(ASNG_INSTANTIATE)

}  // namespace asng::cuda
