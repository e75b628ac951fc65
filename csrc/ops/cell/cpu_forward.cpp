#include <algorithm>

#include "ops/cell/cpu.h"
#include "platform/threads.h"

namespace asng::cpu {

DagShape CellShape::dag() const {
  DagShape s;
  s.archs = archs;
  s.nodes = nodes;
  s.inputs = 2;
  s.images = images;
  s.out_height = out_height;
  s.out_width = out_width;
  s.channels = channels;
  s.padded = padded;
  s.reduction = reduction;
  return s;
}

int64_t CellShape::saved_bound() const {
  return archs * (2 * in_size() + nodes * out_size() + 6 * padded) + dag().saved_bound();
}

template <class T>
Cell<T>::Cell(const CellShape& shape, const CellWeights<const T>& weights, const int32_t* inputs,
              const int32_t* operations)
    : shape_(shape), weights_(weights), dag_(shape.dag(), weights.operations, inputs, operations) {}

// Projections of the inputs that are read; an input that all architectures share is projected once.
template <class T>
void Cell<T>::place_inputs(Bump<T>& memory, CellImages<T> prev_prev, CellImages<T> prev) {
  inputs_.clear();
  for (int64_t index = 0; index < 2; ++index) {
    const CellInput& input = index == 0 ? shape_.prev_prev : shape_.prev;
    const CellImages<T>& images = index == 0 ? prev_prev : prev;
    for (int64_t arch = 0; arch < input.archs; ++arch) {
      // An input of its own serves one architecture, a shared one serves all.
      const int64_t end = input.archs == 1 ? shape_.archs : arch + 1;
      bool wanted = false;
      for (int64_t a = arch; a < end; ++a) wanted |= dag_.reads(a, index);
      if (!wanted) continue;
      PointwiseBatch<T> p;
      p.arch = arch;
      p.of_prev_prev = index == 0;
      p.images = shape_.images;
      p.out_height = shape_.prev.height;
      p.out_width = shape_.prev.width;
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
      if (index == 0 && shape_.prev_prev_is_larger) read_factorized(p, source, input.channels);
      p.weight = index == 0 ? weights_.prev_prev : weights_.prev;
      p.weight_stride = input.channels;
      p.norm = {memory.take(shape_.padded), memory.take(shape_.padded)};
      p.stored = p.norm.affine();
      p.z = memory.take(shape_.in_size());
      for (int64_t a = arch; a < end; ++a) {
        State<T>& s = dag_.state(a, index);
        s.x = p.z;
        s.affine = p.stored;
        s.height = shape_.prev.height;
        s.width = shape_.prev.width;
      }
      inputs_.push_back(std::move(p));
    }
  }
}

// The output of every architecture: a projection of its leaf nodes.
template <class T>
void Cell<T>::place_outputs(const T* z, const T* norms, bool normalized) {
  outputs_.clear();
  for (int64_t arch = 0; arch < shape_.archs; ++arch) {
    PointwiseBatch<T> p;
    p.arch = arch;
    p.images = shape_.images;
    p.out_height = shape_.out_height;
    p.out_width = shape_.out_width;
    p.channels = shape_.channels;
    p.padded = shape_.padded;
    for (const int64_t node : dag_.leaf(arch)) {
      Source<T> source;
      source.grad = dag_.state(arch, node + 2).grad;
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
    p.stored = normalized ? Affine<T>{} : p.norm.affine();
    outputs_.push_back(std::move(p));
  }
}

// The sources of an output when it reads one image of each, which lie one after the other.
template <class T>
std::vector<Source<T>> Cell<T>::leaf_sources(const PointwiseBatch<T>& p, const T* nodes) const {
  std::vector<Source<T>> sources = p.sources;
  for (Source<T>& source : sources) {
    source.x = nodes;
    nodes += shape_.out_size() / shape_.images;
  }
  return sources;
}

template <class T>
void Cell<T>::combine_leaf(const PointwiseBatch<T>& p, int64_t image, T* nodes) const {
  for (const int64_t node : dag_.leaf(p.arch)) {
    dag_.combine(p.arch, node, {image, 1}, nodes);
    nodes += shape_.out_size() / shape_.images;
  }
}

template <class T>
Block Cell<T>::pack(std::vector<PointwiseBatch<T>>& projections, bool backward) {
  int64_t count = 0;
  for (const PointwiseBatch<T>& p : projections) {
    count += p.packed_size() * (backward ? 1 + splits() : 1);
  }
  Block block = acquire(static_cast<size_t>(count) * sizeof(T));
  Bump<T> memory(static_cast<T*>(block.get()), count);
  for (PointwiseBatch<T>& p : projections) {
    p.packed = memory.take(p.packed_size());
    if (backward) p.grad_splits = memory.take(splits() * p.packed_size());
    backward ? p.pack_backward() : p.pack_forward();
    if (backward) p.clear_gradient();
  }
  return block;
}

template <class T>
void Cell<T>::project_inputs() {
  const Block packed = pack(inputs_, false);
  std::vector<PartialSums> sums(inputs_.size(), PartialSums(splits(), shape_.padded));
  run_splits(static_cast<int64_t>(inputs_.size()), splits(), [&](int64_t p, int64_t split_index) {
    inputs_[p].forward(split(shape_.images, split_index), split_index, sums[p]);
  });
  for (size_t p = 0; p < inputs_.size(); ++p) {
    finish_norm(sums[p], inputs_[p].pixels(), shape_.padded, inputs_[p].norm);
  }
}

template <class T>
void Cell<T>::project_outputs(int64_t arch, int64_t split_index, Split images,
                              PartialSums& sums) const {
  const PointwiseBatch<T>& p = outputs_[static_cast<size_t>(arch)];
  const Block block = acquire(leaf_bytes());
  T* const nodes = static_cast<T*>(block.get());
  const std::vector<Source<T>> from = leaf_sources(p, nodes);
  for (int64_t image = images.first; image < images.first + images.count; ++image) {
    combine_leaf(p, image, nodes);
    p.forward_from(from, {image, 1}, split_index, sums);
  }
}

template <class T>
void Cell<T>::run(CellImages<T> prev_prev, CellImages<T> prev, T* z, T* norms, Bump<T>& memory,
                  bool save) {
  place_inputs(memory, prev_prev, prev);
  project_inputs();
  save ? dag_.place(memory) : dag_.allocate_with_reuse(memory);
  place_outputs(z, norms, false);
  const Block packed = pack(outputs_, false);
  std::vector<PartialSums> sums(outputs_.size(), PartialSums(splits(), shape_.padded));
  dag_.forward([&](int64_t arch, int64_t split_index, Split images) {
    project_outputs(arch, split_index, images, sums[static_cast<size_t>(arch)]);
  });
  for (size_t p = 0; p < outputs_.size(); ++p) {
    finish_norm(sums[p], outputs_[p].pixels(), shape_.padded, outputs_[p].norm);
  }
}

template <class T>
void Cell<T>::skip(CellImages<T> prev_prev, CellImages<T> prev, Bump<T>& memory) {
  place_inputs(memory, prev_prev, prev);
  dag_.place(memory);
}

template <class T>
void Cell<T>::normalize(T* z, const T* norms) const {
  const int64_t image_size = shape_.out_size() / shape_.images;
  run_splits(shape_.archs, splits(), [&](int64_t arch, int64_t split_index) {
    const Split range = split(shape_.images, split_index);
    const CellImages<T> images = {z, norms};
    kernels<T>().normalize(z + arch * shape_.out_size() + range.first * image_size,
                           range.count * shape_.out_height * shape_.out_width, shape_.padded,
                           images.affine(arch, shape_.padded));
  });
}

template <class T>
void Cell<T>::forward(const T* prev_prev, const T* prev, T* y, T* saved) {
  const bool save = saved != nullptr;
  const int64_t count = shape_.saved_bound();
  const Block block = acquire(save ? 0 : static_cast<size_t>(count) * sizeof(T));
  Bump<T> memory(save ? saved : static_cast<T*>(block.get()), count);
  T* norms = memory.take(2 * shape_.archs * shape_.padded);
  run({prev_prev}, {prev}, y, norms, memory, save);
  normalize(y, norms);
}

#define ASNG_INSTANTIATE(T)                                                                        \
  template Cell<T>::Cell(const CellShape&, const CellWeights<const T>&, const int32_t*,            \
                         const int32_t*);                                                          \
  template void Cell<T>::place_inputs(Bump<T>&, CellImages<T>, CellImages<T>);                     \
  template void Cell<T>::place_outputs(const T*, const T*, bool);                                  \
  template std::vector<Source<T>> Cell<T>::leaf_sources(const PointwiseBatch<T>&, const T*) const; \
  template void Cell<T>::combine_leaf(const PointwiseBatch<T>&, int64_t, T*) const;                \
  template Block Cell<T>::pack(std::vector<PointwiseBatch<T>>&, bool);                             \
  template void Cell<T>::run(CellImages<T>, CellImages<T>, T*, T*, Bump<T>&, bool);                \
  template void Cell<T>::skip(CellImages<T>, CellImages<T>, Bump<T>&);                             \
  template void Cell<T>::normalize(T*, const T*) const;                                            \
  template void Cell<T>::forward(const T*, const T*, T*, T*);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cpu
