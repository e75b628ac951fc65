// Tensors of a cell: what they must be, and the plain pointers to them.
#pragma once

#include <vector>

#include "ops/cell/cpu.h"
#include "platform/cpu_tensors.h"

namespace asng::cpu {

// Weights of `edges` separable convolutions and of `reductions` factorized reductions.
inline void check_weights(const std::vector<Tensor>& convolutions, const OptionalTensor& reduction,
                          ScalarType dtype, int64_t edges, int64_t reductions, int64_t channels) {
  check(convolutions[0], "depthwise3", dtype, {edges, 2, channels, 1, 3, 3});
  check(convolutions[1], "pointwise3", dtype, {edges, 2, channels, channels});
  check(convolutions[2], "depthwise5", dtype, {edges, 2, channels, 1, 5, 5});
  check(convolutions[3], "pointwise5", dtype, {edges, 2, channels, channels});
  if (reduction.has_value()) {
    check(*reduction, "reduction", dtype, {reductions, channels, channels});
  }
}

template <class T, class P = T>
OperationWeights<P> pointers(const std::vector<Tensor>& convolutions,
                             const OptionalTensor& reduction) {
  const auto data = [](const Tensor& t) { return static_cast<T*>(t.data_ptr()); };
  OperationWeights<P> weights;
  for (int kind = 0; kind < 2; ++kind) {
    weights.depthwise[kind] = data(convolutions[2 * kind]);
    weights.pointwise[kind] = data(convolutions[2 * kind + 1]);
  }
  weights.reduction = reduction.has_value() ? data(*reduction) : nullptr;
  return weights;
}

// The weights of a cell, or their gradients.
struct CellTensors {
  Tensor prev_prev, prev;
  std::vector<Tensor> convolutions;
  OptionalTensor reduction;
  Tensor output;

  template <class T, class P = T>
  CellWeights<P> pointers() const {
    CellWeights<P> weights;
    weights.prev_prev = static_cast<T*>(prev_prev.data_ptr());
    weights.prev = static_cast<T*>(prev.data_ptr());
    weights.output = static_cast<T*>(output.data_ptr());
    weights.operations = cpu::pointers<T, P>(convolutions, reduction);
    return weights;
  }
};

inline CellTensors zeros_like(const CellTensors& weights) {
  CellTensors zeros = {
      zeros_like(weights.prev_prev), zeros_like(weights.prev), {}, {}, zeros_like(weights.output)};
  for (const Tensor& t : weights.convolutions) zeros.convolutions.push_back(zeros_like(t));
  if (weights.reduction.has_value()) zeros.reduction = zeros_like(*weights.reduction);
  return zeros;
}

// The shape of a cell for `archs` architectures of `nodes` nodes on batches of `images`; the sizes
// and the first dimensions of its inputs are set. Checks them and the weights.
inline CellShape cell_shape(int64_t archs, int64_t nodes, int64_t images, CellInput prev_prev,
                            CellInput prev, const CellTensors& weights, bool prev_prev_is_larger,
                            ScalarType dtype) {
  for (const Tensor* weight : {&weights.prev_prev, &weights.prev}) {
    STD_TORCH_CHECK(weight->dim() == 2,
                    "prev_prev_weight and prev_weight must have 2 dimensions, got ", weight->dim());
  }
  STD_TORCH_CHECK(archs > 0 && nodes > 0, "inputs must not be empty");
  STD_TORCH_CHECK(weights.prev_prev.size(0) > 0, "prev_prev_weight must not be empty");
  CellShape shape;
  shape.archs = archs;
  shape.nodes = nodes;
  shape.images = images;
  shape.channels = weights.prev_prev.size(0);
  shape.padded = padded_channels(shape.channels);
  shape.reduction = weights.reduction.has_value();
  shape.prev_prev_is_larger = prev_prev_is_larger;
  prev_prev.channels = weights.prev_prev.size(1);
  prev.channels = weights.prev.size(1);
  for (const CellInput* input : {&prev_prev, &prev}) {
    const char* name = input == &prev_prev ? "prev_prev" : "prev";
    STD_TORCH_CHECK(input->archs == 1 || input->archs == archs, "the first dimension of ", name,
                    " must be 1 or the number of architectures, ", archs, ", got ", input->archs);
    STD_TORCH_CHECK(input->padded == padded_channels(input->channels), name, " must have ",
                    padded_channels(input->channels), " channels for a weight of ", input->channels,
                    ", got ", input->padded);
  }
  shape.prev_prev = prev_prev;
  shape.prev = prev;
  // saved_bound() is below.
  checked_product({archs, nodes, 16, images, prev.height, prev.width, shape.padded});
  const int64_t scale = prev_prev_is_larger ? 2 : 1;
  STD_TORCH_CHECK((prev_prev.height + scale - 1) / scale == prev.height &&
                      (prev_prev.width + scale - 1) / scale == prev.width,
                  "prev_prev must be ", prev_prev_is_larger ? "twice" : "exactly",
                  " as high and wide as prev, got ", prev_prev.height, "×", prev_prev.width,
                  " and ", prev.height, "×", prev.width);
  STD_TORCH_CHECK(!(prev_prev_is_larger || shape.reduction) || shape.channels >= 2,
                  "a factorized reduction needs 2 channels, got ", shape.channels);
  const int64_t step = shape.reduction ? 2 : 1, channels = shape.channels;
  shape.out_height = (prev.height + step - 1) / step;
  shape.out_width = (prev.width + step - 1) / step;
  check(weights.prev_prev, "prev_prev_weight", dtype, {channels, prev_prev.channels});
  check(weights.prev, "prev_weight", dtype, {channels, prev.channels});
  check(weights.output, "output_weight", dtype, {channels, nodes * channels});
  check_weights(weights.convolutions, weights.reduction, dtype, nodes * (nodes + 3) / 2, 2 * nodes,
                channels);
  return shape;
}

// An input of a cell as far as it shows in its images.
inline CellInput cell_input(const Tensor& images) {
  return {images.size(0), 0, images.size(4), images.size(2), images.size(3)};
}

}  // namespace asng::cpu
