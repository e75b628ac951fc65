// The order of a mixture's edges, where their memory is, and the launches of both passes.
#include <algorithm>
#include <tuple>

#include "kernels/cuda/launchers.h"
#include "kernels/cuda/mixture.h"
#include "kernels/cuda/norm.h"
#include "ops/mixture/cuda.h"
#include "platform/memory.h"

namespace asng::cuda {
namespace {

// An edge in the order of the kernels.
struct Placed {
  DagEdge edge;
  MixtureEdge known;
  Form form;
  bool normalized;
  size_t weight;  // its first one among all
};

// The edges of a node, `count` from `first` on; with a normalization `normalized` of them, and
// these from `first_normalized` on among all of those.
struct NodeEdges {
  int first = 0, count = 0;
  int first_normalized = 0, normalized = 0, separable = 0;
};

struct Order {
  std::vector<Placed> edges;
  std::vector<NodeEdges> nodes;
  int normalized = 0;

  explicit Order(const MixtureShape& shape) : nodes(static_cast<size_t>(shape.dag.nodes)) {
    size_t weight = 0;
    for (const DagEdge& edge : shape.edges) {
      const Form form = operation_info(edge.operation).form;
      const bool separable = form == Form::kSeparable, factorized = shape.factorized(edge);
      const MixtureEdge known = {narrow(edge.node), 0, narrow(static_cast<int64_t>(edges.size()))};
      edges.push_back({edge, known, form, separable || factorized, weight});
      weight += separable ? 4 : factorized ? 2 : 0;
    }
    // What reads the same input comes together, as far as it may.
    const auto key = [](const Placed& p) {
      return std::tuple(p.edge.node, !p.normalized, p.form != Form::kSeparable, p.edge.input,
                        p.edge.operation);
    };
    std::sort(edges.begin(), edges.end(),
              [&](const Placed& a, const Placed& b) { return key(a) < key(b); });
    int pools = 0;
    for (size_t i = 0; i < edges.size(); ++i) {
      Placed& placed = edges[i];
      NodeEdges& node = nodes[static_cast<size_t>(placed.edge.node)];
      if (node.count == 0) {
        node.first = narrow(static_cast<int64_t>(i));
        node.first_normalized = normalized;
      }
      ++node.count;
      node.normalized += placed.normalized;
      node.separable += placed.form == Form::kSeparable;
      if (placed.normalized) placed.known.place = normalized++;
      if (placed.form == Form::kMaxPool) placed.known.place = pools++;
    }
  }

  int most(int NodeEdges::* count) const {
    int most = 0;
    for (const NodeEdges& node : nodes) most = std::max(most, node.*count);
    return most;
  }
  int readers(int64_t state) const {
    return narrow(std::count_if(edges.begin(), edges.end(),
                                [&](const Placed& p) { return p.edge.input == state; }));
  }
};

template <class V>
class Mixture {
 public:
  using T = Compute<V>;

  // `saved` is where the backward pass finds what it needs; if `keeps` is false there is none.
  Mixture(Arena& arena, const MixtureShape& shape, bool tf32, bool keeps, T* saved, bool backward)
      : order_(shape), keeps_(keeps) {
    DagShape& s = dag_.shape = DagShape(shape.dag, tf32);
    const int64_t edges = static_cast<int64_t>(order_.edges.size());
    const int64_t packed = order_.normalized * static_cast<int64_t>(s.slot_weights());
    const int most = order_.most(&NodeEdges::count);
    bank_ = arena.take<V>(s.inputs * s.in_size());
    dag_.inputs = bank_;
    plan_.shape = s;
    plan_.backward = backward;
    dag_.plan = plan_.plan = arena.take<PlannedEdge>(edges);
    terms_.edges = plan_.edges = arena.take<MixtureEdge>(edges);
    dag_.packed = plan_.packed = arena.take<T>(packed);
    plan_.counter_count = sum_counters(most);
    dag_.counters = plan_.counters = arena.take<unsigned>(plan_.counter_count);
    dag_.partials = arena.take<double>(partial_values(most, s.padded));
    const SavedSize size = shape.saved_on_cuda();
    if (keeps) {
      dag_.norms = saved;
      V* maps = reinterpret_cast<V*>(saved == nullptr ? nullptr : saved + size.statistics);
      dag_.z = maps;
      terms_.maxima =
          reinterpret_cast<uint32_t*>(maps == nullptr ? nullptr : maps + size.feature_maps);
    } else {
      dag_.norms = arena.take<T>(size.statistics);
      dag_.z = arena.take<V>(order_.most(&NodeEdges::normalized) * 2 * s.out_size());
    }
    if (backward) allocate_gradients(arena, packed);
  }

