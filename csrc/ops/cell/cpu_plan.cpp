// The schedule of a dag: which part of the work belongs to which level, and where its results go.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "ops/cell/cpu.h"

namespace asng::cpu {
namespace {

[[noreturn]] void bad_index(const char* what, const std::string& place, int64_t got,
                            int64_t count) {
  throw std::invalid_argument(std::string(what) + "[" + place + "] must be from 0 to " +
                              std::to_string(count - 1) + ", got " + std::to_string(got));
}

}  // namespace

template <class T>
Dag<T>::Dag(const DagShape& shape, const OperationWeights<const T>& weights, const int32_t* inputs,
            const int32_t* operations)
    : shape_(shape), weights_(weights) {
  set_up();
  for (int64_t arch = 0; arch < shape.archs; ++arch) {
    for (int64_t node = 0; node < shape.nodes; ++node) {
      const int64_t first = (arch * shape.nodes + node) * shape.edges;
      add_edges(arch, node, inputs + first, operations + first);
    }
    for (int64_t node = 0; node < shape.nodes; ++node) {
      if (!reads(arch, shape.inputs + node)) leaf_[static_cast<size_t>(arch)].push_back(node);
    }
  }
  plan();
}

template <class T>
Dag<T>::Dag(const DagShape& shape, const OperationWeights<const T>& weights,
            const std::vector<DagEdge>& edges, const T* coefficients, T* nodes)
    : shape_(shape), weights_(weights), mixture_(true) {
  set_up();
  for (size_t e = 0; e < edges.size(); ++e) add_edge(0, edges[e], coefficients[e]);
  for (int64_t node = 0; node < shape.nodes; ++node) {
    const size_t s = at(0, shape.inputs + node);
    states_[s].x = images_[s] = nodes + node * shape.out_size();
  }
  plan();
}

template <class T>
void Dag<T>::set_up() {
  const size_t states = static_cast<size_t>(shape_.archs * shape_.states());
  edges_.reserve(static_cast<size_t>(shape_.archs * shape_.nodes * shape_.edges));
  node_edges_.resize(states);
  readers_.resize(states);
  states_.resize(states);
  images_.resize(states);
  leaf_.resize(static_cast<size_t>(shape_.archs));
  for (int64_t arch = 0; arch < shape_.archs; ++arch) {
    for (int64_t node = 0; node < shape_.nodes; ++node) {
      State<T>& s = state(arch, shape_.inputs + node);
      s.height = shape_.out_height;
      s.width = shape_.out_width;
    }
  }
}

template <class T>
void Dag<T>::add_edges(int64_t arch, int64_t node, const int32_t* inputs,
                       const int32_t* operations) {
  const int64_t states = shape_.inputs + node;
  std::vector<Edge*>& own = node_edges_[at(arch, states)];
  for (int64_t e = 0; e < shape_.edges; ++e) {
    const int32_t input = inputs[e], operation = operations[e];
    const auto place = [&] {
      const std::string middle = shape_.nodes > 1 ? std::to_string(node) + ", " : "";
      return std::to_string(arch) + ", " + middle + std::to_string(e);
    };
    if (input < 0 || input >= states) bad_index("inputs", place(), input, states);
    const OperationInfo info = operation_info(operation);
    if (info.form == Form::kNone) {
      bad_index("operations", place(), operation, kOperationCount);
    }
    if (info.form == Form::kSeparable && !weights_.has(info.separable)) {
      throw std::invalid_argument("operations[" + place() +
                                  "] must be an operation that has weights, got " +
                                  kOperations[operation].name);
    }
    const auto same = std::find_if(own.begin(), own.end(), [&](const Edge* edge) {
      return edge->input == input && edge->operation == operation;
    });
    if (same != own.end()) {
      (*same)->multiplicity += 1;
      continue;
    }
    add_edge(arch, {node, input, operation}, T(1));
  }
}

template <class T>
void Dag<T>::add_edge(int64_t arch, const DagEdge& added, T multiplicity) {
  Edge edge;
  edge.arch = arch;
  edge.node = added.node;
  edge.input = added.input;
  edge.operation = added.operation;
  edge.info = operation_info(added.operation);
  edge.stride = shape_.stride(added.input);
  edge.multiplicity = multiplicity;
  edges_.push_back(edge);  // never more than were reserved, so that pointers stay
  Edge* const stays = &edges_.back();
  node_edges_[at(arch, shape_.inputs + added.node)].push_back(stays);
  if (edge.stages() > 0) normalized_.push_back(stays);
  readers_[at(arch, added.input)].push_back(stays);
}

// A stage of an edge can be computed a level after the one before it.
template <class T>
void Dag<T>::plan() {
  forward_level_.assign(states_.size(), 0);
  backward_level_.assign(states_.size(), 0);
  for (int64_t arch = 0; arch < shape_.archs; ++arch) {
    for (int64_t s = shape_.inputs; s < shape_.states(); ++s) {
      int64_t& level = forward_level_[at(arch, s)];
      for (const Edge* edge : node_edges_[at(arch, s)]) {
        level = std::max(level, forward_level_[at(arch, edge->input)] + edge->stages());
      }
      last_forward_level_ = std::max(last_forward_level_, level);
    }
    for (int64_t s = shape_.states() - 1; s >= 0; --s) {
      int64_t& level = backward_level_[at(arch, s)];
      for (const Edge* edge : readers_[at(arch, s)]) {
        level =
            std::max(level, backward_level_[at(arch, shape_.inputs + edge->node)] + edge->stages());
      }
      last_backward_level_ = std::max(last_backward_level_, level);
    }
  }
}

template <class T>
void Dag<T>::allocate_norm(Edge& edge, int stage, Bump<T>& memory) {
  edge.norm[stage] = {memory.take(shape_.padded), memory.take(shape_.padded)};
}

template <class T>
void Dag<T>::allocate(Bump<T>& memory) {
  for (size_t s = 0; s < states_.size(); ++s) {
    if (mixture_ || node_edges_[s].empty() || readers_[s].empty()) continue;
    images_[s] = memory.take(shape_.out_size());
    states_[s].x = images_[s];
  }
  for (Edge* edge : normalized_) {
    for (int stage = 0; stage < edge->stages(); ++stage) {
      allocate_norm(*edge, stage, memory);
      edge->z[stage] = memory.take(shape_.out_size());
    }
  }
}

// The last level in which a node is read before the leaf nodes are combined.
template <class T>
int64_t Dag<T>::last_use(int64_t arch, int64_t state) const {
  int64_t last = 0;
  for (const Edge* edge : readers_[at(arch, state)]) {
    const int64_t reader = shape_.inputs + edge->node;
    const int64_t use = edge->stages() > 0    ? forward_level_[at(arch, state)]
                        : reads(arch, reader) ? forward_level_[at(arch, reader)]
                                              : last_forward_level_;
    last = std::max(last, use);
  }
  return last;
}

template <class T>
void Dag<T>::allocate_with_reuse(Bump<T>& memory) {
  Slots<T> slots(memory, shape_.out_size());
  for (int64_t level = 0; level <= last_forward_level_; ++level) {
    // Tasks of a level run at the same time, so what one does not need any more is free in the
    // next.
    std::vector<T*> unused;
    for (int64_t arch = 0; arch < shape_.archs; ++arch) {
      for (int64_t s = 0; s < shape_.states(); ++s) {
        if (mixture_ || !stored(arch, s)) continue;
        T*& images = images_[at(arch, s)];
        if (forward_level_[at(arch, s)] == level) states_[at(arch, s)].x = images = slots.take();
        if (last_use(arch, s) == level) unused.push_back(images);
      }
    }
    for (Edge* edge : normalized_) {
      const int64_t stage = level - forward_level_[at(edge->arch, edge->input)];
      if (stage >= 0 && stage < edge->stages()) {
        allocate_norm(*edge, static_cast<int>(stage), memory);
        edge->z[stage] = slots.take();
      }
      if (stage == 1 && edge->separable()) unused.push_back(edge->z[0]);
      const int64_t node = shape_.inputs + edge->node;
      if (stored(edge->arch, node) && forward_level_[at(edge->arch, node)] == level) {
        unused.push_back(edge->z[edge->last()]);
      }
    }
    for (T* slot : unused) slots.give(slot);
  }
}

// The first edge to come to a state's gradient writes it, the others add.
template <class T>
void Dag<T>::write_gradient(Edge& edge, Slots<T>& slots) {
  State<T>& s = states_[at(edge.arch, edge.input)];
  if (!s.has_grad && edge.input >= shape_.inputs) s.grad = slots.take();
  edge.accumulate = s.has_grad;
  s.has_grad = true;
}

// The order is that of run_backward().
template <class T>
void Dag<T>::allocate_gradients(Bump<T>& memory) {
  Slots<T> slots(memory, shape_.out_size());
  for (int64_t arch = 0; arch < shape_.archs; ++arch) {
    for (const int64_t node : leaf(arch)) {
      State<T>& s = state(arch, shape_.inputs + node);
      if (s.grad == nullptr) s.grad = slots.take();
    }
  }
  for (int64_t level = 0; level <= last_backward_level_; ++level) {
    std::vector<T*> unused;
    for (int64_t arch = 0; arch < shape_.archs; ++arch) {
      for (int64_t s = shape_.states() - 1; s >= shape_.inputs; --s) {
        const int64_t step = level - backward_level_[at(arch, s)];
        if (step < 0 || step > 2) continue;
        int64_t last_step = 0;
        for (Edge* edge : node_edges_[at(arch, s)]) {
          if (edge->stages() > 0) last_step = 1;
          if (edge->stages() == step) write_gradient(*edge, slots);
          if (edge->separable() && step == 1) edge->intermediate = slots.take();
          if (edge->separable() && step == 2) unused.push_back(edge->intermediate);
        }
        if (step == last_step && stored(arch, s) && !mixture_) {
          unused.push_back(state(arch, s).grad);
        }
      }
    }
    for (T* slot : unused) slots.give(slot);
  }
}

// The members that this file defines.
#define ASNG_INSTANTIATE(T)                                                               \
  template Dag<T>::Dag(const DagShape&, const OperationWeights<const T>&, const int32_t*, \
                       const int32_t*);                                                   \
  template Dag<T>::Dag(const DagShape&, const OperationWeights<const T>&,                 \
                       const std::vector<DagEdge>&, const T*, T*);                        \
  template void Dag<T>::allocate(Bump<T>&);                                               \
  template void Dag<T>::allocate_with_reuse(Bump<T>&);                                    \
  template void Dag<T>::allocate_gradients(Bump<T>&);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cpu
