// Mixtures on the CPU: a dag of nodes with many edges, whose weights come one by one.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/cell/cpu.h"
#include "ops/mixture/shape.h"

namespace asng::cpu {

template <class T>
class Mixture {
 public:
  // `weights` in the order of MixtureShape::weights(); `inputs` are feature maps, one for each of
  // the dag's; `nodes` (nodes, images, out_height, out_width, padded) is the result.
  Mixture(const MixtureShape& shape, const std::vector<const T*>& weights, const T* coefficients,
          const std::vector<const T*>& inputs, T* nodes);

  // `saved` has the shape's saved() values or is null.
  void forward(T* saved);

  // After a forward pass of the same nodes, with what it has saved. All gradients are written;
  // without `grad_weights` there are none of the weights.
  void backward(T* saved, const T* grad_nodes, const std::vector<T*>& grad_inputs,
                T* grad_coefficients, const std::vector<T*>& grad_weights);

 private:
  // Calls f(values, count) for every weight in order, where it lies in `stacked`.
  template <class F>
  void for_weights(const OperationWeights<T>& stacked, F f) const;
  OperationWeights<T> stack(Block& block) const;

  MixtureShape shape_;
  Block weight_block_;
  OperationWeights<T> weights_;
  Dag<T> dag_;
};

}  // namespace asng::cpu
