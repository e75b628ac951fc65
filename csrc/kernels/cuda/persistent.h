// What kernels that work on all nodes of a cell in one launch have in common. A block keeps the
// images it began with, so nothing but the sums of a normalization ever crosses blocks; those of
// one architecture wait for each other there, and architectures never do.
#pragma once

#include <algorithm>

#include "kernels/cuda/dag.h"

namespace asng::cuda {

inline constexpr int kCellThreads = 512, kCellWarps = kCellThreads / 32;
inline constexpr int kCellEdges = 2;  // of a node
inline constexpr int kMostNodes = 8, kMostEdges = kMostNodes * kCellEdges;
inline constexpr int kMostPhases = 2 * kMostNodes + 1;

// Blocks for each architecture, as many as run at the same time at most; 0 if that is too few.
inline int blocks_per_arch(int images, int archs) {
  const int most = multiprocessor_count() / archs;
  if (most == 0) return 0;
  const int rounds = (images + most - 1) / most;
  return (images + rounds - 1) / rounds;
}

// Normalizations of an edge, one after the other.
template <class V>
__device__ int stage_count(const Dag<V>& dag, const PlannedEdge& edge) {
  if (edge.multiplicity == 0) return 0;
  return dag.separable(edge) ? 2 : dag.factorized(edge) ? 1 : 0;
}

// When the stages of an architecture's edges are computed, and its nodes. Phases are what lies
// between two exchanges; in each come first the nodes that are ready and read in it, then stages,
// and while the exchange goes on the other nodes that are ready. In order; those of phase p begin
// at before[p].
struct alignas(16) Schedule {
  PlannedEdge edges[kMostEdges];
  int stage_count[kMostEdges];
  int start[kMostEdges];      // the phase from which on the edge's input is there
  int ready[2 + kMostNodes];  // the phase from which on a state is there
  int phases;                 // in the last one there is nothing left to normalize
  int stages_before[kMostPhases + 1], nodes_before[kMostPhases + 1];
  int stages[2 * kMostEdges];  // 2·edge + stage
  int nodes[kMostNodes];
  bool waits[kMostNodes];  // node: nothing reads it in the phase in which it is ready
};

// Fills in the schedule, which lies in shared memory; for all threads of the block.
template <class V>
__device__ void make_schedule(const Dag<V>& dag, int arch, Schedule& s) {
  const DagShape& shape = dag.shape;
  const int t = threadIdx.x, edges = shape.nodes * kCellEdges;
  if (t < edges) {
    const PlannedEdge edge = dag.plan[shape.slot(arch, 0, 0) + t];
    s.edges[t] = edge;
    s.stage_count[t] = stage_count(dag, edge);
  }
  __syncthreads();
  if (t == 0) {
    int phases = 1;
    for (int i = 0; i < shape.inputs; ++i) s.ready[i] = 0;
    for (int node = 0; node < shape.nodes; ++node) {
      int ready = 0;
      for (int i = node * kCellEdges; i < (node + 1) * kCellEdges; ++i) {
        s.start[i] = s.ready[s.edges[i].input];
        if (s.edges[i].multiplicity != 0) ready = max(ready, s.start[i] + s.stage_count[i]);
      }
      s.ready[shape.inputs + node] = ready;
      phases = max(phases, ready + 1);
    }
    s.phases = phases;
  }
  __syncthreads();
  // Where a thread's stage, node or phase comes in the order.
  const auto exists = [&](int stage) { return stage % 2 < s.stage_count[stage / 2]; };
  const auto phase_of = [&](int stage) { return s.start[stage / 2] + stage % 2; };
  const auto stages_until = [&](int phase, int stage) {
    int before = 0;
    for (int i = 0; i < 2 * edges; ++i) {
      const bool earlier = phase_of(i) < phase || (phase_of(i) == phase && i < stage);
      before += exists(i) && earlier;
    }
    return before;
  };
  const auto nodes_until = [&](int phase, int node) {
    int before = 0;
    for (int i = 0; i < shape.nodes; ++i) {
      const int ready = s.ready[shape.inputs + i];
      before += ready < phase || (ready == phase && i < node);
    }
    return before;
  };
  if (t < 2 * edges && exists(t)) s.stages[stages_until(phase_of(t), t)] = t;
  const int node = t - 64, phase = t - 128;
  if (node >= 0 && node < shape.nodes) {
    const int state = shape.inputs + node;
    bool waits = true;
    for (int i = (node + 1) * kCellEdges; i < edges; ++i) {
      const bool reads = s.edges[i].input == state && s.edges[i].multiplicity != 0;
      const bool later =
          s.stage_count[i] == 0 && s.ready[shape.inputs + i / kCellEdges] > s.ready[state];
      waits &= !reads || later;
    }
    s.waits[node] = waits;
    s.nodes[nodes_until(s.ready[state], node)] = node;
  }
  if (phase >= 0 && phase <= s.phases) {
    s.stages_before[phase] = stages_until(phase, 0);
    s.nodes_before[phase] = nodes_until(phase, 0);
  }
  __syncthreads();
}

// Where the blocks of an architecture hand over their sums to each other: each of them once in
// a launch, in a word of its own that says by itself that it is there, so that no block waits for
// what else another has written.
struct Handover {
  float* parts = nullptr;                  // (archs, blocks, columns)
  unsigned long long* arrivals = nullptr;  // (archs), zeros at first
  int blocks = 0, columns = 0;

