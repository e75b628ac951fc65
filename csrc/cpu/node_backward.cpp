#include <algorithm>

#include "node.h"
#include "parallel.h"

namespace asng::cpu {

// Memory for the gradients between the halves and for the weights' gradients of every part.
template <class T>
Block Node<T>::place_gradients() {
  const int64_t padded = shape_.padded;
  const int64_t weights = parts() * (padded * padded + 25 * padded);
  const int64_t count = shape_.archs * shape_.edges * (shape_.out_size() + 2 * weights);
  Block block = acquire(static_cast<size_t>(count) * sizeof(T));
  Bump<T> memory(static_cast<T*>(block.get()), count);
  for (Edge* edge : normalised_) {
    if (edge->factorized()) {
      edge->reduction.grad_parts = memory.take(parts() * edge->reduction.packed_size());
      continue;
    }
    edge->between = memory.take(shape_.out_size());
    for (int half = 0; half < 2; ++half) {
      edge->grad_depthwise[half] = memory.take(parts() * edge->kernel() * edge->kernel() * padded);
      edge->grad_pointwise[half] = memory.take(parts() * padded * padded);
    }
  }
  return block;
}

template <class T>
void Node<T>::begin_backward() {
  last_.assign(normalised_.size(), PartialSums(parts(), shape_.padded));
}

// Every edge sees the gradient of the node; one that ends in a normalisation needs its sums.
template <class T>
void Node<T>::reduce(int64_t arch, int64_t first, int64_t count, const T* grad,
                     int64_t part_index) {
  for (size_t e = 0; e < normalised_.size(); ++e) {
    const Edge& edge = *normalised_[e];
    if (edge.arch != arch) continue;
    Reduce<T> task;
    task.pixels = count * shape_.out_height * shape_.out_width;
    task.channels = shape_.padded;
    task.grads = &grad;
    task.z = edge.z[edge.last()] + first * shape_.out_size() / shape_.images;
    task.affine = edge.norm[edge.last()].affine();
    task.sum = last_[e].first(part_index);
    task.dot = last_[e].second(part_index);
    kernels<T>().reduce(task);
  }
}

template <class T>
void Node<T>::finish_gradient(Edge& edge, int half, const PartialSums& sums) {
  const int64_t pixels = shape_.images * shape_.out_height * shape_.out_width;
  const int64_t index = (&edge - edges_.data()) * 2 + half;
  const T factor = half == edge.last() ? edge.factor : T(1);
  edge.norm_gradient[half] = finish_norm_gradient(
      sums, pixels, shape_.padded, edge.norm[half].scale, edge.norm[half].affine(), factor,
      coefficients_.data() + index * 3 * shape_.padded);
}

template <class T>
void Node<T>::backward_half(const Edge& edge, const State<T>& state, int half, const T* grad_out,
                            int64_t part_index, PartialSums* sums) const {
  const Part range = part(shape_.images, part_index);
  const int64_t first = range.first * shape_.out_size() / shape_.images;
  const int64_t padded = shape_.padded;
  SeparableBackward<T> task;
  task.shape = half_shape(edge, state, half);
  task.shape.images = range.count;
  const int64_t in_first = range.first * task.shape.height * task.shape.width * padded;
  task.grad = half == 1 ? grad_out + edge.arch * shape_.out_size() + first : edge.between + first;
  task.z = edge.z[half] + first;
  task.norm = edge.norm_gradient[half];
  task.x = (half == 0 ? state.x : edge.z[0]) + in_first;
  task.affine = half == 0 ? state.affine : edge.norm[0].affine();
  task.depthwise = edge.depthwise[half];
  task.flipped = edge.flipped[half];
  task.pointwise = edge.pointwise[half];
  task.grad_x = (half == 0 ? state.grad : edge.between) + in_first;
  task.accumulate = half == 0 && edge.accumulate;
  const int64_t taps = edge.kernel() * edge.kernel() * padded;
  task.grad_depthwise = edge.grad_depthwise[half] + part_index * taps;
  task.grad_pointwise = edge.grad_pointwise[half] + part_index * padded * padded;
  std::fill_n(task.grad_depthwise, taps, T(0));
  std::fill_n(task.grad_pointwise, padded * padded, T(0));
  if (sums != nullptr) {
    task.sum = sums->first(part_index);
    task.dot = sums->second(part_index);
  }
  kernels<T>().separable_backward(task);
}

template <class T>
void Node<T>::add_weight_gradient(Edge& edge, const NodeWeights<T>& grads) const {
  const int64_t channels = shape_.channels, padded = shape_.padded;
  if (edge.factorized()) {
    edge.reduction.add_weight_gradient(grads.reduction + edge.input * channels * channels);
    return;
  }
  const int64_t taps = edge.kernel() * edge.kernel();
  const int kind = edge.operation - kSeparable3Operation;
  for (int half = 0; half < 2; ++half) {
    const int64_t index = edge.input * 2 + half;
    T* depthwise = edge.grad_depthwise[half];
    T* pointwise = edge.grad_pointwise[half];
    for (int64_t p = 1; p < parts(); ++p) {
      const T* from = edge.grad_depthwise[half] + p * taps * padded;
      for (int64_t i = 0; i < taps * padded; ++i) depthwise[i] += from[i];
      from = edge.grad_pointwise[half] + p * padded * padded;
      for (int64_t i = 0; i < padded * padded; ++i) pointwise[i] += from[i];
    }
    T* to = grads.depthwise[kind] + index * channels * taps;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t k = 0; k < taps; ++k) to[c * taps + k] += depthwise[k * padded + c];
    }
    to = grads.pointwise[kind] + index * channels * channels;
    for (int64_t o = 0; o < channels; ++o) {
      for (int64_t c = 0; c < channels; ++c) to[o * channels + c] += pointwise[o * padded + c];
    }
  }
}

