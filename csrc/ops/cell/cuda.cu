// Cells: projections of the inputs, nodes, projection of the nodes that no node reads.
#include "ops/cell/cuda.h"
#include "ops/cell/cuda_layout.h"

namespace asng::cuda {

namespace {

MatrixShape input_matrix(const CellShape& s, int which) {
  const InputShape& input = which == 0 ? s.prev_prev : s.prev;
  MatrixShape m;
  m.rows = s.dag.channels;
  m.padded = s.dag.padded;
  m.channels = input.channels;
  m.padded_channels = input.padded;
  m.factorized = which == 0 && s.prev_prev_is_larger;
  m.sources = m.factorized ? 2 : 1;
  return m;
}

MatrixShape output_matrix(const CellShape& s) {
  MatrixShape m;
  m.rows = m.channels = s.dag.channels;
  m.padded = m.padded_channels = s.dag.padded;
  m.sources = s.dag.nodes;
  return m;
}

template <class V>
struct Cell {
  using T = Compute<V>;

  CellJob<V> job;
  PlanJob<T> plan;
  Gradients<V> gradients;
  MatrixGradient<T> matrix_gradients[3];
  int64_t archs, padded, in_size, out_size;

  // `saved` is where the backward pass finds what it needs; if `keeps` is false there is none.
  Cell(Arena& arena, const CellShape& shape, bool keeps, T* saved, bool backward) {
    Dag<V>& dag = job.dag;
    const DagShape& s = dag.shape = shape.dag;
    archs = s.archs;
    padded = s.padded;
    in_size = s.in_size();
    out_size = s.out_size();
    allocate_dag(arena, dag, plan);
    plan.backward = backward;
    // Without a backward pass the nodes take turns with one place for their stages.
    dag.z_nodes = keeps ? stages_size(s) : 0;
    if (!keeps) saved = arena.take<T>(size(shape, false));
    place_saved(saved);
    for (int which = 0; which < 3; ++which) {
      const MatrixShape matrix = which == 2 ? output_matrix(shape) : input_matrix(shape, which);
      plan.matrices[which].shape = matrix;
      plan.matrices[which].packed = arena.take<T>(matrix.packed_size());
      job.packed[which] = plan.matrices[which].packed;
      if (which == 2) continue;
      const InputShape& input = which == 0 ? shape.prev_prev : shape.prev;
      job.inputs[which].padded = input.padded;
      job.inputs[which].height = input.height;
      job.inputs[which].width = input.width;
      job.inputs[which].factorized = matrix.factorized;
      if (input.shared) dag.shape.shared |= 1u << which;
    }
    plan.shape.shared = dag.shape.shared;
    if (backward) place_backward(arena);
  }

  static int64_t size(const CellShape& shape, bool keeps) {
    const DagShape& s = shape.dag;
    const int64_t archs = s.archs;
    return saved_values<V>(archs * 6 * s.padded + s.nodes * norms_size(s),
                           archs * (2 * s.in_size() + s.nodes * s.out_size()) +
                               (keeps ? s.nodes : 1) * stages_size(s));
  }

  void place_saved(T* at) {
    if (at == nullptr) return;
    Dag<V>& dag = job.dag;
    dag.input_norms = at;
    job.y_norms = at + 4 * archs * padded;
    dag.norms = job.y_norms + 2 * archs * padded;
    V* images = reinterpret_cast<V*>(dag.norms + dag.shape.nodes * norms_size(dag.shape));
    dag.inputs = images;
    dag.nodes = images + 2 * archs * in_size;
    dag.z = dag.nodes + dag.shape.nodes * archs * out_size;
  }

  void place_backward(Arena& arena) {
    const DagShape& s = job.dag.shape;
    allocate_gradients(arena, s, gradients);
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
          arena.take<T>(m.groups * m.splits * m.shape.packed_size());
      job.splits[which] = m.splits;
    }
  }

  void set(const CellWeights<const T>& weights, const Choices& choices, const V* prev_prev,
           const V* prev, V* y) {
    job.inputs[0].x = prev_prev;
    job.inputs[1].x = prev;
    job.y = y;
    plan.inputs = choices.inputs;
    plan.operations = choices.operations;
    plan.weights = weights.operations;
    plan.matrices[0].weight = weights.prev_prev;
    plan.matrices[1].weight = weights.prev;
    plan.matrices[2].weight = weights.output;
  }

  V* input_grads = nullptr;
  T* input_coefficients = nullptr;
};

}  // namespace

