// How a cell is computed in one launch: the places of everything in shared memory, and the plan of
// what is done in which order. See persistent_forward.cu.
#pragma once

#include "kernels/cuda/launchers.h"
#include "kernels/cuda/persistent_plan.h"

namespace asng::cuda::nodes_of_cell {

// Dynamic shared memory: the schedule, and then values, counted in floats. Rows of output pixels
// that a strip has at most are even.
struct Layout {
  int norms;   // (3 + 2·edges, 2, C): scale and shift of each projection and stage
  int sums;    // doubles (edges, 2·C): of a phase
  int red;     // (kCellWarps, 2·C): of the warps
  int taps;    // (kernel elements, C)
  int weight;  // (2·C, kWeightRow), the half of it but for reductions
  int images;  // what a strip needs, or the scratch of an exchange; that of pools begins at `taps`
  int size;
  int rows[kSeparableCount][2];  // of the separable convolutions on nodes, and on inputs
  int reduction_rows, pool_rows[2];
};

// The two inputs and the output.
constexpr int kProjections = 3;

// What is normalized: scale and shift as this block needs them, and as they are kept.
struct Norm {
  float *here, *kept;
};

// A stage of an edge: where things lie, of all images.
template <class V>
struct Stage {
  const V* x;
  const float* norm;
  V* z;
  const float *pointwise, *taps;
  Norm norm_of_z;
  int height, width, stride, separable;
  bool reduces;
};

// An edge as a term of its node.
template <class V>
struct Term {
  const V* x;
  uint32_t* maxima;  // of a max pool, where they are kept
  int norm;          // its place in shared memory, or -1
  Form form;         // an identity also stands for what has been normalized
  int multiplicity, height, width, stride;
};

template <class V>
struct Plan {
  Bases bases;
  Schedule schedule;
  Stage<V> stages[2 * kMostEdges];  // in the order of the schedule
  Term<V> terms[kMostEdges];
  Norm projections[kProjections];
  bool needed[kProjections];
  bool read[kMostNodes];  // by another node, so that it is no part of the output

  // To all addresses; for all threads of the block.
  __device__ void add_bases() {
    int turn = threadIdx.x;
    turn = bases.add_to<7>(stages, turn);
    turn = bases.add_to<2>(terms, turn);
    turn = bases.add_to<2>(projections, turn);
  }
};

template <class V>
struct Job {
  CellJob<V> cell;
  unsigned shared;  // of the inputs: each architecture projects them for itself, so not in `cell`
  Layout layout;
  Handover handover;
  bool keeps_maxima;

  ASNG_HD Plan<V>* plans() const { return static_cast<Plan<V>*>(cell.plan); }  // (archs)
};

static_assert(Jobs<Job<float>>::kMost >= 8);

// From what the launchers are given.
template <class V>
Job<V> make_job(const CellJob<V>& cell, const Handover& handover, bool keeps_maxima);

// Source columns and rows that `count` outputs see.
ASNG_HD constexpr int reach(int count, int stride, int extent) {
  return (count - 1) * stride + extent;
}

}  // namespace asng::cuda::nodes_of_cell
