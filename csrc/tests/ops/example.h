// Calls of the supernets' operators: their arguments, in shapes and numbers of every type, and what
// they give on the CPU.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <type_traits>
#include <vector>

#include "ops/cell/cpu.h"
#include "ops/mixture/cpu.h"
#include "ops/stem/cpu.h"
#include "platform/bfloat16.h"
#include "tests/platform/threads.h"

namespace asng::test {

// Tensors one after the other, in the one type that holds the numbers of all.
using Tensors = std::vector<std::vector<double>>;

// To bfloat16 only what it holds exactly.
template <class To, class From>
To converted(From value) {
  if constexpr (std::is_same_v<To, cuda::BFloat16>) {
    return {static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(value)) >> 16)};
  } else if constexpr (std::is_same_v<From, cuda::BFloat16>) {
    return static_cast<To>(std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16));
  } else {
    return static_cast<To>(value);
  }
}
template <class To, class From>
std::vector<To> converted(const std::vector<From>& values) {
  std::vector<To> result;
  for (const From value : values) result.push_back(converted<To>(value));
  return result;
}

class Draw {
 public:
  explicit Draw(unsigned seed) : generator_(seed) {}

  int32_t below(int64_t count) {
    return static_cast<int32_t>(generator_() % static_cast<uint32_t>(count));
  }
  std::vector<double> normal(int64_t count) {
    std::normal_distribution<float> distribution;
    std::vector<double> values(static_cast<size_t>(count));
    for (double& value : values) value = distribution(generator_);
    return values;
  }
  // Numbers of 8 bits, as bfloat16 holds them; zeros beyond the channels.
  std::vector<double> feature_maps(int64_t pixels, int64_t channels, int64_t padded) {
    std::vector<double> values = normal(pixels * padded);
    for (size_t i = 0; i < values.size(); ++i) {
      int exponent = 0;
      const double fraction = std::round(std::frexp(values[i], &exponent) * 256) / 256;
      const bool real = static_cast<int64_t>(i) % padded < channels;
      values[i] = real ? std::ldexp(fraction, exponent) : 0;
    }
    return values;
  }
  Tensors weights(const std::vector<WeightShape>& shapes) {
    Tensors all;
    for (const WeightShape& shape : shapes) {
      int64_t count = 1;
      for (const int64_t size : shape.sizes) count *= size;
      all.push_back(normal(count));
    }
    return all;
  }

 private:
  std::mt19937 generator_;
};

template <class Shape>
struct Example {
  Shape shape;
  std::vector<int32_t> inputs = {}, operations = {};  // (archs, nodes, edges)
  Tensors maps = {};                                  // feature maps that it reads
  Tensors weights = {};                               // in the order of the operator
  std::vector<double> probe = {};                     // the gradient of the output
  std::vector<bool> needs_grad = {true, true};        // for each of `maps`
};

// A node of `edges` from inputs (inputs, archs, images, height, width, padded).
inline Example<DagShape> node_example(int64_t channels, int64_t height, int64_t width,
                                      int64_t stride, int64_t images, int64_t archs, int64_t inputs,
                                      std::vector<int32_t> from, std::vector<int32_t> operations) {
  DagShape s;
  s.archs = archs;
  s.inputs = inputs;
  s.edges = static_cast<int64_t>(from.size()) / archs;
  s.images = images;
  s.channels = channels;
  s.padded = padded_channels(channels);
  s.height = height;
  s.width = width;
  s.out_height = (height + stride - 1) / stride;
  s.out_width = (width + stride - 1) / stride;
  s.reduction = stride == 2;
  Draw draw(7);
  return {s,
          from,
          operations,
          {draw.feature_maps(inputs * archs * images * height * width, channels, s.padded)},
          draw.weights(operation_weights(inputs, inputs, channels)),
          draw.feature_maps(archs * s.pixels(), channels, s.padded)};
}

// One edge of every architecture, from one of two inputs.
inline Example<DagShape> single(int operation, int64_t stride, int64_t archs, int64_t height,
                                int64_t width, int64_t channels, int64_t images = 2) {
  std::vector<int32_t> from;
  for (int64_t arch = 0; arch < archs; ++arch) from.push_back(static_cast<int32_t>(arch % 2));
  return node_example(channels, height, width, stride, images, archs, 2, from,
                      std::vector<int32_t>(static_cast<size_t>(archs), operation));
}

// One edge occurs twice, one three times; two edges read one input.
inline Example<DagShape> mixed(int64_t stride, int64_t channels = 20) {
  return node_example(channels, 6, 7, stride, 5, 3, 3, {0, 0, 0, 1, 2, 2, 1, 1, 1},
                      {3, 3, 4, 2, 0, 1, 0, 0, 0});
}

