// Sizes of the nodes of a mixture and their weights, the same on every device and without torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/cell/shape.h"

namespace asng {

// The nodes of a cell, each the sum of any number of edges, which coefficients multiply.
struct MixtureShape {
  // Of one architecture. The number of edges of a node is that of all divided by that of nodes,
  // rounded up.
  DagShape dag;
  std::vector<DagEdge> edges;  // each once, and at least one of every node

  bool factorized(const DagEdge& edge) const {
    return is_factorized(operation_info(edge.operation).form, dag.stride(edge.input));
  }

  bool normalized(const DagEdge& edge) const {
    return operation_info(edge.operation).form == Form::kSeparable || factorized(edge);
  }

  // How many normalizations there are.
  int64_t stages() const {
    int64_t count = 0;
    for (const DagEdge& edge : edges) {
      const bool separable = operation_info(edge.operation).form == Form::kSeparable;
      count += separable ? 2 : factorized(edge) ? 1 : 0;
    }
    return count;
  }

  // What the edges keep; the nodes are results.
  SavedSize saved() const {
    return {{2 * stages(), 0, stages()}, 1, dag.padded, 0, dag.out_size()};
  }

  // The same for CUDA devices, where each edge with a normalization has places for two stages.
  SavedSize saved_on_cuda() const {
    const int64_t count = std::count_if(edges.begin(), edges.end(),
                                        [&](const DagEdge& edge) { return normalized(edge); });
    const SavedUnits edge = node_saved_units(1);
    return {{count * edge.statistics, 0, count * edge.outputs}, 1, dag.padded, 0, dag.out_size()};
  }
  // And there of every max pool the position of each maximum in its window, a byte.
  int64_t maxima_bytes() const {
    return dag.out_size() * std::count_if(edges.begin(), edges.end(), [](const DagEdge& edge) {
             return operation_info(edge.operation).form == Form::kMaxPool;
           });
  }

  // Of every edge in order: of a separable convolution depthwise and pointwise weight of the first
  // stage, then of the second; of a factorized reduction those of even and of odd pixels.
  std::vector<std::vector<int64_t>> weights() const {
    const int64_t channels = dag.channels, odd = channels / 2;
    std::vector<std::vector<int64_t>> all;
    for (const DagEdge& edge : edges) {
      const OperationInfo info = operation_info(edge.operation);
      if (info.form == Form::kSeparable) {
        for (int stage = 0; stage < 2; ++stage) {
          all.push_back({channels, 1, info.kernel, info.kernel});
          all.push_back({channels, channels, 1, 1});
        }
      } else if (factorized(edge)) {
        all.push_back({channels - odd, channels, 1, 1});
        all.push_back({odd, channels, 1, 1});
      }
    }
    return all;
  }
};

}  // namespace asng
