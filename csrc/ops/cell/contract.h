// What the operators of nodes and cells take and give on every device; see library.cpp.
#pragma once

#include <vector>

#include "ops/cell/shape.h"
#include "ops/feature_maps.h"

namespace asng {

// Tensors in the order of the operators by name: OperationWeights or CellWeights of const Tensor.
template <class Weights>
Weights by_name(const Tensor* tensors) {
  Weights weights;
  for (const Tensor** pointer : weights.in_order()) *pointer = tensors++;
  return weights;
}

// Pointers to their values: OperationWeights<T> or CellWeights<T>; what is empty becomes null.
template <template <class> class Weights, class T>
Weights<T> pointers(const Tensor* tensors) {
  Weights<T> weights;
  for (T** pointer : weights.in_order()) {
    const Tensor& t = *tensors++;
    *pointer = t.numel() == 0 ? nullptr : static_cast<T*>(t.data_ptr());
  }
  return weights;
}

// Weights of an operation may be empty: no edge applies it. `operations` are among `tensors`.
inline void check_weights(const Tensor* tensors, const std::vector<WeightShape>& shapes,
                          const OperationWeights<const Tensor>& operations, ScalarType dtype,
                          const Tensor& like) {
  for (const WeightShape& shape : shapes) {
    const Tensor& t = *tensors++;
    if (shape.of_operation && t.numel() == 0) continue;
    check_like(t, shape.name.c_str(), dtype, shape.sizes, like);
  }
  for (int i = 0; i < kSeparableCount; ++i) {
    STD_TORCH_CHECK(
        (operations.depthwise[i]->numel() == 0) == (operations.pointwise[i]->numel() == 0),
        "of a separable convolution both weights or none must be empty, got sizes ",
        operations.depthwise[i]->numel(), " and ", operations.pointwise[i]->numel());
  }
}

// What a call makes, and what it must be given for a backward pass.
template <class Shape>
struct Call {
  Shape shape;
  ScalarType dtype;  // of the feature maps