// Sets what follows from other sizes: those of `prev`, and channels.
inline Example<CellShape> cell_example(CellShape s, unsigned seed) {
  const int64_t stride = s.reduction ? 2 : 1;
  s.padded = padded_channels(s.channels);
  s.prev_prev.padded = padded_channels(s.prev_prev.channels);
  s.prev.padded = padded_channels(s.prev.channels);
  s.prev_prev.height = s.prev_prev_is_larger ? 2 * s.prev.height - 1 : s.prev.height;
  s.prev_prev.width = s.prev_prev_is_larger ? 2 * s.prev.width : s.prev.width;
  s.out_height = (s.prev.height + stride - 1) / stride;
  s.out_width = (s.prev.width + stride - 1) / stride;
  Draw draw(seed);
  Example<CellShape> e{s};
  for (int64_t i = 0; i < s.archs * s.nodes * 2; ++i) {
    e.inputs.push_back(draw.below(i / 2 % s.nodes + 2));
    e.operations.push_back(draw.below(kOperationCount));
  }
  for (const CellInput& input : {s.prev_prev, s.prev}) {
    e.maps.push_back(draw.feature_maps(input.archs * s.images * input.height * input.width,
                                       input.channels, input.padded));
  }
  e.weights =
      draw.weights(cell_weights(s.nodes, s.channels, s.prev_prev.channels, s.prev.channels));
  if (!s.reduction) e.weights[kCellWeights - 2].clear();
  e.probe = draw.feature_maps(s.archs * s.dag().pixels(), s.channels, s.padded);
  return e;
}

// Cells of every kind: shared inputs or not, with reduction or a larger input or not.
inline Example<CellShape> cell_of_kind(unsigned kind, int64_t channels) {
  CellShape s;
  s.archs = 1 + kind / 2 % 3;
  s.nodes = 3;
  s.images = 4;
  s.channels = channels;
  s.reduction = kind % 2 == 1;
  s.prev_prev_is_larger = kind / 2 % 2 == 1;
  s.prev_prev = {kind % 3 > 0 ? 1 : s.archs, 20};
  s.prev = {kind % 3 > 1 ? 1 : s.archs, 4, 0, 9, 7};
  return cell_example(s, kind + 1);
}
inline constexpr unsigned kCellKinds = 12;

inline Example<StemShape> stem_example(int64_t images, int64_t height, int64_t width,
                                       int64_t in_channels, int64_t channels) {
  const StemShape s = {images, height, width, in_channels, channels, padded_channels(channels)};
  Draw draw(3);
  return {s,
          {},
          {},
          {draw.feature_maps(s.pixels(), in_channels, in_channels)},
          draw.weights({{"weight", {channels, in_channels, kStemKernelElements}},
                        {"scale", {channels}},
                        {"bias", {channels}}}),
          draw.feature_maps(s.pixels(), channels, s.padded),
          {false}};
}

// Of two inputs. About every second edge that there may be, and of each node at least one; one has
// weights.
inline Example<MixtureShape> mixture_example(int64_t nodes, int64_t stride, int64_t images,
                                             int64_t channels, int64_t height, int64_t width,
                                             unsigned seed) {
  Draw draw(seed);
  Example<MixtureShape> e;
  DagShape& dag = e.shape.dag;
  dag.archs = 1;
  dag.nodes = nodes;
  dag.inputs = 2;
  dag.images = images;
  dag.channels = channels;
  dag.padded = padded_channels(channels);
  dag.height = height;
  dag.width = width;
  dag.out_height = (height + stride - 1) / stride;
  dag.out_width = (width + stride - 1) / stride;
  dag.reduction = stride == 2;
  for (int64_t node = 0; node < nodes; ++node) {
    const int32_t needed = draw.below(kOperationCount);
    for (int64_t input = 0; input < node + 2; ++input) {
      for (int32_t operation = 0; operation < kOperationCount; ++operation) {
        const bool first =
            node == 0 && input == 0 && operation == operation_number(Form::kSeparable);
        if (first || (input == 1 && operation == needed) || draw.below(2) == 0) {
          e.shape.edges.push_back({node, input, operation});
        }
      }
    }
  }
  const int64_t count = static_cast<int64_t>(e.shape.edges.size());
  dag.edges = (count + nodes - 1) / nodes;
  for (int i = 0; i < 2; ++i) {
    e.maps.push_back(draw.feature_maps(images * height * width, channels, dag.padded));
  }
  for (const std::vector<int64_t>& sizes : e.shape.weights()) {
    e.weights.push_back(draw.weights({{"weight", sizes}})[0]);
  }
  e.weights.push_back(draw.normal(count));
  e.probe = draw.feature_maps(nodes * dag.pixels(), channels, dag.padded);
  return e;
}

// Of a call with feature maps stored as V.
template <class V>
struct Buffers {
  using T = cuda::Compute<V>;
  std::vector<std::vector<V>> maps, grad_maps;
  std::vector<std::vector<T>> weights, grads;
  std::vector<V> probe, out;
  std::vector<T> saved;

  // What a call writes is full of bytes `before`.
  template <class Shape>
  Buffers(const Example<Shape>& e, int64_t saved_values, unsigned char before)
      : probe(converted<V>(e.probe)) {
    const auto fill = [&](auto& values, size_t count) {
      values.resize(count);
      auto* bytes = reinterpret_cast<unsigned char*>(values.data());
      std::fill_n(bytes, count * sizeof(values[0]), before);
    };
    for (size_t i = 0; i < e.maps.size(); ++i) {
      maps.push_back(converted<V>(e.maps[i]));
      fill(grad_maps.emplace_back(), e.needs_grad[i] ? e.maps[i].size() : 0);
    }
    for (const std::vector<double>& weight : e.weights) {
      weights.push_back(converted<T>(weight));
      fill(grads.emplace_back(), weight.size());
    }
    fill(out, probe.size());
    fill(saved, static_cast<size_t>(saved_values));
  }

