// What the kernels of nodes and cells share: sizes, where things lie in memory, and how an edge is
// read.
//
// A dag has some inputs and then nodes; both are its states. For every architecture, each node is
// the sum of edges, an edge being an operation on an earlier state. Which ones is known on the
// device alone, so every launch covers all (architecture, edge) pairs, and a block looks up what
// its own pair wants. Images are channels-last, (images, height, width, padded); channels beyond
// the real ones are zeros.
//
// An index out of range cannot be reported from here. Such an edge reads nothing and adds NaN to
// its node, so that it shows in the output and in the loss; in a backward pass it adds nothing.
#pragma once

#include "kernels/cuda/vec4.h"
#include "ops/cell/shape.h"
#include "platform/cuda.h"

namespace asng::cuda {

inline constexpr int kThreads = 128;  // of a block, in every kernel that works on images
// Blocks per multiprocessor for __launch_bounds__. Some large kernels do with the registers that
// are left where there are four, and would by themselves take a few more.
constexpr int resident_blocks(bool four) { return four ? 4 : 1; }
// What the parameters of a kernel may take.
inline constexpr size_t kMostParameters = 4096;

// Of several cells, as many as a launch takes.
template <class Job>
struct Jobs {
  static constexpr int kMost = kMostParameters / sizeof(Job);

  Job jobs[kMost];
};
// Blocks of a launch that computes so many sums, at most, and those that share one of them. If
// there are few sums, enough for large devices, several a multiprocessor; not for the one at hand,
// because bits depend on it.
inline constexpr int kManySplits = 256, kManyBlocks = 1024;
ASNG_HD constexpr int most_blocks(int sums) {
  return sums * kManySplits > kManyBlocks ? sums * kManySplits : kManyBlocks;
}
ASNG_HD constexpr int most_splits(int sums) { return most_blocks(sums) / sums; }

inline int narrow(int64_t value) { return static_cast<int>(value); }

// asng::DagShape in the integers that kernels count with, and what only they need to know.
struct DagShape {
  int archs = 0, nodes = 0, edges = 0;  // edges of a node
  int inputs = 0;
  int images = 0, channels = 0, padded = 0;
  int height = 0, width = 0;          // of the inputs
  int out_height = 0, out_width = 0;  // of the nodes
  int stride = 1;                     // of operations on inputs
  unsigned shared = 0;  // bit i: all architectures share input i, kept as that of the first
  bool tf32 = false;    // whether float32 matrix products may round their factors to TF32

  DagShape() = default;
  DagShape(const asng::DagShape& s, bool allows_tf32)
      : archs(narrow(s.archs)),
        nodes(narrow(s.nodes)),
        edges(narrow(s.edges)),
        inputs(narrow(s.inputs)),
        images(narrow(s.images)),
        channels(narrow(s.channels)),
        padded(narrow(s.padded)),
        height(narrow(s.height)),
        width(narrow(s.width)),
        out_height(narrow(s.out_height)),
        out_width(narrow(s.out_width)),
        stride(s.reduction ? 2 : 1),
        tf32(allows_tf32) {}

  ASNG_HD int64_t in_size() const { return static_cast<int64_t>(images) * height * width * padded; }
  ASNG_HD int64_t out_size() const {
    return static_cast<int64_t>(images) * out_height * out_width * padded;
  }
  ASNG_HD int states() const { return inputs + nodes; }
  ASNG_HD int slots() const { return archs * nodes * edges; }
  ASNG_HD int slot(int arch, int node, int edge) const {
    return (arch * nodes + node) * edges + edge;
  }
  ASNG_HD int weight_index(int node, int state) const {
    return asng::weight_index(inputs, node, state);
  }
  ASNG_HD int weight_count() const { return weight_index(nodes, 0); }
  ASNG_HD bool is_shared(int input) const { return (shared >> input & 1u) != 0; }
  // Values of a slot of packed weights, and of their gradients: two stages of a separable
  // convolution, each of a pointwise and a depthwise weight, or a factorized reduction.
  ASNG_HD int stage_weights() const { return padded * padded + kMostKernelElements * padded; }
  ASNG_HD int slot_weights() const { return 2 * stage_weights(); }
  // Values of an edge's gradient in front of its first depthwise convolution, or of the even and
  // the odd pixels of a factorized reduction.
  ASNG_HD int64_t depth_size() const { return stride * out_size(); }
};

struct PlannedEdge {
  int32_t input, operation;
  int32_t multiplicity;  // in its node; 0 where an earlier edge stands for it
  Form form;             // kNone: an index is out of range, or its operation has no weights
  int32_t separable;     // which separable convolution it is
};

// An image batch as the kernels read it.
template <class V>
struct State {
  const V* x;
  const Compute<V>* norm;  // see affine_vec4
  int height, width;
};

template <class V>
struct Dag {
  using T = Compute<V>;

