// What a block of the launch for the gradients of all nodes looks up: see persistent_backward.cu.
#pragma once

#include "kernels/cuda/launchers.h"
#include "kernels/cuda/persistent_plan.h"

namespace asng::cuda::gradients_of_nodes {

// Places in dynamic shared memory behind the plan, counted in floats.
struct Layout {
  int coefficients;  // (edges, 3, C): see finish_gradient
  int norms;         // (edges, 2, 2, C), and behind them (inputs, 2, C)
  int totals;        // doubles (items, 2, C), the sums of a round
  int taps;          // (kernel elements, C)
  int weight;        // (C, C + 4)
  int source, grads;
  int matrix, copies;  // (copies, C, C), of a weight's gradient, to which warps add in turns
  int rows;            // of nodes in a strip, a multiple of 4; 0 where images are whole
  int scratch;  // for sums: in the place of the matrix or, where there is no room, of the images
  int size;
  bool ahead;  // whether images may come while sums are taken
  // Of images of nodes and of inputs: 2³² / their width, rounded up, and 1 / the pixels of all.
  unsigned per_row, per_input_row;
  double share, input_share;
};

// Values in a row of an image that is whole in shared memory, at most.
inline constexpr int kWholeRow = 512;

// Some of what is to be done, in order; what belongs to round r begins at before[r].
inline constexpr int kMostListed = 2 * kMostEdges + 2;
struct List {
  int keys[kMostListed];  // round · kKeys + what decides within a round; INT_MAX: nothing to do
  int ranks[kMostListed];
  int before[kMostPhases + 1];
};
inline constexpr int kKeys = 64;
static_assert(kMostListed <= kKeys);

// A stage of an edge: where things lie, of all images.
template <class V>
struct Stage {
  const V *x, *g, *z;
  V* to;
  const float *pointwise, *taps;
  float* split;            // of the weights' gradients
  int norm, coefficients;  // places in shared memory; norm is -1 if there is none
  int height, width, stride, separable, elements;
  unsigned per_row, per_element;  // 2³² / width and elements, rounded up
  int item;                       // whose sums are those of what the stage writes, or -1
  bool writes;                    // rather than adds to what is there
  bool waits;                     // until the sums of its round are handed over
  bool reduces;                   // is a factorized reduction
};

// A state whose gradient is complete but for what identities and pools pass on.
template <class V>
struct Completion {
  V* to;
  const V* z[kCellEdges];  // what was normalized to give the state; the other one if it was not
  int norms[kCellEdges];   // their places in shared memory, or -1
  int items[kCellEdges];   // whose sums are taken, or -1
  int height, width, stride;
  int first_pass, passes;
  bool begun;  // there is something already
};

// An identity or a pool that reads a state.
template <class V>
struct Pass {
  const V* grads;
  const uint32_t* maxima;
  Form form;
  int multiplicity;
};

// A normalization whose gradient's coefficients come from the sums of a round.
struct Item {
  float* coefficients;
  double factor, share;
  int norm;
  bool once;  // in one block
};

template <class V>
struct alignas(16) Plan {
  Bases bases;
  DagShape shape;
  Layout layout;
  PlannedEdge edges[kMostEdges];
  int stage_count[kMostEdges];
  int complete[2 + kMostNodes];  // the round in which the gradient of a state is complete
  // The edges that read a state: those that are normalized, and those that pass on its gradient.
  unsigned normalized[2 + kMostNodes], passing[2 + kMostNodes];
  List stage_list, item_list, completion_list, pass_list;
  Stage<V> stages[2 * kMostEdges];
  Item items[kMostListed];
  Completion<V> completions[2 + kMostNodes];
  Pass<V> passes[kMostEdges];

  // To all addresses; for all threads of the block.
  __device__ void add_bases() {
    int turn = threadIdx.x;
    turn = bases.add_to<7>(stages, turn);
    turn = bases.add_to<1>(items, turn);
    turn = bases.add_to<3>(completions, turn);
    turn = bases.add_to<2>(passes, turn);
  }
};

template <class V>
struct Job {
  Dag<V> dag;
  Gradients<V> gradients;
  V* input_grads;  // (inputs, archs, in_size)
  float* input_coefficients;
  Layout layout;
  Handover handover;
  Plan<V>* plans;  // (archs)
  const void* scratch;
};

static_assert(Jobs<Job<float>>::kMost >= 8);

// From what the launchers are given.
template <class V>
Job<V> make_job(const NodesJob<V>& nodes, const Handover& handover);

// Of shared memory.
template <class V>
size_t layout_bytes(const Layout& l) {
  return sizeof(Plan<V>) + l.size * sizeof(float);
}

// Values between the sums of two warps for the same pair: see add_up.
inline constexpr int kSumRow = 17;

// What shared memory holds, for functions that are not inlined: those that are called from several
// places, because a kernel whose code is large waits for it, and those that would otherwise compute
// much of theirs in front of all rounds, and take registers for it all along.
template <class V>
__device__ Plan<V>& plan_of_block() {
  return *dynamic_shared<Plan<V>>();
}
template <class V>
__device__ float* values_of_block() {
  return reinterpret_cast<float*>(dynamic_shared<Plan<V>>() + 1);
}

}  // namespace asng::cuda::gradients_of_nodes