  void forward(const MixtureArguments<V>& arguments, V* nodes, CudaStream stream) {
    dag_.nodes = nodes;
    begin(arguments, stream);
    for (int node = 0; node < dag_.shape.nodes; ++node) {
      const NodeEdges& edges = order_.nodes[static_cast<size_t>(node)];
      if (edges.normalized > 0) stage_forward(dag(node, edges.normalized), node, 0, stream);
      if (edges.separable > 0) stage_forward(dag(node, edges.separable), node, 1, stream);
      combine_mixture(dag(node, edges.count), terms(node), node, stream);
    }
  }

  void backward(const MixtureArguments<V>& arguments, const V* nodes, const V* grad_nodes,
                const std::vector<V*>& grad_inputs, T* grad_coefficients,
                const std::vector<T*>& grad_weights, CudaStream stream) {
    const DagShape& s = dag_.shape;
    dag_.nodes = const_cast<V*>(nodes);  // only read
    begin(arguments, stream);
    for (int node = s.nodes - 1; node >= 0; --node) {
      const NodeEdges& edges = order_.nodes[static_cast<size_t>(node)];
      gather(s.inputs + node, grad_nodes + node * s.out_size(),
             gradients_.nodes + node * s.out_size(), stream);
      reduce_mixture(dag(node, edges.count), gradients(node, edges.count), terms(node), node,
                     grad_coefficients, stream);
      if (edges.separable > 0) {
        const Dag<V> separables = dag(node, edges.separable);
        const Gradients<V> grads = gradients(node, edges.separable);
        stage_backward(separables, grads, node, 1, stream);
        intermediate_backward(separables, grads, node, stream);
      }
      if (edges.normalized > 0) {
        stage_backward(dag(node, edges.normalized), gradients(node, edges.normalized), node, 0,
                       stream);
      }
    }
    for (int input = 0; input < s.inputs; ++input) {
      gather(input, nullptr, grad_inputs[static_cast<size_t>(input)], stream);
    }
    if (!grad_weights.empty()) sum_weights(grad_weights, stream);
  }

 private:
  void allocate_gradients(Arena& arena, int64_t packed) {
    const DagShape& s = dag_.shape;
    Gradients<V>& g = gradients_;
    const int64_t separables = order_.most(&NodeEdges::separable);
    g.splits = weight_split_count<V>(s, std::max(order_.most(&NodeEdges::normalized), 1));
    g.nodes = arena.take<V>(s.nodes * s.out_size());
    g.depth = arena.take<V>(order_.normalized * s.depth_size());
    g.second_depth = arena.take<V>(separables * s.out_size());
    g.intermediate = arena.take<V>(separables * s.out_size());
    g.coefficients =
        arena.take<T>(static_cast<int64_t>(order_.most(&NodeEdges::normalized)) * 6 * s.padded);
    g.weight_splits = arena.take<T>(packed * g.splits);
  }

  // Copies the inputs to one place, looks up the edges and packs their weights.
  void begin(const MixtureArguments<V>& arguments, CudaStream stream) {
    const DagShape& s = dag_.shape;
    terms_.coefficients = arguments.coefficients;
    for (size_t i = 0; i < arguments.inputs.size(); ++i) {
      copy_memory(bank_ + static_cast<int64_t>(i) * s.in_size(), arguments.inputs[i],
                  static_cast<size_t>(s.in_size()) * sizeof(V), stream);
    }
    for (size_t first = 0; first < order_.edges.size(); first += kMixtureItems) {
      MixturePlanJob<T> job = plan_;
      job.first = narrow(static_cast<int64_t>(first));
      for (size_t i = first; i < order_.edges.size() && job.count < kMixtureItems; ++i) {
        const Placed& placed = order_.edges[i];
        typename MixturePlanJob<T>::Item& item = job.items[job.count++];
        item = {narrow(placed.edge.input), placed.edge.operation, placed.known, {}};
        for (int k = 0; k < weight_count(placed); ++k) {
          item.weights[k] = arguments.weights[placed.weight + static_cast<size_t>(k)];
        }
      }
      plan_mixture(job, stream);
    }
  }

