// Nodes: their gradients against differences, and the same bits whatever the number of threads.

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/cell/cpu.h"
#include "tests/platform/threads.h"

namespace asng::cpu {
namespace {

constexpr int64_t kInputs = 2;

template <class T>
struct Example {
  DagShape shape;
  int64_t height, width;
  std::vector<int32_t> inputs, operations;
  std::vector<T> bank, depthwise[2], pointwise[2], reduction;

  Example(int64_t channels, int64_t h, int64_t w, int64_t stride, std::vector<int32_t> inputs_,
          std::vector<int32_t> operations_)
      : height(h), width(w), inputs(inputs_), operations(operations_) {
    shape.archs = static_cast<int64_t>(inputs.size()) / 2;
    shape.inputs = kInputs;
    shape.edges = 2;
    shape.images = 3;
    shape.out_height = (h + stride - 1) / stride;
    shape.out_width = (w + stride - 1) / stride;
    shape.channels = channels;
    shape.padded = padded_channels(channels);
    shape.reduction = stride == 2;
    std::mt19937 generator(1);
    std::normal_distribution<double> normal;
    const auto fill = [&](std::vector<T>& values, int64_t count) {
      values.resize(static_cast<size_t>(count));
      for (T& value : values) value = static_cast<T>(normal(generator));
    };
    for (int kind = 0; kind < 2; ++kind) {
      fill(depthwise[kind], kInputs * 2 * channels * (kind == 0 ? 9 : 25));
      fill(pointwise[kind], kInputs * 2 * channels * channels);
    }
    fill(reduction, kInputs * channels * channels);
    fill(bank, kInputs * shape.archs * image_size());
    for (size_t i = 0; i < bank.size(); ++i) {
      if (static_cast<int64_t>(i) % shape.padded >= channels) bank[i] = 0;
    }
  }

  int64_t image_size() const { return shape.images * height * width * shape.padded; }

  template <class P, class V>
  OperationWeights<P> weights(V& v) const {
    OperationWeights<P> w;
    for (int kind = 0; kind < 2; ++kind) {
      w.depthwise[kind] = v.depthwise[kind].data();
      w.pointwise[kind] = v.pointwise[kind].data();
    }
    w.reduction = v.reduction.data();
    return w;
  }

  // Gradients of the bank are added to `grad`.
  Node<T> node(T* grad = nullptr) const {
    Node<T> node(shape, weights<const T>(*this), inputs.data(), operations.data());
    for (int64_t arch = 0; arch < shape.archs; ++arch) {
      for (int64_t input = 0; input < kInputs; ++input) {
        const int64_t offset = (arch * kInputs + input) * image_size();
        State<T>& s = node.input(arch, input);
        s.x = bank.data() + offset;
        s.grad = grad == nullptr ? nullptr : grad + offset;
        s.has_grad = true;
        s.height = height;
        s.width = width;
      }
    }
    return node;
  }

  std::vector<T> forward() const {
    std::vector<T> saved(static_cast<size_t>(shape.saved().values()));
    std::vector<T> out(static_cast<size_t>(shape.archs * shape.out_size()));
    node().forward(saved.data(), out.data());
    return out;
  }

