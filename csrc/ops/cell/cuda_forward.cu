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
  make_plan(node.plan, stream);
  for (int stage = 0; stage < 2; ++stage) stage_forward(node.dag, 0, stage, stream);
  combine_forward(node.dag, 0, saved != nullptr, stream);
}

template <class V>
size_t cell_scratch(const CellShape& shape, bool save, bool backward) {
  Arena arena(nullptr);
  Cell<V>(arena, shape, false, save, nullptr, backward);
  return arena.used();
}

template <class V>
void cell_forward(const CellShape& shape, bool tf32, const CellWeights<const Compute<V>>& weights,
                  const Choices& choices, const V* prev_prev, const V* prev, V* y,
                  Compute<V>* saved, void* scratch, CudaStream stream) {
  Arena arena(scratch);
  Cell<V> cell(arena, shape, tf32, saved != nullptr, saved, false);
  cell.set(weights, choices, prev_prev, prev, y);
  make_plan(cell.plan, stream);
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
  template size_t cell_scratch<V>(const CellShape&, bool, bool);                              \
  template void cell_forward<V>(const CellShape&, bool, const CellWeights<const Compute<V>>&, \
                                const Choices&, const V*, const V*, V*, Compute<V>*, void*,   \
                                CudaStream);
ASNG_EVERY_STORED_TYPE(ASNG_INSTANTIATE)

}  // namespace asng::cuda