  std::vector<int64_t> out_sizes() const {
    return {shape.archs, shape.images, shape.out_height, shape.out_width, shape.padded};
  }
  // In values of compute_type(dtype).
  int64_t saved_size() const { return saved_values(shape.saved(), dtype); }
  void check_backward(const Tensor& grad, const Tensor& saved, const Tensor& like) const {
    check_like(grad, "grad", dtype, out_sizes(), like);
    check_like(saved, "saved", compute_type(dtype), {saved_size()}, like);
  }
};

struct NodeCall : Call<DagShape> {
  NodeCall(const Tensor& bank, const Tensor& inputs, const Tensor& operations,
           const std::vector<Tensor>& weights, int64_t stride, Backend backend) {
    dtype = check_feature_maps(bank, "bank", 6, backend);
    STD_TORCH_CHECK(stride == 1 || stride == 2, "stride must be 1 or 2, got ", stride);
    STD_TORCH_CHECK(inputs.dim() == 2, "inputs must have 2 dimensions, got ", inputs.dim());
    STD_TORCH_CHECK(weights.size() == kOperationWeights, "weights must be ", kOperationWeights,
                    ", got ", weights.size());
    const auto named = by_name<OperationWeights<const Tensor>>(weights.data());
    STD_TORCH_CHECK(stride == 1 || named.reduction->numel() != 0,
                    "reduction is needed with stride 2");
    shape.inputs = bank.size(0);
    shape.archs = bank.size(1);
    shape.images = bank.size(2);
    shape.height = bank.size(3);
    shape.width = bank.size(4);
    shape.padded = bank.size(5);
    shape.channels = shape.padded;  // unless weights say that some are padding
    for (const Tensor& weight : weights) {
      const int64_t dim = weight.dim();  // all but depthwise weights end with the input channels
      if (weight.numel() != 0) shape.channels = weight.size(dim == 6 ? 2 : dim - 1);
    }
    shape.edges = inputs.size(1);
    shape.out_height = (shape.height + stride - 1) / stride;
    shape.out_width = (shape.width + stride - 1) / stride;
    shape.reduction = stride == 2;
    STD_TORCH_CHECK(stride == 1 || shape.channels >= 2,
                    "a factorized reduction needs 2 channels, got ", shape.channels);
    STD_TORCH_CHECK(shape.edges > 0, "inputs must have at least one column");
    STD_TORCH_CHECK(padded_channels(shape.channels) == shape.padded, "bank must have ",
                    padded_channels(shape.channels), " channels for weights of ", shape.channels,
                    ", got ", shape.padded);
    check_like(inputs, "inputs", ScalarType::Int, {shape.archs, shape.edges}, bank);
    check_like(operations, "operations", ScalarType::Int, {shape.archs, shape.edges}, bank);
    check_weights(weights.data(), operation_weights(shape.inputs, shape.inputs, shape.channels),
                  named, compute_type(dtype), bank);
    // More than saved_size().
    checked_product({shape.archs, shape.edges, 6, shape.images, shape.out_height, shape.out_width,
                     shape.padded});
  }
};

// An input of a cell as far as it shows in its feature maps.
inline CellInput cell_input(const Tensor& images) {
  return {images.size(0), 0, images.size(4), images.size(2), images.size(3)};
}

// The shape of a cell for `archs` architectures of `nodes` nodes on batches of `images`. Checks it
// and the weights; `like` is on their device.
inline CellShape cell_shape(int64_t archs, int64_t nodes, int64_t images, CellInput prev_prev,
                            CellInput prev, const Tensor* weights, bool prev_prev_is_larger,
                            ScalarType dtype, const Tensor& like) {
  const auto named = by_name<CellWeights<const Tensor>>(weights);
  for (const Tensor* weight : {named.prev_prev, named.prev}) {
    STD_TORCH_CHECK(weight->dim() == 2,
                    "prev_prev_weight and prev_weight must have 2 dimensions, got ", weight->dim());
  }
  STD_TORCH_CHECK(archs > 0 && nodes > 0, "inputs must not be empty");
  STD_TORCH_CHECK(named.prev_prev->size(0) > 0, "prev_prev_weight must not be empty");
  prev_prev.channels = named.prev_prev->size(1);
  prev.channels = named.prev->size(1);
  for (const CellInput* input : {&prev_prev, &prev}) {
    const char* name = input == &prev_prev ? "prev_prev" : "prev";
    STD_TORCH_CHECK(input->archs == 1 || input->archs == archs, "the first dimension of ", name,
                    " must be 1 or the number of architectures, ", archs, ", got ", input->archs);
    STD_TORCH_CHECK(input->padded == padded_channels(input->channels), name, " must have ",
                    padded_channels(input->channels), " channels for a weight of ", input->channels,
                    ", got ", input->padded);
  }
  CellShape shape;
  shape.archs = archs;
  shape.nodes = nodes;
  shape.images = images;
  shape.channels = named.prev_prev->size(0);
  shape.padded = padded_channels(shape.channels);
  shape.prev_prev = prev_prev;
  shape.prev = prev;
  shape.reduction = named.operations.reduction->numel() != 0;
  shape.prev_prev_is_larger = prev_prev_is_larger;
  const int64_t scale = prev_prev_is_larger ? 2 : 1, stride = shape.reduction ? 2 : 1;
  shape.out_height = (prev.height + stride - 1) / stride;
  shape.out_width = (prev.width + stride - 1) / stride;
  STD_TORCH_CHECK((prev_prev.height + scale - 1) / scale == prev.height &&
                      (prev_prev.width + scale - 1) / scale == prev.width,
                  "prev_prev must be ", prev_prev_is_larger ? "twice" : "exactly",
                  " as high and wide as prev, got ", prev_prev.height, "×", prev_prev.width,
                  " and ", prev.height, "×", prev.width);
  STD_TORCH_CHECK(!(prev_prev_is_larger || shape.reduction) || shape.channels >= 2,
                  "a factorized reduction needs 2 channels, got ", shape.channels);
  check_weights(weights, cell_weights(nodes, shape.channels, prev_prev.channels, prev.channels),
                named.operations, compute_type(dtype), like);
  // More than what is saved.
  checked_product({archs, nodes, 16, images, prev.height, prev.width, shape.padded});
  return shape;
}

struct CellCall : Call<CellShape> {
  CellCall(const Tensor& prev_prev, const Tensor& prev, const Tensor& inputs,
           const Tensor& operations, const std::vector<Tensor>& weights, bool prev_prev_is_larger,
           Backend backend) {
    dtype = check_feature_maps(prev, "prev", 5, backend);
    STD_TORCH_CHECK(check_feature_maps(prev_prev, "prev_prev", 5, backend) == dtype,
                    "prev_prev and prev must have one dtype");
    check_device(prev_prev, "prev_prev", prev);
    STD_TORCH_CHECK(inputs.dim() == 3, "inputs must have 3 dimensions, got ", inputs.dim());
    STD_TORCH_CHECK(prev_prev.size(1) == prev.size(1), "prev_prev must have a batch of ",
                    prev.size(1), ", got ", prev_prev.size(1));
    STD_TORCH_CHECK(weights.size() == kCellWeights, "weights must be ", kCellWeights, ", got ",
                    weights.size());
    shape = cell_shape(inputs.size(0), inputs.size(1), prev.size(1), cell_input(prev_prev),
                       cell_input(prev), weights.data(), prev_prev_is_larger, dtype, prev);
    check_like(inputs, "inputs", ScalarType::Int, {shape.archs, shape.nodes, 2}, prev);
    check_like(operations, "operations", ScalarType::Int, {shape.archs, shape.nodes, 2}, prev);
  }
};

// Cells one after the other, each of which reads the outputs of the two before it.
struct CellStackCall {
  ScalarType dtype;  // of the feature maps
  std::vector<CellShape> shapes;

