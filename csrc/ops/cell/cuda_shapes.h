// Sizes of nodes and cells, for kernels and for code without CUDA's headers alike.
#pragma once

#include <cstdint>

#include "core/hd.h"

namespace asng::cuda {

inline constexpr int kChannelBlock = 16;

ASNG_HD inline constexpr int padded_channels(int channels) {
  return (channels + kChannelBlock - 1) / kChannelBlock * kChannelBlock;
}

// The position is the value of an operation variable.
enum Operation : int32_t {
  kIdentity,
  kAveragePool,
  kMaxPool,
  kSeparable3,
  kSeparable5,
  kOperationCount,
  kInvalid = kOperationCount,
};

struct DagShape {
  int archs = 0, nodes = 0, edges = 0;  // edges of a node
  int inputs = 0;
  int images = 0, channels = 0, padded = 0;
  int height = 0, width = 0;          // of the inputs
  int out_height = 0, out_width = 0;  // of the nodes
  int stride = 1;                     // of operations on inputs
  unsigned shared = 0;  // bit i: all architectures share input i, kept as that of the first
  bool tf32 = false;    // whether products of float32 matrices may round their factors to TF32

  ASNG_HD int64_t in_size() const { return static_cast<int64_t>(images) * height * width * padded; }
  ASNG_HD int64_t out_size() const {
    return static_cast<int64_t>(images) * out_height * out_width * padded;
  }
  ASNG_HD int states() const { return inputs + nodes; }
  ASNG_HD int slots() const { return archs * nodes * edges; }
  ASNG_HD int slot(int arch, int node, int edge) const {
    return (arch * nodes + node) * edges + edge;
  }
  // Separable convolutions have weights for every (node, state before it), factorized reductions
  // for every (node, input).
  ASNG_HD int weight_index(int node, int state) const {
    return node * inputs + node * (node - 1) / 2 + state;
  }
  ASNG_HD int weight_count() const { return weight_index(nodes, 0); }
  ASNG_HD bool is_shared(int input) const { return (shared >> input & 1u) != 0; }
  // Values of a slot of packed weights, and of their gradients: two stages of a separable
  // convolution, each of a pointwise and a depthwise weight, or a factorized reduction.
  ASNG_HD int stage_weights() const { return padded * padded + 25 * padded; }
  ASNG_HD int slot_weights() const { return 2 * stage_weights(); }
  // Values of an edge's gradient in front of its first depthwise convolution, or of the even and
  // the odd pixels of a factorized reduction.
  ASNG_HD int64_t depth_size() const { return stride * out_size(); }
};

// Of all operations: depthwise (edges, 2, channels, k, k) and pointwise (edges, 2, channels,
// channels) of 3×3 and of 5×5, numbered by DagShape::weight_index; reduction (nodes · inputs,
// channels, channels) or null.
template <class T>
struct NodeWeights {
  T* depthwise[2] = {nullptr, nullptr};
  T* pointwise[2] = {nullptr, nullptr};
  T* reduction = nullptr;
};

}  // namespace asng::cuda
