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
  // Values that a forward pass needs which saves nothing, at most.
  int64_t working_bound() const;
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

// An input or the output of a cell: images of every architecture, or of all together.
template <class T>
struct CellImages {
  const T* x = nullptr;
  // (archs, 2, padded): how the images of each architecture are to be read; null: as they are.
  const T* norms = nullptr;

  Affine<T> affine(int64_t arch, int64_t padded) const {
    if (norms == nullptr) return {};
    return {norms + 2 * arch * padded, norms + (2 * arch + 1) * padded};
  }
};

// Where the gradient of an input goes.
template <class T>
struct InputGradient {
  T* grad = nullptr;  // null: not wanted
  // By architecture: whether there is a gradient to add to. Set for those that are written.
  std::vector<bool>* written = nullptr;
  // Of each architecture, if not null: Σ grad and Σ grad·x over what grad holds when the cell is
  // done. x is what the cell reads, a normalised output of another cell.
  std::vector<PartialSums>* sums = nullptr;
};

// Zeros for architectures that do not read an input.
template <class T>
void clear_unwritten(const CellShape& shape, const CellInput& input, T* grad,
                     const std::vector<bool>& written);

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

  // As `forward`, but leaves the output as it is before its normalisation, which goes to `norms`,
  // as in CellImages. `memory` has room for saved_bound() values if `save`, else working_bound().
  void run(CellImages<T> older, CellImages<T> newer, T* z, T* norms, Bump<T>& memory, bool save);

  // As `backward`, with the memory of `run`, which must have saved. The output is as `run` left it,
  // or normalised already if `normalised`. `sums` of grad_y and the output by architecture, or
  // null.
  void run_backward(CellImages<T> older, CellImages<T> newer, const T* z, const T* norms,
                    bool normalised, const T* grad_y, const std::vector<PartialSums>* sums,
                    Bump<T>& memory, const InputGradient<T>& grad_older,
                    const InputGradient<T>& grad_newer, const CellWeights<T>& grads);

  // Advances `memory` as `run` does that saves.
  void skip(CellImages<T> older, CellImages<T> newer, Bump<T>& memory);

  void normalise(T* z, const T* norms) const;
  bool reads(int64_t arch, bool older) const { return uses(arch, older ? 0 : 1); }

 private:
  int64_t parts() const { return part_count(shape_.images); }
  State<T>& state(int64_t arch, int64_t index) {
    return states_[static_cast<size_t>(arch * (shape_.nodes + 2) + index)];
  }
  bool uses(int64_t arch, int64_t index) const {
    return used_[static_cast<size_t>(arch * (shape_.nodes + 2) + index)];
  }
  void place_inputs(Bump<T>& memory, CellImages<T> older, CellImages<T> newer);
  std::vector<T*> place_node(Bump<T>& memory, Bump<T>& turn, int64_t index);
  void place_outputs(const T* z, const T* norms, bool normalised);
  // Memory for one image of every loose node of an architecture.
  size_t loose_bytes() const {
    return static_cast<size_t>(shape_.nodes * shape_.out_size() / shape_.images) * sizeof(T);
  }
  std::vector<Source<T>> loose_sources(const Projection<T>& p, const T* nodes) const;
  void combine_loose(const Projection<T>& p, int64_t image, T* nodes) const;
  void project_inputs();
  void project_outputs();
  Block pack(std::vector<Projection<T>>& projections, bool backward);
  void finish_gradients(std::vector<Projection<T>>& projections,
                        const std::vector<PartialSums>* sums);
  void backward_outputs(const T* grad_y, const std::vector<PartialSums>* sums, T* grad_weight);
  void backward_inputs(const InputGradient<T>& older, const InputGradient<T>& newer,
                       const CellWeights<T>& grads);

  CellShape shape_;
  CellWeights<const T> weights_;
  std::vector<Node<T>> nodes_;
  std::vector<State<T>> states_;       // (archs, 2 + nodes)
  std::vector<bool> used_;             // (archs, 2 + nodes): whether a node reads it
  std::vector<Projection<T>> inputs_;  // those of the older input come first
  // One for every architecture, of its loose nodes, those that no node reads. Their images are
  // never stored: who needs one makes it again from the edges, which are in memory anyway.
  std::vector<Projection<T>> outputs_;
  std::vector<std::vector<int64_t>> loose_;  // of each architecture
  std::vector<T> coefficients_;
};

}  // namespace asng::cpu
