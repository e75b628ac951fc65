// A cell, and the stem, on the CPU's kernels and on the CUDA kernels that run on the CPU.
#pragma once

#include "ops/stem/cpu.h"
#include "ops/stem/cuda.h"
#include "tests/ops/cell/cuda_memory.h"

namespace asng::test {

struct CellCase {
  int archs = 2, nodes = 3, images = 2, channels = 6, height = 5, width = 6;
  int prev_prev_channels = 20, prev_channels = 4;
  bool reduction = false, prev_prev_is_larger = false;
  bool prev_prev_is_shared = false, prev_is_shared = false;
  bool prev_prev_needs_grad = true, prev_needs_grad = true;
  unsigned seed = 1;
  bool tf32 = false;
};

template <class T>
struct CellExample {
  CellCase c;
  int padded, out_height, out_width, prev_prev_height, prev_prev_width, edges;
  Draw draw;
  std::vector<int32_t> inputs, operations;
  std::vector<T> prev_prev, prev, probe, prev_prev_weight, prev_weight, output_weight;
  OperationWeights<T> weights;

  explicit CellExample(const CellCase& cell)
      : c(cell),
        padded(padded_channels(c.channels)),
        out_height(c.reduction ? (c.height + 1) / 2 : c.height),
        out_width(c.reduction ? (c.width + 1) / 2 : c.width),
        prev_prev_height(c.prev_prev_is_larger ? 2 * c.height - 1 : c.height),
        prev_prev_width(c.prev_prev_is_larger ? 2 * c.width : c.width),
        edges(c.nodes * (c.nodes + 3) / 2),
        draw(c.seed),
        prev_prev(draw.images<T>(static_cast<int64_t>(c.prev_prev_is_shared ? 1 : c.archs) *
                                     c.images * prev_prev_height * prev_prev_width,
                                 c.prev_prev_channels)),
        prev(draw.images<T>(
            static_cast<int64_t>(c.prev_is_shared ? 1 : c.archs) * c.images * c.height * c.width,
            c.prev_channels)),
        probe(draw.images<T>(static_cast<int64_t>(c.archs) * c.images * out_height * out_width,
                             c.channels)),
        prev_prev_weight(draw.normal<T>(c.channels * c.prev_prev_channels)),
        prev_weight(draw.normal<T>(c.channels * c.prev_channels)),
        output_weight(draw.normal<T>(c.channels * c.nodes * c.channels)),
        weights(draw, edges, c.reduction ? 2 * c.nodes : 0, c.channels) {
    for (int arch = 0; arch < c.archs; ++arch) {
      for (int node = 0; node < c.nodes; ++node) {
        for (int e = 0; e < 2; ++e) {
          inputs.push_back(draw.below(node + 2));
          operations.push_back(draw.below(kOperationCount));
        }
      }
    }
  }

  // The same numbers in another type.
  template <class U>
  explicit CellExample(const CellExample<U>& other)
      : c(other.c),
        padded(other.padded),
        out_height(other.out_height),
        out_width(other.out_width),
        prev_prev_height(other.prev_prev_height),
        prev_prev_width(other.prev_prev_width),
        edges(other.edges),
        draw(other.draw),
        inputs(other.inputs),
        operations(other.operations),
        prev_prev(converted<T>(other.prev_prev)),
        prev(converted<T>(other.prev)),
        probe(converted<T>(other.probe)),
        prev_prev_weight(converted<T>(other.prev_prev_weight)),
        prev_weight(converted<T>(other.prev_weight)),
        output_weight(converted<T>(other.output_weight)),
        weights(other.weights) {}

  Tensors<T> zero_weights() const {
    return {std::vector<T>(prev_prev_weight.size()), std::vector<T>(prev_weight.size()),
            std::vector<T>(output_weight.size())};
  }

  template <class W, class M>
  static W pointers(M& prev_prev, M& prev, M& output, OperationWeights<T>& operations) {
    W w;
    w.prev_prev = prev_prev.data();
    w.prev = prev.data();
    w.output = output.data();
    w.operations = operations.template pointers<decltype(w.operations)>();
    return w;
  }

