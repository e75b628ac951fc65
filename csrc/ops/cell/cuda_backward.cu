// Backward passes of nodes and cells.
#include "ops/cell/cuda_layout.h"

namespace asng::cuda {

namespace {

template <class V, class T>
WeightJob<T> weight_job(const Dag<V>& dag, const Gradients<V>& gradients,
                        const OperationWeights<T>& grads) {
  return {dag.shape, dag.plan, dag.used, gradients.weight_splits, gradients.splits, grads, {}};
}

// From the gradient of the output to those of the leaf nodes.
template <class V>
void output_backward(const Cell<V>& cell, CudaStream stream) {
  if constexpr (std::is_same_v<Compute<V>, float>) {
    if (cell.output_handover.blocks > 0) {
      return whole_output_backward(cell.job, cell.gradients, cell.output_handover, stream);
    }
  }
  reduce_output(cell.job, stream);
  project_output_backward(cell.job, cell.gradients, stream);
}

// From the gradients of the projected inputs to those of the inputs.
template <class V>
void inputs_backward(const Cell<V>& cell, CudaStream stream) {
  if constexpr (std::is_same_v<Compute<V>, float>) {
    if (cell.output_handover.blocks > 0) {
      return whole_inputs_backward(cell.job, cell.output_handover, stream);
    }
  }
  project_inputs_backward(cell.job, stream);
}

// From the gradients of the leaf nodes to those of the projected inputs.
template <class V>
void nodes_and_inputs_backward(const Cell<V>& cell, const void* scratch, CudaStream stream) {
  const Dag<V>& dag = cell.job.dag;
  if constexpr (std::is_same_v<Compute<V>, float>) {
    if (cell.handover.blocks > 0) {
      return nodes_backward(cell.nodes(scratch), cell.handover, stream);
    }
  }
  const int inputs = dag.shape.inputs;
  for (int node = dag.shape.nodes - 1; node >= 0; --node) {
    gather(dag, cell.gradients, inputs + node, 1, static_cast<V*>(nullptr),
           static_cast<Compute<V>*>(nullptr), stream);
    stage_backward(dag, cell.gradients, node, 1, stream);
    intermediate_backward(dag, cell.gradients, node, stream);
    stage_backward(dag, cell.gradients, node, 0, stream);
  }
  gather(dag, cell.gradients, 0, inputs, cell.input_grads, cell.input_coefficients, stream);
}

}  // namespace

template <class V>
void node_backward(const asng::DagShape& shape, bool tf32,
                   const OperationWeights<const Compute<V>>& weights, const Choices& choices,
                   const V* bank, const V* grad_out, const Compute<V>* saved, V* grad_bank,
                   const OperationWeights<Compute<V>>& grads, void* scratch, CudaStream stream) {
  using T = Compute<V>;
  Arena arena(scratch);
  Node<V> node(arena, shape, tf32, true, const_cast<T*>(saved), true);  // only read
  node.set(weights, choices, bank);
  node.gradients.nodes = const_cast<V*>(grad_out);  // the same
  make_plans<Compute<V>>({node.plan}, stream);
  reduce_edges(node.dag, node.gradients, 0, stream);
  stage_backward(node.dag, node.gradients, 0, 1, stream);
  intermediate_backward(node.dag, node.gradients, 0, stream);
  stage_backward(node.dag, node.gradients, 0, 0, stream);
  gather(node.dag, node.gradients, 0, node.dag.shape.inputs, grad_bank, static_cast<T*>(nullptr),
         stream);
  sum_weight_splits(weight_job(node.dag, node.gradients, grads), stream);
}

template <class V>
void cell_backward(const CellShape& shape, bool tf32, const CellWeights<const Compute<V>>& weights,
                   const Choices& choices, const V* prev_prev, const V* prev, const V* y,
                   const V* grad_y, const Compute<V>* saved, V* grad_prev_prev, V* grad_prev,
                   const CellWeights<Compute<V>>& grads, void* scratch, CudaStream stream,
                   bool adds_to_prev, void* plan) {
  using T = Compute<V>;
  if (plan == nullptr) plan = take_plan<V>(shape, weights, choices, true, scratch, stream);
  Arena of_plan(plan), arena(scratch);
  // What was saved, and the output, are only read.
  Cell<V> cell(of_plan, arena, shape, tf32, true, const_cast<T*>(saved), true);
  cell.set(prev_prev, prev, const_cast<V*>(y));
  cell.job.grad_y = grad_y;
  cell.job.inputs[0].grad = grad_prev_prev;
  cell.job.inputs[1].grad = grad_prev;
  cell.job.inputs[1].adds = adds_to_prev;
  const Dag<V>& dag = cell.job.dag;
  output_backward(cell, stream);
  nodes_and_inputs_backward(cell, scratch, stream);
  inputs_backward(cell, stream);
  WeightJob<T> sum = weight_job(dag, cell.gradients, grads.operations);
  T* const matrices[3] = {grads.prev_prev, grads.prev, grads.output};
  for (int which = 0; which < 3; ++which) {
    sum.matrices[which] = cell.matrix_gradients[which];
    sum.matrices[which].grad = matrices[which];
  }
  sum_weight_splits(sum, stream);
}

#define ASNG_INSTANTIATE(V)                                                                        \
  template void node_backward<V>(const asng::DagShape&, bool,                                      \
                                 const OperationWeights<const Compute<V>>&, const Choices&,        \
                                 const V*, const V*, const Compute<V>*, V*,                        \
                                 const OperationWeights<Compute<V>>&, void*, CudaStream);          \
  template void cell_backward<V>(const CellShape&, bool, const CellWeights<const Compute<V>>&,     \
                                 const Choices&, const V*, const V*, const V*, const V*,           \
                                 const Compute<V>*, V*, V*, const CellWeights<Compute<V>>&, void*, \
                                 CudaStream, bool, void*);
ASNG_EVERY_STORED_TYPE(ASNG_INSTANTIATE)

}  // namespace asng::cuda
