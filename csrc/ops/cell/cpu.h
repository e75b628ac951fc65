// Nodes, cells and stacks of cells on the CPU, for all architectures at once.
//
// A batch normalization needs the whole batch of its architecture; nothing else does. So work is
// scheduled in levels, and what a level does with a batch element is done while its feature maps
// are in the cache: a state is made and the operations that read it run on it, in backward passes
// the other way round. Between levels the statistics of normalizations are finished.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/pointwise_batch.h"
#include "ops/cell/shape.h"
#include "platform/memory.h"

namespace asng::cpu {

// What a node reads: the feature maps of one architecture.
template <class T>
struct State {
  const T* x = nullptr;
  Affine<T> affine;
  int64_t height = 0, width = 0;
  T* grad = nullptr;
  bool has_grad = false;  // whether grad has been written already
  // Of inputs, if not null: += Σ grad and Σ grad·x after the affine map, when grad is complete.
  PartialSums* sums = nullptr;
};

template <class T>
class Dag {
 public:
  // Work on some of the batch of an architecture, all of one part of it.
  using Task = std::function<void(int64_t arch, int64_t split_index, Split images)>;

  // `inputs` and `operations` are (archs, nodes, edges). Throws std::invalid_argument if an index
  // is out of range.
  Dag(const DagShape& shape, const OperationWeights<const T>& weights, const int32_t* inputs,
      const int32_t* operations);
  // A mixture: one architecture of these edges, each once, which are multiplied by `coefficients`.
  // The shape has at least as many edges. All nodes are stored in `nodes`, (nodes, images,
  // out_height, out_width, padded).
  Dag(const DagShape& shape, const OperationWeights<const T>& weights,
      const std::vector<DagEdge>& edges, const T* coefficients, T* nodes);
  Dag(Dag&&) = default;
  Dag(const Dag&) = delete;

  State<T>& state(int64_t arch, int64_t index) { return states_[at(arch, index)]; }
  // Whether a node reads a state.
  bool reads(int64_t arch, int64_t state) const { return !readers_[at(arch, state)].empty(); }
  // The nodes that no node reads. Their feature maps are never stored: `combine` makes them from
  // the edges when they are needed.
  const std::vector<int64_t>& leaf(int64_t arch) const { return leaf_[static_cast<size_t>(arch)]; }

  // Allocates what `forward` computes and `backward` needs; the same calls give the same places. At
  // most the shape's saved() values and the feature maps of nodes that are read.
  void allocate(Bump<T>& memory);
  // The same for a forward pass alone: memory serves again when what it holds is not needed.
  void allocate_with_reuse(Bump<T>& memory);

  // Calls `finish` for all of the batch when its leaf nodes can be combined. The inputs' states
  // must be set.
  void forward(const Task& finish);

  // The sum of the edges of a node, for some of the batch.
  void combine(int64_t arch, int64_t node, Split images, T* out) const;

  // Values that allocate_gradients() needs at most.
  int64_t gradient_bound() const {
    return shape_.archs * shape_.nodes * (1 + shape_.edges) * shape_.out_size();
  }
  // Allocates the gradients of nodes that have none yet, and those within edges.
  void allocate_gradients(Bump<T>& memory);

  // Calls `begin` for all of the batch first, which makes the gradients of its leaf nodes. Adds to
  // the gradients of the inputs' states, or writes them, and to `grads` of the weights unless null.
  void backward(const Task& begin, const OperationWeights<T>* grads);
  // Of a mixture, after `backward`: ⟨gradient of the node, edge⟩, by the number of the edge.
  double coefficient_gradient(size_t edge) const { return edges_[edge].coefficient_gradient; }

 private:
  struct Edge {
    int64_t arch = 0, node = 0, input = 0, stride = 1;
    int32_t operation = 0;
    OperationInfo info;
    T multiplicity = 1;  // how often it occurs in its node, or its coefficient in a mixture
    double coefficient_gradient = 0;
    // A separable convolution has two stages. Another edge with a normalization uses the first.
    T* z[2] = {nullptr, nullptr};
    Norm<T> norm[2];
    NormGradient<T> norm_gradient[2];
    T* depthwise[2] = {nullptr, nullptr};
    T* flipped[2] = {nullptr, nullptr};
    T* pointwise[2] = {nullptr, nullptr};
    T* grad_depthwise[2] = {nullptr, nullptr};  // (splits, kernel elements, padded)
    T* grad_pointwise[2] = {nullptr, nullptr};  // (splits, padded, padded)
    T* intermediate = nullptr;                  // gradient of the first stage's output
    bool accumulate = false;                    // another edge writes the state's gradient first
    PointwiseBatch<T> reduction;
    PartialSums sums;  // of the stage that is being computed; in a mixture of any edge's gradient

    bool separable() const { return info.form == Form::kSeparable; }
    bool factorized() const { return is_factorized(info.form, stride); }
    // How many normalizations, one after the other, it has.
    int stages() const { return separable() ? 2 : factorized() ? 1 : 0; }
    int last() const { return separable() ? 1 : 0; }  // its last normalization
    int64_t kernel_elements() const { return static_cast<int64_t>(info.kernel) * info.kernel; }
  };