  CellStackCall(const Tensor& images, const Tensor& inputs, const Tensor& operations,
                const std::vector<Tensor>& weights, Backend backend)
      : dtype(check_feature_maps(images, "images", 5, backend)) {
    STD_TORCH_CHECK(inputs.dim() == 4, "inputs must have 4 dimensions, got ", inputs.dim());
    const int64_t archs = inputs.size(1), nodes = inputs.size(2);
    check_like(inputs, "inputs", ScalarType::Int, {2, archs, nodes, 2}, images);
    check_like(operations, "operations", ScalarType::Int, {2, archs, nodes, 2}, images);
    STD_TORCH_CHECK(!weights.empty() && weights.size() % kCellWeights == 0, "weights must be ",
                    kCellWeights, " for each cell, got ", weights.size());
    CellInput prev_prev = cell_input(images), prev = prev_prev;
    bool prev_prev_is_larger = false;
    for (size_t i = 0; i < weights.size(); i += kCellWeights) {
      const CellShape s = cell_shape(archs, nodes, images.size(1), prev_prev, prev, &weights[i],
                                     prev_prev_is_larger, dtype, images);
      prev_prev = prev;
      prev = {archs, s.channels, s.padded, s.out_height, s.out_width};
      prev_prev_is_larger = s.reduction;
      shapes.push_back(s);
    }
  }

  // Where the indices of a cell begin: normal cells come first, then reduction cells.
  static const int32_t* of_cell(const CellShape& s, const Tensor& indices) {
    return indices.const_data_ptr<int32_t>() + (s.reduction ? s.archs * s.nodes * 2 : 0);
  }

  template <class T>
  static std::vector<CellWeights<T>> of_cells(const std::vector<Tensor>& tensors) {
    std::vector<CellWeights<T>> all;
    for (size_t i = 0; i < tensors.size(); i += kCellWeights) {
      all.push_back(pointers<CellWeights, T>(&tensors[i]));
    }
    return all;
  }
};

}  // namespace asng