  Tensors<T> on_cpu() {
    const CellShape s = shape();
    std::vector<T> y(probe.size()), saved(static_cast<size_t>(s.saved().values()));
    std::vector<T> grad_prev_prev(c.prev_prev_needs_grad ? prev_prev.size() : 0);
    std::vector<T> grad_prev(c.prev_needs_grad ? prev.size() : 0);
    const auto w =
        pointers<CellWeights<const T>>(prev_prev_weight, prev_weight, output_weight, weights);
    OperationWeights<T> grads = weights;
    grads.fill(0);
    Tensors<T> others = zero_weights();
    cpu::Cell<T>(s, w, inputs.data(), operations.data())
        .forward(prev_prev.data(), prev.data(), y.data(), saved.data());
    cpu::Cell<T>(s, w, inputs.data(), operations.data())
        .backward(prev_prev.data(), prev.data(), y.data(), probe.data(), saved.data(),
                  c.prev_prev_needs_grad ? grad_prev_prev.data() : nullptr,
                  c.prev_needs_grad ? grad_prev.data() : nullptr,
                  pointers<CellWeights<T>>(others[0], others[1], others[2], grads));
    Tensors<T> result = {y, grad_prev_prev, grad_prev, others[0], others[1], others[2]};
    grads.append_to(result);
    return result;
  }

  CellShape shape() const {
    CellShape s;
    s.archs = c.archs;
    s.nodes = c.nodes;
    s.images = c.images;
    s.channels = c.channels;
    s.padded = padded;
    s.prev_prev = {c.prev_prev_is_shared ? 1 : c.archs, c.prev_prev_channels,
                   padded_channels(c.prev_prev_channels), prev_prev_height, prev_prev_width};
    s.prev = {c.prev_is_shared ? 1 : c.archs, c.prev_channels, padded_channels(c.prev_channels),
              c.height, c.width};
    s.out_height = out_height;
    s.out_width = out_width;
    s.reduction = c.reduction;
    s.prev_prev_is_larger = c.prev_prev_is_larger;
    return s;
  }

  // With images stored as V.
  template <class V = T>
  Tensors<T> on_cuda(bool save = true) {
    const CellShape s = shape();
    const std::vector<V> stored_prev_prev = converted<V>(prev_prev),
                         stored_prev = converted<V>(prev);
    const std::vector<V> stored_probe = converted<V>(probe);
    const auto w =
        pointers<CellWeights<const T>>(prev_prev_weight, prev_weight, output_weight, weights);
    const cuda::Choices choices = {inputs.data(), operations.data()};
    const Memory y(probe.size() * sizeof(V));
    const Memory saved(save ? static_cast<size_t>(saved_values<V>(s.saved())) * sizeof(T) : 0);
    {
      const Memory scratch(cuda::cell_scratch<V>(s, save, false));
      cuda::cell_forward<V>(s, c.tf32, w, choices, stored_prev_prev.data(), stored_prev.data(),
                            y.as<V>(), save ? saved.as<T>() : nullptr, scratch.get(), nullptr);
    }
    Tensors<T> result = {converted<T>(take<V>(y, static_cast<int64_t>(probe.size())))};
    if (!save) return result;
    const int64_t prev_prev_size =
        c.prev_prev_needs_grad ? static_cast<int64_t>(prev_prev.size()) : 0;
    const int64_t prev_size = c.prev_needs_grad ? static_cast<int64_t>(prev.size()) : 0;
    const Memory grad_prev_prev(prev_prev_size * sizeof(V)), grad_prev(prev_size * sizeof(V));
    OperationWeights<T> grads = weights;
    const T nan = std::numeric_limits<T>::quiet_NaN();
    grads.fill(nan);
    Tensors<T> others = zero_weights();
    for (std::vector<T>& values : others) values.assign(values.size(), nan);
    const Memory scratch(cuda::cell_scratch<V>(s, true, true));
    cuda::cell_backward<V>(s, c.tf32, w, choices, stored_prev_prev.data(), stored_prev.data(),
                           y.as<V>(), stored_probe.data(), saved.as<T>(),
                           c.prev_prev_needs_grad ? grad_prev_prev.as<V>() : nullptr,
                           c.prev_needs_grad ? grad_prev.as<V>() : nullptr,
                           pointers<CellWeights<T>>(others[0], others[1], others[2], grads),
                           scratch.get(), nullptr);
    result.push_back(converted<T>(take<V>(grad_prev_prev, prev_prev_size)));
    result.push_back(converted<T>(take<V>(grad_prev, prev_size)));
    for (const std::vector<T>& values : others) result.push_back(values);
    grads.append_to(result);
    return result;
  }
};

struct StemCase {
  int images, height, width, in_channels, channels;
  bool tf32 = false;
};

template <class T>
struct StemExample {
  StemCase c;
  int64_t pixels;
  int padded;
  std::vector<T> x, weight, scale, bias, probe;

