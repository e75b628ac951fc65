#include <algorithm>

#include "cell.h"
#include "parallel.h"

namespace asng::cpu {

// Gradients of the sources, and the parts of the weights' gradients, of projections whose grads,
// z and sources are set. `rstd` is norm.scale.
template <class T>
void Cell<T>::backward_projections(std::vector<Projection<T>>& projections) {
  std::vector<PartialSums> sums(projections.size(), PartialSums(parts(), shape_.padded));
  const int64_t count = static_cast<int64_t>(projections.size());
  run_parts(count, parts(),
            [&](int64_t p, int64_t part_index) { projections[p].reduce(part_index, sums[p]); });
  std::vector<T> coefficients(projections.size() * 3 * static_cast<size_t>(shape_.padded));
  for (size_t p = 0; p < projections.size(); ++p) {
    projections[p].norm_gradient =
        finish_norm_gradient(sums[p], projections[p].pixels(), shape_.padded,
                             projections[p].norm.scale, projections[p].stored, T(1),
                             coefficients.data() + p * 3 * static_cast<size_t>(shape_.padded));
  }
  run_parts(count, parts(),
            [&](int64_t p, int64_t part_index) { projections[p].backward(part_index); });
}

template <class T>
void Cell<T>::backward_output(const T* y, const T* grad_y, T* grad_weight) {
  std::vector<Projection<T>*> all;
  for (Projection<T>& p : outputs_) {
    p.grads = {grad_y + p.arch * shape_.out_size()};
    p.z = const_cast<T*>(y) + p.arch * shape_.out_size();  // only read
    all.push_back(&p);
  }
  const Block packed = pack(all, true, true);
  backward_projections(outputs_);
  // All architectures share the weight: one after the other.
  for (const Projection<T>& p : outputs_) p.add_weight_gradient(grad_weight);
}

template <class T>
void Cell<T>::backward_inputs(T* grad_older, T* grad_newer, const CellWeights<T>& grads) {
  std::vector<Projection<T>*> all;
  for (Projection<T>& p : inputs_) {
    const CellInput& input = p.of_older ? shape_.older : shape_.newer;
    T* grad = p.of_older ? grad_older : grad_newer;
    if (grad != nullptr) {
      grad += p.arch * shape_.images * input.height * input.width * input.padded;
    }
    for (Source<T>& source : p.sources) source.grad = grad;
    const int64_t end = input.archs == 1 ? shape_.archs : p.arch + 1;
    for (int64_t a = p.arch; a < end; ++a) {
      const State<T>& s = state(a, p.of_older ? 0 : 1);
      if (s.has_grad) p.grads.push_back(s.grad);
    }
    all.push_back(&p);
  }
  const Block packed = pack(all, true, true);
  backward_projections(inputs_);
  run_tasks(2, [&](int64_t older) {
    for (const Projection<T>& p : inputs_) {
      if (p.of_older == (older == 1)) p.add_weight_gradient(older == 1 ? grads.older : grads.newer);
    }
  });
}

template <class T>
void Cell<T>::backward(const T* older, const T* newer, const T* y, const T* grad_y, T* saved,
                       T* grad_older, T* grad_newer, const CellWeights<T>& grads) {
  const int64_t archs = shape_.archs;
  Bump<T> memory(saved, shape_.saved_bound());
  T* norms = memory.take(2 * archs * shape_.padded);
  place_inputs(memory, older, newer);

  const int64_t count = archs * (2 * shape_.in_size() + shape_.nodes * shape_.out_size());
  const Block block = acquire(static_cast<size_t>(count) * sizeof(T));
  Bump<T> gradients(static_cast<T*>(block.get()), count);
  for (int64_t index = 0; index < shape_.nodes + 2; ++index) {
    T* images = nullptr;
    if (index >= 2) {
      images = memory.take(archs * shape_.out_size());
      nodes_[static_cast<size_t>(index - 2)].place(memory);
    }
    // Of a node, the gradients of all architectures lie one after the other, as its images do.
    for (int64_t arch = 0; arch < archs; ++arch) {
      State<T>& s = state(arch, index);
      s.grad = gradients.take(index < 2 ? shape_.in_size() : shape_.out_size());
      // A loose node has its gradient from the output, before any other node.
      s.has_grad = index >= 2 && !uses(arch, index);
      if (index < 2) continue;
      s.x = images + arch * shape_.out_size();
      s.height = shape_.out_height;
      s.width = shape_.out_width;
    }
  }
  place_outputs(const_cast<T*>(y), norms);
  backward_output(y, grad_y, grads.output);
  for (int64_t i = shape_.nodes - 1; i >= 0; --i) {
    nodes_[static_cast<size_t>(i)].backward(states_, state(0, i + 2).grad,
                                            node_weights(grads.operations, i, shape_.channels));
  }
  for (int64_t index = 0; index < 2; ++index) {
    const CellInput& input = index == 0 ? shape_.older : shape_.newer;
    T* grad = index == 0 ? grad_older : grad_newer;
    const int64_t size = shape_.images * input.height * input.width * input.padded;
    // What nobody reads has no projection that would write its gradient.
    for (int64_t arch = 0; grad != nullptr && arch < input.archs; ++arch) {
      bool read = false;
      for (int64_t a = arch; a < (input.archs == 1 ? archs : arch + 1); ++a) read |= uses(a, index);
      if (!read) std::fill_n(grad + arch * size, size, T(0));
    }
  }
  backward_inputs(grad_older, grad_newer, grads);
}

#define ASNG_INSTANTIATE(T)                                                           \
  template void Cell<T>::backward(const T*, const T*, const T*, const T*, T*, T*, T*, \
                                  const CellWeights<T>&);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cpu
