// Nodes, cells and the stem on a CUDA device: the passes of csrc/cuda/passes.h in order, on memory
// that the caller provides. All pointers are the device's. Every function throws std::runtime_error
// if a launch fails; kernels run later, and none of this waits for them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shapes.h"
#include "stream.h"

namespace asng::cuda {

struct InputShape {
  bool shared = false;  // all architectures share it
  int channels = 0, padded = 0, height = 0, width = 0;
};

struct CellShape {
  GraphShape graph;  // its height and width are those of the newer input
  InputShape older, newer;
  bool older_is_larger = false;

  // Values that the backward pass needs.
  int64_t saved_size() const;
};

template <class T>
struct CellWeights {
  T* older = nullptr;   // (channels, older channels); factorized: rows for even pixels come first
  T* newer = nullptr;   // (channels, newer channels)
  T* output = nullptr;  // (channels, nodes · channels)
  NodeWeights<T> operations;
};

// Indices, (archs, nodes, edges).
struct Choices {
  const int32_t* inputs = nullptr;
  const int32_t* operations = nullptr;
};

// A graph of one node. `saved` has node_saved_size() values or is null, if there will be no
// backward pass; `scratch` has as many bytes as the function of the same name says and is aligned
// to 256.
int64_t node_saved_size(const GraphShape& shape);
template <class T>
size_t node_forward_scratch(const GraphShape& shape, bool save);
template <class T>
size_t node_backward_scratch(const GraphShape& shape);
template <class T>
void node_forward(const GraphShape& shape, const NodeWeights<const T>& weights,
                  const Choices& choices, const T* bank, T* out, T* saved, void* scratch,
                  CudaStream stream);
// Every element of every gradient is written.
template <class T>
void node_backward(const GraphShape& shape, const NodeWeights<const T>& weights,
                   const Choices& choices, const T* bank, const T* grad_out, const T* saved,
                   T* grad_bank, const NodeWeights<T>& grads, void* scratch, CudaStream stream);

template <class T>
size_t cell_forward_scratch(const CellShape& shape, bool save);
template <class T>
size_t cell_backward_scratch(const CellShape& shape);
template <class T>
void cell_forward(const CellShape& shape, const CellWeights<const T>& weights,
                  const Choices& choices, const T* older, const T* newer, T* y, T* saved,
                  void* scratch, CudaStream stream);
// grad_older and grad_newer may be null.
template <class T>
void cell_backward(const CellShape& shape, const CellWeights<const T>& weights,
                   const Choices& choices, const T* older, const T* newer, const T* y,
                   const T* grad_y, const T* saved, T* grad_older, T* grad_newer,
                   const CellWeights<T>& grads, void* scratch, CudaStream stream);

struct StemShape {
  int images = 0, height = 0, width = 0;
  int in_channels = 0, channels = 0, padded = 0;

  int64_t out_size() const { return static_cast<int64_t>(images) * height * width * padded; }
  int64_t saved_size() const { return out_size() + 2 * padded; }
};

template <class T>
size_t stem_scratch(const StemShape& shape, bool backward);
template <class T>
void stem_forward(const StemShape& shape, const T* weight, const T* scale, const T* bias,
                  const T* x, T* y, T* saved, void* scratch, CudaStream stream);
template <class T>
void stem_backward(const StemShape& shape, const T* scale, const T* x, const T* grad_y,
                   const T* saved, T* grad_weight, T* grad_scale, T* grad_bias, void* scratch,
                   CudaStream stream);

}  // namespace asng::cuda