  void sum_weights(const std::vector<T*>& grads, CudaStream stream) const {
    MixtureWeightJob<T> job;
    job.shape = dag_.shape;
    job.weight_splits = gradients_.weight_splits;
    job.splits = gradients_.splits;
    const auto flush = [&] {
      if (job.count > 0) sum_mixture_weights(job, stream);
      job.count = 0;
    };
    for (const Placed& placed : order_.edges) {
      if (!placed.normalized) continue;
      typename MixtureWeightJob<T>::Item& item = job.items[job.count++];
      item = {placed.known.place, placed.edge.operation, {}};
      for (int k = 0; k < weight_count(placed); ++k) {
        item.grads[k] = grads[placed.weight + static_cast<size_t>(k)];
      }
      if (job.count == kMixtureItems) flush();
    }
    flush();
  }

  void gather(int state, const V* grad, V* to, CudaStream stream) const {
    gather_mixture(dag_, gradients_, terms_, narrow(static_cast<int64_t>(order_.edges.size())),
                   state, order_.readers(state), grad, to, stream);
  }

  static int weight_count(const Placed& placed) {
    return placed.form == Form::kSeparable ? 4 : placed.normalized ? 2 : 0;
  }

  // The kernels of nodes count as if all nodes had as many edges as one. This is the dag in which
  // what they find of `node` is that of its first `edges` edges; all else is not to be looked at,
  // but for the states.
  Dag<V> dag(int node, int edges) const {
    const NodeEdges& of = order_.nodes[static_cast<size_t>(node)];
    const int64_t before = static_cast<int64_t>(node) * edges;
    const int64_t places = of.first_normalized - before;
    Dag<V> dag = dag_;
    dag.shape.edges = edges;
    dag.plan += of.first - before;
    dag.packed += places * dag.shape.slot_weights();
    dag.norms += places * 4 * dag.shape.padded;
    // Nodes take turns where nothing is kept.
    if (keeps_) dag.z += int64_t{2} * of.first_normalized * dag.shape.out_size();
    return dag;
  }
  Gradients<V> gradients(int node, int edges) const {
    const DagShape& s = dag_.shape;
    const int64_t places = order_.nodes[static_cast<size_t>(node)].first_normalized -
                           static_cast<int64_t>(node) * edges;
    Gradients<V> g = gradients_;
    g.depth += places * s.depth_size();
    g.weight_splits += places * g.splits * s.slot_weights();
    return g;
  }
  MixtureTerms<V> terms(int node) const {
    MixtureTerms<V> terms = terms_;
    terms.edges += order_.nodes[static_cast<size_t>(node)].first;
    return terms;
  }

  Order order_;
  bool keeps_;
  V* bank_ = nullptr;
  Dag<V> dag_;
  MixtureTerms<V> terms_;
  MixturePlanJob<T> plan_;
  Gradients<V> gradients_;
};

}  // namespace

template <class V>
size_t mixture_scratch(const MixtureShape& shape, bool save, bool backward) {
  Arena arena(nullptr);
  Mixture<V>(arena, shape, false, save, nullptr, backward);
  return arena.used();
}

template <class V>
void mixture_forward(const MixtureShape& shape, const MixtureArguments<V>& arguments, V* nodes,
                     Compute<V>* saved, void* scratch, CudaStream stream) {
  Arena arena(scratch);
  Mixture<V>(arena, shape, arguments.tf32, saved != nullptr, saved, false)
      .forward(arguments, nodes, stream);
}

template <class V>
void mixture_backward(const MixtureShape& shape, const MixtureArguments<V>& arguments,
                      const V* nodes, const V* grad_nodes, const Compute<V>* saved,
                      const std::vector<V*>& grad_inputs, Compute<V>* grad_coefficients,
                      const std::vector<Compute<V>*>& grad_weights, void* scratch,
                      CudaStream stream) {
  Arena arena(scratch);
  // What is saved is only read.
  Mixture<V>(arena, shape, arguments.tf32, true, const_cast<Compute<V>*>(saved), true)
      .backward(arguments, nodes, grad_nodes, grad_inputs, grad_coefficients, grad_weights, stream);
}

#define ASNG_INSTANTIATE(V)                                                                   \
  template size_t mixture_scratch<V>(const MixtureShape&, bool, bool);                        \
  template void mixture_forward<V>(const MixtureShape&, const MixtureArguments<V>&, V*,       \
                                   Compute<V>*, void*, CudaStream);                           \
  template void mixture_backward<V>(                                                          \
      const MixtureShape&, const MixtureArguments<V>&, const V*, const V*, const Compute<V>*, \
      const std::vector<V*>&, Compute<V>*, const std::vector<Compute<V>*>&, void*, CudaStream);
ASNG_EVERY_STORED_TYPE(ASNG_INSTANTIATE)

}  // namespace asng::cuda
