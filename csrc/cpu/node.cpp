#include "node.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "parallel.h"

namespace asng::cpu {
namespace {

[[noreturn]] void bad_index(const char* what, int64_t arch, int64_t edge, int64_t got,
                            int64_t count) {
  throw std::invalid_argument(std::string(what) + "[" + std::to_string(arch) + ", " +
                              std::to_string(edge) + "] must be from 0 to " +
                              std::to_string(count - 1) + ", got " + std::to_string(got));
}

}  // namespace

template <class T>
Node<T>::Node(const NodeShape& shape, const NodeWeights<const T>& weights, const int32_t* inputs,
              const int32_t* operations, int64_t stride)
    : shape_(shape), weights_(weights) {
  edges_.reserve(static_cast<size_t>(shape.archs * shape.edges));
  for (int64_t arch = 0; arch < shape.archs; ++arch) {
    const size_t first = edges_.size();
    for (int64_t e = 0; e < shape.edges; ++e) {
      const int32_t input = inputs[arch * stride + e], operation = operations[arch * stride + e];
      if (input < 0 || input >= shape.inputs) bad_index("inputs", arch, e, input, shape.inputs);
      if (operation < 0 || operation >= kOperationCount) {
        bad_index("operations", arch, e, operation, kOperationCount);
      }
      const auto same = std::find_if(
          edges_.begin() + static_cast<std::ptrdiff_t>(first), edges_.end(),
          [&](const Edge& edge) { return edge.input == input && edge.operation == operation; });
      if (same != edges_.end()) {
        same->factor += 1;
        continue;
      }
      Edge edge;
      edge.arch = arch;
      edge.input = input;
      edge.operation = operation;
      edge.stride = shape.stride(input);
      edges_.push_back(edge);
    }
  }
  for (Edge& edge : edges_) {
    if (edge.normalised()) normalised_.push_back(&edge);
  }
}

template <class T>
void Node<T>::place(const std::vector<Bump<T>*>& memory) {
  for (Edge* edge : normalised_) {
    Bump<T>& own = *memory[static_cast<size_t>(edge->arch)];
    for (int half = 0; half <= edge->last(); ++half) {
      edge->norm[half] = {own.take(shape_.padded), own.take(shape_.padded)};
      edge->z[half] = own.take(shape_.out_size());
    }
  }
}

template <class T>
const State<T>& Node<T>::state(const Edge& edge, const std::vector<State<T>>& states) const {
  return states[static_cast<size_t>(edge.arch * shape_.state_stride + edge.input)];
}

template <class T>
Shape Node<T>::half_shape(const Edge& edge, const State<T>& state, int half) const {
  Shape s;
  s.height = half == 0 ? state.height : shape_.out_height;
  s.width = half == 0 ? state.width : shape_.out_width;
  s.out_height = shape_.out_height;
  s.out_width = shape_.out_width;
  s.channels = shape_.padded;
  s.stride = half == 0 ? edge.stride : 1;
  s.kernel = edge.kernel();
  return s;
}

template <class T>
void Node<T>::set_up_reduction(Edge& edge, const State<T>& state) {
  Projection<T>& p = edge.reduction;
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
  p.weight = weights_.reduction + edge.input * shape_.channels * shape_.channels;
  p.weight_stride = shape_.channels;
  p.z = edge.z[0];
  p.norm = edge.norm[0];
  p.stored = edge.norm[0].affine();
}

template <class T>
Block Node<T>::pack(const std::vector<State<T>>& states, bool backward) {
  const int64_t padded = shape_.padded;
  // One size for all nodes of a cell, so that the next one finds the block of the last.
  const int64_t per_half = padded * padded + 2 * 25 * padded;
  const int64_t count = shape_.archs * shape_.edges * 2 * per_half;
  Block block = acquire(static_cast<size_t>(count) * sizeof(T));
  Bump<T> memory(static_cast<T*>(block.get()), count);
  for (Edge* edge : normalised_) {
    if (edge->factorized()) {
      set_up_reduction(*edge, state(*edge, states));
      edge->reduction.packed = memory.take(edge->reduction.packed_size());
      continue;
    }
    for (int half = 0; half < 2; ++half) {
      const int64_t taps = edge->kernel() * edge->kernel() * padded;
      edge->depthwise[half] = memory.take(taps);
      edge->flipped[half] = memory.take(taps);
      edge->pointwise[half] = memory.take(padded * padded);
    }
  }
  run_tasks(static_cast<int64_t>(normalised_.size()), [&](int64_t i) {
    Edge& edge = *normalised_[static_cast<size_t>(i)];
    if (edge.factorized()) {
      backward ? edge.reduction.pack_backward() : edge.reduction.pack_forward();
      return;
    }
    for (int half = 0; half < 2; ++half) pack_half(edge, half, backward);
  });
  return block;
}

template <class T>
void Node<T>::pack_half(Edge& edge, int half, bool backward) {
  const int64_t channels = shape_.channels, padded = shape_.padded;
  const int64_t taps = edge.kernel() * edge.kernel();
  const int64_t index = edge.input * 2 + half;
  const int kind = edge.operation - kSeparable3Operation;
  const T* depthwise = weights_.depthwise[kind] + index * channels * taps;
  const T* pointwise = weights_.pointwise[kind] + index * channels * channels;
  for (int64_t k = 0; k < taps; ++k) {
    T* row = edge.depthwise[half] + k * padded;
    for (int64_t c = 0; c < padded; ++c) row[c] = c < channels ? depthwise[c * taps + k] : T(0);
    if (backward) std::copy_n(row, padded, edge.flipped[half] + (taps - 1 - k) * padded);
  }
  std::fill_n(edge.pointwise[half], padded * padded, T(0));
  for (int64_t o = 0; o < channels; ++o) {
    for (int64_t c = 0; c < channels; ++c) {
      edge.pointwise[half][backward ? o * padded + c : c * padded + o] =
          pointwise[o * channels + c];
    }
  }
}

template <class T>
void Node<T>::forward_half(const Edge& edge, const State<T>& state, int half, int64_t part_index,
                           PartialSums& sums) const {
  const Part range = part(shape_.images, part_index);
  SeparableForward<T> task;
  task.shape = half_shape(edge, state, half);
  task.shape.images = range.count;
  task.x = (half == 0 ? state.x : edge.z[0]) +
           range.first * task.shape.height * task.shape.width * shape_.padded;
  task.affine = half == 0 ? state.affine : edge.norm[0].affine();
  task.depthwise = edge.depthwise[half];
  task.pointwise = edge.pointwise[half];
  task.z = edge.z[half] + range.first * shape_.out_size() / shape_.images;
  task.sum = sums.first(part_index);
  task.sum_squares = sums.second(part_index);
  kernels<T>().separable_forward(task);
}

template <class T>
Combine<T> Node<T>::combine_task(const std::vector<State<T>>& states, int64_t arch, Part range,
                                 std::vector<Summand<T>>& summands) const {
  summands.clear();
  for (const Edge& edge : edges_) {
    if (edge.arch != arch) continue;
    Summand<T> summand;
    summand.factor = edge.factor;
    if (edge.normalised()) {
      summand.piece = Piece::kNormalised;
      summand.x = edge.z[edge.last()];
      summand.affine = edge.norm[edge.last()].affine();
      summand.height = shape_.out_height;
      summand.width = shape_.out_width;
    } else {
      const State<T>& from = state(edge, states);
      summand.piece = edge.operation == kIdentityOperation      ? Piece::kIdentity
                      : edge.operation == kAveragePoolOperation ? Piece::kAveragePool
                                                                : Piece::kMaxPool;
      summand.x = from.x;
      summand.affine = from.affine;
      summand.height = from.height;
      summand.width = from.width;
      summand.stride = edge.stride;
      summand.grad = from.grad;
      summand.accumulate = edge.accumulate;
    }
    const int64_t offset = range.first * summand.height * summand.width * shape_.padded;
    summand.x += offset;
    if (summand.grad != nullptr) summand.grad += offset;
    summands.push_back(summand);
  }
  Combine<T> task;
  task.summands = summands.data();
  task.summand_count = static_cast<int64_t>(summands.size());
  task.images = range.count;
  task.out_height = shape_.out_height;
  task.out_width = shape_.out_width;
  task.channels = shape_.padded;
  return task;
}

template <class T>
void Node<T>::combine(const std::vector<State<T>>& states, int64_t arch, int64_t first,
                      int64_t count, T* out) const {
  std::vector<Summand<T>> summands;
  Combine<T> task = combine_task(states, arch, {first, count}, summands);
  task.out = out;
  kernels<T>().combine_forward(task);
}

template <class T>
void Node<T>::forward(const std::vector<State<T>>& states, const std::vector<T*>& outs) {
  const Block packed = pack(states, false);
  const int64_t count = static_cast<int64_t>(normalised_.size());
  const int64_t pixels = shape_.images * shape_.out_height * shape_.out_width;
  for (int half = 0; half < 2; ++half) {
    std::vector<Edge*> edges;
    for (int64_t i = 0; i < count; ++i) {
      if (half <= normalised_[i]->last()) edges.push_back(normalised_[i]);
    }
    std::vector<PartialSums> sums(edges.size(), PartialSums(parts(), shape_.padded));
    run_parts(static_cast<int64_t>(edges.size()), parts(), [&](int64_t e, int64_t part_index) {
      const Edge& edge = *edges[e];
      if (edge.factorized()) {
        edge.reduction.forward(part_index, sums[e]);
      } else {
        forward_half(edge, state(edge, states), half, part_index, sums[e]);
      }
    });
    for (size_t e = 0; e < edges.size(); ++e) {
      finish_norm(sums[e], pixels, shape_.padded, edges[e]->norm[half]);
    }
  }
  std::vector<int64_t> wanted;
  for (int64_t arch = 0; arch < shape_.archs; ++arch) {
    if (outs[static_cast<size_t>(arch)] != nullptr) wanted.push_back(arch);
  }
  run_parts(static_cast<int64_t>(wanted.size()), parts(), [&](int64_t i, int64_t part_index) {
    const int64_t arch = wanted[static_cast<size_t>(i)];
    const Part range = part(shape_.images, part_index);
    combine(states, arch, range.first, range.count,
            outs[static_cast<size_t>(arch)] + range.first * shape_.out_size() / shape_.images);
  });
}

#define ASNG_INSTANTIATE(T)                                                                   \
  template Node<T>::Node(const NodeShape&, const NodeWeights<const T>&, const int32_t*,       \
                         const int32_t*, int64_t);                                            \
  template void Node<T>::place(const std::vector<Bump<T>*>&);                                 \
  template void Node<T>::combine(const std::vector<State<T>>&, int64_t, int64_t, int64_t, T*) \
      const;                                                                                  \
  template void Node<T>::forward(const std::vector<State<T>>&, const std::vector<T*>&);       \
  template const State<T>& Node<T>::state(const Edge&, const std::vector<State<T>>&) const;   \
  template Shape Node<T>::half_shape(const Edge&, const State<T>&, int) const;                \
  template Block Node<T>::pack(const std::vector<State<T>>&, bool);                           \
  template Combine<T> Node<T>::combine_task(const std::vector<State<T>>&, int64_t, Part,      \
                                            std::vector<Summand<T>>&) const;
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)
#undef ASNG_INSTANTIATE

}  // namespace asng::cpu
