// The launches that nodes, cells and the stem are made of. Each works on all architectures; see
// the files that define them. Every launch may throw std::runtime_error.
#pragma once

#include "kernels/cuda/dag.h"
#include "kernels/cuda/packed_weights.h"
#include "kernels/cuda/persistent.h"

namespace asng::cuda {

// packed_weights.cu

template <class T>
struct PlanJob {
  DagShape shape;
  const int32_t* inputs = nullptr;      // (archs, nodes, edges)
  const int32_t* operations = nullptr;  // the same
  OperationWeights<const T> weights;
  Matrix<T> matrices[3];  // unused ones are null
  PlannedEdge* plan = nullptr;
  int32_t* used = nullptr;
  T* packed = nullptr;
  unsigned* counters = nullptr;
  int counter_count = 0;
  bool backward = false;
};
// Looks up what every edge computes, packs the weights, clears the counters.
template <class T>
void make_plan(const PlanJob<T>& job, CudaStream stream);
template <class T>
void pack_matrix(const Matrix<T>& matrix, bool backward, CudaStream stream);

// separable_forward.cu, separable_backward.cu, combine.cu

template <class V>
void stage_forward(const Dag<V>& dag, int node, int stage, CudaStream stream);
template <class V>
void combine_forward(const Dag<V>& dag, int node, bool keeps_maxima, CudaStream stream);
template <class V>
void stage_backward(const Dag<V>& dag, const Gradients<V>& gradients, int node, int stage,
                    CudaStream stream);
template <class V>
void intermediate_backward(const Dag<V>& dag, const Gradients<V>& gradients, int node,
                           CudaStream stream);
// Splits of the weights' gradients that stage_backward writes.
template <class V>
int weight_split_count(const DagShape& shape);

// persistent_forward.cu

// Whether all nodes of a cell of that shape, in float32 or bfloat16, can be computed in one launch.
bool can_stay(const DagShape& shape);
// All nodes from the inputs, which are there. A dag without a backward pass needs a place for the
// stages of every node, too.
template <class V>
void nodes_forward(const Dag<V>& dag, const Meeting& meeting, bool keeps_maxima, CudaStream stream);

// gather.cu

// Gradients of the states from `first` on, `count` of them, from the edges that read them; those of
// nodes that no edge reads must be there. Inputs' go to `input_grads` (inputs, archs, in_size).
// With `coefficients` (inputs, archs, 3, padded) also the sums for the inputs' normalization, and
// what no edge reads is left out; without, its gradient is zeros. Of nodes, which must have two
// edges, the sums are those of the normalizations that end the edges.
template <class V>
void gather(const Dag<V>& dag, const Gradients<V>& gradients, int first, int count, V* input_grads,
            Compute<V>* coefficients, CudaStream stream);
// The sums for the normalizations that end the edges of a node with any number of edges.
template <class V>
void reduce_edges(const Dag<V>& dag, const Gradients<V>& gradients, int node, CudaStream stream);

// pointwise_forward.cu, pointwise_backward.cu

// What a cell reads and makes.
template <class V>
struct Input {
  const V* x = nullptr;  // (archs or 1, images, height, width, padded)
  int padded = 0, height = 0, width = 0;
  bool factorized = false;
  V* grad = nullptr;  // null: not needed
};

template <class V>
struct CellJob {
  using T = Compute<V>;

  Dag<V> dag;
  Input<V> inputs[2];
  const T* packed[3] = {nullptr, nullptr, nullptr};  // of prev_prev, prev and output
  V* y = nullptr;                                    // (archs, out_size)
  T* y_norms = nullptr;                              // (archs, 2, padded)
  // Backward.
  const V* grad_y = nullptr;
  const V* input_grads = nullptr;                     // see gather
  const T* input_coefficients = nullptr;              // (2, archs, 3, padded)
  T* y_coefficients = nullptr;                        // (archs, 3, padded)
  T* weight_splits[3] = {nullptr, nullptr, nullptr};  // (archs, splits, padded, depth)
  int splits[3] = {0, 0, 0};

  ASNG_HD bool is_shared(int input) const { return dag.shape.is_shared(input); }
  // Number of packed columns of the three weights.
  ASNG_HD int depth(int which) const {
    if (which == 2) return dag.shape.nodes * dag.shape.padded;
    return (inputs[which].factorized ? 2 : 1) * inputs[which].padded;
  }
};

template <class V>
void project_inputs(const CellJob<V>& job, CudaStream stream);
template <class V>
void project_output(const CellJob<V>& job, CudaStream stream);
template <class V>
void reduce_output(const CellJob<V>& job, CudaStream stream);
template <class V>
void project_output_backward(const CellJob<V>& job, const Gradients<V>& gradients,
                             CudaStream stream);
template <class V>
void project_inputs_backward(const CellJob<V>& job, CudaStream stream);
// Splits of a pointwise convolution's weight gradient, (padded, depth), with that many output
// pixels.
template <class V>
int pointwise_split_count(int64_t pixels, int padded, int depth);

// weight_gradients.cu

template <class T>
struct WeightJob {
  DagShape shape;
  const PlannedEdge* plan = nullptr;
  const int32_t* used = nullptr;
  const T* weight_splits = nullptr;  // see Gradients
  int splits = 0;
  OperationWeights<T> grads;
  MatrixGradient<T> matrices[3];
};
// Sums the splits of all weights' gradients; writes every element.
template <class T>
void sum_weight_splits(const WeightJob<T>& job, CudaStream stream);

}  // namespace asng::cuda