  size_t at(int64_t arch, int64_t state) const {
    return static_cast<size_t>(arch * shape_.states() + state);
  }
  int64_t splits() const { return split_count(shape_.images); }
  const State<T>& from(const Edge& edge) const { return states_[at(edge.arch, edge.input)]; }
  bool stored(int64_t arch, int64_t state) const {
    return state >= shape_.inputs && (mixture_ || reads(arch, state));
  }

  void set_up();
  void add_edges(int64_t arch, int64_t node, const int32_t* inputs, const int32_t* operations);
  void add_edge(int64_t arch, const DagEdge& added, T multiplicity);
  void plan();
  int64_t last_use(int64_t arch, int64_t state) const;
  void allocate_norm(Edge& edge, int stage, Bump<T>& memory);
  void run_images(const Task& task) const;

  Block pack(bool backward);
  void pack_stage(Edge& edge, int stage, bool backward);
  void set_up_reduction(Edge& edge);
  Shape stage_shape(const Edge& edge, int stage, int64_t images) const;
  Combine<T> combine_task(int64_t arch, int64_t node, Split images,
                          std::vector<Term<T>>& terms) const;

  void run_forward(int64_t level, int64_t arch, int64_t split_index, Split images);
  void forward_stage(Edge& edge, int stage, int64_t split_index, Split images);

  void write_gradient(Edge& edge, Slots<T>& slots);
  Block allocate_weight_gradients(bool of_separables);
  void run_backward(int64_t level, int64_t arch, int64_t split_index, Split images);
  void reduce(const T* grad, const T* z, Affine<T> affine, int64_t pixels, int64_t split_index,
              PartialSums& sums) const;
  void reduce_terms(const Combine<T>& task, const std::vector<Edge*>& edges, int64_t split_index);
  void backward_stage(Edge& edge, int stage, int64_t split_index, Split images);
  void finish_gradient(Edge& edge, int stage);
  void add_weight_gradients(const OperationWeights<T>& grads);
  void add_weight_gradient(const Edge& edge, const OperationWeights<T>& grads) const;

  DagShape shape_;
  OperationWeights<const T> weights_;
  bool mixture_ = false;                        // nodes and their gradients lie elsewhere
  std::vector<Edge> edges_;                     // by architecture and node
  std::vector<Edge*> normalized_;               // those of them with a normalization
  std::vector<std::vector<Edge*>> node_edges_;  // (archs, states); none for inputs
  std::vector<std::vector<Edge*>> readers_;     // (archs, states)
  std::vector<State<T>> states_;                // (archs, states)
  std::vector<T*> images_;                      // of nodes that are read, (archs, states)
  std::vector<std::vector<int64_t>> leaf_;      // of each architecture
  // Schedule levels in which states can be made, and in which their gradients are complete.
  std::vector<int64_t> forward_level_, backward_level_;
  int64_t last_forward_level_ = 0, last_backward_level_ = 0;
  std::vector<T> coefficients_;  // of the normalizations' gradients
};

// A node on its own: a dag of one node whose sum is stored.
template <class T>
class Node {
 public:
  // Of `shape`, with one node; the rest as in Dag.
  Node(const DagShape& shape, const OperationWeights<const T>& weights, const int32_t* inputs,
       const int32_t* operations)
      : shape_(shape), dag_(shape, weights, inputs, operations) {}

  // What the node reads; to be set before the first pass.
  State<T>& input(int64_t arch, int64_t index) { return dag_.state(arch, index); }

  // out (archs, images, out_height, out_width, padded); `saved` has the shape's saved() values.
  void forward(T* saved, T* out) {
    allocate(saved);
    dag_.forward([&](int64_t arch, int64_t, Split images) {
      dag_.combine(arch, 0, images,
                   out + arch * shape_.out_size() + images.first * shape_.image_size());
    });
  }

  // Adds to the gradients of the inputs or writes them, and adds to `grads`.
  void backward(T* saved, const T* grad_out, const OperationWeights<T>& grads) {
    allocate(saved);
    for (int64_t arch = 0; arch < shape_.archs; ++arch) {
      // The gradient of a node that no node reads is only read.
      dag_.state(arch, shape_.inputs).grad = const_cast<T*>(grad_out) + arch * shape_.out_size();
    }
    const int64_t count = dag_.gradient_bound();
    const Block block = acquire(static_cast<size_t>(count) * sizeof(T));
    Bump<T> memory(static_cast<T*>(block.get()), count);
    dag_.allocate_gradients(memory);
    dag_.backward([](int64_t, int64_t, Split) {}, &grads);
  }

 private:
  void allocate(T* saved) {
    Bump<T> memory(saved, shape_.saved().values());
    dag_.allocate(memory);
  }