  DagShape shape;
  const PlannedEdge* plan = nullptr;  // (archs, nodes, edges)
  const int32_t* used = nullptr;      // (archs, states): whether an edge reads it
  const V* inputs = nullptr;          // (inputs, archs, in_size)
  const T* input_norms = nullptr;     // (inputs, archs, 2, padded) or null
  V* nodes = nullptr;                 // (nodes, archs, out_size)
  // (nodes, archs, edges, 2, out_size): outputs of the stages before their normalization. The
  // first stage's place holds the positions of a max pool's maxima. If z_nodes is 0 the nodes
  // use one place in turn.
  V* z = nullptr;
  int64_t z_nodes = 0;
  T* norms = nullptr;            // (nodes, archs, edges, 2, 2, padded)
  const T* packed = nullptr;     // (archs, nodes, edges, slot_weights)
  double* partials = nullptr;    // as many as partial_values() says
  unsigned* counters = nullptr;  // zeros, sum_counters(); every kernel leaves them so

  __device__ const PlannedEdge& edge(int arch, int node, int e) const {
    return plan[shape.slot(arch, node, e)];
  }
  __device__ int stride(const PlannedEdge& edge) const {
    return edge.input < shape.inputs ? shape.stride : 1;
  }
  __device__ bool separable(const PlannedEdge& edge) const { return edge.form == Form::kSeparable; }
  __device__ bool factorized(const PlannedEdge& edge) const {
    return is_factorized(edge.form, stride(edge));
  }
  __device__ bool normalized(const PlannedEdge& edge) const {
    return separable(edge) || factorized(edge);
  }
  __device__ State<V> state(int arch, int index) const {
    if (index >= shape.inputs) {
      const int64_t image = static_cast<int64_t>(index - shape.inputs) * shape.archs + arch;
      return {nodes + image * shape.out_size(), nullptr, shape.out_height, shape.out_width};
    }
    const int64_t image =
        static_cast<int64_t>(index) * shape.archs + (shape.is_shared(index) ? 0 : arch);
    return {inputs + image * shape.in_size(),
            input_norms == nullptr ? nullptr : input_norms + image * 2 * shape.padded, shape.height,
            shape.width};
  }
  __device__ V* stage(int arch, int node, int e, int stage) const {
    return z + node * z_nodes + ((arch * shape.edges + e) * 2 + stage) * shape.out_size();
  }
  // What a stage of an edge reads.
  __device__ State<V> stage_input(int arch, int node, int e, int stage_index,
                                  const PlannedEdge& edge) const {
    if (stage_index == 0) return state(arch, edge.input);
    return {stage(arch, node, e, 0), norm(arch, node, e, 0), shape.out_height, shape.out_width};
  }
  // Positions in their windows, those of four channels in one word.
  __device__ uint32_t* maxima(int arch, int node, int e) const {
    return reinterpret_cast<uint32_t*>(stage(arch, node, e, 0));
  }
  __device__ T* norm(int arch, int node, int e, int stage) const {
    return norms +
           (((static_cast<int64_t>(node) * shape.archs + arch) * shape.edges + e) * 2 + stage) * 2 *
               shape.padded;
  }
  // (in, out) in a forward pass, (out, in) in a backward pass. Of a factorized reduction the even
  // pixels come first on the side of the input.
  __device__ const T* pointwise(int arch, int node, int e, int stage) const {
    return packed + static_cast<int64_t>(shape.slot(arch, node, e)) * shape.slot_weights() +
           stage * shape.stage_weights();
  }
  // (kernel elements, padded)
  __device__ const T* depthwise(int arch, int node, int e, int stage) const {
    return pointwise(arch, node, e, stage) + shape.padded * shape.padded;
  }
};

// What a backward pass adds to a dag.
template <class V>
struct Gradients {
  using T = Compute<V>;

  V* nodes = nullptr;  // (nodes, archs, out_size)
  // Of the first stage's normalized output: (archs, edges, out_size), where nodes take turns, or
  // (archs, nodes, edges, out_size), where all are computed in one launch, which has no use for the
  // next three.
  V* intermediate = nullptr;
  V* depth = nullptr;          // (nodes, archs, edges, depth_size)
  V* second_depth = nullptr;   // (archs, edges, out_size): of the second stage, nodes take turns
  T* coefficients = nullptr;   // (archs, edges, 2, 3, padded): see finish_gradient; taking turns
  T* weight_splits = nullptr;  // (archs, nodes, edges, splits, slot_weights)
  int splits = 0;

  __device__ V* node(const DagShape& s, int arch, int node) const {
    return nodes + (static_cast<int64_t>(node) * s.archs + arch) * s.out_size();
  }
  __device__ V* depth_of(const DagShape& s, int arch, int node, int e) const {
    return depth + ((static_cast<int64_t>(node) * s.archs + arch) * s.edges + e) * s.depth_size();
  }
  __device__ T* coefficients_of(const DagShape& s, int arch, int e, int stage) const {
    return coefficients + ((arch * s.edges + e) * 2 + stage) * 3 * s.padded;
  }
  __device__ T* weight_split(const DagShape& s, int arch, int node, int e, int part) const {
    return weight_splits +
           (static_cast<int64_t>(s.slot(arch, node, e)) * splits + part) * s.slot_weights();
  }
};

}  // namespace asng::cuda
