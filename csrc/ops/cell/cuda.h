// Nodes, cells and the stem on a CUDA device: the passes of csrc/kernels/cuda/launchers.h in order,
// on memory that the caller provides. All pointers are the device's. Images, and their gradients,
// are of the stored type V: float, double or BFloat16, the rest of Compute<V>. Every function
// throws std::runtime_error if a launch fails; kernels run later, and none of this waits for them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/cell/cuda_shapes.h"
#include "platform/cuda_types.h"

namespace asng::cuda {

struct InputShape {
  bool shared = false;  // all architectures share it
  int channels = 0, padded = 0, height = 0, width = 0;
};

struct CellShape {
  DagShape dag;  // its height and width are those of the prev input
  InputShape prev_prev, prev;
  bool prev_prev_is_larger = false;
};

template <class T>
struct CellWeights {
  T* prev_prev =
      nullptr;        // (channels, prev_prev channels); factorized: rows for even pixels come first
  T* prev = nullptr;  // (channels, prev channels)
  T* output = nullptr;  // (channels, nodes · channels)
  NodeWeights<T> operations;
};

// Indices, (archs, nodes, edges).
struct Choices {
  const int32_t* inputs = nullptr;
  const int32_t* operations = nullptr;
};

// A dag of one node. `saved` has node_saved_size() values, see saved_values(), or is null, if
// there will be no backward pass; `scratch` has as many bytes as the function of the same name says
// and is aligned to 256.
template <class V>
int64_t node_saved_size(const DagShape& shape);
template <class V>
size_t node_forward_scratch(const DagShape& shape, bool save);
template <class V>
size_t node_backward_scratch(const DagShape& shape);
template <class V>
void node_forward(const DagShape& shape, const NodeWeights<const Compute<V>>& weights,
                  const Choices& choices, const V* bank, V* out, Compute<V>* saved, void* scratch,
                  CudaStream stream);
// Every element of every gradient is written.
template <class V>
void node_backward(const DagShape& shape, const NodeWeights<const Compute<V>>& weights,
                   const Choices& choices, const V* bank, const V* grad_out,
                   const Compute<V>* saved, V* grad_bank, const NodeWeights<Compute<V>>& grads,
                   void* scratch, CudaStream stream);

// `saved` as above.
template <class V>
int64_t cell_saved_size(const CellShape& shape);
template <class V>
size_t cell_forward_scratch(const CellShape& shape, bool save);
template <class V>
size_t cell_backward_scratch(const CellShape& shape);
template <class V>
void cell_forward(const CellShape& shape, const CellWeights<const Compute<V>>& weights,
                  const Choices& choices, const V* prev_prev, const V* prev, V* y,
                  Compute<V>* saved, void* scratch, CudaStream stream);
// grad_prev_prev and grad_prev may be null.
template <class V>
void cell_backward(const CellShape& shape, const CellWeights<const Compute<V>>& weights,
                   const Choices& choices, const V* prev_prev, const V* prev, const V* y,
                   const V* grad_y, const Compute<V>* saved, V* grad_prev_prev, V* grad_prev,
                   const CellWeights<Compute<V>>& grads, void* scratch, CudaStream stream);

struct StemShape {
  int images = 0, height = 0, width = 0;
  int in_channels = 0, channels = 0, padded = 0;
  bool tf32 = false;  // as that of DagShape

  int64_t out_size() const { return static_cast<int64_t>(images) * height * width * padded; }
  template <class V>
  int64_t saved_size() const {
    return saved_values<V>(2 * padded, out_size());
  }
};

template <class V>
size_t stem_scratch(const StemShape& shape, bool backward);
template <class V>
void stem_forward(const StemShape& shape, const Compute<V>* weight, const Compute<V>* scale,
                  const Compute<V>* bias, const V* x, V* y, Compute<V>* saved, void* scratch,
                  CudaStream stream);
template <class V>
void stem_backward(const StemShape& shape, const Compute<V>* scale, const V* x, const V* grad_y,
                   const Compute<V>* saved, Compute<V>* grad_weight, Compute<V>* grad_scale,
                   Compute<V>* grad_bias, void* scratch, CudaStream stream);

}  // namespace asng::cuda
