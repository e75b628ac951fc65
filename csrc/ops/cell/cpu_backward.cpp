#include <algorithm>

#include "ops/cell/cpu.h"
#include "platform/threads.h"

namespace asng::cpu {

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

// The sums of the outputs' gradients, where nobody has taken them yet.
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
  // Both inputs may be the same images.
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
  place_inputs(memory, prev_prev, prev);
  dag_.place(memory);
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
  place_outputs(z, norms, normalized);
  for (PointwiseBatch<T>& p : outputs_) p.grads = {grad_y + p.arch * shape_.out_size()};
  {
    const Block packed = pack(outputs_, true);
    finish_gradients(outputs_, sums == nullptr ? reduce_outputs() : *sums);
    dag_.backward([&](int64_t arch, int64_t split_index,
                      Split images) { backward_outputs(arch, split_index, images); },
                  grads.operations);
    // All architectures share the weight: one after the other.
    for (const PointwiseBatch<T>& p : outputs_) p.add_weight_gradient(grads.output);
  }
  backward_inputs(grad_prev_prev, grad_prev, grads);
}

template <class T>
void Cell<T>::backward(const T* prev_prev, const T* prev, const T* y, const T* grad_y, T* saved,
                       T* grad_prev_prev, T* grad_prev, const CellWeights<T>& grads) {
  Bump<T> memory(saved, shape_.saved_bound());
  const T* norms = memory.take(2 * shape_.archs * shape_.padded);
  std::vector<bool> prev_prev_written(static_cast<size_t>(shape_.prev_prev.archs));
  std::vector<bool> prev_written(static_cast<size_t>(shape_.prev.archs));
  run_backward({prev_prev}, {prev}, y, norms, true, grad_y, nullptr, memory,
               {grad_prev_prev, &prev_prev_written}, {grad_prev, &prev_written}, grads);
  clear_unwritten(shape_, shape_.prev_prev, grad_prev_prev, prev_prev_written);
  clear_unwritten(shape_, shape_.prev, grad_prev, prev_written);
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
