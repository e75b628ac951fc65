// Where the launchers of nodes and cells find their memory, in forward and backward passes.
#pragma once

#include <algorithm>

#include "kernels/cuda/launchers.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/persistent_plan.h"
#include "ops/cell/cuda.h"
#include "ops/cell/cuda_path.h"
#include "platform/memory.h"

namespace asng::cuda {

// What every launcher needs: the plan, packed weights, and counters, which lie together, and
// partial sums.
template <class V>
void allocate_dag(Arena& of_plan, Arena& arena, Dag<V>& dag, PlanJob<Compute<V>>& job) {
  using T = Compute<V>;
  const DagShape& s = dag.shape;
  job.shape = s;
  const int sums = std::max(s.archs * s.edges, 2 * s.archs);
  // With those of two sorts of arrivals, twice as large.
  job.counter_count = (sum_counters(sums) + 1) / 2 * 2 + 4 * s.archs;
  dag.plan = job.plan = of_plan.take<PlannedEdge>(s.slots());
  dag.used = job.used = of_plan.take<int32_t>(s.archs * s.states());
  dag.packed = job.packed = of_plan.take<T>(static_cast<int64_t>(s.slots()) * s.slot_weights());
  dag.counters = job.counters = of_plan.take<unsigned>(job.counter_count);
  dag.partials = arena.take<double>(partial_values(sums, s.padded));
}

template <class V>
void allocate_gradients(Arena& arena, const DagShape& s, Gradients<V>& g) {
  using T = Compute<V>;
  const int64_t pairs = static_cast<int64_t>(s.archs) * s.edges;
  g.splits = weight_split_count<V>(s, narrow(pairs));
  g.depth = arena.take<V>(s.slots() * s.depth_size());
  g.second_depth = arena.take<V>(pairs * s.out_size());
  g.intermediate = arena.take<V>(pairs * s.out_size());
  g.coefficients = arena.take<T>(pairs * 6 * s.padded);
  g.weight_splits = arena.take<T>(static_cast<int64_t>(s.slots()) * g.splits * s.slot_weights());
}

// Values of one node's stages.
inline int64_t stages_size(const DagShape& s) {
  return static_cast<int64_t>(s.archs) * s.edges * 2 * s.out_size();
}

// A node on its own.
template <class V>
struct Node {
  using T = Compute<V>;

  Dag<V> dag;
  PlanJob<T> plan;
  Gradients<V> gradients;

  // `saved` is where the backward pass finds what it needs; if `keeps` is false there is none.
  Node(Arena& arena, const asng::DagShape& shape, bool tf32, bool keeps, T* saved, bool backward) {
    dag.shape = DagShape(shape, tf32);
    allocate_dag(arena, arena, dag, plan);
    const SavedSize size = shape.saved();
    if (!keeps) saved = arena.take<T>(saved_values<V>(size.statistics, size.feature_maps));
    dag.norms = saved;
    dag.z = saved == nullptr ? nullptr : reinterpret_cast<V*>(saved + size.statistics);
    dag.z_nodes = 0;
    plan.backward = backward;
    if (backward) allocate_gradients(arena, dag.shape, gradients);
  }

  void set(const OperationWeights<const T>& weights, const Choices& choices, const V* bank) {
    dag.inputs = bank;
    plan.inputs = choices.inputs;
    plan.operations = choices.operations;
    plan.weights = weights;
  }
};

// A cell: projections of the inputs, nodes, projection of the leaf nodes.
inline MatrixShape input_matrix(const CellShape& s, int which) {
  const CellInput& input = which == 0 ? s.prev_prev : s.prev;
  MatrixShape m;
  m.rows = narrow(s.channels);
  m.padded = narrow(s.padded);
  m.channels = narrow(input.channels);
  m.padded_channels = narrow(input.padded);
  m.factorized = which == 0 && s.prev_prev_is_larger;
  m.sources = m.factorized ? 2 : 1;
  return m;
}

inline MatrixShape output_matrix(const CellShape& s) {
  MatrixShape m;
  m.rows = m.channels = narrow(s.channels);
  m.padded = m.padded_channels = narrow(s.padded);
  m.sources = narrow(s.nodes);
  return m;
}

template <class V>
struct Cell {
  using T = Compute<V>;

