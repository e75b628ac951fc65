// The launches that nodes, cells and the stem are made of. Each works on all architectures; see
// the files that define them. Every launch may throw std::runtime_error.
#pragma once

#include <vector>

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
// Looks up what every edge computes, packs the weights, clears the counters; of several cells in
// one launch, of as many as its parameters have room for.
template <class T>
void make_plans(const std::vector<PlanJob<T>>& jobs, CudaStream stream);
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
// Splits of the weights' gradients that stage_backward writes, of so many edges at once.
template <class V>
int weight_split_count(const DagShape& shape, int edges);

// persistent_backward.cu, persistent_backward_plan.cu, persistent_backward_strips.cu

// What keeps a cell in float32 or bfloat16 from having the gradients of all its nodes computed in
// one launch; null if nothing does.
const char* nodes_backward_obstacle(const DagShape& shape);
// Columns of the handover.
int nodes_backward_columns(const DagShape& shape);
template <class V>
struct NodesJob {
  Dag<V> dag;
  Gradients<V> gradients;
  V* input_grads = nullptr;             // see gather
  float* input_coefficients = nullptr;  // the same
  // The plan: as many bytes as nodes_plan_size says for each architecture.
  void* plan = nullptr;
  const void* scratch = nullptr;  // where the memory of the gradients begins
};
size_t nodes_plan_size();
// Plans the nodes of cells, whose addresses are counted as persistent_plan.h says, in as few
// launches as their number allows. What make_plans writes must be there.
template <class V>
void plan_nodes(const std::vector<NodesJob<V>>& jobs, CudaStream stream);
// From the gradients of leaf nodes, which must be there, those of all nodes and of the inputs, as
// `gather` gives them, and of the weights, one split for each block of an architecture.
template <class V>
void nodes_backward(const NodesJob<V>& job, const Handover& handover, CudaStream stream);

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

// What a cell reads and makes.
template <class V>
struct Input {
  const V* x = nullptr;  // (archs or 1, images, height, width, padded)
  int padded = 0, height = 0, width = 0;
  bool factorized = false;
  V* grad = nullptr;  // null: not needed
  bool adds = false;  // to what is there in grad, if the input is not factorized
};

template <class V>
struct CellJob {
  using T = Compute<V>;

  Dag<V> dag;
  Input<V> inputs[2];
  const T* packed[3] = {nullptr, nullptr, nullptr};  // of prev_prev, prev and output
  V* y = nullptr;                                    // (archs, out_size)
  T* y_norms = nullptr;                              // (archs, 2, padded)
  // The plan of a cell that is computed in one launch: as many bytes as whole_cell_plan_size says
  // for each architecture.
  void* plan = nullptr;
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

// persistent_forward.cu

// What keeps a cell in float32 or bfloat16 from being computed in one launch; null if nothing does.
const char* whole_cell_forward_obstacle(const DagShape& shape);
// Columns of the handover.
int whole_cell_forward_columns(const DagShape& shape);
size_t whole_cell_plan_size();
// Plans cells, as plan_nodes does.
template <class V>
void plan_whole_cells(const std::vector<CellJob<V>>& jobs, CudaStream stream);
// All of the cell. Without a backward pass there must be a place for the stages of every node, too.
template <class V>
void whole_cell_forward(const CellJob<V>& job, const Handover& handover, bool keeps_maxima,
                        CudaStream stream);

// persistent_projection.cu

// The gradients of the leaf nodes, and of the output's weight, from that of the output: what
// reduce_output and project_output_backward do. And those of the inputs and their weights: what
// project_inputs_backward does. In float32 or bfloat16, with TF32 products, of padded channels as
// many as a cell may have whose nodes are computed in one launch. The weights' gradients have one
// split for each block of an architecture.
template <class V>
void whole_output_backward(const CellJob<V>& job, const Gradients<V>& gradients,
                           const Handover& handover, CudaStream stream);
template <class V>
void whole_inputs_backward(const CellJob<V>& job, const Handover& handover, CudaStream stream);

// pointwise_forward.cu, pointwise_backward.cu

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