  int64_t size(int archs) const { return static_cast<int64_t>(archs) * blocks * columns; }
  __device__ float* of_block(int block) const {
    return parts + (static_cast<int64_t>(blockIdx.y) * blocks + block) * columns;
  }
};

// Clears this block's words, which nobody reads before those of all blocks are cleared.
__device__ inline void begin(const Handover& handover) {
  float* words = handover.of_block(blockIdx.x);
  for (int i = threadIdx.x * 4; i < handover.columns; i += kCellThreads * 4) {
    write_at_once(words + i, make_float4(0, 0, 0, 0));
  }
  __syncthreads();
  // The last thread, as the first ones have more to do.
  if (threadIdx.x == kCellThreads - 1) arrive(handover.arrivals + blockIdx.y);
}

// A sum as an odd word: rounded to one bit less, to even. NaN stays NaN.
__device__ inline unsigned to_word(double sum) {
  const float value = static_cast<float>(sum);
  const unsigned bits = __float_as_uint(value), up = bits & bits >> 1 & 1u;
  return (value == value ? bits + up : bits) | 1u;
}
__device__ inline double from_word(unsigned word) {
  return static_cast<double>(__uint_as_float(word & ~1u));
}

// Hands over this block's sums, two kinds for each channel of `items` items, after `earlier` ones
// in this launch. `totals` (items, 2, C) are zeros afterwards. Here and below the thread's number
// is opaque: what follows from it would be computed before all exchanges, and take registers all
// along.
template <int C>
__device__ void hand_over_sums(const Handover& handover, int earlier, int items, double* totals) {
  float* words = handover.of_block(blockIdx.x) + earlier * 2 * C;
  __syncthreads();
  for (int j = opaque(threadIdx.x) * 4; j < items * 2 * C; j += kCellThreads * 4) {
    hand_over(words + j, make_uint4(to_word(totals[j]), to_word(totals[j + 1]),
                                    to_word(totals[j + 2]), to_word(totals[j + 3])));
#pragma unroll
    for (int i = 0; i < 4; ++i) totals[j + i] = 0;
  }
}

// How many items are added up at once, and what that takes of shared memory, in doubles.
template <int C>
inline constexpr int kMeetingItems = C > 32 ? 2 : 4;
template <int C>
inline constexpr int kMeetingDoubles = kMeetingItems<C> * kCellWarps * 2 * C;

// Waits for the sums of all blocks of this block's architecture and adds them up, in the order of
// the blocks, whatever the order in which they come. `scratch` is shared memory. Calls finish(item,
// channel, first, second).
template <int C, class Finish>
__device__ void add_up_sums(const Handover& handover, int earlier, int items, double* scratch,
                            Finish finish) {
  constexpr int kQuads = C / 2, kSlices = kCellThreads / kQuads, kInWarp = 32 / kQuads;
  constexpr int kItems = kMeetingItems<C>, kAtOnce = C / 16;  // blocks of a thread
  const int t = opaque(threadIdx.x), quad = t % kQuads, slice = t / kQuads;
  if (earlier == 0) {
    if (t == 0) wait_for(handover.arrivals + blockIdx.y, handover.blocks);
    __syncthreads();
  }
  __syncthreads();
  for (int first = 0; first < items; first += kItems) {
    double sums[kItems][4] = {};
#pragma unroll 1
    for (int block = slice; block < handover.blocks; block += kAtOnce * kSlices) {
      // Of what does not exist the words are those of zeros.
      uint4 words[kItems * kAtOnce];
      receive(
          [&](int i) {
            const int item = first + i % kItems, from = block + i / kItems * kSlices;
            const float* at = handover.of_block(from) + (earlier + item) * 2 * C + quad * 4;
            return item < items && from < handover.blocks ? at : nullptr;
          },
          words);
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        if (first + item >= items) break;
        double (&sum)[4] = sums[item];
#pragma unroll
        for (int i = item; i < kItems * kAtOnce; i += kItems) {
          sum[0] += from_word(words[i].x);
          sum[1] += from_word(words[i].y);
          sum[2] += from_word(words[i].z);
          sum[3] += from_word(words[i].w);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (first + i >= items) break;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int other = kQuads; other < 32; other *= 2) {
          sums[i][k] += __shfl_xor_sync(~0u, sums[i][k], other);
        }
        if (slice % kInWarp == 0) {
          scratch[(i * kCellWarps + t / 32) * 2 * C + quad * 4 + k] = sums[i][k];
        }
      }
    }
    __syncthreads();
    const int item = t / C, c = t % C;
    if (item < kItems && first + item < items) {
      double one = 0, two = 0;
#pragma unroll
      for (int warp = 0; warp < kCellWarps; ++warp) {
        one += scratch[(item * kCellWarps + warp) * 2 * C + c];
        two += scratch[(item * kCellWarps + warp) * 2 * C + C + c];
      }
      finish(first + item, c, one, two);
    }
    __syncthreads();
  }
}

// Both, one after the other.
template <int C, class Finish>
__device__ void meet(const Handover& handover, int earlier, int items, double* totals,
                     double* scratch, Finish finish) {
  hand_over_sums<C>(handover, earlier, items, totals);
  add_up_sums<C>(handover, earlier, items, scratch, finish);
}

}  // namespace asng::cuda