template <class V>
int64_t cell_saved_size(const CellShape& shape) {
  return Cell<V>::size(shape, true);
}

template <class V>
size_t cell_forward_scratch(const CellShape& shape, bool save) {
  Arena arena(nullptr);
  Cell<V>(arena, shape, save, nullptr, false);
  return arena.used();
}

template <class V>
size_t cell_backward_scratch(const CellShape& shape) {
  Arena arena(nullptr);
  Cell<V>(arena, shape, true, nullptr, true);
  return arena.used();
}

template <class V>
void cell_forward(const CellShape& shape, const CellWeights<const Compute<V>>& weights,
                  const Choices& choices, const V* prev_prev, const V* prev, V* y,
                  Compute<V>* saved, void* scratch, CudaStream stream) {
  Arena arena(scratch);
  Cell<V> cell(arena, shape, saved != nullptr, saved, false);
  cell.set(weights, choices, prev_prev, prev, y);
  make_plan(cell.plan, stream);
  project_inputs(cell.job, stream);
  for (int node = 0; node < shape.dag.nodes; ++node) {
    for (int stage = 0; stage < 2; ++stage) stage_forward(cell.job.dag, node, stage, stream);
    combine_forward(cell.job.dag, node, saved != nullptr, stream);
  }
  project_output(cell.job, stream);
}

template <class V>
void cell_backward(const CellShape& shape, const CellWeights<const Compute<V>>& weights,
                   const Choices& choices, const V* prev_prev, const V* prev, const V* y,
                   const V* grad_y, const Compute<V>* saved, V* grad_prev_prev, V* grad_prev,
                   const CellWeights<Compute<V>>& grads, void* scratch, CudaStream stream) {
  using T = Compute<V>;
  Arena arena(scratch);
  // What was saved, and the output, are only read.
  Cell<V> cell(arena, shape, true, const_cast<T*>(saved), true);
  cell.set(weights, choices, prev_prev, prev, const_cast<V*>(y));
  cell.job.grad_y = grad_y;
  cell.job.inputs[0].grad = grad_prev_prev;
  cell.job.inputs[1].grad = grad_prev;
  const Dag<V>& dag = cell.job.dag;
  const int inputs = dag.shape.inputs;
  make_plan(cell.plan, stream);
  reduce_output(cell.job, stream);
  project_output_backward(cell.job, cell.gradients, stream);
  for (int node = dag.shape.nodes - 1; node >= 0; --node) {
    gather(dag, cell.gradients, inputs + node, 1, static_cast<V*>(nullptr),
           static_cast<T*>(nullptr), stream);
    stage_backward(dag, cell.gradients, node, 1, stream);
    intermediate_backward(dag, cell.gradients, node, stream);
    stage_backward(dag, cell.gradients, node, 0, stream);
  }
  gather(dag, cell.gradients, 0, inputs, cell.input_grads, cell.input_coefficients, stream);
  project_inputs_backward(cell.job, stream);
  WeightJob<T> sum;
  sum.shape = dag.shape;
  sum.plan = dag.plan;
  sum.used = dag.used;
  sum.weight_splits = cell.gradients.weight_splits;
  sum.splits = cell.gradients.splits;
  sum.grads = grads.operations;
  T* const matrices[3] = {grads.prev_prev, grads.prev, grads.output};
  for (int which = 0; which < 3; ++which) {
    sum.matrices[which] = cell.matrix_gradients[which];
    sum.matrices[which].grad = matrices[which];
  }
  sum_weight_splits(sum, stream);
}

#define ASNG_INSTANTIATE(V)                                                                        \
  template int64_t cell_saved_size<V>(const CellShape&);                                           \
  template size_t cell_forward_scratch<V>(const CellShape&, bool);                                 \
  template size_t cell_backward_scratch<V>(const CellShape&);                                      \
  template void cell_forward<V>(const CellShape&, const CellWeights<const Compute<V>>&,            \
                                const Choices&, const V*, const V*, V*, Compute<V>*, void*,        \
                                CudaStream);                                                       \
  template void cell_backward<V>(const CellShape&, const CellWeights<const Compute<V>>&,           \
                                 const Choices&, const V*, const V*, const V*, const V*,           \
                                 const Compute<V>*, V*, V*, const CellWeights<Compute<V>>&, void*, \
                                 CudaStream);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
ASNG_INSTANTIATE(BFloat16)
#undef ASNG_INSTANTIATE

}  // namespace asng::cuda