  DagShape shape_;
  Dag<T> dag_;
};

// An input or the output of a cell: feature maps of every architecture, or of all together.
template <class T>
struct CellImages {
  const T* x = nullptr;
  // (archs, 2, padded): how the feature maps of each architecture are to be read; null: as they
  // are.
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
  // done. x is what the cell reads, a normalized output of another cell.
  std::vector<PartialSums>* sums = nullptr;
};

// Zeros for architectures that do not read an input.
template <class T>
void clear_unwritten(const CellShape& shape, const CellInput& input, T* grad,
                     const std::vector<bool>& written) {
  if (grad == nullptr) return;
  const int64_t size = shape.images * input.height * input.width * input.padded;
  for (size_t arch = 0; arch < written.size(); ++arch) {
    if (!written[arch]) std::fill_n(grad + static_cast<int64_t>(arch) * size, size, T(0));
  }
}

template <class T>
class Cell {
 public:
  // `inputs` and `operations` are (archs, nodes, 2). Throws std::invalid_argument.
  Cell(const CellShape& shape, const CellWeights<const T>& weights, const int32_t* inputs,
       const int32_t* operations);

  // y (archs, images, out_height, out_width, padded). `saved` has the shape's saved() values or is
  // null.
  void forward(const T* prev_prev, const T* prev, T* y, T* saved);

  // grad_prev_prev and grad_prev are written, either may be null; `grads` are added to.
  void backward(const T* prev_prev, const T* prev, const T* y, const T* grad_y, T* saved,
                T* grad_prev_prev, T* grad_prev, const CellWeights<T>& grads);

  // As `forward`, but leaves the output as it is before its normalization, which goes to `norms`,
  // as in CellImages. `memory` has room for saved() values.
  void run(CellImages<T> prev_prev, CellImages<T> prev, T* z, T* norms, Bump<T>& memory, bool save);

  // As `backward`, with the memory of `run`, which must have saved. The output is as `run` left it,
  // or normalized already if `normalized`. `sums` of grad_y and the output by architecture, or
  // null.
  void run_backward(CellImages<T> prev_prev, CellImages<T> prev, const T* z, const T* norms,
                    bool normalized, const T* grad_y, const std::vector<PartialSums>* sums,
                    Bump<T>& memory, const InputGradient<T>& grad_prev_prev,
                    const InputGradient<T>& grad_prev, const CellWeights<T>& grads);

  // Advances `memory` as `run` does that saves.
  void skip(CellImages<T> prev_prev, CellImages<T> prev, Bump<T>& memory);

  void normalize(T* z, const T* norms) const;
  bool reads(int64_t arch, bool prev_prev) const { return dag_.reads(arch, prev_prev ? 0 : 1); }

 private:
  int64_t splits() const { return split_count(shape_.images); }
  void allocate_inputs(Bump<T>& memory, CellImages<T> prev_prev, CellImages<T> prev);
  void set_up_outputs(const T* z, const T* norms, bool normalized);
  // Memory for one batch element of every leaf node of an architecture.
  size_t leaf_bytes() const {
    return static_cast<size_t>(shape_.nodes * shape_.out_size() / shape_.images) * sizeof(T);
  }
  std::vector<Source<T>> leaf_sources(const PointwiseBatch<T>& p, const T* nodes) const;
  void combine_leaf(const PointwiseBatch<T>& p, int64_t image, T* nodes) const;
  void project_inputs();
  void project_outputs(int64_t arch, int64_t split_index, Split images, PartialSums& sums) const;
  Block pack(std::vector<PointwiseBatch<T>>& projections, bool backward);
  void finish_gradients(std::vector<PointwiseBatch<T>>& projections,
                        const std::vector<PartialSums>& sums);
  std::vector<PartialSums> reduce_outputs() const;
  void backward_outputs(int64_t arch, int64_t split_index, Split images) const;
  void backward_inputs(const InputGradient<T>& prev_prev, const InputGradient<T>& prev,
                       const CellWeights<T>& grads);

  CellShape shape_;
  CellWeights<const T> weights_;
  Dag<T> dag_;
  std::vector<PointwiseBatch<T>> inputs_;   // those of the prev_prev input come first
  std::vector<PointwiseBatch<T>> outputs_;  // one for every architecture, of its leaf nodes
  std::vector<T> coefficients_;
};

// Cells one after the other. Between them the outputs stay as they are before normalization, and
// what reads one normalizes on the way.
template <class T>
class CellStack {
 public:
  // Cell i reads the outputs of cells i - 2 and i - 1; before them are the inputs of the stack.
  // `inputs` and `operations` of each cell as in Cell. Throws std::invalid_argument.
  CellStack(std::vector<CellShape> shapes, const std::vector<CellWeights<const T>>& weights,
            const std::vector<const int32_t*>& inputs,
            const std::vector<const int32_t*>& operations);

  // Values that the backward pass needs: those that cells in a stack save.
  static int64_t saved_size(const std::vector<CellShape>& shapes);

  // y is the normalized output of the last cell. `saved` has saved_size() values or is null.
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

  void allocate_outputs(Bump<T>& memory, T* y);
  CellImages<T> input(int64_t index, const T* prev_prev, const T* prev) const;

  std::vector<CellShape> shapes_;
  std::vector<Cell<T>> cells_;
  std::vector<Output> outputs_;
};

}  // namespace asng::cpu