  explicit StemExample(const StemCase& stem, Draw draw = Draw(3))
      : c(stem),
        pixels(static_cast<int64_t>(c.images) * c.height * c.width),
        padded(padded_channels(c.channels)),
        x(draw.normal<T>(pixels * c.in_channels)),
        weight(draw.normal<T>(c.channels * c.in_channels * 9)),
        scale(draw.normal<T>(c.channels)),
        bias(draw.normal<T>(c.channels)),
        probe(draw.images<T>(pixels, c.channels)) {}

  // The same numbers in another type.
  template <class U>
  explicit StemExample(const StemExample<U>& other)
      : c(other.c),
        pixels(other.pixels),
        padded(other.padded),
        x(converted<T>(other.x)),
        weight(converted<T>(other.weight)),
        scale(converted<T>(other.scale)),
        bias(converted<T>(other.bias)),
        probe(converted<T>(other.probe)) {}

  Tensors<T> on_cpu() const {
    const StemShape s = {c.images, c.height, c.width, c.in_channels, c.channels, padded};
    std::vector<T> y(probe.size()), saved(static_cast<size_t>(s.saved().values()));
    std::vector<T> grad_weight(weight.size()), grad_scale(scale.size()), grad_bias(bias.size());
    cpu::Stem<T> stem(s, weight.data());
    stem.forward(x.data(), scale.data(), bias.data(), y.data(), saved.data());
    stem.backward(x.data(), scale.data(), probe.data(), saved.data(), grad_weight.data(),
                  grad_scale.data(), grad_bias.data());
    return {y, grad_weight, grad_scale, grad_bias};
  }

  // With images stored as V.
  template <class V = T>
  Tensors<T> on_cuda() const {
    const StemShape s = {c.images, c.height, c.width, c.in_channels, c.channels, padded};
    const std::vector<V> stored_x = converted<V>(x), stored_probe = converted<V>(probe);
    const Memory out(probe.size() * sizeof(V));
    const Memory saved(static_cast<size_t>(saved_values<V>(s.saved())) * sizeof(T));
    {
      const Memory scratch(cuda::stem_scratch<V>(s, false));
      cuda::stem_forward<V>(s, c.tf32, weight.data(), scale.data(), bias.data(), stored_x.data(),
                            out.as<V>(), saved.as<T>(), scratch.get(), nullptr);
    }
    const T nan = std::numeric_limits<T>::quiet_NaN();
    std::vector<T> grad_weight(weight.size(), nan), grad_scale(scale.size(), nan);
    std::vector<T> grad_bias(bias.size(), nan);
    const Memory scratch(cuda::stem_scratch<V>(s, true));
    cuda::stem_backward<V>(s, c.tf32, scale.data(), stored_x.data(), stored_probe.data(),
                           saved.as<T>(), grad_weight.data(), grad_scale.data(), grad_bias.data(),
                           scratch.get(), nullptr);
    return {converted<T>(take<V>(out, static_cast<int64_t>(probe.size()))), grad_weight, grad_scale,
            grad_bias};
  }
};

}  // namespace asng::test
