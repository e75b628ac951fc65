#include <algorithm>

#include "ops/cell/cpu_dag.h"
#include "platform/threads.h"

namespace asng::cpu {

// Memory for the weights' gradients of every part, zeros.
template <class T>
Block Dag<T>::place_weight_gradients() {
  const int64_t padded = shape_.padded;
  const int64_t per_stage = splits() * (padded * padded + 25 * padded);
  const int64_t count = shape_.archs * shape_.nodes * shape_.edges * 2 * per_stage;
  Block block = acquire(static_cast<size_t>(count) * sizeof(T));
  Bump<T> memory(static_cast<T*>(block.get()), count);
  for (Edge* edge : normalized_) {
    if (edge->factorized()) {
      edge->reduction.grad_splits = memory.take(splits() * edge->reduction.packed_size());
      continue;
    }
    for (int stage = 0; stage < 2; ++stage) {
      edge->grad_depthwise[stage] = memory.take(splits() * edge->taps() * padded);
      edge->grad_pointwise[stage] = memory.take(splits() * padded * padded);
    }
  }
  run_tasks(static_cast<int64_t>(normalized_.size()), [&](int64_t i) {
    const Edge& edge = *normalized_[static_cast<size_t>(i)];
    if (edge.factorized()) {
      edge.reduction.clear_gradient();
      return;
    }
    for (int stage = 0; stage < 2; ++stage) {
      std::fill_n(edge.grad_depthwise[stage], splits() * edge.taps() * padded, T(0));
      std::fill_n(edge.grad_pointwise[stage], splits() * padded * padded, T(0));
    }
  });
  return block;
}

// What the gradient of a normalization needs to know of all images, from some of them.
template <class T>
void Dag<T>::reduce(const T* grad, const T* z, Affine<T> affine, int64_t pixels,
                    int64_t split_index, PartialSums& sums) const {
  Reduce<T> task;
  task.pixels = pixels;
  task.channels = shape_.padded;
  task.grads = &grad;
  task.z = z;
  task.affine = affine;
  task.sum = sums.first(split_index);
  task.dot = sums.second(split_index);
  kernels<T>().reduce(task);
}

template <class T>
void Dag<T>::backward_stage(Edge& edge, int stage, int64_t split_index, Split images) {
  const int64_t padded = shape_.padded, first = images.first * shape_.image_size();
  const T* grad = state(edge.arch, shape_.inputs + edge.node).grad;
  if (edge.factorized()) {
    edge.reduction.backward(images, split_index);
    return;
  }
  const State<T>& state = from(edge);
  SeparableBackward<T> task;
  task.shape = stage_shape(edge, stage, images.count);
  const int64_t in_first = images.first * task.shape.height * task.shape.width * padded;
  task.grad = (stage == 1 ? grad : edge.intermediate) + first;
  task.z = edge.z[stage] + first;
  task.norm = edge.norm_gradient[stage];
  task.x = (stage == 0 ? state.x : edge.z[0]) + in_first;
  task.affine = stage == 0 ? state.affine : edge.norm[0].affine();
  task.depthwise = edge.depthwise[stage];
  task.flipped = edge.flipped[stage];
  task.pointwise = edge.pointwise[stage];
  task.grad_x = (stage == 0 ? state.grad : edge.intermediate) + in_first;
  task.accumulate = stage == 0 && edge.accumulate;
  task.grad_depthwise = edge.grad_depthwise[stage] + split_index * edge.taps() * padded;
  task.grad_pointwise = edge.grad_pointwise[stage] + split_index * padded * padded;
  if (stage == 1) {
    task.sum = edge.sums.first(split_index);
    task.dot = edge.sums.second(split_index);
  }
  kernels<T>().separable_backward(task);
}

template <class T>
void Dag<T>::run_backward(int64_t phase, int64_t arch, int64_t split_index, Split images) {
  const int64_t first = images.first * shape_.image_size();
  for (int64_t s = shape_.states() - 1; s >= shape_.inputs; --s) {
    const int64_t age = phase - done_[at(arch, s)];
    if (age < 0 || age > 2) continue;
    const T* grad = states_[at(arch, s)].grad + first;
    if (age == 0) {
      std::vector<Term<T>> terms;
      Combine<T> task = combine_task(arch, s - shape_.inputs, images, terms);
      task.grad = grad;
      kernels<T>().combine_backward(task);
    }
    for (Edge* edge : node_edges_[at(arch, s)]) {
      if (edge->stages() == 0) continue;
      const int last = edge->last();
      if (age == 0) {
        reduce(grad, edge->z[last] + first, edge->norm[last].affine(),
               images.count * shape_.out_height * shape_.out_width, split_index, edge->sums);
      } else if (age <= edge->stages()) {
        backward_stage(*edge, edge->stages() - static_cast<int>(age), split_index, images);
      }
    }
  }
  for (int64_t s = 0; s < shape_.inputs; ++s) {
    const State<T>& input = states_[at(arch, s)];
    if (input.sums == nullptr || !input.has_grad || done_[at(arch, s)] != phase) continue;
    const int64_t pixels = input.height * input.width;
    const int64_t begin = images.first * pixels * shape_.padded;
    reduce(input.grad + begin, input.x + begin, input.affine, images.count * pixels, split_index,
           *input.sums);
  }
}

template <class T>
void Dag<T>::finish_gradient(Edge& edge, int stage) {
  const int64_t index = (&edge - edges_.data()) * 2 + stage;
  const T factor = stage == edge.last() ? edge.factor : T(1);
  edge.norm_gradient[stage] = finish_norm_gradient(
      edge.sums, shape_.pixels(), shape_.padded, edge.norm[stage].scale, edge.norm[stage].affine(),
      factor, coefficients_.data() + index * 3 * shape_.padded);
  edge.sums = PartialSums(splits(), shape_.padded);
  if (edge.factorized()) edge.reduction.norm_gradient = edge.norm_gradient[stage];
}

template <class T>
void Dag<T>::add_weight_gradient(const Edge& edge, const OperationWeights<T>& grads) const {
  const int64_t channels = shape_.channels, padded = shape_.padded, taps = edge.taps();
  if (edge.factorized()) {
    edge.reduction.add_weight_gradient(
        grads.reduction + shape_.reduction_index(edge.node, edge.input) * channels * channels);
    return;
  }
  const int kind = edge.operation - kSeparable3Operation;
  for (int stage = 0; stage < 2; ++stage) {
    const int64_t index = shape_.weight_index(edge.node, edge.input) * 2 + stage;
    T* depthwise = edge.grad_depthwise[stage];
    T* pointwise = edge.grad_pointwise[stage];
    for (int64_t p = 1; p < splits(); ++p) {
      const T* from = edge.grad_depthwise[stage] + p * taps * padded;
      for (int64_t i = 0; i < taps * padded; ++i) depthwise[i] += from[i];
      from = edge.grad_pointwise[stage] + p * padded * padded;
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
void Dag<T>::add_weight_gradients(const OperationWeights<T>& grads) {
  std::vector<std::vector<const Edge*>> groups;
  for (const Edge* edge : normalized_) {
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const auto& group) {
      return group[0]->node == edge->node && group[0]->input == edge->input &&
             group[0]->operation == edge->operation;
    });
    if (same == groups.end()) {
      groups.push_back({edge});
    } else {
      same->push_back(edge);
    }
  }
  run_tasks(static_cast<int64_t>(groups.size()), [&](int64_t i) {
    for (const Edge* edge : groups[static_cast<size_t>(i)]) add_weight_gradient(*edge, grads);
  });
}

template <class T>
void Dag<T>::backward(const Task& begin, const OperationWeights<T>& grads) {
  coefficients_.resize(edges_.size() * 6 * static_cast<size_t>(shape_.padded));
  const Block packed = pack(true);
  const Block weights = place_weight_gradients();
  for (int64_t phase = 0; phase <= last_done_; ++phase) {
    run_images([&](int64_t arch, int64_t split_index, Split images) {
      if (phase == 0) begin(arch, split_index, images);
      run_backward(phase, arch, split_index, images);
    });
    for (Edge* edge : normalized_) {
      const int64_t age = phase - done_[at(edge->arch, shape_.inputs + edge->node)];
      if (age >= 0 && age < edge->stages()) {
        finish_gradient(*edge, edge->last() - static_cast<int>(age));
      }
    }
  }
  add_weight_gradients(grads);
}

#define ASNG_INSTANTIATE(T) template void Dag<T>::backward(const Task&, const OperationWeights<T>&);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cpu
