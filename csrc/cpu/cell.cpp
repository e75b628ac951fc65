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
  }
}

// Projections of the inputs that are read; an input that all architectures share is projected once.
template <class T>
void Cell<T>::place_inputs(Bump<T>& memory, const T* older, const T* newer) {
  inputs_.clear();
  for (int64_t index = 0; index < 2; ++index) {
    const CellInput& input = index == 0 ? shape_.older : shape_.newer;
    const T* x = index == 0 ? older : newer;
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
      source.x = x + arch * shape_.images * input.height * input.width * input.padded;
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

// The output of every architecture: a projection of the nodes that no node reads. The images of
// the nodes must have their places.
template <class T>
void Cell<T>::place_outputs(T* y, T* norms) {
  outputs_.clear();
  for (int64_t arch = 0; arch < shape_.archs; ++arch) {
    Projection<T> p;
    p.arch = arch;
    p.images = shape_.images;
    p.out_height = shape_.out_height;
    p.out_width = shape_.out_width;
    p.channels = shape_.channels;
    p.padded = shape_.padded;
    for (int64_t i = 0; i < shape_.nodes; ++i) {
      if (uses(arch, i + 2)) continue;
      Source<T> source;
      source.x = state(arch, i + 2).x;
      source.grad = state(arch, i + 2).grad;
      source.channels = shape_.padded;
      source.height = shape_.out_height;
      source.width = shape_.out_width;
      p.columns.push_back({static_cast<int64_t>(p.sources.size()), i * shape_.channels,
                           shape_.channels, 0, shape_.channels});
      p.sources.push_back(source);
    }
    p.weight = weights_.output;
    p.weight_stride = shape_.nodes * shape_.channels;
    p.z = y + arch * shape_.out_size();
    p.norm = {norms + 2 * arch * shape_.padded, norms + (2 * arch + 1) * shape_.padded};
    outputs_.push_back(std::move(p));
  }
}

template <class T>
Block Cell<T>::pack(std::vector<Projection<T>*> projections, bool backward, bool with_gradients) {
  int64_t count = 0;
  for (const Projection<T>* p : projections) {
    count += p->packed_size() * (with_gradients ? 1 + parts() : 1);
  }
  Block block = acquire(static_cast<size_t>(count) * sizeof(T));
  Bump<T> memory(static_cast<T*>(block.get()), count);
  for (Projection<T>* p : projections) {
    p->packed = memory.take(p->packed_size());
    if (with_gradients) p->grad_parts = memory.take(parts() * p->packed_size());
    backward ? p->pack_backward() : p->pack_forward();
  }
  return block;
}

template <class T>
void Cell<T>::project(std::vector<Projection<T>>& projections) {
  std::vector<Projection<T>*> all;
  for (Projection<T>& p : projections) all.push_back(&p);
  const Block packed = pack(all, false, false);
  std::vector<PartialSums> sums(projections.size(), PartialSums(parts(), shape_.padded));
  run_parts(static_cast<int64_t>(projections.size()), parts(),
            [&](int64_t p, int64_t part_index) { projections[p].forward(part_index, sums[p]); });
  for (size_t p = 0; p < projections.size(); ++p) {
    finish_norm(sums[p], projections[p].pixels(), shape_.padded, projections[p].norm);
  }
}

template <class T>
void Cell<T>::forward(const T* older, const T* newer, T* y, T* saved) {
  const int64_t archs = shape_.archs, node_bound = shape_.node(0).saved_bound();
  // Without a backward pass the nodes take turns with one place for what they would save.
  const int64_t count =
      saved != nullptr ? 0 : shape_.saved_bound() - (shape_.nodes - 1) * node_bound;
  const Block block = acquire(static_cast<size_t>(count) * sizeof(T));
  Bump<T> memory = saved != nullptr ? Bump<T>(saved, shape_.saved_bound())
                                    : Bump<T>(static_cast<T*>(block.get()), count);
  T* norms = memory.take(2 * archs * shape_.padded);
  place_inputs(memory, older, newer);
  project(inputs_);
  T* shared = saved != nullptr ? nullptr : memory.take(node_bound);
  for (int64_t i = 0; i < shape_.nodes; ++i) {
    T* out = memory.take(archs * shape_.out_size());
    if (saved != nullptr) {
      nodes_[static_cast<size_t>(i)].place(memory);
    } else {
      Bump<T> turn(shared, node_bound);
      nodes_[static_cast<size_t>(i)].place(turn);
    }
    nodes_[static_cast<size_t>(i)].forward(states_, out);
    for (int64_t arch = 0; arch < archs; ++arch) {
      State<T>& s = state(arch, i + 2);
      s.x = out + arch * shape_.out_size();
      s.height = shape_.out_height;
      s.width = shape_.out_width;
    }
  }
  place_outputs(y, norms);
  project(outputs_);
  const int64_t image_size = shape_.out_size() / shape_.images;
  run_parts(archs, parts(), [&](int64_t arch, int64_t part_index) {
    const Projection<T>& p = outputs_[static_cast<size_t>(arch)];
    const Part range = part(shape_.images, part_index);
    kernels<T>().normalise(p.z + range.first * image_size,
                           range.count * shape_.out_height * shape_.out_width, shape_.padded,
                           p.norm.affine());
  });
}

template NodeWeights<float> node_weights(const NodeWeights<float>&, int64_t, int64_t);
template NodeWeights<double> node_weights(const NodeWeights<double>&, int64_t, int64_t);

#define ASNG_INSTANTIATE(T)                                                             \
  template Cell<T>::Cell(const CellShape&, const CellWeights<const T>&, const int32_t*, \
                         const int32_t*);                                               \
  template void Cell<T>::place_inputs(Bump<T>&, const T*, const T*);                    \
  template void Cell<T>::place_outputs(T*, T*);                                         \
  template Block Cell<T>::pack(std::vector<Projection<T>*>, bool, bool);                \
  template void Cell<T>::forward(const T*, const T*, T*, T*);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cpu
