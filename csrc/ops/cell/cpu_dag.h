// Nodes, for all architectures at once: each is the sum of its edges, and an edge is an operation
// on one of the states that come before.
//
// A normalization needs all images of its architecture; nothing else does. So work is cut into
// phases, and in a phase whatever can be done with an image is done while the image is in the
// cache: a state is made and the operations that read it run on it, in backward passes the other
// way round.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/pointwise_batch.h"
#include "platform/memory.h"

namespace asng::cpu {

// The position is the value of an operation variable.
enum Operation : int32_t {
  kIdentityOperation,
  kAveragePoolOperation,
  kMaxPoolOperation,
  kSeparable3Operation,
  kSeparable5Operation,
  kOperationCount,
};

// Weights of the operations: for each node those on its first state, on its second and so on. The
// layouts are those of the modules in asng_ext/nn: depthwise (edges, 2, channels, k, k), pointwise
// (edges, 2, channels, channels), reduction (nodes · inputs, channels, channels).
template <class T>
struct OperationWeights {
  T* depthwise[2] = {nullptr, nullptr};
  T* pointwise[2] = {nullptr, nullptr};
  T* reduction = nullptr;
};

// What a node reads: an image batch of one architecture.
template <class T>
struct State {
  const T* x = nullptr;
  Affine<T> affine;
  int64_t height = 0, width = 0;
  T* grad = nullptr;
  bool has_grad = false;  // whether somebody has written grad already
  // Of inputs, if not null: += Σ grad and Σ grad·x after the affine map, when grad is complete.
  PartialSums* sums = nullptr;
};

struct DagShape {
  int64_t archs = 0, nodes = 1;
  int64_t inputs = 0;  // states that are no nodes; node n reads them and the nodes before it
  int64_t edges = 2;   // of a node
  int64_t images = 0, out_height = 0, out_width = 0;
  int64_t channels = 0, padded = 0;
  bool reduction = false;  // inputs are halved: every operation on them has stride 2

  int64_t states() const { return inputs + nodes; }
  int64_t stride(int64_t state) const { return reduction && state < inputs ? 2 : 1; }
  int64_t image_size() const { return out_height * out_width * padded; }
  int64_t out_size() const { return images * image_size(); }
  int64_t pixels() const { return images * out_height * out_width; }
  // Number of the weights that node `node` has for `state`.
  int64_t weight_index(int64_t node, int64_t state) const {
    return node * inputs + node * (node - 1) / 2 + state;
  }
  // Number of the factorized reduction that it has for an input.
  int64_t reduction_index(int64_t node, int64_t input) const { return node * inputs + input; }
  // Values that edges keep for the backward pass, at most.
  int64_t saved_bound() const { return archs * nodes * edges * (2 * out_size() + 4 * padded); }
};

template <class T>
class Dag {
 public:
  // Work on some images of an architecture, all of one part of the batch.
  using Task = std::function<void(int64_t arch, int64_t split_index, Split images)>;

  // `inputs` and `operations` are (archs, nodes, edges). Throws std::invalid_argument if an index
  // is out of range.
  Dag(const DagShape& shape, const OperationWeights<const T>& weights, const int32_t* inputs,
      const int32_t* operations);
  Dag(Dag&&) = default;
  Dag(const Dag&) = delete;

  State<T>& state(int64_t arch, int64_t index) { return states_[at(arch, index)]; }
  // Whether a node reads a state.
  bool reads(int64_t arch, int64_t state) const { return !readers_[at(arch, state)].empty(); }
  // The nodes that no node reads. Their images are never stored: who needs one makes it from the
  // edges by `combine`.
  const std::vector<int64_t>& leaf(int64_t arch) const { return leaf_[static_cast<size_t>(arch)]; }

  // Assigns places to what `forward` computes and `backward` needs; the same calls give the same
  // places. At most saved_bound() values and the images of nodes that are read.
  void place(Bump<T>& memory);
  // The same for a forward pass alone: places serve again when nobody needs what they hold.
  void allocate_with_reuse(Bump<T>& memory);

  // Calls `finish` for all images when their leaf nodes can be combined. The inputs' states must
  // be set.
  void forward(const Task& finish);

  // The sum of the edges of a node, for some images.
  void combine(int64_t arch, int64_t node, Split images, T* out) const;

  // Values that allocate_gradients() needs at most.
  int64_t gradient_bound() const {
    return shape_.archs * shape_.nodes * (1 + shape_.edges) * shape_.out_size();
  }
  // Assigns places to the gradients of nodes that have none yet, and to those within edges.
  void allocate_gradients(Bump<T>& memory);

