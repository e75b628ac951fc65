// A node on its own.
#include "cells.h"
#include "layout.h"

namespace asng::cuda {

namespace {

template <class T>
struct Node {
  Graph<T> graph;
  PlanJob<T> plan;
  Gradients<T> gradients;

  // `saved` is where the backward pass finds what it needs; if `keeps` is false there is none.
  Node(Arena& arena, const GraphShape& shape, bool keeps, T* saved, bool backward) {
    graph.shape = shape;
    place_graph(arena, graph, plan);
    if (!keeps) saved = arena.take<T>(node_saved_size(shape));
    graph.z = saved;
    graph.z_nodes = 0;
    graph.norms = saved == nullptr ? nullptr : saved + halves_size(shape);
    plan.backward = backward;
    if (backward) place_gradients(arena, shape, gradients);
  }
};

}  // namespace

int64_t node_saved_size(const GraphShape& s) { return halves_size(s) + norms_size(s); }

template <class T>
size_t node_forward_scratch(const GraphShape& shape, bool save) {
  Arena arena(nullptr);
  Node<T>(arena, shape, save, nullptr, false);
  return arena.used();
}

template <class T>
size_t node_backward_scratch(const GraphShape& shape) {
  Arena arena(nullptr);
  Node<T>(arena, shape, true, nullptr, true);
  return arena.used();
}

template <class T>
void node_forward(const GraphShape& shape, const NodeWeights<const T>& weights,
                  const Choices& choices, const T* bank, T* out, T* saved, void* scratch,
                  CudaStream stream) {
  Arena arena(scratch);
  Node<T> node(arena, shape, saved != nullptr, saved, false);
  node.graph.inputs = bank;
  node.graph.nodes = out;
  node.plan.inputs = choices.inputs;
  node.plan.operations = choices.operations;
  node.plan.weights = weights;
  make_plan(node.plan, stream);
  for (int half = 0; half < 2; ++half) half_forward(node.graph, 0, half, stream);
  combine_forward(node.graph, 0, saved != nullptr, stream);
}

template <class T>
void node_backward(const GraphShape& shape, const NodeWeights<const T>& weights,
                   const Choices& choices, const T* bank, const T* grad_out, const T* saved,
                   T* grad_bank, const NodeWeights<T>& grads, void* scratch, CudaStream stream) {
  Arena arena(scratch);
  Node<T> node(arena, shape, true, const_cast<T*>(saved), true);  // only read
  node.graph.inputs = bank;
  node.gradients.nodes = const_cast<T*>(grad_out);  // the same
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

#define ASNG_INSTANTIATE(T)                                                                   \
  template size_t node_forward_scratch<T>(const GraphShape&, bool);                           \
  template size_t node_backward_scratch<T>(const GraphShape&);                                \
  template void node_forward(const GraphShape&, const NodeWeights<const T>&, const Choices&,  \
                             const T*, T*, T*, void*, CudaStream);                            \
  template void node_backward(const GraphShape&, const NodeWeights<const T>&, const Choices&, \
                              const T*, const T*, const T*, T*, const NodeWeights<T>&, void*, \
                              CudaStream);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cuda
