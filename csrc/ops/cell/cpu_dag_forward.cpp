#include <algorithm>

#include "ops/cell/cpu_dag.h"
#include "platform/threads.h"

namespace asng::cpu {
namespace {

// Images that a task takes through all that a phase does with them: so many bytes of a state, that
// a handful of them fits into the second level of the cache.
constexpr int64_t kGroupBytes = int64_t{64} << 10;

}  // namespace

// Runs a task for all images, group by group: those of one part, one after the other.
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
  s.kernel = edge.operation == kSeparable5Operation ? 5 : 3;
  return s;
}

template <class T>
void Dag<T>::set_up_reduction(Edge& edge) {
  const State<T>& state = from(edge);
  PointwiseBatch<T>& p = edge.reduction;
  p.images = shape_.images;
  p.out_height = shape_.out_height;
  p.out_width = shape_.out_width;
  p.channels = shape_.channels;
  p.padded = shape_.padded;
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
  const int64_t per_stage = padded * padded + 2 * 25 * padded;
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
      edge->depthwise[stage] = memory.take(edge->taps() * padded);
      edge->flipped[stage] = memory.take(edge->taps() * padded);
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
  const int64_t channels = shape_.channels, padded = shape_.padded, taps = edge.taps();
  const int64_t index = shape_.weight_index(edge.node, edge.input) * 2 + stage;
  const int kind = edge.operation - kSeparable3Operation;
  const T* depthwise = weights_.depthwise[kind] + index * channels * taps;
  const T* pointwise = weights_.pointwise[kind] + index * channels * channels;
  for (int64_t k = 0; k < taps; ++k) {
    T* row = edge.depthwise[stage] + k * padded;
    for (int64_t c = 0; c < padded; ++c) row[c] = c < channels ? depthwise[c * taps + k] : T(0);
    if (backward) std::copy_n(row, padded, edge.flipped[stage] + (taps - 1 - k) * padded);
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
    term.factor = edge->factor;
    if (edge->stages() > 0) {
      term.branch = Branch::kNormalized;
      term.x = edge->z[edge->last()];
      term.affine = edge->norm[edge->last()].affine();
      term.height = shape_.out_height;
      term.width = shape_.out_width;
    } else {
      const State<T>& read = from(*edge);
      term.branch = edge->operation == kIdentityOperation      ? Branch::kIdentity
                    : edge->operation == kAveragePoolOperation ? Branch::kAveragePool
                                                               : Branch::kMaxPool;
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
void Dag<T>::run_forward(int64_t phase, int64_t arch, int64_t split_index, Split images) {
  for (int64_t s = 0; s < shape_.states(); ++s) {
    const int64_t age = phase - ready_[at(arch, s)];
    if (age < 0 || age > 1) continue;
    if (age == 0 && stored(arch, s)) {
      combine(arch, s - shape_.inputs, images,
              images_[at(arch, s)] + images.first * shape_.image_size());
    }
    for (Edge* edge : readers_[at(arch, s)]) {
      if (age < edge->stages()) forward_stage(*edge, static_cast<int>(age), split_index, images);
    }
  }
}

template <class T>
void Dag<T>::forward(const Task& finish) {
  const Block packed = pack(false);
  for (int64_t phase = 0; phase <= last_ready_; ++phase) {
    run_images([&](int64_t arch, int64_t split_index, Split images) {
      run_forward(phase, arch, split_index, images);
      if (phase == last_ready_) finish(arch, split_index, images);
    });
    for (Edge* edge : normalized_) {
      const int64_t stage = phase - ready_[at(edge->arch, edge->input)];
      if (stage < 0 || stage >= edge->stages()) continue;
      finish_norm(edge->sums, shape_.pixels(), shape_.padded, edge->norm[stage]);
      edge->sums = PartialSums(splits(), shape_.padded);
    }
  }
}

#define ASNG_INSTANTIATE(T)                                            \
  template void Dag<T>::forward(const Task&);                          \
  template void Dag<T>::combine(int64_t, int64_t, Split, T*) const;    \
  template void Dag<T>::run_images(const Task&) const;                 \
  template Block Dag<T>::pack(bool);                                   \
  template Shape Dag<T>::stage_shape(const Edge&, int, int64_t) const; \
  template Combine<T> Dag<T>::combine_task(int64_t, int64_t, Split, std::vector<Term<T>>&) const;
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cpu