  CellJob<V> job;
  PlanJob<T> plan;
  Gradients<V> gradients;
  MatrixGradient<T> matrix_gradients[3];
  // Without blocks where each step has a launch of its own.
  Handover handover;         // of a forward pass, or of the nodes in a backward pass
  Handover output_handover;  // in a backward pass
  int64_t archs, padded, in_size, out_size;

  // The cell's plan is in `of_plan`, and all else that is not kept in `arena`. `saved` is where the
  // backward pass finds what it needs; if `keeps` is false there is none.
  Cell(Arena& of_plan, Arena& arena, const CellShape& shape, bool tf32, bool keeps, T* saved,
       bool backward) {
    Dag<V>& dag = job.dag;
    const DagShape& s = dag.shape = DagShape(shape.dag(), tf32);
    archs = s.archs;
    padded = s.padded;
    in_size = s.in_size();
    out_size = s.out_size();
    allocate_dag(of_plan, arena, dag, plan);
    plan.backward = backward;
    if (!backward && in_one_launch(whole_cell_forward_obstacle(s))) {
      allocate_sums(arena, handover, whole_cell_forward_columns(s), 1);
      job.plan = of_plan.take<char>(s.archs * whole_cell_plan_size());
    }
    // Without a backward pass all nodes use one place for their stages, one after the other, where
    // that is how they are computed.
    const bool together = keeps || handover.blocks > 0;
    dag.z_nodes = together ? stages_size(s) : 0;
    const SavedSize size = shape.saved();
    if (!keeps) {
      const int64_t spared = together ? 0 : (s.nodes - 1) * stages_size(s);
      saved = arena.take<T>(saved_values<V>(size.statistics, size.feature_maps - spared));
    }
    allocate_saved(saved, size);
    for (int which = 0; which < 3; ++which) {
      const MatrixShape matrix = which == 2 ? output_matrix(shape) : input_matrix(shape, which);
      plan.matrices[which].shape = matrix;
      plan.matrices[which].packed = of_plan.take<T>(matrix.packed_size());
      job.packed[which] = plan.matrices[which].packed;
      if (which == 2) continue;
      const CellInput& input = which == 0 ? shape.prev_prev : shape.prev;
      job.inputs[which].padded = narrow(input.padded);
      job.inputs[which].height = narrow(input.height);
      job.inputs[which].width = narrow(input.width);
      job.inputs[which].factorized = matrix.factorized;
      if (input.archs == 1) dag.shape.shared |= 1u << which;
    }
    plan.shape.shared = dag.shape.shared;
    if (backward) allocate_backward(of_plan, arena);
  }

  // Whether one launch does it all: `obstacle` is what keeps the cell from that, or null.
  bool in_one_launch(const char* obstacle) const {
    const Path path = path_choice();
    if (!std::is_same_v<T, float>) obstacle = "its type, float64";
    if (path == Path::kPersistent && obstacle != nullptr) {
      throw std::runtime_error(
          std::string("ASNG_CUDA_PATH is persistent, which is not for a cell ") + "because of " +
          obstacle);
    }
    return path != Path::kGeneric && obstacle == nullptr;
  }

  // The place of its arrivals among the counters is counted from the last.
  void allocate_sums(Arena& arena, Handover& sums, int columns, int place) {
    const DagShape& s = job.dag.shape;
    sums.blocks = blocks_per_arch(s.images, s.archs);
    sums.columns = columns;
    sums.parts = arena.take<float>(sums.size(s.archs));
    sums.arrivals = reinterpret_cast<unsigned long long*>(job.dag.counters + plan.counter_count -
                                                          2 * place * s.archs);
  }

