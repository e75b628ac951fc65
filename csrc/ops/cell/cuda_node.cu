// A node on its own.
#include "ops/cell/cuda.h"
#include "ops/cell/cuda_layout.h"

namespace asng::cuda {

namespace {

template <class V>
struct Node {
  using T = Compute<V>;

  Graph<V> graph;
  PlanJob<T> plan;
  Gradients<V> gradients;

  // `saved` is where the backward pass finds what it needs; if `keeps` is false there is none.
  Node(Arena& arena, const GraphShape& shape, bool keeps, T* saved, bool backward) {
    graph.shape = shape;
    place_graph(arena, graph, plan);
    if (!keeps) saved = arena.take<T>(node_saved_size<V>(shape));
    graph.norms = saved;
    graph.z = saved == nullptr ? nullptr : reinterpret_cast<V*>(saved + norms_size(shape));
    graph.z_nodes = 0;
    plan.backward = backward;
    if (backward) place_gradients(arena, shape, gradients);
  }
};

}  // namespace

template <class V>
int64_t node_saved_size(const GraphShape& s) {
  return saved_values<V>(norms_size(s), halves_size(s));
}

template <class V>
size_t node_forward_scratch(const GraphShape& shape, bool save) {
  Arena arena(nullptr);
  Node<V>(arena, shape, save, nullptr, false);
  return arena.used();
}

template <class V>
size_t node_backward_scratch(const GraphShape& shape) {
  Arena arena(nullptr);
  Node<V>(arena, shape, true, nullptr, true);
  return arena.used();
}

template <class V>
void node_forward(const GraphShape& shape, const NodeWeights<const Compute<V>>& weights,
                  const Choices& choices, const V* bank, V* out, Compute<V>* saved, void* scratch,
                  CudaStream stream) {
  Arena arena(scratch);
  Node<V> node(arena, shape, saved != nullptr, saved, false);
  node.graph.inputs = bank;
  node.graph.nodes = out;
  node.plan.inputs = choices.inputs;
  node.plan.operations = choices.operations;
  node.plan.weights = weights;
  make_plan(node.plan, stream);
  for (int half = 0; half < 2; ++half) half_forward(node.graph, 0, half, stream);
  combine_forward(node.graph, 0, saved != nullptr, stream);
}

template <class V>
void node_backward(const GraphShape& shape, const NodeWeights<const Compute<V>>& weights,
                   const Choices& choices, const V* bank, const V* grad_out,
                   const Compute<V>* saved, V* grad_bank, const NodeWeights<Compute<V>>& grads,
                   void* scratch, CudaStream stream) {
  using T = Compute<V>;
  Arena arena(scratch);
  Node<V> node(arena, shape, true, const_cast<T*>(saved), true);  // only read
  node.graph.inputs = bank;
  node.gradients.nodes = const_cast<V*>(grad_out);  // the same
  node.plan.inputs = choices.inputs;
  node.plan.operations = choices.operations;
  node.plan.weights = weights;
  make_plan(node.plan, stream);
  reduce_edges(node.graph, node.gradients, 0, stream);
  half_backward(node.graph, node.gradients, 0, 1, stream);
  between_backward(node.graph, node.gradients, 0, stream);
  half_backward(node.graph, node.gradients, 0, 0, stream);
  gather(node.graph, node.gradients, 0, shape.inputs, grad_bank, static_cast<T*>(nullptr), stream);
  WeightJob<T> sum;
  sum.shape = shape;
  sum.plan = node.graph.plan;
  sum.used = node.graph.used;
  sum.weight_parts = node.gradients.weight_parts;
  sum.parts = node.gradients.parts;
  sum.grads = grads;
  sum_weight_parts(sum, stream);
}

#define ASNG_INSTANTIATE(V)                                                                    \
  template int64_t node_saved_size<V>(const GraphShape&);                                      \
  template size_t node_forward_scratch<V>(const GraphShape&, bool);                            \
  template size_t node_backward_scratch<V>(const GraphShape&);                                 \
  template void node_forward<V>(const GraphShape&, const NodeWeights<const Compute<V>>&,       \
                                const Choices&, const V*, V*, Compute<V>*, void*, CudaStream); \
  template void node_backward<V>(const GraphShape&, const NodeWeights<const Compute<V>>&,      \
                                 const Choices&, const V*, const V*, const Compute<V>*, V*,    \
                                 const NodeWeights<Compute<V>>&, void*, CudaStream);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
ASNG_INSTANTIATE(BFloat16)
#undef ASNG_INSTANTIATE

}  // namespace asng::cuda
