#include <algorithm>

#include "cell.h"
#include "parallel.h"

namespace asng::cpu {

// The gradients of the normalisations of projections whose grads, z and norm are set, from `sums`
// or, without them, from sums taken here.
template <class T>
void Cell<T>::finish_gradients(std::vector<Projection<T>>& projections,
                               const std::vector<PartialSums>* sums) {
  std::vector<PartialSums> own;
  if (sums == nullptr) {
    own.assign(projections.size(), PartialSums(parts(), shape_.padded));
    run_parts(static_cast<int64_t>(projections.size()), parts(),
              [&](int64_t p, int64_t part_index) { projections[p].reduce(part_index, own[p]); });
    sums = &own;
  }
  const size_t width = 3 * static_cast<size_t>(shape_.padded);
  coefficients_.resize(projections.size() * width);
  for (size_t p = 0; p < projections.size(); ++p) {
    projections[p].norm_gradient = finish_norm_gradient(
        (*sums)[p], projections[p].pixels(), shape_.padded, projections[p].norm.scale,
        projections[p].stored, T(1), coefficients_.data() + p * width);
  }
}

// Whoever makes the image of a loose node, and then its gradient, also takes the sums that the node
// needs of it, while both are in the cache.
template <class T>
void Cell<T>::backward_outputs(const T* grad_y, const std::vector<PartialSums>* sums,
                               T* grad_weight) {
  for (Projection<T>& p : outputs_) p.grads = {grad_y + p.arch * shape_.out_size()};
  const Block packed = pack(outputs_, true);
  finish_gradients(outputs_, sums);
  const int64_t image_size = shape_.out_size() / shape_.images;
  run_parts(shape_.archs, parts(), [&](int64_t arch, int64_t part_index) {
    const Projection<T>& p = outputs_[static_cast<size_t>(arch)];
    const std::vector<int64_t>& loose = loose_[static_cast<size_t>(arch)];
    const Part range = part(shape_.images, part_index);
    const Block block = acquire(loose_bytes());
    T* const nodes = static_cast<T*>(block.get());
    std::vector<Source<T>> from = loose_sources(p, nodes);
    for (Source<T>& source : from) source.grad += range.first * image_size;
    p.clear_gradient(part_index);
    for (int64_t image = range.first; image < range.first + range.count; ++image) {
      combine_loose(p, image, nodes);
      p.backward_images(from, image, 1, part_index);
      for (size_t i = 0; i < loose.size(); ++i) {
        nodes_[static_cast<size_t>(loose[i])].reduce(arch, image, 1, from[i].grad, part_index);
        from[i].grad += image_size;
      }
    }
  });
  // All architectures share the weight: one after the other.
  for (const Projection<T>& p : outputs_) p.add_weight_gradient(grad_weight);
}

template <class T>
void Cell<T>::backward_inputs(const InputGradient<T>& older, const InputGradient<T>& newer,
                              const CellWeights<T>& grads) {
  for (Projection<T>& p : inputs_) {
    const CellInput& input = p.of_older ? shape_.older : shape_.newer;
    const InputGradient<T>& target = p.of_older ? older : newer;
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
    const int64_t end = input.archs == 1 ? shape_.archs : p.arch + 1;
    for (int64_t a = p.arch; a < end; ++a) {
      const State<T>& s = state(a, p.of_older ? 0 : 1);
      if (s.has_grad) p.grads.push_back(s.grad);
    }
  }
  const Block packed = pack(inputs_, true);
  finish_gradients(inputs_, nullptr);
  // Both inputs may be the same images.
  const auto first_newer = std::find_if(inputs_.begin(), inputs_.end(),
                                        [](const Projection<T>& p) { return !p.of_older; });
  const int64_t olders = first_newer - inputs_.begin();
  for (const bool of_older : {true, false}) {
    const int64_t begin = of_older ? 0 : olders;
    const int64_t end = of_older ? olders : static_cast<int64_t>(inputs_.size());
    run_parts(end - begin, parts(),
              [&](int64_t p, int64_t part_index) { inputs_[begin + p].backward(part_index); });
  }
  run_tasks(2, [&](int64_t of_older) {
    for (const Projection<T>& p : inputs_) {
      if (p.of_older == (of_older == 1)) {
        p.add_weight_gradient(of_older == 1 ? grads.older : grads.newer);
      }
    }
  });
}

template <class T>
void Cell<T>::run_backward(CellImages<T> older, CellImages<T> newer, const T* z, const T* norms,
                           bool normalised, const T* grad_y, const std::vector<PartialSums>* sums,
                           Bump<T>& memory, const InputGradient<T>& grad_older,
                           const InputGradient<T>& grad_newer, const CellWeights<T>& grads) {
  const int64_t archs = shape_.archs;
  place_inputs(memory, older, newer);
  const int64_t count = archs * (2 * shape_.in_size() + shape_.nodes * shape_.out_size());
  const Block block = acquire(static_cast<size_t>(count) * sizeof(T));
  Bump<T> gradients(static_cast<T*>(block.get()), count);
  for (int64_t index = 0; index < shape_.nodes + 2; ++index) {
    if (index >= 2) place_node(memory, memory, index - 2);
    // Of a node, the gradients of all architectures lie one after the other.
    for (int64_t arch = 0; arch < archs; ++arch) {
      State<T>& s = state(arch, index);
      s.grad = gradients.take(index < 2 ? shape_.in_size() : shape_.out_size());
      // A loose node has its gradient from the output, before any other node.
      s.has_grad = index >= 2 && !uses(arch, index);
    }
  }
  place_outputs(z, norms, normalised);
  for (Node<T>& node : nodes_) node.begin_backward();
  backward_outputs(grad_y, sums, grads.output);
  for (int64_t i = shape_.nodes - 1; i >= 0; --i) {
    std::vector<bool> reduced;
    for (int64_t arch = 0; arch < archs; ++arch) reduced.push_back(!uses(arch, i + 2));
    nodes_[static_cast<size_t>(i)].backward(
        states_, state(0, i + 2).grad, node_weights(grads.operations, i, shape_.channels), reduced);
  }
  backward_inputs(grad_older, grad_newer, grads);
}

template <class T>
void Cell<T>::backward(const T* older, const T* newer, const T* y, const T* grad_y, T* saved,
                       T* grad_older, T* grad_newer, const CellWeights<T>& grads) {
  Bump<T> memory(saved, shape_.saved_bound());
  const T* norms = memory.take(2 * shape_.archs * shape_.padded);
  std::vector<bool> older_written(static_cast<size_t>(shape_.older.archs));
  std::vector<bool> newer_written(static_cast<size_t>(shape_.newer.archs));
  run_backward({older}, {newer}, y, norms, true, grad_y, nullptr, memory,
               {grad_older, &older_written}, {grad_newer, &newer_written}, grads);
  clear_unwritten(shape_, shape_.older, grad_older, older_written);
  clear_unwritten(shape_, shape_.newer, grad_newer, newer_written);
}

template <class T>
void clear_unwritten(const CellShape& shape, const CellInput& input, T* grad,
                     const std::vector<bool>& written) {
  if (grad == nullptr) return;
  const int64_t size = shape.images * input.height * input.width * input.padded;
  for (size_t arch = 0; arch < written.size(); ++arch) {
    if (!written[arch]) std::fill_n(grad + static_cast<int64_t>(arch) * size, size, T(0));
  }
}

#define ASNG_INSTANTIATE(T)                                                                        \
  template void clear_unwritten(const CellShape&, const CellInput&, T*, const std::vector<bool>&); \
  template void Cell<T>::run_backward(CellImages<T>, CellImages<T>, const T*, const T*, bool,      \
                                      const T*, const std::vector<PartialSums>*, Bump<T>&,         \
                                      const InputGradient<T>&, const InputGradient<T>&,            \
                                      const CellWeights<T>&);                                      \
  template void Cell<T>::backward(const T*, const T*, const T*, const T*, T*, T*, T*,              \
                                  const CellWeights<T>&);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cpu
