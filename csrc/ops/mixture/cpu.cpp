#include "ops/mixture/cpu.h"

#include <algorithm>

namespace asng::cpu {
namespace {

template <class T>
OperationWeights<const T> read_only(OperationWeights<T> weights) {
  OperationWeights<const T> same;
  const std::vector<T**> from = weights.in_order();
  const std::vector<const T**> to = same.in_order();
  for (size_t i = 0; i < from.size(); ++i) *to[i] = *from[i];
  return same;
}

}  // namespace

template <class T>
template <class F>
void Mixture<T>::for_weights(const OperationWeights<T>& stacked, F f) const {
  const DagShape& dag = shape_.dag;
  const int64_t channels = dag.channels, square = channels * channels;
  for (const DagEdge& edge : shape_.edges) {
    const OperationInfo info = operation_info(edge.operation);
    if (info.form == Form::kSeparable) {
      const int64_t index = weight_index(dag.inputs, edge.node, edge.input) * 2;
      const int64_t depthwise = channels * info.kernel * info.kernel;
      for (int64_t stage = index; stage < index + 2; ++stage) {
        f(stacked.depthwise[info.separable] + stage * depthwise, depthwise);
        f(stacked.pointwise[info.separable] + stage * square, square);
      }
    } else if (shape_.factorized(edge)) {
      T* const rows = stacked.reduction + dag.reduction_index(edge.node, edge.input) * square;
      const int64_t even = (channels - channels / 2) * channels;
      f(rows, even);
      f(rows + even, square - even);
    }
  }
}

// Memory for weights as a dag takes them, those of all edges that there may be.
template <class T>
OperationWeights<T> Mixture<T>::stack(Block& block) const {
  const DagShape& dag = shape_.dag;
  const int64_t edges = weight_index<int64_t>(dag.inputs, dag.nodes, 0);
  std::vector<int64_t> counts;
  for (const WeightShape& weight : operation_weights(edges, dag.nodes * dag.inputs, dag.channels)) {
    int64_t count = 1;
    for (const int64_t size : weight.sizes) count *= size;
    counts.push_back(padded_channels(count));  // so that every one of them is aligned
  }
  int64_t total = 0;
  for (const int64_t count : counts) total += count;
  block = acquire(static_cast<size_t>(total) * sizeof(T));
  Bump<T> memory(static_cast<T*>(block.get()), total);
  OperationWeights<T> weights;
  size_t i = 0;
  for (T** weight : weights.in_order()) *weight = memory.take(counts[i++]);
  return weights;
}

template <class T>
Mixture<T>::Mixture(const MixtureShape& shape, const std::vector<const T*>& weights,
                    const T* coefficients, const std::vector<const T*>& inputs, T* nodes)
    : shape_(shape),
      weights_(stack(weight_block_)),
      dag_(shape.dag, read_only(weights_), shape.edges, coefficients, nodes) {
  size_t i = 0;
  for_weights(weights_, [&](T* to, int64_t count) { std::copy_n(weights[i++], count, to); });
  for (size_t input = 0; input < inputs.size(); ++input) {
    State<T>& state = dag_.state(0, static_cast<int64_t>(input));
    state.x = inputs[input];
    state.height = shape.dag.height;
    state.width = shape.dag.width;
  }
}

template <class T>
void Mixture<T>::forward(T* saved) {
  const int64_t count = shape_.saved().values();
  const Block block = acquire(saved == nullptr ? static_cast<size_t>(count) * sizeof(T) : 0);
  Bump<T> memory(saved == nullptr ? static_cast<T*>(block.get()) : saved, count);
  saved == nullptr ? dag_.allocate_with_reuse(memory) : dag_.allocate(memory);
  dag_.forward([](int64_t, int64_t, Split) {});
}

template <class T>
void Mixture<T>::backward(T* saved, const T* grad_nodes, const std::vector<T*>& grad_inputs,
                          T* grad_coefficients, const std::vector<T*>& grad_weights) {
  const DagShape& dag = shape_.dag;
  Bump<T> memory(saved, shape_.saved().values());
  dag_.allocate(memory);
  for (size_t input = 0; input < grad_inputs.size(); ++input) {
    dag_.state(0, static_cast<int64_t>(input)).grad = grad_inputs[input];
  }
  // Later nodes add to the gradients of those that they read.
  const int64_t count = dag.nodes * dag.out_size() + dag_.gradient_bound();
  const Block block = acquire(static_cast<size_t>(count) * sizeof(T));
  Bump<T> gradients(static_cast<T*>(block.get()), count);
  for (int64_t node = 0; node < dag.nodes; ++node) {
    State<T>& state = dag_.state(0, dag.inputs + node);
    state.grad = gradients.take(dag.out_size());
    state.has_grad = true;
    std::copy_n(grad_nodes + node * dag.out_size(), dag.out_size(), state.grad);
  }
  dag_.allocate_gradients(gradients);
  const bool wants_weights = !grad_weights.empty();
  Block weight_block;
  OperationWeights<T> grads;
  if (wants_weights) {
    grads = stack(weight_block);
    for_weights(grads, [](T* values, int64_t size) { std::fill_n(values, size, T(0)); });
  }
  dag_.backward([](int64_t, int64_t, Split) {}, wants_weights ? &grads : nullptr);
  for (size_t input = 0; input < grad_inputs.size(); ++input) {
    if (!dag_.state(0, static_cast<int64_t>(input)).has_grad) {
      std::fill_n(grad_inputs[input], dag.in_size(), T(0));
    }
  }
  for (size_t e = 0; e < shape_.edges.size(); ++e) {
    grad_coefficients[e] = static_cast<T>(dag_.coefficient_gradient(e));
  }
  if (!wants_weights) return;
  size_t i = 0;
  for_weights(grads,
              [&](const T* from, int64_t size) { std::copy_n(from, size, grad_weights[i++]); });
}

template class Mixture<float>;
template class Mixture<double>;

}  // namespace asng::cpu
