// A node of a cell, for all architectures at once: the sum of its edges, each an operation on one
// of the states that come before.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "projection.h"

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

// Weights of the operations, of all inputs of a node one after the other; the layouts are those of
// the modules in asng_ext/nn: depthwise (inputs, 2, channels, k, k), pointwise (inputs, 2,
// channels, channels), reduction (inputs, channels, channels).
template <class T>
struct NodeWeights {
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
};

struct NodeShape {
  int64_t archs = 0, inputs = 0, edges = 0;
  int64_t images = 0, out_height = 0, out_width = 0;
  int64_t channels = 0, padded = 0;
  int64_t state_stride = 0;    // states of an architecture, of which the first `inputs` are read
  int64_t reduced_inputs = 0;  // the first inputs are halved: every operation on them has stride 2

  int64_t stride(int64_t input) const { return input < reduced_inputs ? 2 : 1; }
  int64_t out_size() const { return images * out_height * out_width * padded; }
  // Values that a node keeps for the backward pass, at most.
  int64_t saved_bound() const { return archs * edges * (2 * out_size() + 4 * padded); }
};

template <class T>
class Node {
 public:
  // `inputs` and `operations` are (archs, edges) with rows `stride` apart.
  // Throws std::invalid_argument if an index is out of range.
  Node(const NodeShape& shape, const NodeWeights<const T>& weights, const int32_t* inputs,
       const int32_t* operations, int64_t stride);

  Node(Node&&) = default;
  Node(const Node&) = delete;

  // Assigns places to the values of each architecture; the same calls give the same places.
  void place(const std::vector<Bump<T>*>& memory);

  // states[arch · state_stride + input]; outs[arch] (images, out_height, out_width, padded) or
  // null, if the sum of that architecture's edges is left to `combine`.
  void forward(const std::vector<State<T>>& states, const std::vector<T*>& outs);

  // The sum of the edges of images [first, first + count), after `forward` or before `backward`.
  void combine(const std::vector<State<T>>& states, int64_t arch, int64_t first, int64_t count,
               T* out) const;

  // Allows `reduce`. `backward` begins by itself otherwise.
  void begin_backward();

  // Takes what `backward` needs to know of all images from some of them, with their gradient. Parts
  // are those of the batch. To be called for all images of an architecture or for none.
  void reduce(int64_t arch, int64_t first, int64_t count, const T* grad, int64_t part_index);

  // grad_out (archs, images, out_height, out_width, padded). Adds to the gradients of states and to
  // `grads` of the weights. reduced[arch] says whether `reduce` has seen its images.
  void backward(std::vector<State<T>>& states, const T* grad_out, const NodeWeights<T>& grads,
                const std::vector<bool>& reduced);

 private:
  struct Edge {
    int64_t arch = 0, input = 0, stride = 1;
    int32_t operation = 0;
    T factor = 1;  // 2 for an edge that occurs twice in the node
    // A separable convolution has two halves. Another edge with a normalisation uses the first.
    T* z[2] = {nullptr, nullptr};
    Norm<T> norm[2];
    NormGradient<T> norm_gradient[2];
    T* depthwise[2] = {nullptr, nullptr};
    T* flipped[2] = {nullptr, nullptr};
    T* pointwise[2] = {nullptr, nullptr};
    T* grad_depthwise[2] = {nullptr, nullptr};  // (parts, k², padded)
    T* grad_pointwise[2] = {nullptr, nullptr};  // (parts, padded, padded)
    T* between = nullptr;                       // gradient of the first half's output
    bool accumulate = false;                    // somebody else has written the state's gradient
    Projection<T> reduction;

    bool separable() const { return operation >= kSeparable3Operation; }
    bool factorized() const { return operation == kIdentityOperation && stride == 2; }
    bool normalised() const { return separable() || factorized(); }
    int last() const { return separable() ? 1 : 0; }
    int64_t kernel() const { return operation == kSeparable5Operation ? 5 : 3; }
  };

  int64_t parts() const { return part_count(shape_.images); }
  const State<T>& state(const Edge& edge, const std::vector<State<T>>& states) const;
  Shape half_shape(const Edge& edge, const State<T>& state, int half) const;
  void set_up_reduction(Edge& edge, const State<T>& state);
  Block pack(const std::vector<State<T>>& states, bool backward);
  void pack_half(Edge& edge, int half, bool backward);
  Block place_gradients();
  void forward_half(const Edge& edge, const State<T>& state, int half, int64_t part_index,
                    PartialSums& sums) const;
  void backward_half(const Edge& edge, const State<T>& state, int half, const T* grad_out,
                     int64_t part_index, PartialSums* sums) const;
  Combine<T> combine_task(const std::vector<State<T>>& states, int64_t arch, Part range,
                          std::vector<Summand<T>>& summands) const;
  void finish_gradient(Edge& edge, int half, const PartialSums& sums);
  void add_weight_gradients(const NodeWeights<T>& grads);
  void add_weight_gradient(Edge& edge, const NodeWeights<T>& grads) const;

  NodeShape shape_;
  NodeWeights<const T> weights_;
  std::vector<Edge> edges_;        // by architecture
  std::vector<Edge*> normalised_;  // those of them with a normalisation
  std::vector<T> coefficients_;    // of the normalisations' gradients
  std::vector<PartialSums> last_;  // for the gradients of the normalisations that end edges
};

}  // namespace asng::cpu