  // Calls `begin` for all images first, which makes the gradients of their leaf nodes. Adds to
  // the gradients of the inputs' states, or writes them, and to `grads` of the weights.
  void backward(const Task& begin, const OperationWeights<T>& grads);

 private:
  struct Edge {
    int64_t arch = 0, node = 0, input = 0, stride = 1;
    int32_t operation = 0;
    T factor = 1;  // 2 for an edge that occurs twice in the node
    // A separable convolution has two stages. Another edge with a normalization uses the first.
    T* z[2] = {nullptr, nullptr};
    Norm<T> norm[2];
    NormGradient<T> norm_gradient[2];
    T* depthwise[2] = {nullptr, nullptr};
    T* flipped[2] = {nullptr, nullptr};
    T* pointwise[2] = {nullptr, nullptr};
    T* grad_depthwise[2] = {nullptr, nullptr};  // (parts, k², padded)
    T* grad_pointwise[2] = {nullptr, nullptr};  // (parts, padded, padded)
    T* intermediate = nullptr;                  // gradient of the first stage's output
    bool accumulate = false;                    // somebody else has written the state's gradient
    PointwiseBatch<T> reduction;
    PartialSums sums;  // of the stage that is being computed

    bool separable() const { return operation >= kSeparable3Operation; }
    bool factorized() const { return operation == kIdentityOperation && stride == 2; }
    // How many normalizations, one after the other, it has.
    int stages() const { return separable() ? 2 : factorized() ? 1 : 0; }
    int last() const { return separable() ? 1 : 0; }  // its last normalization
    int64_t taps() const { return operation == kSeparable5Operation ? 25 : 9; }
  };

  size_t at(int64_t arch, int64_t state) const {
    return static_cast<size_t>(arch * shape_.states() + state);
  }
  int64_t splits() const { return split_count(shape_.images); }
  const State<T>& from(const Edge& edge) const { return states_[at(edge.arch, edge.input)]; }
  bool stored(int64_t arch, int64_t state) const {
    return state >= shape_.inputs && reads(arch, state);
  }

  void add_edges(int64_t arch, int64_t node, const int32_t* inputs, const int32_t* operations);
  void plan();
  int64_t last_use(int64_t arch, int64_t state) const;
  void place_norm(Edge& edge, int stage, Bump<T>& memory);
  void run_images(const Task& task) const;

  Block pack(bool backward);
  void pack_stage(Edge& edge, int stage, bool backward);
  void set_up_reduction(Edge& edge);
  Shape stage_shape(const Edge& edge, int stage, int64_t images) const;
  Combine<T> combine_task(int64_t arch, int64_t node, Split images,
                          std::vector<Term<T>>& terms) const;

  void run_forward(int64_t phase, int64_t arch, int64_t split_index, Split images);
  void forward_stage(Edge& edge, int stage, int64_t split_index, Split images);

  void write_gradient(Edge& edge, Slots<T>& slots);
  Block place_weight_gradients();
  void run_backward(int64_t phase, int64_t arch, int64_t split_index, Split images);
  void reduce(const T* grad, const T* z, Affine<T> affine, int64_t pixels, int64_t split_index,
              PartialSums& sums) const;
  void backward_stage(Edge& edge, int stage, int64_t split_index, Split images);
  void finish_gradient(Edge& edge, int stage);
  void add_weight_gradients(const OperationWeights<T>& grads);
  void add_weight_gradient(const Edge& edge, const OperationWeights<T>& grads) const;

  DagShape shape_;
  OperationWeights<const T> weights_;
  std::vector<Edge> edges_;                     // by architecture and node
  std::vector<Edge*> normalized_;               // those of them with a normalization
  std::vector<std::vector<Edge*>> node_edges_;  // (archs, states); none for inputs
  std::vector<std::vector<Edge*>> readers_;     // (archs, states)
  std::vector<State<T>> states_;                // (archs, states)
  std::vector<T*> images_;                      // of nodes that are read, (archs, states)
  std::vector<std::vector<int64_t>> leaf_;      // of each architecture
  // Phases in which the images of states can be made, and in which their gradients are complete.
  std::vector<int64_t> ready_, done_;
  int64_t last_ready_ = 0, last_done_ = 0;
  std::vector<T> coefficients_;  // of the normalizations' gradients
};

}  // namespace asng::cpu
