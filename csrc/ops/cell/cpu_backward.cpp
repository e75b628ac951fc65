// Backward passes of nodes and cells.
#include <algorithm>

#include "ops/cell/cpu.h"
#include "platform/threads.h"

namespace asng::cpu {
namespace {

double second_total(const PartialSums& sums, int64_t channels) {
  double total = 0;
  for (int64_t c = 0; c < channels; ++c) total += sums.second_total(c);
  return total;
}

}  // namespace

// Memory for the weights' gradients of every part of the batch, zeros. Those of factorized
// reductions are always made.
template <class T>
Block Dag<T>::allocate_weight_gradients(bool of_separables) {
  const int64_t padded = shape_.padded;
  const int64_t per_stage = splits() * (padded * padded + kMostKernelElements * padded);
  const int64_t count = shape_.archs * shape_.nodes * shape_.edges * 2 * per_stage;
  Block block = acquire(static_cast<size_t>(count) * sizeof(T));
  Bump<T> memory(static_cast<T*>(block.get()), count);
  for (Edge* edge : normalized_) {
    if (edge->factorized()) {
      edge->reduction.grad_splits = memory.take(splits() * edge->reduction.packed_size());
      continue;
    }
    if (!of_separables) continue;
    for (int stage = 0; stage < 2; ++stage) {
      edge->grad_depthwise[stage] = memory.take(splits() * edge->kernel_elements() * padded);
      edge->grad_pointwise[stage] = memory.take(splits() * padded * padded);
    }
  }
  run_tasks(static_cast<int64_t>(normalized_.size()), [&](int64_t i) {
    const Edge& edge = *normalized_[static_cast<size_t>(i)];
    if (edge.factorized()) {
      edge.reduction.clear_gradient();
      return;
    }
    if (!of_separables) return;
    for (int stage = 0; stage < 2; ++stage) {
      std::fill_n(edge.grad_depthwise[stage], splits() * edge.kernel_elements() * padded, T(0));
      std::fill_n(edge.grad_pointwise[stage], splits() * padded * padded, T(0));
    }
  });
  return block;
}

// What the gradient of a normalization needs to know of the batch, from some of it.
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

// For the coefficients' gradients: what some of the batch adds to ⟨gradient of a node, edge⟩ of
// those edges that have no normalization, whose gradient needs the same sum.
template <class T>
void Dag<T>::reduce_terms(const Combine<T>& task, const std::vector<Edge*>& edges,
                          int64_t split_index) {
  const int64_t pixels = task.images * shape_.out_height * shape_.out_width;
  const Block block = acquire(static_cast<size_t>(pixels * shape_.padded) * sizeof(T));
  for (size_t e = 0; e < edges.size(); ++e) {
    Term<T> term = task.terms[e];
    if (term.normalized) continue;
    if (term.form == Form::kIdentity) {
      reduce(task.grad, term.x, term.affine, pixels, split_index, edges[e]->sums);
      continue;
    }
    term.factor = 1;
    Combine<T> pool = task;
    pool.terms = &term;
    pool.term_count = 1;
    pool.out = static_cast<T*>(block.get());
    kernels<T>().combine_forward(pool);
    reduce(task.grad, pool.out, {}, pixels, split_index, edges[e]->sums);
  }
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
  if (edge.grad_depthwise[stage] != nullptr) {
    task.grad_depthwise =
        edge.grad_depthwise[stage] + split_index * edge.kernel_elements() * padded;
    task.grad_pointwise = edge.grad_pointwise[stage] + split_index * padded * padded;
  }
  if (stage == 1) {
    task.sum = edge.sums.first(split_index);
    task.dot = edge.sums.second(split_index);
  }
  kernels<T>().separable_backward(task);
}

template <class T>
void Dag<T>::run_backward(int64_t level, int64_t arch, int64_t split_index, Split images) {
  const int64_t first = images.first * shape_.image_size();
  for (int64_t s = shape_.states() - 1; s >= shape_.inputs; --s) {
    const int64_t step = level - backward_level_[at(arch, s)];
    if (step < 0 || step > 2) continue;
    const T* grad = states_[at(arch, s)].grad + first;
    if (step == 0) {
      std::vector<Term<T>> terms;
      Combine<T> task = combine_task(arch, s - shape_.inputs, images, terms);
      task.grad = grad;
      if (mixture_) reduce_terms(task, node_edges_[at(arch, s)], split_index);
      kernels<T>().combine_backward(task);
    }
    for (Edge* edge : node_edges_[at(arch, s)]) {
      if (edge->stages() == 0) continue;
      const int last = edge->last();
      if (step == 0) {
        reduce(grad, edge->z[last] + first, edge->norm[last].affine(),
               images.count * shape_.out_height * shape_.out_width, split_index, edge->sums);
      } else if (step <= edge->stages()) {
        backward_stage(*edge, edge->stages() - static_cast<int>(step), split_index, images);
      }
    }
  }
  for (int64_t s = 0; s < shape_.inputs; ++s) {
    const State<T>& input = states_[at(arch, s)];
    if (input.sums == nullptr || !input.has_grad || backward_level_[at(arch, s)] != level) continue;
    const int64_t pixels = input.height * input.width;
    const int64_t begin = images.first * pixels * shape_.padded;
    reduce(input.grad + begin, input.x + begin, input.affine, images.count * pixels, split_index,
           *input.sums);
  }
}

template <class T>
void Dag<T>::finish_gradient(Edge& edge, int stage) {
  const int64_t index = (&edge - edges_.data()) * 2 + stage;
  const T factor = stage == edge.last() ? edge.multiplicity : T(1);
  if (mixture_ && stage == edge.last()) {
    edge.coefficient_gradient = second_total(edge.sums, shape_.channels);
  }
  edge.norm_gradient[stage] = finish_norm_gradient(
      edge.sums, shape_.pixels(), shape_.padded, edge.norm[stage].scale, edge.norm[stage].affine(),
      factor, coefficients_.data() + index * 3 * shape_.padded);
  edge.sums = PartialSums(splits(), shape_.padded);
  if (edge.factorized()) edge.reduction.norm_gradient = edge.norm_gradient[stage];
}

template <class T>
void Dag<T>::add_weight_gradient(const Edge& edge, const OperationWeights<T>& grads) const {
  const int64_t channels = shape_.channels, padded = shape_.padded;
  const int64_t elements = edge.kernel_elements();
  if (edge.factorized()) {
    edge.reduction.add_weight_gradient(
        grads.reduction + shape_.reduction_index(edge.node, edge.input) * channels * channels);
    return;
  }
  for (int stage = 0; stage < 2; ++stage) {
    const int64_t index = weight_index(shape_.inputs, edge.node, edge.input) * 2 + stage;
    T* depthwise = edge.grad_depthwise[stage];
    T* pointwise = edge.grad_pointwise[stage];
    for (int64_t p = 1; p < splits(); ++p) {
      const T* from = edge.grad_depthwise[stage] + p * elements * padded;
      for (int64_t i = 0; i < elements * padded; ++i) depthwise[i] += from[i];
      from = edge.grad_pointwise[stage] + p * padded * padded;
      for (int64_t i = 0; i < padded * padded; ++i) pointwise[i] += from[i];
    }
    T* to = grads.depthwise[edge.info.separable] + index * channels * elements;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t k = 0; k < elements; ++k) to[c * elements + k] += depthwise[k * padded + c];
    }
    to = grads.pointwise[edge.info.separable] + index * channels * channels;
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
void Dag<T>::backward(const Task& begin, const OperationWeights<T>* grads) {
  coefficients_.resize(edges_.size() * 6 * static_cast<size_t>(shape_.padded));
  const Block packed = pack(true);
  const Block weights = allocate_weight_gradients(grads != nullptr);
  if (mixture_) {
    for (Edge& edge : edges_) {
      if (edge.stages() == 0) edge.sums = PartialSums(splits(), shape_.padded);
    }
  }
  for (int64_t level = 0; level <= last_backward_level_; ++level) {
    run_images([&](int64_t arch, int64_t split_index, Split images) {
      if (level == 0) begin(arch, split_index, images);
      run_backward(level, arch, split_index, images);
    });
    for (Edge* edge : normalized_) {
      const int64_t step = level - backward_level_[at(edge->arch, shape_.inputs + edge->node)];
      if (step >= 0 && step < edge->stages()) {
        finish_gradient(*edge, edge->last() - static_cast<int>(step));
      }
    }
  }
  if (mixture_) {
    for (Edge& edge : edges_) {
      if (edge.stages() > 0) continue;
      edge.coefficient_gradient = second_total(edge.sums, shape_.channels);
    }
  }
  if (grads != nullptr) add_weight_gradients(*grads);
}

// The gradients of the normalizations of projections, from their sums.
template <class T>
void Cell<T>::finish_gradients(std::vector<PointwiseBatch<T>>& projections,
                               const std::vector<PartialSums>& sums) {
  const size_t width = 3 * static_cast<size_t>(shape_.padded);
  coefficients_.resize(projections.size() * width);
  for (size_t p = 0; p < projections.size(); ++p) {
    projections[p].norm_gradient = finish_norm_gradient(
        sums[p], projections[p].pixels(), shape_.padded, projections[p].norm.scale,
        projections[p].stored, T(1), coefficients_.data() + p * width);
  }
}

// The sums of the outputs' gradients, where they have not been taken yet.
template <class T>
std::vector<PartialSums> Cell<T>::reduce_outputs() const {
  std::vector<PartialSums> sums(outputs_.size(), PartialSums(splits(), shape_.padded));
  run_splits(shape_.archs, splits(), [&](int64_t arch, int64_t split_index) {
    outputs_[static_cast<size_t>(arch)].reduce(split(shape_.images, split_index), split_index,
                                               sums[static_cast<size_t>(arch)]);
  });
  return sums;
}

// The gradients of leaf nodes.
template <class T>
void Cell<T>::backward_outputs(int64_t arch, int64_t split_index, Split images) const {
  const PointwiseBatch<T>& p = outputs_[static_cast<size_t>(arch)];
  const int64_t image_size = shape_.out_size() / shape_.images;
  const Block block = acquire(leaf_bytes());
  T* const nodes = static_cast<T*>(block.get());
  std::vector<Source<T>> from = leaf_sources(p, nodes);
  for (Source<T>& source : from) source.grad += images.first * image_size;
  for (int64_t image = images.first; image < images.first + images.count; ++image) {
    combine_leaf(p, image, nodes);
    p.backward_from(from, {image, 1}, split_index);
    for (Source<T>& source : from) source.grad += image_size;
  }
}

template <class T>
void Cell<T>::backward_inputs(const InputGradient<T>& prev_prev, const InputGradient<T>& prev,
                              const CellWeights<T>& grads) {
  std::vector<PartialSums> sums;
  for (PointwiseBatch<T>& p : inputs_) {
    const CellInput& input = p.of_prev_prev ? shape_.prev_prev : shape_.prev;
    const InputGradient<T>& target = p.of_prev_prev ? prev_prev : prev;
    if (target.grad != nullptr) {
      const auto written = target.written->begin() + p.arch;
      p.sources[0].accumulate = *written;
      *written = true;
      for (Source<T>& source : p.sources) {
        source.grad =
            target.grad + p.arch * shape_.images * input.height * input.width * input.padded;
      }
      if (target.sums != nullptr) p.source_sums = &(*target.sums)[static_cast<size_t>(p.arch)];
    }
    PartialSums& total = sums.emplace_back(splits(), shape_.padded);
    const int64_t end = input.archs == 1 ? shape_.archs : p.arch + 1;
    for (int64_t a = p.arch; a < end; ++a) {
      const State<T>& s = dag_.state(a, p.of_prev_prev ? 0 : 1);
      if (!s.has_grad) continue;
      p.grads.push_back(s.grad);
      total.add(*s.sums);
    }
  }
  const Block packed = pack(inputs_, true);
  finish_gradients(inputs_, sums);
  // Both inputs may be the same feature maps.
  const auto first_prev = std::find_if(inputs_.begin(), inputs_.end(),
                                       [](const PointwiseBatch<T>& p) { return !p.of_prev_prev; });
  const int64_t prev_prevs = first_prev - inputs_.begin();
  for (const bool of_prev_prev : {true, false}) {
    const int64_t begin = of_prev_prev ? 0 : prev_prevs;
    const int64_t end = of_prev_prev ? prev_prevs : static_cast<int64_t>(inputs_.size());
    run_splits(end - begin, splits(), [&](int64_t p, int64_t split_index) {
      inputs_[begin + p].backward(split(shape_.images, split_index), split_index);
    });
  }
  run_tasks(2, [&](int64_t of_prev_prev) {
    for (const PointwiseBatch<T>& p : inputs_) {
      if (p.of_prev_prev == (of_prev_prev == 1)) {
        p.add_weight_gradient(of_prev_prev == 1 ? grads.prev_prev : grads.prev);
      }
    }
  });
}

template <class T>
void Cell<T>::run_backward(CellImages<T> prev_prev, CellImages<T> prev, const T* z, const T* norms,
                           bool normalized, const T* grad_y, const std::vector<PartialSums>* sums,
                           Bump<T>& memory, const InputGradient<T>& grad_prev_prev,
                           const InputGradient<T>& grad_prev, const CellWeights<T>& grads) {
  allocate_inputs(memory, prev_prev, prev);
  dag_.allocate(memory);
  const int64_t count = shape_.archs * 2 * shape_.in_size() + dag_.gradient_bound();
  const Block block = acquire(static_cast<size_t>(count) * sizeof(T));
  Bump<T> gradients(static_cast<T*>(block.get()), count);
  std::vector<PartialSums> input_sums(static_cast<size_t>(2 * shape_.archs),
                                      PartialSums(splits(), shape_.padded));
  for (int64_t arch = 0; arch < shape_.archs; ++arch) {
    for (int64_t index = 0; index < 2; ++index) {
      State<T>& s = dag_.state(arch, index);
      s.grad = gradients.take(shape_.in_size());
      s.sums = &input_sums[static_cast<size_t>(2 * arch + index)];
    }
  }
  dag_.allocate_gradients(gradients);
  set_up_outputs(z, norms, normalized);
  for (PointwiseBatch<T>& p : outputs_) p.grads = {grad_y + p.arch * shape_.out_size()};
  {
    const Block packed = pack(outputs_, true);
    finish_gradients(outputs_, sums == nullptr ? reduce_outputs() : *sums);
    dag_.backward([&](int64_t arch, int64_t split_index,
                      Split images) { backward_outputs(arch, split_index, images); },
                  &grads.operations);
    // All architectures share the weight: one after the other.
    for (const PointwiseBatch<T>& p : outputs_) p.add_weight_gradient(grads.output);
  }
  backward_inputs(grad_prev_prev, grad_prev, grads);
}

template <class T>
void Cell<T>::backward(const T* prev_prev, const T* prev, const T* y, const T* grad_y, T* saved,
                       T* grad_prev_prev, T* grad_prev, const CellWeights<T>& grads) {
  Bump<T> memory(saved, shape_.saved().values());
  const T* norms = memory.take(2 * shape_.archs * shape_.padded);
  std::vector<bool> prev_prev_written(static_cast<size_t>(shape_.prev_prev.archs));
  std::vector<bool> prev_written(static_cast<size_t>(shape_.prev.archs));
  run_backward({prev_prev}, {prev}, y, norms, true, grad_y, nullptr, memory,
               {grad_prev_prev, &prev_prev_written}, {grad_prev, &prev_written}, grads);
  clear_unwritten(shape_, shape_.prev_prev, grad_prev_prev, prev_prev_written);
  clear_unwritten(shape_, shape_.prev, grad_prev, prev_written);
}

// The members that this file defines.
#define ASNG_INSTANTIATE(T)                                                                   \
  template void Dag<T>::backward(const Task&, const OperationWeights<T>*);                    \
  template void Cell<T>::run_backward(CellImages<T>, CellImages<T>, const T*, const T*, bool, \
                                      const T*, const std::vector<PartialSums>*, Bump<T>&,    \
                                      const InputGradient<T>&, const InputGradient<T>&,       \
                                      const CellWeights<T>&);                                 \
  template void Cell<T>::backward(const T*, const T*, const T*, const T*, T*, T*, T*,         \
                                  const CellWeights<T>&);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cpu
