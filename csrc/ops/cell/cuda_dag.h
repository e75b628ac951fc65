// What the kernels of nodes and cells share: sizes, places in memory, and how an edge is read.
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
#include "ops/cell/cuda_shapes.h"
#include "platform/cuda.h"

namespace asng::cuda {

inline constexpr int kThreads = 128;  // of a block, in every kernel that works on images
// Blocks per multiprocessor for __launch_bounds__. Some large kernels do with the registers that
// are left where there are four, and would by themselves take a few more.
constexpr int resident_blocks(bool four) { return four ? 4 : 1; }
// Blocks that share a reduction, at most.
inline constexpr int kMaxSplits = 256;

struct PlannedEdge {
  int32_t input, operation;
  int32_t factor;  // how often the edge occurs in its node; 0 where an earlier one stands for it
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
  // first stage's place holds the positions of a max pool's maxima. If z_nodes is 0 the nodes take
  // turns with one place.
  V* z = nullptr;
  int64_t z_nodes = 0;
  T* norms = nullptr;         // (nodes, archs, edges, 2, 2, padded)
  const T* packed = nullptr;  // (archs, nodes, edges, slot_weights)
  double* partials = nullptr;
  unsigned* counters = nullptr;  // zeros; every kernel leaves them so

  __device__ const PlannedEdge& edge(int arch, int node, int e) const {
    return plan[shape.slot(arch, node, e)];
  }
  __device__ int stride(const PlannedEdge& edge) const {
    return edge.input < shape.inputs ? shape.stride : 1;
  }
  __device__ bool separable(const PlannedEdge& edge) const {
    return edge.operation == kSeparable3 || edge.operation == kSeparable5;
  }
  __device__ bool factorized(const PlannedEdge& edge) const {
    return edge.operation == kIdentity && stride(edge) == 2;
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
  // (taps, padded)
  __device__ const T* depthwise(int arch, int node, int e, int stage) const {
    return pointwise(arch, node, e, stage) + shape.padded * shape.padded;
  }
};

// What a backward pass adds to a dag.
template <class V>
struct Gradients {
  using T = Compute<V>;

  V* nodes = nullptr;          // (nodes, archs, out_size)
  V* depth = nullptr;          // (nodes, archs, edges, depth_size)
  V* second_depth = nullptr;   // (archs, edges, out_size): of the second stage, nodes take turns
  V* intermediate = nullptr;   // (archs, edges, out_size): of the first stage's normalized output
  T* coefficients = nullptr;   // (archs, edges, 2, 3, padded): see finish_gradient; taking turns
  T* weight_splits = nullptr;  // (archs, nodes, edges, parts, slot_weights)
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
  __device__ T* weight_split(const DagShape& s, int arch, int node, int e, int split) const {
    return weight_splits +
           (static_cast<int64_t>(s.slot(arch, node, e)) * splits + split) * s.slot_weights();
  }
};

}  // namespace asng::cuda
