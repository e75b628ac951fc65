// Forward passes of nodes and cells.
#include <algorithm>

#include "ops/cell/cpu.h"
#include "platform/threads.h"

namespace asng::cpu {
namespace {

// Batch elements that a task takes through all that a level does with them: so many bytes of a
// state, that a handful of them fits into the second level of the cache.
constexpr int64_t kGroupBytes = int64_t{64} << 10;

}  // namespace

// Runs a task for all of the batch, group by group: those of one part, one after the other.
template <class T>
void Dag<T>::run_images(const Task& task) const {
  int64_t largest = shape_.image_size();
  for (const State<T>& s : states_) largest = std::max(largest, s.height * s.width * shape_.padded);
  const int64_t group =
      std::max<int64_t>(1, kGroupBytes / (largest * static_cast<int64_t>(sizeof(T))));
  run_splits(shape_.archs, splits(), [&](int64_t arch, int64_t split_index) {
    const Split range = split(shape_.images, split_index);
    const int64_t end = range.first + range.count;
    for (int64_t first = range.first; first < end; first += group) {
      task(arch, split_index, {first, std::min(group, end - first)});
    }
  });
}

template <class T>
Shape Dag<T>::stage_shape(const Edge& edge, int stage, int64_t images) const {
  Shape s;
  s.images = images;
  s.height = stage == 0 ? from(edge).height : shape_.out_height;
  s.width = stage == 0 ? from(edge).width : shape_.out_width;
  s.out_height = shape_.out_height;
  s.out_width = shape_.out_width;
  s.channels = shape_.padded;
  s.stride = stage == 0 ? edge.stride : 1;
  s.separable = edge.info.separable;
  return s;
}

template <class T>
void Dag<T>::set_up_reduction(Edge& edge) {
  const State<T>& state = from(edge);
  PointwiseBatch<T>& p = edge.reduction;
  p = {shape_.images, shape_.out_height, shape_.out_width, shape_.channels};
  Source<T> source;
  source.x = state.x;
  source.affine = state.affine;
  source.grad = state.grad;
  source.accumulate = edge.accumulate;
  source.channels = shape_.padded;
  source.height = state.height;
  source.width = state.width;
  read_factorized(p, source, shape_.channels);
  p.weight = weights_.reduction +
             shape_.reduction_index(edge.node, edge.input) * shape_.channels * shape_.channels;
  p.weight_stride = shape_.channels;
  p.z = edge.z[0];
  p.norm = edge.norm[0];
  p.stored = edge.norm[0].affine();
  p.grads = {states_[at(edge.arch, shape_.inputs + edge.node)].grad};
}

template <class T>
Block Dag<T>::pack(bool backward) {
  const int64_t padded = shape_.padded;
  // One size for all cells of a kind, so that the next one finds the block of the last.
  const int64_t per_stage = padded * padded + 2 * kMostKernelElements * padded;
  const int64_t count = shape_.archs * shape_.nodes * shape_.edges * 2 * per_stage;
  Block block = acquire(static_cast<size_t>(count) * sizeof(T));
  Bump<T> memory(static_cast<T*>(block.get()), count);
  for (Edge* edge : normalized_) {
    if (edge->factorized()) {
      set_up_reduction(*edge);
      edge->reduction.packed = memory.take(edge->reduction.packed_size());
      continue;
    }
    for (int stage = 0; stage < 2; ++stage) {
      edge->depthwise[stage] = memory.take(edge->kernel_elements() * padded);
      edge->flipped[stage] = memory.take(edge->kernel_elements() * padded);
      edge->pointwise[stage] = memory.take(padded * padded);
    }
  }
  run_tasks(static_cast<int64_t>(normalized_.size()), [&](int64_t i) {
    Edge& edge = *normalized_[static_cast<size_t>(i)];
    edge.sums = PartialSums(splits(), padded);
    if (edge.factorized()) {
      backward ? edge.reduction.pack_backward() : edge.reduction.pack_forward();
      return;
    }
    for (int stage = 0; stage < 2; ++stage) pack_stage(edge, stage, backward);
  });
  return block;
}

template <class T>
void Dag<T>::pack_stage(Edge& edge, int stage, bool backward) {
  const int64_t channels = shape_.channels, padded = shape_.padded;
  const int64_t elements = edge.kernel_elements();
  const int64_t index = weight_index(shape_.inputs, edge.node, edge.input) * 2 + stage;
  const T* depthwise = weights_.depthwise[edge.info.separable] + index * channels * elements;
  const T* pointwise = weights_.pointwise[edge.info.separable] + index * channels * channels;
  for (int64_t k = 0; k < elements; ++k) {
    T* row = edge.depthwise[stage] + k * padded;
    for (int64_t c = 0; c < padded; ++c) row[c] = c < channels ? depthwise[c * elements + k] : T(0);
    if (backward) std::copy_n(row, padded, edge.flipped[stage] + (elements - 1 - k) * padded);
  }
  std::fill_n(edge.pointwise[stage], padded * padded, T(0));
  for (int64_t o = 0; o < channels; ++o) {
    for (int64_t c = 0; c < channels; ++c) {
      edge.pointwise[stage][backward ? o * padded + c : c * padded + o] =
          pointwise[o * channels + c];
    }
  }
}

template <class T>
void Dag<T>::forward_stage(Edge& edge, int stage, int64_t split_index, Split images) {
  if (edge.factorized()) {
    edge.reduction.forward(images, split_index, edge.sums);
    return;
  }
  const State<T>& state = from(edge);
  SeparableForward<T> task;
  task.shape = stage_shape(edge, stage, images.count);
  task.x = (stage == 0 ? state.x : edge.z[0]) +
           images.first * task.shape.height * task.shape.width * shape_.padded;
  task.affine = stage == 0 ? state.affine : edge.norm[0].affine();
  task.depthwise = edge.depthwise[stage];
  task.pointwise = edge.pointwise[stage];
  task.z = edge.z[stage] + images.first * shape_.image_size();
  task.sum = edge.sums.first(split_index);
  task.sum_squares = edge.sums.second(split_index);
  kernels<T>().separable_forward(task);
}

template <class T>
Combine<T> Dag<T>::combine_task(int64_t arch, int64_t node, Split images,
                                std::vector<Term<T>>& terms) const {
  terms.clear();
  for (const Edge* edge : node_edges_[at(arch, shape_.inputs + node)]) {
    Term<T> term;
    term.form = edge->info.form;
    term.normalized = edge->stages() > 0;
    term.factor = edge->multiplicity;
    if (term.normalized) {
      term.x = edge->z[edge->last()];
      term.affine = edge->norm[edge->last()].affine();
      term.height = shape_.out_height;
      term.width = shape_.out_width;
    } else {
      const State<T>& read = from(*edge);
      term.x = read.x;
      term.affine = read.affine;
      term.height = read.height;
      term.width = read.width;
      term.stride = edge->stride;
      term.grad = read.grad;
      term.accumulate = edge->accumulate;
    }
    const int64_t offset = images.first * term.height * term.width * shape_.padded;
    term.x += offset;
    if (term.grad != nullptr) term.grad += offset;
    terms.push_back(term);
  }
  Combine<T> task;
  task.terms = terms.data();
  task.term_count = static_cast<int64_t>(terms.size());
  task.images = images.count;
  task.out_height = shape_.out_height;
  task.out_width = shape_.out_width;
  task.channels = shape_.padded;
  return task;
}

template <class T>
void Dag<T>::combine(int64_t arch, int64_t node, Split images, T* out) const {
  std::vector<Term<T>> terms;
  Combine<T> task = combine_task(arch, node, images, terms);
  task.out = out;
  kernels<T>().combine_forward(task);
}

template <class T>
void Dag<T>::run_forward(int64_t level, int64_t arch, int64_t split_index, Split images) {
  for (int64_t s = 0; s < shape_.states(); ++s) {
    const int64_t step = level - forward_level_[at(arch, s)];
    if (step < 0 || step > 1) continue;
    if (step == 0 && stored(arch, s)) {
      combine(arch, s - shape_.inputs, images,
              images_[at(arch, s)] + images.first * shape_.image_size());
    }
    for (Edge* edge : readers_[at(arch, s)]) {
      if (step < edge->stages()) forward_stage(*edge, static_cast<int>(step), split_index, images);
    }
  }
}

template <class T>
void Dag<T>::forward(const Task& finish) {
  const Block packed = pack(false);
  for (int64_t level = 0; level <= last_forward_level_; ++level) {
    run_images([&](int64_t arch, int64_t split_index, Split images) {
      run_forward(level, arch, split_index, images);
      if (level == last_forward_level_) finish(arch, split_index, images);
    });
    for (Edge* edge : normalized_) {
      const int64_t stage = level - forward_level_[at(edge->arch, edge->input)];
      if (stage < 0 || stage >= edge->stages()) continue;
      finish_norm(edge->sums, shape_.pixels(), shape_.padded, edge->norm[stage]);
      edge->sums = PartialSums(splits(), shape_.padded);
    }
  }
}

template <class T>
Cell<T>::Cell(const CellShape& shape, const CellWeights<const T>& weights, const int32_t* inputs,
              const int32_t* operations)
    : shape_(shape), weights_(weights), dag_(shape.dag(), weights.operations, inputs, operations) {}

// Projections of the inputs that are read; one that all architectures share is projected once.
template <class T>
void Cell<T>::allocate_inputs(Bump<T>& memory, CellImages<T> prev_prev, CellImages<T> prev) {
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
      PointwiseBatch<T> p(shape_.images, shape_.prev.height, shape_.prev.width, shape_.channels);
      p.arch = arch;
      p.of_prev_prev = index == 0;
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
void Cell<T>::set_up_outputs(const T* z, const T* norms, bool normalized) {
  outputs_.clear();
  for (int64_t arch = 0; arch < shape_.archs; ++arch) {
    PointwiseBatch<T> p(shape_.images, shape_.out_height, shape_.out_width, shape_.channels);
    p.arch = arch;
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

// The sources of an output when it reads one batch element of each, one after the other in memory.
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
  allocate_inputs(memory, prev_prev, prev);
  project_inputs();
  save ? dag_.allocate(memory) : dag_.allocate_with_reuse(memory);
  set_up_outputs(z, norms, false);
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
  allocate_inputs(memory, prev_prev, prev);
  dag_.allocate(memory);
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
  const int64_t count = shape_.saved().values();
  const Block block = acquire(save ? 0 : static_cast<size_t>(count) * sizeof(T));
  Bump<T> memory(save ? saved : static_cast<T*>(block.get()), count);
  T* norms = memory.take(2 * shape_.archs * shape_.padded);
  run({prev_prev}, {prev}, y, norms, memory, save);
  normalize(y, norms);
}

// The members that this file defines.
#define ASNG_INSTANTIATE(T)                                                                        \
  template void Dag<T>::forward(const Task&);                                                      \
  template void Dag<T>::combine(int64_t, int64_t, Split, T*) const;                                \
  template void Dag<T>::run_images(const Task&) const;                                             \
  template Block Dag<T>::pack(bool);                                                               \
  template Shape Dag<T>::stage_shape(const Edge&, int, int64_t) const;                             \
  template Combine<T> Dag<T>::combine_task(int64_t, int64_t, Split, std::vector<Term<T>>&) const;  \
  template Cell<T>::Cell(const CellShape&, const CellWeights<const T>&, const int32_t*,            \
                         const int32_t*);                                                          \
  template void Cell<T>::allocate_inputs(Bump<T>&, CellImages<T>, CellImages<T>);                  \
  template void Cell<T>::set_up_outputs(const T*, const T*, bool);                                 \
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
