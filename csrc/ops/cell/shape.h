// Sizes of nodes and cells and their weights, the same on every device and without torch.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/operations.h"
#include "ops/saved.h"

namespace asng {

// Weights of operations are numbered: separable convolutions have one for every (node, state before
// it), factorized reductions for every (node, input).
template <class Int>
ASNG_HD constexpr Int weight_index(Int inputs, Int node, Int state) {
  return node * inputs + node * (node - 1) / 2 + state;
}

// Nodes, each a sum of edges, and an edge an operation on an earlier state. States are the inputs,
// then the nodes.
struct DagShape {
  int64_t archs = 0, nodes = 1, inputs = 0;
  int64_t edges = 2;  // of a node
  int64_t images = 0, channels = 0, padded = 0;
  int64_t height = 0, width = 0;          // of the inputs
  int64_t out_height = 0, out_width = 0;  // of the nodes
  bool reduction = false;                 // every operation on inputs has stride 2

  int64_t states() const { return inputs + nodes; }
  int64_t stride(int64_t state) const { return reduction && state < inputs ? 2 : 1; }
  int64_t in_size() const { return images * height * width * padded; }
  int64_t image_size() const { return out_height * out_width * padded; }
  int64_t out_size() const { return images * image_size(); }
  int64_t pixels() const { return images * out_height * out_width; }
  int64_t reduction_index(int64_t node, int64_t input) const { return node * inputs + input; }
  // What the edges keep.
  SavedSize saved() const {
    const SavedUnits node = node_saved_units(edges);
    return {{nodes * node.statistics, 0, nodes * node.outputs}, archs, padded, 0, out_size()};
  }
};

// An operation on an earlier state of a dag, as one of the terms of a node.
struct DagEdge {
  int64_t node = 0, input = 0;
  int32_t operation = 0;
};

struct CellInput {
  int64_t archs = 0;  // 1: all architectures share it
  int64_t channels = 0, padded = 0, height = 0, width = 0;
};

struct CellShape {
  int64_t archs = 0, nodes = 0, images = 0, channels = 0, padded = 0;
  CellInput prev_prev, prev;
  int64_t out_height = 0, out_width = 0;
  bool reduction = false;
  bool prev_prev_is_larger = false;  // the prev_prev input passes a factorized reduction

  // Its nodes; their inputs are the projected ones.
  DagShape dag() const {
    return {.archs = archs,
            .nodes = nodes,
            .inputs = 2,
            .images = images,
            .channels = channels,
            .padded = padded,
            .height = prev.height,
            .width = prev.width,
            .out_height = out_height,
            .out_width = out_width,
            .reduction = reduction};
  }
  int64_t in_size() const { return dag().in_size(); }
  int64_t out_size() const { return dag().out_size(); }
  SavedSize saved() const {
    return {cell_saved_units(nodes), archs, padded, in_size(), out_size()};
  }
  SavedSize saved_in_stack() const {
    return {stacked_cell_saved_units(nodes), archs, padded, in_size(), out_size()};
  }
};

// Pointers to the weights of the operations, or to their gradients, in the layouts of
// operation_weights().
template <class T>
struct OperationWeights {
  // By the number of the separable convolution.
  T* depthwise[kSeparableCount] = {};
  T* pointwise[kSeparableCount] = {};
  T* reduction = nullptr;  // may be null where there is none

  // Whether there are weights of a separable convolution.
  ASNG_HD bool has(int separable) const { return depthwise[separable] != nullptr; }

  // In the order in which operators take them.
  std::vector<T**> in_order() {
    std::vector<T**> all;
    for (int kind = 0; kind < kSeparableCount; ++kind) {
      all.push_back(&depthwise[kind]);
      all.push_back(&pointwise[kind]);
    }
    all.push_back(&reduction);
    return all;
  }
};

template <class T>
struct CellWeights {
  T* prev_prev = nullptr;
  T* prev = nullptr;
  OperationWeights<T> operations;
  T* output = nullptr;

  std::vector<T**> in_order() {
    std::vector<T**> all = {&prev_prev, &prev};
    for (T** weight : operations.in_order()) all.push_back(weight);
    all.push_back(&output);
    return all;
  }
};

inline constexpr size_t kOperationWeights = 2 * kSeparableCount + 1;
inline constexpr size_t kCellWeights = kOperationWeights + 3;

struct WeightShape {
  std::string name;
  std::vector<int64_t> sizes;
  bool of_operation = false;
};

// What the names of a separable convolution's weights end with.
inline std::string weight_suffix(const Operation& operation) {
  return std::to_string(operation.kernel) +
         (operation.dilation == 1 ? "" : "_dilation" + std::to_string(operation.dilation));
}

// Weights of `edges` separable convolutions and of `reductions` factorized reductions, whose rows
// for even pixels, ⌈C/2⌉ of them, come first. In the order of OperationWeights.
inline std::vector<WeightShape> operation_weights(int64_t edges, int64_t reductions,
                                                  int64_t channels) {
  std::vector<WeightShape> all;
  for (const Operation& o : kOperations) {
    if (o.form != Form::kSeparable) continue;
    const std::string suffix = weight_suffix(o);
    all.push_back({"depthwise" + suffix, {edges, 2, channels, 1, o.kernel, o.kernel}, true});
    all.push_back({"pointwise" + suffix, {edges, 2, channels, channels}, true});
  }
  all.push_back({"reduction", {reductions, channels, channels}, true});
  return all;
}

// In the order of CellWeights; the rows of a factorized prev_prev_weight as those of a reduction.
inline std::vector<WeightShape> cell_weights(int64_t nodes, int64_t channels,
                                             int64_t prev_prev_channels, int64_t prev_channels) {
  const int64_t inputs = 2, edges = weight_index<int64_t>(inputs, nodes, 0);
  std::vector<WeightShape> all = operation_weights(edges, nodes * inputs, channels);
  all.insert(all.begin(), {{"prev_prev_weight", {channels, prev_prev_channels}},
                           {"prev_weight", {channels, prev_channels}}});
  all.push_back({"output_weight", {channels, nodes * channels}});
  return all;
}

}  // namespace asng
