// Where the passes of nodes and cells find their memory.
#pragma once

#include <algorithm>

#include "kernels/cuda/launchers.h"
#include "kernels/cuda/norm.h"
#include "platform/arena.h"

namespace asng::cuda {

// What every pass needs: the plan, packed weights, partial sums.
template <class V>
void place_graph(Arena& arena, Graph<V>& graph, PlanJob<Compute<V>>& job) {
  using T = Compute<V>;
  const GraphShape& s = graph.shape;
  job.shape = s;
  job.counter_count = std::max(s.archs * s.edges, 2 * s.archs);
  graph.plan = job.plan = arena.take<PlannedEdge>(s.slots());
  graph.used = job.used = arena.take<int32_t>(s.archs * s.states());
  graph.packed = job.packed = arena.take<T>(static_cast<int64_t>(s.slots()) * s.slot_weights());
  graph.counters = job.counters = arena.take<unsigned>(job.counter_count);
  graph.partials =
      arena.take<double>(static_cast<int64_t>(job.counter_count) * kMaxParts * 3 * s.padded);
}

template <class V>
void place_gradients(Arena& arena, const GraphShape& s, Gradients<V>& g) {
  using T = Compute<V>;
  const int64_t pairs = static_cast<int64_t>(s.archs) * s.edges;
  g.parts = weight_part_count<V>(s);
  g.depth = arena.take<V>(s.slots() * s.depth_size());
  g.second_depth = arena.take<V>(pairs * s.out_size());
  g.between = arena.take<V>(pairs * s.out_size());
  g.coefficients = arena.take<T>(pairs * 6 * s.padded);
  g.weight_parts = arena.take<T>(static_cast<int64_t>(s.slots()) * g.parts * s.slot_weights());
}

// Values of one node's halves, and of its norms.
inline int64_t halves_size(const GraphShape& s) {
  return static_cast<int64_t>(s.archs) * s.edges * 2 * s.out_size();
}
inline int64_t norms_size(const GraphShape& s) {
  return static_cast<int64_t>(s.archs) * s.edges * 4 * s.padded;
}

}  // namespace asng::cuda
