// Cells one after the other. Between them the outputs stay as they are before normalisation, and
// whoever reads one normalises on the way.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/cell/cpu.h"

namespace asng::cpu {

template <class T>
class Chain {
 public:
  // Cell i reads the outputs of cells i - 2 and i - 1; before them are the inputs of the chain.
  // `inputs` and `operations` of each cell as in Cell. Throws std::invalid_argument.
  Chain(std::vector<CellShape> shapes, const std::vector<CellWeights<const T>>& weights,
        const std::vector<const int32_t*>& inputs, const std::vector<const int32_t*>& operations);

  // Values that the backward pass needs, at most. The function of the same name in
  // asng_ext/ops/cell.py must agree.
  static int64_t saved_bound(const std::vector<CellShape>& shapes);

  // y is the normalised output of the last cell. `saved` has saved_bound() values or is null.
  void forward(const T* older, const T* newer, T* y, T* saved);

  // grad_older and grad_newer are written, either may be null; if both are the same, so are the
  // inputs, and it receives the sum. The weights' `grads` are added to.
  void backward(const T* older, const T* newer, const T* y, const T* grad_y, T* saved,
                T* grad_older, T* grad_newer, const std::vector<CellWeights<T>>& grads);

 private:
  struct Output {
    T* z = nullptr;
    T* norms = nullptr;
  };

  void place_outputs(Bump<T>& memory, T* y);
  CellImages<T> input(int64_t index, const T* older, const T* newer) const;

  std::vector<CellShape> shapes_;
  std::vector<Cell<T>> cells_;
  std::vector<Output> outputs_;
};

}  // namespace asng::cpu
