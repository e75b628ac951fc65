// A node on its own.
#include "ops/cell/cuda.h"
#include "ops/cell/cuda_layout.h"

namespace asng::cuda {

namespace {

template <class V>
struct Node {
  using T = Compute<V>;

  Dag<V> dag;
  PlanJob<T> plan;
  Gradients<V> gradients;

  // `saved` is where the backward pass finds what it needs; if `keeps` is false there is none.
  Node(Arena& arena, const DagShape& shape, bool keeps, T* saved, bool backward) {
    dag.shape = shape;
    allocate_dag(arena, dag, plan);
    if (!keeps) saved = arena.take<T>(node_saved_size<V>(shape));
    dag.norms = saved;
    dag.z = saved == nullptr ? nullptr : reinterpret_cast<V*>(saved + norms_size(shape));
    dag.z_nodes = 0;
    plan.backward = backward;
    if (backward) allocate_gradients(arena, shape, gradients);
  }
};

}  // namespace

template <class V>
int64_t node_saved_size(const DagShape& s) {
  return saved_values<V>(norms_size(s), stages_size(s));
}

template <class V>
size_t node_forward_scratch(const DagShape& shape, bool save) {
  Arena arena(nullptr);
  Node<V>(arena, shape, save, nullptr, false);
  return arena.used();
}

template <class V>
size_t node_backward_scratch(const DagShape& shape) {
  Arena arena(nullptr);
  Node<V>(arena, shape, true, nullptr, true);
  return arena.used();
}

template <class V>
void node_forward(const DagShape& shape, const NodeWeights<const Compute<V>>& weights,
                  const Choices& choices, const V* bank, V* out, Compute<V>* saved, void* scratch,
                  CudaStream stream) {
  Arena arena(scratch);
  Node<V> node(arena, shape, saved != nullptr, saved, false);
  node.dag.inputs = bank;
  node.dag.nodes = out;
  node.plan.inputs = choices.inputs;
  node.plan.operations = choices.operations;
  node.plan.weights = weights;
  make_plan(node.plan, stream);
  for (int stage = 0; stage < 2; ++stage) stage_forward(node.dag, 0, stage, stream);
  combine_forward(node.dag, 0, saved != nullptr, stream);
}

template <class V>
void node_backward(const DagShape& shape, const NodeWeights<const Compute<V>>& weights,
                   const Choices& choices, const V* bank, const V* grad_out,
                   const Compute<V>* saved, V* grad_bank, const NodeWeights<Compute<V>>& grads,
                   void* scratch, CudaStream stream) {
  using T = Compute<V>;
  Arena arena(scratch);
  Node<V> node(arena, shape, true, const_cast<T*>(saved), true);  // only read
  node.dag.inputs = bank;
  node.gradients.nodes = const_cast<V*>(grad_out);  // the same
  node.plan.inputs = choices.inputs;
  node.plan.operations = choices.operations;
  node.plan.weights = weights;
  make_plan(node.plan, stream);
  reduce_edges(node.dag, node.gradients, 0, stream);
  stage_backward(node.dag, node.gradients, 0, 1, stream);
  intermediate_backward(node.dag, node.gradients, 0, stream);
  stage_backward(node.dag, node.gradients, 0, 0, stream);
  gather(node.dag, node.gradients, 0, shape.inputs, grad_bank, static_cast<T*>(nullptr), stream);
  WeightJob<T> sum;
  sum.shape = shape;
  sum.plan = node.dag.plan;
  sum.used = node.dag.used;
  sum.weight_splits = node.gradients.weight_splits;
  sum.splits = node.gradients.splits;
  sum.grads = grads;
  sum_weight_splits(sum, stream);
}

#define ASNG_INSTANTIATE(V)                                                                    \
  template int64_t node_saved_size<V>(const DagShape&);                                        \
  template size_t node_forward_scratch<V>(const DagShape&, bool);                              \
  template size_t node_backward_scratch<V>(const DagShape&);                                   \
  template void node_forward<V>(const DagShape&, const NodeWeights<const Compute<V>>&,         \
                                const Choices&, const V*, V*, Compute<V>*, void*, CudaStream); \
  template void node_backward<V>(const DagShape&, const NodeWeights<const Compute<V>>&,        \
                                 const Choices&, const V*, const V*, const Compute<V>*, V*,    \
                                 const NodeWeights<Compute<V>>&, void*, CudaStream);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
ASNG_INSTANTIATE(BFloat16)
#undef ASNG_INSTANTIATE

}  // namespace asng::cuda
