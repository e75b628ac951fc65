// What kernels that work on all nodes of a cell in one launch have in common. A block keeps the
// images it began with, so nothing but the sums of a normalization ever crosses blocks; those of
// one architecture wait for each other there, and architectures never do.
#pragma once

#include <algorithm>

#include "kernels/cuda/dag.h"

namespace asng::cuda {

inline constexpr int kCellThreads = 512, kCellWarps = kCellThreads / 32;
inline constexpr int kCellEdges = 2;  // of a node
inline constexpr int kMostNodes = 16, kMostEdges = kMostNodes * kCellEdges;

// Blocks for each architecture, as many as run at the same time at most; 0 if that is too few.
inline int blocks_per_arch(int images, int archs) {
  const int most = multiprocessor_count() / archs;
  if (most == 0) return 0;
  const int rounds = (images + most - 1) / most;
  return (images + rounds - 1) / rounds;
}

// When the edges of an architecture are computed. Phases are what lies between two exchanges.
struct alignas(16) Schedule {
  PlannedEdge edges[kMostEdges];
  int start[kMostEdges];      // the phase in which the edge's input is there
  int ready[kMostNodes + 2];  // the phase from which on a state is there
  int phases;                 // nodes are ready in the last one, and nothing is left to normalize
};

// Normalizations of an edge, one after the other.
template <class V>
__device__ int stage_count(const Dag<V>& dag, const PlannedEdge& edge) {
  if (edge.multiplicity == 0) return 0;
  return dag.separable(edge) ? 2 : dag.factorized(edge) ? 1 : 0;
}

// Fills in the schedule, which lies in shared memory; for all threads of the block.
template <class V>
__device__ void make_schedule(const Dag<V>& dag, int arch, Schedule& s) {
  const DagShape& shape = dag.shape;
  const int count = shape.nodes * kCellEdges;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    s.edges[i] = dag.plan[shape.slot(arch, 0, 0) + i];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    s.phases = 0;
    for (int i = 0; i < shape.inputs; ++i) s.ready[i] = 0;
    for (int node = 0; node < shape.nodes; ++node) {
      int ready = 0;
      for (int i = node * kCellEdges; i < (node + 1) * kCellEdges; ++i) {
        const PlannedEdge& edge = s.edges[i];
        s.start[i] = s.ready[edge.input];
        if (edge.multiplicity != 0) ready = max(ready, s.start[i] + stage_count(dag, edge));
      }
      s.ready[shape.inputs + node] = ready;
      s.phases = max(s.phases, ready + 1);
    }
  }
  __syncthreads();
}

// Where the blocks of an architecture put the sums of a phase.
struct Meeting {
  float* parts = nullptr;                  // (2, archs, blocks, columns)
  unsigned long long* arrivals = nullptr;  // (archs), zeros at first
  int blocks = 0, columns = 0;

  int64_t size(int archs) const { return 2 * static_cast<int64_t>(archs) * blocks * columns; }
};

// Adds up the sums of all blocks of this block's architecture, `columns` of them, a multiple of 4,
// in `totals`: in the order of the blocks, whatever the order in which they come. `round` counts
// the calls from 0 on. `scratch` is shared memory for 4·kCellThreads doubles.
__device__ inline void meet(const Meeting& meeting, int round, int columns, double* totals,
                            double* scratch) {
  const int arch = blockIdx.y, t = threadIdx.x;
  // Blocks that are still reading the sums of the last round are let be.
  float* parts = meeting.parts + (static_cast<int64_t>(round % 2) * gridDim.y + arch) *
                                     meeting.blocks * meeting.columns;
  __syncthreads();
  for (int j = t; j < columns; j += kCellThreads) {
    parts[static_cast<int64_t>(blockIdx.x) * meeting.columns + j] = static_cast<float>(totals[j]);
  }
  __threadfence();
  __syncthreads();
  if (t == 0) {
    atomicAdd(meeting.arrivals + arch, 1);
    wait_for(meeting.arrivals + arch, static_cast<unsigned long long>(round + 1) * meeting.blocks);
  }
  __syncthreads();
  const int quads = columns / 4, width = min(quads, kCellThreads);
  const int slices = min(kCellThreads / width, 16), slice = t / width, lane = t - slice * width;
  for (int first = 0; first < quads; first += width) {
    const int quad = first + lane;
    if (slice < slices && quad < quads) {
      double sum[4] = {0, 0, 0, 0};
#pragma unroll 8
      for (int block = slice; block < meeting.blocks; block += slices) {
        const float4 part = __ldcg(reinterpret_cast<const float4*>(
            parts + static_cast<int64_t>(block) * meeting.columns + 4 * quad));
        sum[0] += static_cast<double>(part.x);
        sum[1] += static_cast<double>(part.y);
        sum[2] += static_cast<double>(part.z);
        sum[3] += static_cast<double>(part.w);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) scratch[t * 4 + i] = sum[i];
    }
    __syncthreads();
    for (int j = t; j < min(width, quads - first) * 4; j += kCellThreads) {
      double sum = 0;
      for (int s = 0; s < slices; ++s) sum += scratch[s * width * 4 + j];
      totals[first * 4 + j] = sum;
    }
    __syncthreads();
  }
}

}  // namespace asng::cuda
