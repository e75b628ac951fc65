// What the operator of mixtures takes and gives on every device; see library.cpp.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/feature_maps.h"
#include "ops/mixture/shape.h"

namespace asng {

struct MixtureCall {
  MixtureShape shape;
  ScalarType dtype;  // of the feature maps

  MixtureCall(const std::vector<Tensor>& inputs, const Tensor& coefficients,
              const std::vector<int64_t>& edges, const std::vector<Tensor>& weights, int64_t nodes,
              int64_t stride, Backend backend) {
    STD_TORCH_CHECK(!inputs.empty(), "inputs must not be empty");
    STD_TORCH_CHECK(stride == 1 || stride == 2, "stride must be 1 or 2, got ", stride);
    STD_TORCH_CHECK(nodes > 0, "nodes must be at least 1, got ", nodes);
    const Tensor& first = inputs[0];
    dtype = check_feature_maps(first, "inputs[0]", 4, backend);
    for (const Tensor& input : inputs) {
      check_like(input, "every input", dtype, {first.sizes().begin(), first.sizes().end()}, first);
    }
    DagShape& dag = shape.dag;
    dag.archs = 1;
    dag.nodes = nodes;
    dag.inputs = static_cast<int64_t>(inputs.size());
    dag.images = first.size(0);
    dag.height = first.size(1);
    dag.width = first.size(2);
    dag.padded = first.size(3);
    dag.out_height = (dag.height + stride - 1) / stride;
    dag.out_width = (dag.width + stride - 1) / stride;
    dag.reduction = stride == 2;
    add_edges(edges);
    dag.channels = channels(weights);
    STD_TORCH_CHECK(stride == 1 || dag.channels >= 2,
                    "a factorized reduction needs 2 channels, got ", dag.channels);
    STD_TORCH_CHECK(padded_channels(dag.channels) == dag.padded, "inputs must have ",
                    padded_channels(dag.channels), " channels for weights of ", dag.channels,
                    ", got ", dag.padded);
    const int64_t count = static_cast<int64_t>(shape.edges.size());
    check_like(coefficients, "coefficients", compute_type(dtype), {count}, first);
    const std::vector<std::vector<int64_t>> expected = shape.weights();
    STD_TORCH_CHECK(weights.size() == expected.size(), "weights must be ", expected.size(),
                    " for these edges, got ", weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      const std::string name = "weights[" + std::to_string(i) + "]";
      check_like(weights[i], name.c_str(), compute_type(dtype), expected[i], first);
    }
    // More than saved_size().
    checked_product({count + nodes, 6, dag.images, dag.height, dag.width, dag.padded});
  }

  std::vector<int64_t> out_sizes() const {
    const DagShape& dag = shape.dag;
    return {dag.nodes, dag.images, dag.out_height, dag.out_width, dag.padded};
  }
  int64_t saved_size() const { return saved_values(shape.saved(), dtype); }

 private:
  void add_edges(const std::vector<int64_t>& edges) {
    DagShape& dag = shape.dag;
    STD_TORCH_CHECK(!edges.empty() && edges.size() % 3 == 0,
                    "edges must be a node, an input and an operation for each, got ", edges.size(),
                    " numbers");
    std::vector<bool> has_edges(static_cast<size_t>(std::min<int64_t>(dag.nodes, edges.size())));
    STD_TORCH_CHECK(static_cast<int64_t>(has_edges.size()) == dag.nodes,
                    "edges must be some of every node");
    for (size_t i = 0; i < edges.size(); i += 3) {
      const int64_t node = edges[i], input = edges[i + 1], operation = edges[i + 2];
      STD_TORCH_CHECK(node >= 0 && node < dag.nodes, "a node of edges must be from 0 to ",
                      dag.nodes - 1, ", got ", node);
      STD_TORCH_CHECK(input >= 0 && input < dag.inputs + node, "an input of node ", node,
                      " must be from 0 to ", dag.inputs + node - 1, ", got ", input);
      STD_TORCH_CHECK(operation >= 0 && operation < kOperationCount,
                      "an operation of edges must be from 0 to ", kOperationCount - 1, ", got ",
                      operation);
      const auto same = [&](const DagEdge& edge) {
        return edge.node == node && edge.input == input && edge.operation == operation;
      };
      STD_TORCH_CHECK(std::none_of(shape.edges.begin(), shape.edges.end(), same),
                      "edges must be different, got node ", node, ", input ", input,
                      " and operation ", operation, " twice");
      shape.edges.push_back({node, input, static_cast<int32_t>(operation)});
      has_edges[static_cast<size_t>(node)] = true;
    }
    STD_TORCH_CHECK(std::all_of(has_edges.begin(), has_edges.end(), [](bool has) { return has; }),
                    "edges must be some of every node");
    dag.edges = (static_cast<int64_t>(shape.edges.size()) + dag.nodes - 1) / dag.nodes;
  }

  // Those of the weights; without any, padding is as good as what is real.
  int64_t channels(const std::vector<Tensor>& weights) const {
    if (weights.empty()) return shape.dag.padded;
    for (const Tensor& weight : weights) {
      STD_TORCH_CHECK(weight.dim() == 4, "weights must have 4 dimensions, got ", weight.dim());
    }
    // Of a factorized reduction, whose weights are two halves, the columns are all the channels.
    for (const DagEdge& edge : shape.edges) {
      if (operation_info(edge.operation).form == Form::kSeparable) return weights[0].size(0);
      if (shape.factorized(edge)) return weights[0].size(1);
    }
    return shape.dag.padded;
  }
};

}  // namespace asng
