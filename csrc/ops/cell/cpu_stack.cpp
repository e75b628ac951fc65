#include <algorithm>
#include <utility>

#include "ops/cell/cpu.h"
#include "platform/threads.h"

namespace asng::cpu {
namespace {

// What a cell saves in a stack beyond what it saves alone: its output.
int64_t output_values(const CellShape& shape) {
  return shape.saved_in_stack().values() - shape.saved().values();
}

}  // namespace

template <class T>
CellStack<T>::CellStack(std::vector<CellShape> shapes,
                        const std::vector<CellWeights<const T>>& weights,
                        const std::vector<const int32_t*>& inputs,
                        const std::vector<const int32_t*>& operations)
    : shapes_(std::move(shapes)) {
  cells_.reserve(shapes_.size());
  for (size_t i = 0; i < shapes_.size(); ++i) {
    cells_.emplace_back(shapes_[i], weights[i], inputs[i], operations[i]);
  }
}

template <class T>
int64_t CellStack<T>::saved_size(const std::vector<CellShape>& shapes) {
  int64_t total = 0;
  for (const CellShape& shape : shapes) total += shape.saved_in_stack().values();
  return total;
}

template <class T>
void CellStack<T>::allocate_outputs(Bump<T>& memory, T* y) {
  outputs_.clear();
  for (size_t i = 0; i < shapes_.size(); ++i) {
    const CellShape& s = shapes_[i];
    T* z = i + 1 < shapes_.size() ? memory.take(s.archs * s.out_size()) : y;
    outputs_.push_back({z, memory.take(2 * s.archs * s.padded)});
  }
}

// Input of the stack -2 or -1, or output of a cell.
template <class T>
CellImages<T> CellStack<T>::input(int64_t index, const T* prev_prev, const T* prev) const {
  if (index < 0) return {index == -2 ? prev_prev : prev};
  const Output& output = outputs_[static_cast<size_t>(index)];
  return {output.z, output.norms};
}

template <class T>
void CellStack<T>::forward(const T* prev_prev, const T* prev, T* y, T* saved) {
  const bool save = saved != nullptr;
  int64_t outputs = 0, working = 0;
  for (const CellShape& shape : shapes_) {
    outputs += output_values(shape);
    working = std::max(working, shape.saved().values());
  }
  const int64_t count = save ? saved_size(shapes_) : outputs;
  const Block block = acquire(save ? 0 : static_cast<size_t>(count) * sizeof(T));
  Bump<T> memory(save ? saved : static_cast<T*>(block.get()), count);
  allocate_outputs(memory, y);
  // Cells that save nothing use the same memory one after the other.
  const Block shared = acquire(save ? 0 : static_cast<size_t>(working) * sizeof(T));
  for (size_t i = 0; i < cells_.size(); ++i) {
    const int64_t index = static_cast<int64_t>(i);
    Bump<T> reused(static_cast<T*>(shared.get()), save ? 0 : working);
    cells_[i].run(input(index - 2, prev_prev, prev), input(index - 1, prev_prev, prev),
                  outputs_[i].z, outputs_[i].norms, save ? memory : reused, save);
  }
  cells_.back().normalize(y, outputs_.back().norms);
}

template <class T>
void CellStack<T>::backward(const T* prev_prev, const T* prev, const T* y, const T* grad_y,
                            T* saved, T* grad_prev_prev, T* grad_prev,
                            const std::vector<CellWeights<T>>& grads) {
  const int64_t count = static_cast<int64_t>(cells_.size());
  // The last cell to save is the first to be needed: every cell begins where it began in `forward`.
  Bump<T> memory(saved, saved_size(shapes_));
  allocate_outputs(memory, const_cast<T*>(y));  // only read
  std::vector<Bump<T>> begins;
  for (size_t i = 0; i < cells_.size(); ++i) {
    const int64_t index = static_cast<int64_t>(i);
    begins.push_back(memory);
    cells_[i].skip(input(index - 2, prev_prev, prev), input(index - 1, prev_prev, prev), memory);
  }
  struct Gradient {
    Block block;
    std::vector<bool> written;
    std::vector<PartialSums> sums;
  };
  std::vector<Gradient> gradients(cells_.size());
  std::vector<bool> first_written[2];
  const bool same = grad_prev_prev != nullptr && grad_prev_prev == grad_prev;
  first_written[0].resize(static_cast<size_t>(shapes_[0].prev_prev.archs));
  first_written[1].resize(static_cast<size_t>(shapes_[0].prev.archs));
  const auto target = [&](int64_t index, bool is_prev) -> InputGradient<T> {
    if (index < 0) {
      return {index == -2 ? grad_prev_prev : grad_prev, &first_written[same || index == -1]};
    }
    const CellShape& shape = shapes_[static_cast<size_t>(index)];
    Gradient& g = gradients[static_cast<size_t>(index)];
    if (g.block == nullptr) {
      g.block = acquire(static_cast<size_t>(shape.archs * shape.out_size()) * sizeof(T));
      g.written.assign(static_cast<size_t>(shape.archs), false);
    }
    // The cell that reads an output as its prev input comes last, and ReLU stops the gradients of
    // both readers at the same values.
    if (is_prev) {
      g.sums.assign(static_cast<size_t>(shape.archs),
                    PartialSums(split_count(shape.images), shape.padded));
    }
    return {static_cast<T*>(g.block.get()), &g.written, is_prev ? &g.sums : nullptr};
  };
  for (int64_t i = count - 1; i >= 0; --i) {
    Cell<T>& cell = cells_[static_cast<size_t>(i)];
    const CellShape& shape = shapes_[static_cast<size_t>(i)];
    Gradient own = std::move(gradients[static_cast<size_t>(i)]);
    const T* grad = grad_y;
    bool all_summed = false;
    if (i < count - 1) {
      T* inner = static_cast<T*>(own.block.get());
      const CellInput output = {shape.archs, shape.channels, shape.padded, shape.out_height,
                                shape.out_width};
      clear_unwritten(shape, output, inner, own.written);
      grad = inner;
      all_summed = true;
      for (int64_t arch = 0; arch < shape.archs; ++arch) {
        all_summed &= cells_[static_cast<size_t>(i + 1)].reads(arch, false);
      }
    }
    const Output& output = outputs_[static_cast<size_t>(i)];
    const InputGradient<T> to_prev_prev = target(i - 2, false), to_prev = target(i - 1, true);
    cell.run_backward(input(i - 2, prev_prev, prev), input(i - 1, prev_prev, prev), output.z,
                      output.norms, i == count - 1, grad, all_summed ? &own.sums : nullptr,
                      begins[static_cast<size_t>(i)], to_prev_prev, to_prev,
                      grads[static_cast<size_t>(i)]);
  }
  if (!same) clear_unwritten(shapes_[0], shapes_[0].prev_prev, grad_prev_prev, first_written[0]);
  clear_unwritten(shapes_[0], shapes_[0].prev, grad_prev, first_written[1]);
}

template class CellStack<float>;
template class CellStack<double>;

}  // namespace asng::cpu
