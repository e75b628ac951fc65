// A node on the CPU's kernels and on the CUDA kernels that run on the CPU.
#pragma once

#include "tests/ops/cell/cuda_memory.h"

namespace asng::test {

struct NodeCase {
  int channels = 16, images = 2, height = 5, width = 4, stride = 1, inputs = 2;
  std::vector<int32_t> input, operation;  // (archs, edges)
  int archs = 1;
  bool tf32 = false;
};

// Every operation by itself, architectures with inputs of their own.
inline NodeCase single(int operation, int stride, int archs, int height, int width, int channels) {
  NodeCase c;
  c.channels = channels;
  c.height = height;
  c.width = width;
  c.stride = stride;
  c.archs = archs;
  for (int arch = 0; arch < archs; ++arch) {
    c.input.push_back(arch % 2);
    c.operation.push_back(operation);
  }
  return c;
}

// One edge occurs twice, one three times; two edges read one input.
inline NodeCase mixed(int stride) {
  NodeCase c;
  c.channels = 20;
  c.height = 6;
  c.width = 7;
  c.stride = stride;
  c.inputs = 3;
  c.archs = 3;
  c.input = {0, 0, 0, 1, 2, 2, 1, 1, 1};
  c.operation = {3, 3, 4, 2, 0, 1, 0, 0, 0};
  return c;
}

template <class T>
struct NodeExample {
  NodeCase c;
  int edges, out_height, out_width, padded;
  Draw draw{7};
  std::vector<T> bank, probe;
  OperationWeights<T> weights;

  explicit NodeExample(const NodeCase& node)
      : c(node),
        edges(static_cast<int>(node.input.size()) / node.archs),
        out_height((node.height + node.stride - 1) / node.stride),
        out_width((node.width + node.stride - 1) / node.stride),
        padded(padded_channels(node.channels)),
        bank(draw.images<T>(static_cast<int64_t>(c.inputs) * c.archs * in_pixels(), c.channels)),
        probe(draw.images<T>(static_cast<int64_t>(c.archs) * out_pixels(), c.channels)),
        weights(draw, c.inputs, c.inputs, c.channels) {}

  // The same numbers in another type.
  template <class U>
  explicit NodeExample(const NodeExample<U>& other)
      : c(other.c),
        edges(other.edges),
        out_height(other.out_height),
        out_width(other.out_width),
        padded(other.padded),
        bank(converted<T>(other.bank)),
        probe(converted<T>(other.probe)),
        weights(other.weights) {}

  int64_t in_pixels() const { return static_cast<int64_t>(c.images) * c.height * c.width; }
  int64_t out_pixels() const { return static_cast<int64_t>(c.images) * out_height * out_width; }

  Tensors<T> on_cpu() {
    const DagShape s = shape();
    std::vector<T> out(probe.size()), grad_bank(bank.size());
    cpu::Node<T> node(s, weights.template pointers<asng::OperationWeights<const T>>(),
                      c.input.data(), c.operation.data());
    for (int arch = 0; arch < c.archs; ++arch) {
      for (int input = 0; input < c.inputs; ++input) {
        const int64_t offset =
            (static_cast<int64_t>(input) * c.archs + arch) * in_pixels() * padded;
        cpu::State<T>& state = node.input(arch, input);
        state.x = bank.data() + offset;
        state.grad = grad_bank.data() + offset;
        state.has_grad = true;
        state.height = c.height;
        state.width = c.width;
      }
    }
    OperationWeights<T> grads = weights;
    grads.fill(0);
    std::vector<T> saved(static_cast<size_t>(s.saved().values()));
    node.forward(saved.data(), out.data());
    node.backward(saved.data(), probe.data(), grads.template pointers<asng::OperationWeights<T>>());
    Tensors<T> result = {out, grad_bank};
    grads.append_to(result);
    return result;
  }

  DagShape shape() const {
    DagShape s;
    s.archs = c.archs;
    s.inputs = c.inputs;
    s.edges = edges;
    s.images = c.images;
    s.height = c.height;
    s.width = c.width;
    s.out_height = out_height;
    s.out_width = out_width;
    s.channels = c.channels;
    s.padded = padded;
    s.reduction = c.stride == 2;
    return s;
  }

  // With images stored as V.
  template <class V = T>
  Tensors<T> on_cuda(bool save = true) {
    const DagShape s = shape();
    const std::vector<V> stored_bank = converted<V>(bank), stored_probe = converted<V>(probe);
    const auto pointers = weights.template pointers<asng::OperationWeights<const T>>();
    const cuda::Choices choices = {c.input.data(), c.operation.data()};
    const Memory out(probe.size() * sizeof(V));
    const Memory saved(save ? static_cast<size_t>(saved_values<V>(s.saved())) * sizeof(T) : 0);
    {
      const Memory scratch(cuda::node_scratch<V>(s, save, false));
      cuda::node_forward<V>(s, c.tf32, pointers, choices, stored_bank.data(), out.as<V>(),
                            save ? saved.as<T>() : nullptr, scratch.get(), nullptr);
    }
    Tensors<T> result = {converted<T>(take<V>(out, static_cast<int64_t>(probe.size())))};
    if (!save) return result;
    const Memory grad_bank(bank.size() * sizeof(V));
    OperationWeights<T> grads = weights;
    grads.fill(std::numeric_limits<T>::quiet_NaN());
    const Memory scratch(cuda::node_scratch<V>(s, true, true));
    cuda::node_backward<V>(s, c.tf32, pointers, choices, stored_bank.data(), stored_probe.data(),
                           saved.as<T>(), grad_bank.as<V>(),
                           grads.template pointers<asng::OperationWeights<T>>(), scratch.get(),
                           nullptr);
    result.push_back(converted<T>(take<V>(grad_bank, static_cast<int64_t>(bank.size()))));
    grads.append_to(result);
    return result;
  }
};

}  // namespace asng::test