  void allocate_saved(T* at, const SavedSize& size) {
    if (at == nullptr) return;
    Dag<V>& dag = job.dag;
    dag.input_norms = at;
    job.y_norms = at + 4 * archs * padded;
    dag.norms = job.y_norms + 2 * archs * padded;
    V* images = reinterpret_cast<V*>(at + size.statistics);
    dag.inputs = images;
    dag.nodes = images + 2 * archs * in_size;
    dag.z = dag.nodes + dag.shape.nodes * archs * out_size;
  }

  void allocate_backward(Arena& of_plan, Arena& arena) {
    const DagShape& s = job.dag.shape;
    if (in_one_launch(nodes_backward_obstacle(s))) {
      allocate_sums(arena, handover, nodes_backward_columns(s), 1);
      nodes_plan = of_plan.take<char>(s.archs * nodes_plan_size());
      // What products are rounded does not change the size of anything.
      allocate_sums(arena, output_handover, 2 * s.padded, 2);
      if (!std::is_same_v<V, BFloat16> && !s.tf32) output_handover.blocks = 0;
      gradients.splits = handover.blocks;
      gradients.intermediate = arena.take<V>(s.slots() * s.out_size());
      gradients.weight_splits =
          arena.take<T>(static_cast<int64_t>(s.slots()) * gradients.splits * s.slot_weights());
    } else {
      allocate_gradients(arena, s, gradients);
    }
    gradients.nodes = arena.take<V>(s.nodes * archs * out_size);
    input_grads = arena.take<V>(2 * archs * in_size);
    input_coefficients = arena.take<T>(2 * archs * 3 * padded);
    job.input_grads = input_grads;
    job.input_coefficients = input_coefficients;
    job.y_coefficients = arena.take<T>(archs * 3 * padded);
    for (int which = 0; which < 3; ++which) {
      MatrixGradient<T>& m = matrix_gradients[which];
      m.shape = plan.matrices[which].shape;
      m.shared = which < 2 && s.is_shared(which);
      m.groups = m.shared ? 1 : s.archs;
      m.state = which == 2 ? kLeafNodes : which;
      const int64_t pixels = (which == 2 ? out_size : in_size) / padded;
      m.splits = pointwise_split_count<V>(pixels, s.padded, m.shape.depth());
      m.weight_splits = job.weight_splits[which] =
          arena.take<T>(m.groups * std::max(m.splits, handover.blocks) * m.shape.packed_size());
      if (output_handover.blocks > 0) m.splits = handover.blocks;
      job.splits[which] = m.splits;
    }
  }

  // `scratch` is where the arena begins.
  NodesJob<V> nodes(const void* scratch) const {
    return {job.dag, gradients, input_grads, input_coefficients, nodes_plan, scratch};
  }

  void set(const V* prev_prev, const V* prev, V* y) {
    job.inputs[0].x = prev_prev;
    job.inputs[1].x = prev;
    job.y = y;
  }

  void set(const CellWeights<const T>& weights, const Choices& choices) {
    plan.inputs = choices.inputs;
    plan.operations = choices.operations;
    plan.weights = weights.operations;
    plan.matrices[0].weight = weights.prev_prev;
    plan.matrices[1].weight = weights.prev;
    plan.matrices[2].weight = weights.output;
  }

  V* input_grads = nullptr;
  T* input_coefficients = nullptr;
  void* nodes_plan = nullptr;  // see NodesJob
};

// Plans a cell in the first part of its scratch memory, and goes on to where the rest begins;
// returns where the plan is.
template <class V>
void* take_plan(const CellShape& shape, const CellWeights<const Compute<V>>& weights,
                const Choices& choices, bool backward, void*& scratch, CudaStream stream) {
  void* const plan = scratch;
  plan_cells<V>({{shape, weights, choices, plan}}, backward, stream);
  scratch = static_cast<char*>(scratch) + cell_plan_size<V>(shape, backward);
  return plan;
}

}  // namespace asng::cuda
