// Where the passes of nodes and cells find their memory.
#pragma once

#include <algorithm>

#include "kernels/cuda/launchers.h"
#include "kernels/cuda/norm.h"
#include "platform/memory.h"

namespace asng::cuda {

// What every pass needs: the plan, packed weights, partial sums.
template <class V>
void allocate_dag(Arena& arena, Dag<V>& dag, PlanJob<Compute<V>>& job) {
  using T = Compute<V>;
  const DagShape& s = dag.shape;
  job.shape = s;
  job.counter_count = std::max(s.archs * s.edges, 2 * s.archs);
  dag.plan = job.plan = arena.take<PlannedEdge>(s.slots());
  dag.used = job.used = arena.take<int32_t>(s.archs * s.states());
  dag.packed = job.packed = arena.take<T>(static_cast<int64_t>(s.slots()) * s.slot_weights());
  dag.counters = job.counters = arena.take<unsigned>(job.counter_count);
  dag.partials =
      arena.take<double>(static_cast<int64_t>(job.counter_count) * kMaxSplits * 3 * s.padded);
}

template <class V>
void allocate_gradients(Arena& arena, const DagShape& s, Gradients<V>& g) {
  using T = Compute<V>;
  const int64_t pairs = static_cast<int64_t>(s.archs) * s.edges;
  g.splits = weight_split_count<V>(s);
  g.depth = arena.take<V>(s.slots() * s.depth_size());
  g.second_depth = arena.take<V>(pairs * s.out_size());
  g.intermediate = arena.take<V>(pairs * s.out_size());
  g.coefficients = arena.take<T>(pairs * 6 * s.padded);
  g.weight_splits = arena.take<T>(static_cast<int64_t>(s.slots()) * g.splits * s.slot_weights());
}

// Values of one node's stages, and of its norms.
inline int64_t stages_size(const DagShape& s) {
  return static_cast<int64_t>(s.archs) * s.edges * 2 * s.out_size();
}
inline int64_t norms_size(const DagShape& s) {
  return static_cast<int64_t>(s.archs) * s.edges * 4 * s.padded;
}

}  // namespace asng::cuda