  // Gradients of Σ out·probe, in the places of the values themselves.
  Example gradients(const std::vector<T>& probe) const {
    Example grads = *this;
    for (auto* values : {&grads.bank, &grads.depthwise[0], &grads.depthwise[1], &grads.pointwise[0],
                         &grads.pointwise[1], &grads.reduction}) {
      values->assign(values->size(), T(0));
    }
    std::vector<T> saved(static_cast<size_t>(shape.saved().values()));
    std::vector<T> out(static_cast<size_t>(shape.archs * shape.out_size()));
    Node<T> own = node(grads.bank.data());
    own.forward(saved.data(), out.data());
    own.backward(saved.data(), probe.data(), weights<T>(grads));
    return grads;
  }
};

template <class T>
std::vector<T> make_probe(const Example<T>& example) {
  std::mt19937 generator(2);
  std::normal_distribution<double> normal;
  std::vector<T> probe(static_cast<size_t>(example.shape.archs * example.shape.out_size()));
  for (size_t i = 0; i < probe.size(); ++i) {
    const bool real = static_cast<int64_t>(i) % example.shape.padded < example.shape.channels;
    probe[i] = real ? static_cast<T>(normal(generator)) : T(0);
  }
  return probe;
}

void check_differences(Example<double>& example, std::vector<double>& values,
                       const std::vector<double>& grads, const std::vector<double>& probe) {
  const auto loss = [&] {
    const std::vector<double> out = example.forward();
    double sum = 0;
    for (size_t i = 0; i < out.size(); ++i) sum += out[i] * probe[i];
    return sum;
  };
  const double step = 1e-6;
  const size_t stride = values.size() / 12 + 1;
  for (size_t i = 0; i < values.size(); i += stride) {
    if (&values == &example.bank &&
        static_cast<int64_t>(i) % example.shape.padded >= example.shape.channels) {
      continue;
    }
    const double before = values[i];
    values[i] = before + step;
    const double up = loss();
    values[i] = before - step;
    const double down = loss();
    values[i] = before;
    CHECK(std::fabs((up - down) / (2 * step) - grads[i]) <= 1e-4 * (1 + std::fabs(grads[i])));
  }
}

TEST_CASE("gradients of a node are those of differences") {
  for (const int64_t stride : {1, 2}) {
    for (int32_t operation = 0; operation < kOperationCount; ++operation) {
      Example<double> example(3, 5, 4, stride, {0, 1, 1, 1}, {operation, 1, operation, operation});
      const std::vector<double> probe = make_probe(example);
      const Example<double> grads = example.gradients(probe);
      check_differences(example, example.bank, grads.bank, probe);
      for (int kind = 0; kind < 2; ++kind) {
        check_differences(example, example.depthwise[kind], grads.depthwise[kind], probe);
        check_differences(example, example.pointwise[kind], grads.pointwise[kind], probe);
      }
      if (stride == 2) check_differences(example, example.reduction, grads.reduction, probe);
    }
  }
}

TEST_CASE("a node gives the same bits on any threads") {
  for (const int64_t channels : {5, 16, 32, 64, 80}) {
    for (const int64_t stride : {1, 2}) {
      const Example<float> example(channels, 7, 9, stride, {0, 1, 1, 0, 0, 0}, {3, 4, 2, 0, 4, 4});
      const std::vector<float> probe = make_probe(example);
      test::thread_count = 1;
      const std::vector<float> out = example.forward();
      const Example<float> grads = example.gradients(probe);
      test::thread_count = 4;
      CHECK(example.forward() == out);
      const Example<float> others = example.gradients(probe);
      test::thread_count = 1;
      CHECK(others.bank == grads.bank);
      CHECK(others.depthwise[0] == grads.depthwise[0]);
      CHECK(others.depthwise[1] == grads.depthwise[1]);
      CHECK(others.pointwise[0] == grads.pointwise[0]);
      CHECK(others.pointwise[1] == grads.pointwise[1]);
      CHECK(others.reduction == grads.reduction);
    }
  }
}

TEST_CASE("indices out of range are errors") {
  for (const int32_t bad : {-1, 2, 1 << 30}) {
    bool thrown = false;
    try {
      Example<float>(4, 3, 3, 1, {0, bad}, {0, 0}).forward();
    } catch (const std::invalid_argument& error) {
      thrown = std::string(error.what()).find("inputs[0, 1]") != std::string::npos;
    }
    CHECK(thrown);
  }
  bool thrown = false;
  try {
    Example<float>(4, 3, 3, 1, {0, 1}, {5, 0}).forward();
  } catch (const std::invalid_argument& error) {
    thrown = std::string(error.what()).find("operations[0, 0]") != std::string::npos;
  }
  CHECK(thrown);
}

TEST_CASE("feature maps of any size: gradients are those of differences") {
  for (const int64_t height : {1, 2, 3, 17}) {
    for (const int64_t width : {1, 2, 9, 33}) {
      for (const int64_t stride : {1, 2}) {
        Example<double> example(2, height, width, stride, {0, 1, 1, 0}, {3, 4, 2, 1});
        const std::vector<double> probe = make_probe(example);
        const Example<double> grads = example.gradients(probe);
        check_differences(example, example.bank, grads.bank, probe);
        check_differences(example, example.pointwise[1], grads.pointwise[1], probe);
      }
    }
  }
}

}  // namespace
}  // namespace asng::cpu