  // The output, then gradients if there are some.
  Tensors results(bool save) const {
    Tensors all = {converted<double>(out)};
    if (!save) return all;
    for (const auto& grad : grad_maps) all.push_back(converted<double>(grad));
    for (const auto& grad : grads) all.push_back(converted<double>(grad));
    return all;
  }
};

// OperationWeights or CellWeights from `values`, which begin with number `first`; what is empty
// becomes null.
template <class Weights, class T>
Weights pointers(std::vector<std::vector<T>>& values, size_t first = 0) {
  Weights weights;
  for (auto** pointer : weights.in_order()) {
    *pointer = values[first].empty() ? nullptr : values[first].data();
    ++first;
  }
  return weights;
}
template <class T>
T* or_null(std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

template <class T>
void run(const Example<DagShape>& e, Buffers<T>& b) {
  const DagShape& s = e.shape;
  cpu::Node<T> node(s, pointers<OperationWeights<const T>>(b.weights), e.inputs.data(),
                    e.operations.data());
  for (int64_t arch = 0; arch < s.archs; ++arch) {
    for (int64_t input = 0; input < s.inputs; ++input) {
      const int64_t offset = (input * s.archs + arch) * s.in_size();
      cpu::State<T>& state = node.input(arch, input);
      state.x = b.maps[0].data() + offset;
      state.grad = b.grad_maps[0].data() + offset;
      state.has_grad = true;
      state.height = s.height;
      state.width = s.width;
    }
  }
  std::vector<T> saved(static_cast<size_t>(s.saved().values()));
  node.forward(saved.data(), b.out.data());
  if (b.saved.empty()) return;
  node.backward(saved.data(), b.probe.data(), pointers<OperationWeights<T>>(b.grads));
}

template <class T>
void run(const Example<CellShape>& e, Buffers<T>& b) {
  const auto cell = [&] {
    return cpu::Cell<T>(e.shape, pointers<CellWeights<const T>>(b.weights), e.inputs.data(),
                        e.operations.data());
  };
  cell().forward(b.maps[0].data(), b.maps[1].data(), b.out.data(), or_null(b.saved));
  if (b.saved.empty()) return;
  cell().backward(b.maps[0].data(), b.maps[1].data(), b.out.data(), b.probe.data(), b.saved.data(),
                  or_null(b.grad_maps[0]), or_null(b.grad_maps[1]),
                  pointers<CellWeights<T>>(b.grads));
}

template <class T>
void run(const Example<StemShape>& e, Buffers<T>& b) {
  const auto stem = [&] { return cpu::Stem<T>(e.shape, b.weights[0].data()); };
  std::vector<T> saved(static_cast<size_t>(e.shape.saved().values()));
  stem().forward(b.maps[0].data(), b.weights[1].data(), b.weights[2].data(), b.out.data(),
                 saved.data());
  if (b.saved.empty()) return;
  stem().backward(b.maps[0].data(), b.weights[1].data(), b.probe.data(), saved.data(),
                  b.grads[0].data(), b.grads[1].data(), b.grads[2].data());
}

template <class T>
void run(const Example<MixtureShape>& e, Buffers<T>& b) {
  std::vector<const T*> inputs, weights;
  std::vector<T*> grad_inputs, grad_weights;
  for (size_t i = 0; i < b.maps.size(); ++i) {
    inputs.push_back(b.maps[i].data());
    grad_inputs.push_back(b.grad_maps[i].data());
  }
  for (size_t i = 0; i + 1 < b.weights.size(); ++i) {
    weights.push_back(b.weights[i].data());
    grad_weights.push_back(b.grads[i].data());
  }
  const auto mixture = [&] {
    return cpu::Mixture<T>(e.shape, weights, b.weights.back().data(), inputs, b.out.data());
  };
  mixture().forward(or_null(b.saved));
  if (b.saved.empty()) return;
  mixture().backward(b.saved.data(), b.probe.data(), grad_inputs, b.grads.back().data(),
                     grad_weights);
  // The other gradients are the same without those of the weights.
  const auto grads = b.grad_maps;
  const std::vector<T> of_coefficients = b.grads.back();
  mixture().backward(b.saved.data(), b.probe.data(), grad_inputs, b.grads.back().data(), {});
  CHECK((b.grad_maps == grads && b.grads.back() == of_coefficients));
}

template <class T, class Shape>
Tensors on_cpu(const Example<Shape>& e, int threads = 1, bool save = true) {
  Buffers<T> buffers(e, save ? e.shape.saved().values() : 0, 0);
  thread_count = threads;
  run(e, buffers);
  thread_count = 1;
  return buffers.results(save);
}

}  // namespace asng::test