// Architectures that share weights add to the same gradient: one task, in their order.
template <class T>
void Node<T>::add_weight_gradients(const NodeWeights<T>& grads) {
  std::vector<std::vector<Edge*>> groups;
  for (Edge* edge : normalised_) {
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const auto& group) {
      return group[0]->input == edge->input && group[0]->operation == edge->operation;
    });
    if (same == groups.end()) {
      groups.push_back({edge});
    } else {
      same->push_back(edge);
    }
  }
  run_tasks(static_cast<int64_t>(groups.size()), [&](int64_t i) {
    for (Edge* edge : groups[static_cast<size_t>(i)]) add_weight_gradient(*edge, grads);
  });
}

template <class T>
void Node<T>::backward(std::vector<State<T>>& states, const T* grad_out,
                       const NodeWeights<T>& grads, const std::vector<bool>& reduced) {
  if (last_.size() != normalised_.size()) begin_backward();
  // Whoever comes first to a state's gradient writes it, the others add. The passes below come in
  // the same order: identities and pools, then normalised edges.
  for (const bool normalised : {false, true}) {
    for (Edge& edge : edges_) {
      if (edge.normalised() != normalised) continue;
      State<T>& from = states[static_cast<size_t>(edge.arch * shape_.state_stride + edge.input)];
      edge.accumulate = from.has_grad;
      from.has_grad = true;
    }
  }
  coefficients_.resize(edges_.size() * 6 * static_cast<size_t>(shape_.padded));
  const Block packed = pack(states, true);
  const Block gradients = place_gradients();

  const size_t count = normalised_.size();
  run_parts(shape_.archs, parts(), [&](int64_t arch, int64_t part_index) {
    const Part range = part(shape_.images, part_index);
    const T* grad =
        grad_out + arch * shape_.out_size() + range.first * shape_.out_size() / shape_.images;
    if (!reduced[static_cast<size_t>(arch)]) {
      reduce(arch, range.first, range.count, grad, part_index);
    }
    std::vector<Summand<T>> summands;
    Combine<T> task = combine_task(states, arch, range, summands);
    task.grad = grad;
    kernels<T>().combine_backward(task);
  });
  std::vector<size_t> separable;
  for (size_t e = 0; e < count; ++e) {
    finish_gradient(*normalised_[e], normalised_[e]->last(), last_[e]);
    if (normalised_[e]->separable()) separable.push_back(e);
  }
  std::vector<PartialSums> sums(count, PartialSums(parts(), shape_.padded));
  run_parts(static_cast<int64_t>(separable.size()), parts(), [&](int64_t i, int64_t part_index) {
    const size_t e = separable[static_cast<size_t>(i)];
    const Edge& edge = *normalised_[e];
    backward_half(edge, state(edge, states), 1, grad_out, part_index, &sums[e]);
  });
  for (const size_t e : separable) finish_gradient(*normalised_[e], 0, sums[e]);
  // Two edges of a node may read the same state, so one task runs both.
  run_parts(shape_.archs, parts(), [&](int64_t arch, int64_t part_index) {
    for (const Edge* edge : normalised_) {
      if (edge->arch != arch) continue;
      if (edge->separable()) {
        backward_half(*edge, state(*edge, states), 0, grad_out, part_index, nullptr);
        continue;
      }
      Projection<T> reduction = edge->reduction;
      reduction.norm_gradient = edge->norm_gradient[0];
      reduction.grads = {grad_out + edge->arch * shape_.out_size()};
      reduction.backward(part_index);
    }
  });
  add_weight_gradients(grads);
}

#define ASNG_INSTANTIATE(T)                                                                \
  template void Node<T>::begin_backward();                                                 \
  template void Node<T>::reduce(int64_t, int64_t, int64_t, const T*, int64_t);             \
  template void Node<T>::backward(std::vector<State<T>>&, const T*, const NodeWeights<T>&, \
                                  const std::vector<bool>&);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cpu
