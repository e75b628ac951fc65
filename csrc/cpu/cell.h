// A cell of the search space, for all architectures at once: input projections, nodes, output.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "node.h"
#include "projection.h"

namespace asng::cpu {

struct CellInput {
  int64_t archs = 0;  // 1: all architectures share it
  int64_t channels = 0, padded = 0, height = 0, width = 0;
};

struct CellShape {
  int64_t archs = 0, nodes = 0, images = 0;
  int64_t channels = 0, padded = 0;
  CellInput older, newer;
  int64_t out_height = 0, out_width = 0;
  bool reduction = false;
  bool older_is_larger = false;  // the older input passes a factorized reduction

  int64_t in_size() const { return images * newer.height * newer.width * padded; }
  int64_t out_size() const { return images * out_height * out_width * padded; }
  NodeShape node(int64_t index) const;
  // Values that the backward pass needs, at most. The function of the same name in
  // asng_ext/_operators.py must agree.
  int64_t saved_bound() const;
};

template <class T>
struct CellWeights {
  T* older = nullptr;   // (channels, older channels); factorized: rows for even pixels come first
  T* newer = nullptr;   // (channels, newer channels)
  T* output = nullptr;  // (channels, nodes · channels)
  // depthwise (edges, …) and so on; edge (node, input) is number node·(node + 3)/2 + input.
  // reduction (2·nodes, …): number 2·node + input.
  NodeWeights<T> operations;
};

// The weights of one node.
template <class T>
NodeWeights<T> node_weights(const NodeWeights<T>& all, int64_t node, int64_t channels);

template <class T>
class Cell {
 public:
  // `inputs` and `operations` are (archs, nodes, 2). Throws std::invalid_argument.
  Cell(const CellShape& shape, const CellWeights<const T>& weights, const int32_t* inputs,
       const int32_t* operations);

  // y (archs, images, out_height, out_width, padded). `saved` has saved_bound() values or is null.
  void forward(const T* older, const T* newer, T* y, T* saved);

  // grad_older and grad_newer are written, either may be null; `grads` are added to.
  void backward(const T* older, const T* newer, const T* y, const T* grad_y, T* saved,
                T* grad_older, T* grad_newer, const CellWeights<T>& grads);

 private:
  int64_t parts() const { return part_count(shape_.images); }
  State<T>& state(int64_t arch, int64_t index) {
    return states_[static_cast<size_t>(arch * (shape_.nodes + 2) + index)];
  }
  bool uses(int64_t arch, int64_t index) const {
    return used_[static_cast<size_t>(arch * (shape_.nodes + 2) + index)];
  }
  void place_inputs(Bump<T>& memory, const T* older, const T* newer);
  void place_outputs(T* y, T* norms);
  void project(std::vector<Projection<T>>& projections);
  Block pack(std::vector<Projection<T>*> projections, bool backward, bool with_gradients);
  void backward_output(const T* y, const T* grad_y, T* grad_weight);
  void backward_inputs(T* grad_older, T* grad_newer, const CellWeights<T>& grads);
  void backward_projections(std::vector<Projection<T>>& projections);

  CellShape shape_;
  CellWeights<const T> weights_;
  std::vector<Node<T>> nodes_;
  std::vector<State<T>> states_;        // (archs, 2 + nodes)
  std::vector<bool> used_;              // (archs, 2 + nodes): whether a node reads it
  std::vector<Projection<T>> inputs_;   // those of the older input come first
  std::vector<Projection<T>> outputs_;  // one for every architecture
};

}  // namespace asng::cpu
