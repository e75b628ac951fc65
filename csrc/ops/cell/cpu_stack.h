// Cells one after the other. Between them the outputs stay as they are before normalization, and
// whoever reads one normalizes on the way.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/cell/cpu.h"

namespace asng::cpu {

template <class T>
class CellStack {
 public:
  // Cell i reads the outputs of cells i - 2 and i - 1; before them are the inputs of the stack.
  // `inputs` and `operations` of each cell as in Cell. Throws std::invalid_argument.
  CellStack(std::vector<CellShape> shapes, const std::vector<CellWeights<const T>>& weights,
            const std::vector<const int32_t*>& inputs,
            const std::vector<const int32_t*>& operations);

  // Values that the backward pass needs, at most. The function of the same name in
  // asng_ext/ops/cell.py must agree.
  static int64_t saved_bound(const std::vector<CellShape>& shapes);

  // y is the normalized output of the last cell. `saved` has saved_bound() values or is null.
  void forward(const T* prev_prev, const T* prev, T* y, T* saved);

  // grad_prev_prev and grad_prev are written, either may be null; if both are the same, so are the
  // inputs, and it receives the sum. The weights' `grads` are added to.
  void backward(const T* prev_prev, const T* prev, const T* y, const T* grad_y, T* saved,
                T* grad_prev_prev, T* grad_prev, const std::vector<CellWeights<T>>& grads);

 private:
  struct Output {
    T* z = nullptr;
    T* norms = nullptr;
  };

  void place_outputs(Bump<T>& memory, T* y);
  CellImages<T> input(int64_t index, const T* prev_prev, const T* prev) const;

  std::vector<CellShape> shapes_;
  std::vector<Cell<T>> cells_;
  std::vector<Output> outputs_;
};

}  // namespace asng::cpu
