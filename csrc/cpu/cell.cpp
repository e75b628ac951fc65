#include "cell.h"

#include <algorithm>

#include "parallel.h"

namespace asng::cpu {

NodeShape CellShape::node(int64_t index) const {
  NodeShape s;
  s.archs = archs;
  s.inputs = index + 2;
  s.edges = 2;
  s.images = images;
  s.out_height = out_height;
  s.out_width = out_width;
  s.channels = channels;
  s.padded = padded;
  s.state_stride = nodes + 2;
  s.reduced_inputs = reduction ? 2 : 0;
  return s;
}

int64_t CellShape::saved_bound() const {
  return archs * (2 * in_size() + nodes * out_size() + 6 * padded) + nodes * node(0).saved_bound();
}

int64_t CellShape::working_bound() const { return saved_bound() + node(0).saved_bound(); }

template <class T>
NodeWeights<T> node_weights(const NodeWeights<T>& all, int64_t node, int64_t channels) {
  NodeWeights<T> weights = all;
  const int64_t first = node * (node + 3) / 2;
  for (int64_t kind = 0; kind < 2; ++kind) {
    const int64_t taps = kind == 0 ? 9 : 25;
    weights.depthwise[kind] += first * 2 * channels * taps;
    weights.pointwise[kind] += first * 2 * channels * channels;
  }
  if (weights.reduction != nullptr) weights.reduction += 2 * node * channels * channels;
  return weights;
}

template <class T>
Cell<T>::Cell(const CellShape& shape, const CellWeights<const T>& weights, const int32_t* inputs,
              const int32_t* operations)
    : shape_(shape), weights_(weights) {
  const int64_t count = shape.nodes + 2;
  nodes_.reserve(static_cast<size_t>(shape.nodes));
  for (int64_t i = 0; i < shape.nodes; ++i) {
    nodes_.emplace_back(shape.node(i), node_weights(weights.operations, i, shape.channels),
                        inputs + 2 * i, operations + 2 * i, 2 * shape.nodes);
  }
  states_.resize(static_cast<size_t>(shape.archs * count));
  used_.resize(states_.size());
  for (int64_t arch = 0; arch < shape.archs; ++arch) {
    for (int64_t e = 0; e < 2 * shape.nodes; ++e) {
      used_[static_cast<size_t>(arch * count + inputs[arch * 2 * shape.nodes + e])] = true;
    }
    std::vector<int64_t>& loose = loose_.emplace_back();
    for (int64_t node = 0; node < shape.nodes; ++node) {
      if (!uses(arch, node + 2)) loose.push_back(node);
    }
  }
}

// Projections of the inputs that are read; an input that all architectures share is projected once.
template <class T>
void Cell<T>::place_inputs(Bump<T>& memory, CellImages<T> older, CellImages<T> newer) {
  inputs_.clear();
  for (int64_t index = 0; index < 2; ++index) {
    const CellInput& input = index == 0 ? shape_.older : shape_.newer;
    const CellImages<T>& images = index == 0 ? older : newer;
    for (int64_t arch = 0; arch < input.archs; ++arch) {
      // An input of its own serves one architecture, a shared one serves all.
      const int64_t end = input.archs == 1 ? shape_.archs : arch + 1;
      bool wanted = false;
      for (int64_t a = arch; a < end; ++a) wanted |= uses(a, index);
      if (!wanted) continue;
      Projection<T> p;
      p.arch = arch;
      p.of_older = index == 0;
      p.images = shape_.images;
      p.out_height = shape_.newer.height;
      p.out_width = shape_.newer.width;
      p.channels = shape_.channels;
      p.padded = shape_.padded;
      Source<T> source;
      source.x = images.x + arch * shape_.images * input.height * input.width * input.padded;
      source.affine = images.affine(arch, input.padded);
      source.channels = input.padded;
      source.height = input.height;
      source.width = input.width;
      p.sources = {source};
      p.columns = {{0, 0, input.channels, 0, shape_.channels}};
      if (index == 0 && shape_.older_is_larger) read_factorized(p, source, input.channels);
      p.weight = index == 0 ? weights_.older : weights_.newer;
      p.weight_stride = input.channels;
      p.norm = {memory.take(shape_.padded), memory.take(shape_.padded)};
      p.stored = p.norm.affine();
      p.z = memory.take(shape_.in_size());
      for (int64_t a = arch; a < end; ++a) {
        State<T>& s = state(a, index);
        s.x = p.z;
        s.affine = p.stored;
        s.height = shape_.newer.height;
        s.width = shape_.newer.width;
      }
      inputs_.push_back(std::move(p));
    }
  }
}

// Memory for what a node computes; returns where the images go that other nodes read. The edges of
// loose nodes are needed until the end of a forward pass, those of others not, so they get `turn`.
template <class T>
std::vector<T*> Cell<T>::place_node(Bump<T>& memory, Bump<T>& turn, int64_t index) {
  std::vector<T*> outs;
  std::vector<Bump<T>*> edges;
  for (int64_t arch = 0; arch < shape_.archs; ++arch) {
    const bool read = uses(arch, index + 2);
    outs.push_back(read ? memory.take(shape_.out_size()) : nullptr);
    edges.push_back(read ? &turn : &memory);
    State<T>& s = state(arch, index + 2);
    s.x = outs.back();
    s.height = shape_.out_height;
    s.width = shape_.out_width;
  }
  nodes_[static_cast<size_t>(index)].place(edges);
  return outs;
}

// The output of every architecture: a projection of its loose nodes.
template <class T>
void Cell<T>::place_outputs(const T* z, const T* norms, bool normalised) {
  outputs_.clear();
  for (int64_t arch = 0; arch < shape_.archs; ++arch) {
    Projection<T> p;
    p.arch = arch;
    p.images = shape_.images;
    p.out_height = shape_.out_height;
    p.out_width = shape_.out_width;
    p.channels = shape_.channels;
    p.padded = shape_.padded;
    for (const int64_t node : loose_[static_cast<size_t>(arch)]) {
      Source<T> source;
      source.grad = state(arch, node + 2).grad;
      source.channels = shape_.padded;
      source.height = shape_.out_height;
      source.width = shape_.out_width;
      p.columns.push_back({static_cast<int64_t>(p.sources.size()), node * shape_.channels,
                           shape_.channels, 0, shape_.channels});
      p.sources.push_back(source);
    }
    p.weight = weights_.output;
    p.weight_stride = shape_.nodes * shape_.channels;
    // A projection writes neither in a backward pass.
    p.z = const_cast<T*>(z) + arch * shape_.out_size();
    T* norm = const_cast<T*>(norms) + 2 * arch * shape_.padded;
    p.norm = {norm, norm + shape_.padded};
    p.stored = normalised ? Affine<T>{} : p.norm.affine();
    outputs_.push_back(std::move(p));
  }
}

// The sources of an output when it reads one image of each, which lie one after the other.
template <class T>
std::vector<Source<T>> Cell<T>::loose_sources(const Projection<T>& p, const T* nodes) const {
  std::vector<Source<T>> sources = p.sources;
  for (Source<T>& source : sources) {
    source.x = nodes;
    nodes += shape_.out_size() / shape_.images;
  }
  return sources;
}

template <class T>
void Cell<T>::combine_loose(const Projection<T>& p, int64_t image, T* nodes) const {
  for (const int64_t node : loose_[static_cast<size_t>(p.arch)]) {
    nodes_[static_cast<size_t>(node)].combine(states_, p.arch, image, 1, nodes);
    nodes += shape_.out_size() / shape_.images;
  }
}

template <class T>
Block Cell<T>::pack(std::vector<Projection<T>>& projections, bool backward) {
  int64_t count = 0;
  for (const Projection<T>& p : projections) {
    count += p.packed_size() * (backward ? 1 + parts() : 1);
  }
  Block block = acquire(static_cast<size_t>(count) * sizeof(T));
  Bump<T> memory(static_cast<T*>(block.get()), count);
  for (Projection<T>& p : projections) {
    p.packed = memory.take(p.packed_size());
    if (backward) p.grad_parts = memory.take(parts() * p.packed_size());
    backward ? p.pack_backward() : p.pack_forward();
  }
  return block;
}

template <class T>
void Cell<T>::project_inputs() {
  const Block packed = pack(inputs_, false);
  std::vector<PartialSums> sums(inputs_.size(), PartialSums(parts(), shape_.padded));
  run_parts(static_cast<int64_t>(inputs_.size()), parts(),
            [&](int64_t p, int64_t part_index) { inputs_[p].forward(part_index, sums[p]); });
  for (size_t p = 0; p < inputs_.size(); ++p) {
    finish_norm(sums[p], inputs_[p].pixels(), shape_.padded, inputs_[p].norm);
  }
}

template <class T>
void Cell<T>::project_outputs() {
  const Block packed = pack(outputs_, false);
  std::vector<PartialSums> sums(outputs_.size(), PartialSums(parts(), shape_.padded));
  run_parts(shape_.archs, parts(), [&](int64_t arch, int64_t part_index) {
    const Projection<T>& p = outputs_[static_cast<size_t>(arch)];
    const Part range = part(shape_.images, part_index);
    const Block block = acquire(loose_bytes());
    T* const nodes = static_cast<T*>(block.get());
    const std::vector<Source<T>> from = loose_sources(p, nodes);
    for (int64_t image = range.first; image < range.first + range.count; ++image) {
      combine_loose(p, image, nodes);
      p.forward_images(from, image, 1, part_index, sums[static_cast<size_t>(arch)]);
    }
  });
  for (size_t p = 0; p < outputs_.size(); ++p) {
    finish_norm(sums[p], outputs_[p].pixels(), shape_.padded, outputs_[p].norm);
  }
}

template <class T>
void Cell<T>::run(CellImages<T> older, CellImages<T> newer, T* z, T* norms, Bump<T>& memory,
                  bool save) {
  place_inputs(memory, older, newer);
  project_inputs();
  const int64_t bound = save ? 0 : shape_.node(0).saved_bound();
  T* const shared = memory.take(bound);
  for (int64_t i = 0; i < shape_.nodes; ++i) {
    Bump<T> turn(shared, bound);
    const std::vector<T*> outs = place_node(memory, save ? memory : turn, i);
    nodes_[static_cast<size_t>(i)].forward(states_, outs);
  }
  place_outputs(z, norms, false);
  project_outputs();
}

template <class T>
void Cell<T>::skip(CellImages<T> older, CellImages<T> newer, Bump<T>& memory) {
  place_inputs(memory, older, newer);
  for (int64_t i = 0; i < shape_.nodes; ++i) place_node(memory, memory, i);
}

template <class T>
void Cell<T>::normalise(T* z, const T* norms) const {
  const int64_t image_size = shape_.out_size() / shape_.images;
  run_parts(shape_.archs, parts(), [&](int64_t arch, int64_t part_index) {
    const Part range = part(shape_.images, part_index);
    const CellImages<T> images = {z, norms};
    kernels<T>().normalise(z + arch * shape_.out_size() + range.first * image_size,
                           range.count * shape_.out_height * shape_.out_width, shape_.padded,
                           images.affine(arch, shape_.padded));
  });
}

template <class T>
void Cell<T>::forward(const T* older, const T* newer, T* y, T* saved) {
  const bool save = saved != nullptr;
  const int64_t count = save ? shape_.saved_bound() : shape_.working_bound();
  const Block block = acquire(save ? 0 : static_cast<size_t>(count) * sizeof(T));
  Bump<T> memory(save ? saved : static_cast<T*>(block.get()), count);
  T* norms = memory.take(2 * shape_.archs * shape_.padded);
  run({older}, {newer}, y, norms, memory, save);
  normalise(y, norms);
}

template NodeWeights<float> node_weights(const NodeWeights<float>&, int64_t, int64_t);
template NodeWeights<double> node_weights(const NodeWeights<double>&, int64_t, int64_t);

#define ASNG_INSTANTIATE(T)                                                                     \
  template Cell<T>::Cell(const CellShape&, const CellWeights<const T>&, const int32_t*,         \
                         const int32_t*);                                                       \
  template void Cell<T>::place_inputs(Bump<T>&, CellImages<T>, CellImages<T>);                  \
  template std::vector<T*> Cell<T>::place_node(Bump<T>&, Bump<T>&, int64_t);                    \
  template void Cell<T>::place_outputs(const T*, const T*, bool);                               \
  template std::vector<Source<T>> Cell<T>::loose_sources(const Projection<T>&, const T*) const; \
  template void Cell<T>::combine_loose(const Projection<T>&, int64_t, T*) const;                \
  template Block Cell<T>::pack(std::vector<Projection<T>>&, bool);                              \
  template void Cell<T>::run(CellImages<T>, CellImages<T>, T*, T*, Bump<T>&, bool);             \
  template void Cell<T>::skip(CellImages<T>, CellImages<T>, Bump<T>&);                          \
  template void Cell<T>::normalise(T*, const T*) const;                                         \
  template void Cell<T>::forward(const T*, const T*, T*, T*);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cpu
