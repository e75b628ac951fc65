// Nodes and cells on a CUDA device: the launchers of csrc/kernels/cuda/launchers.h in order, on
// memory that the caller provides. All pointers are the device's. Feature maps, and their
// gradients, are of the stored type V: float, double or BFloat16, the rest of Compute<V>. Every
// function throws std::runtime_error if a launch fails; kernels run later, and nothing
// synchronizes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/cell/shape.h"
#include "platform/bfloat16.h"
#include "platform/cuda_stream.h"

namespace asng::cuda {

// Indices, (archs, nodes, edges).
struct Choices {
  const int32_t* inputs = nullptr;
  const int32_t* operations = nullptr;
};

// A dag of one node. `saved` is what the shape's saved() says, as in ops/saved.h, or null if there
// will be no backward pass; `scratch` has as many bytes as node_scratch says and is aligned to 256.
template <class V>
size_t node_scratch(const asng::DagShape& shape, bool save, bool backward);
template <class V>
void node_forward(const asng::DagShape& shape, bool tf32,
                  const OperationWeights<const Compute<V>>& weights, const Choices& choices,
                  const V* bank, V* out, Compute<V>* saved, void* scratch, CudaStream stream);
// Every element of every gradient is written.
template <class V>
void node_backward(const asng::DagShape& shape, bool tf32,
                   const OperationWeights<const Compute<V>>& weights, const Choices& choices,
                   const V* bank, const V* grad_out, const Compute<V>* saved, V* grad_bank,
                   const OperationWeights<Compute<V>>& grads, void* scratch, CudaStream stream);

// What the kernels of a cell look up and read before a pass: the edges, weights in their order,
// and counters. Cells that are not planned, for which `plan` is null, do so themselves.
template <class V>
struct CellToPlan {
  CellShape shape;
  CellWeights<const Compute<V>> weights;
  Choices choices;
  void* plan = nullptr;  // as many bytes as cell_plan_size says, aligned to 256
};
template <class V>
size_t cell_plan_size(const CellShape& shape, bool backward);
// Plans cells for a forward or a backward pass, in one launch or as many as their number asks for.
// A plan is for one pass of one cell.
template <class V>
void plan_cells(const std::vector<CellToPlan<V>>& cells, bool backward, CudaStream stream);

// `saved` and `scratch` as above.
template <class V>
size_t cell_scratch(const CellShape& shape, bool save, bool backward, bool planned = false);
template <class V>
void cell_forward(const CellShape& shape, bool tf32, const CellWeights<const Compute<V>>& weights,
                  const Choices& choices, const V* prev_prev, const V* prev, V* y,
                  Compute<V>* saved, void* scratch, CudaStream stream, void* plan = nullptr);
// grad_prev_prev and grad_prev may be null. With adds_to_prev, what is in grad_prev is added to.
template <class V>
void cell_backward(const CellShape& shape, bool tf32, const CellWeights<const Compute<V>>& weights,
                   const Choices& choices, const V* prev_prev, const V* prev, const V* y,
                   const V* grad_y, const Compute<V>* saved, V* grad_prev_prev, V* grad_prev,
                   const CellWeights<Compute<V>>& grads, void* scratch, CudaStream stream,
                   bool adds_to_prev = false, void* plan = nullptr);

}  // namespace asng::cuda
