// A stack of cells against its cells one at a time, and on several threads.

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "ops/cell/cpu.h"
#include "tests/ops/cell/cpu_weights.h"
#include "tests/platform/threads.h"

namespace asng::cpu {
namespace {

struct Result {
  std::vector<double> y, grad_x;
  std::vector<std::vector<double>> weights;
};

struct Example {
  std::vector<CellShape> shapes;
  std::vector<double> x, probe;
  std::vector<std::vector<double>> weights;
  std::vector<std::vector<int32_t>> inputs, operations;

  // Normal, reduction, normal, normal. The second cell reads only its prev_prev input in the first
  // architecture, the third only its prev one.
  Example(int64_t archs, bool shared) {
    std::mt19937 generator(5);
    std::normal_distribution<double> normal;
    const auto draw = [&](int64_t count, int64_t padded, int64_t channels) {
      std::vector<double> values(static_cast<size_t>(count));
      for (size_t i = 0; i < values.size(); ++i) {
        const double value = normal(generator);
        values[i] = static_cast<int64_t>(i) % padded < channels ? value : 0;
      }
      return values;
    };
    const int64_t nodes = 3, images = 4;
    CellInput prev_prev = {shared ? 1 : archs, 5, 16, 7, 6}, prev = prev_prev;
    bool larger = false;
    for (int i = 0; i < 4; ++i) {
      CellShape s;
      s.archs = archs;
      s.nodes = nodes;
      s.images = images;
      s.channels = i == 0 ? 4 : 6;
      s.padded = 16;
      s.prev_prev = prev_prev;
      s.prev = prev;
      s.reduction = i == 1;
      s.prev_prev_is_larger = larger;
      s.out_height = s.reduction ? (prev.height + 1) / 2 : prev.height;
      s.out_width = s.reduction ? (prev.width + 1) / 2 : prev.width;
      shapes.push_back(s);
      CellWeights<double> none;
      weights.push_back(draw(split<double>(s, nullptr, none), 1, 1));
      std::vector<int32_t> from, kinds;
      for (int64_t arch = 0; arch < archs; ++arch) {
        for (int32_t node = 0; node < nodes; ++node) {
          for (int e = 0; e < 2; ++e) {
            const auto any = static_cast<int32_t>(generator() % static_cast<uint32_t>(node + 2));
            const bool only_one = arch == 0 && (i == 1 || i == 2);
            from.push_back(only_one ? i - 1 : any);
            kinds.push_back(static_cast<int32_t>(generator() % kOperationCount));
          }
        }
      }
      inputs.push_back(from);
      operations.push_back(kinds);
      prev_prev = prev;
      prev = {archs, s.channels, s.padded, s.out_height, s.out_width};
      larger = s.reduction;
    }
    const CellInput& first = shapes[0].prev_prev;
    x = draw(first.archs * images * first.height * first.width * first.padded, first.padded,
             first.channels);
    probe = draw(archs * shapes.back().out_size(), 16, shapes.back().channels);
  }

  CellWeights<const double> weights_of(size_t i) const {
    return split(shapes[i], weights[i].data());
  }

  Result empty() const {
    Result r;
    r.y.resize(probe.size());
    r.grad_x.resize(x.size());
    for (const auto& w : weights) r.weights.emplace_back(w.size());
    return r;
  }

  CellStack<double> stack() const {
    std::vector<CellWeights<const double>> all;
    std::vector<const int32_t*> from, kinds;
    for (size_t i = 0; i < shapes.size(); ++i) {
      all.push_back(weights_of(i));
      from.push_back(inputs[i].data());
      kinds.push_back(operations[i].data());
    }
    return CellStack<double>(shapes, all, from, kinds);
  }

  Result together(int threads) const {
    test::thread_count = threads;
    Result r = empty();
    std::vector<double> saved(static_cast<size_t>(CellStack<double>::saved_size(shapes)));
    stack().forward(x.data(), x.data(), r.y.data(), saved.data());
    std::vector<CellWeights<double>> grads(shapes.size());
    for (size_t i = 0; i < shapes.size(); ++i) grads[i] = split(shapes[i], r.weights[i].data());
    stack().backward(x.data(), x.data(), r.y.data(), probe.data(), saved.data(), r.grad_x.data(),
                     r.grad_x.data(), grads);
    std::vector<double> unsaved(r.y.size());
    stack().forward(x.data(), x.data(), unsaved.data(), nullptr);
    CHECK(unsaved == r.y);
    test::thread_count = 1;
    return r;
  }

  Result apart() const {
    Result r = empty();
    const size_t count = shapes.size();
    std::vector<std::vector<double>> outputs = {x, x}, saved(count), grads;
    const auto cell = [&](size_t i) {
      return Cell<double>(shapes[i], weights_of(i), inputs[i].data(), operations[i].data());
    };
    for (size_t i = 0; i < count; ++i) {
      saved[i].resize(static_cast<size_t>(shapes[i].saved().values()));
      std::vector<double> y(static_cast<size_t>(shapes[i].archs * shapes[i].out_size()));
      cell(i).forward(outputs[i].data(), outputs[i + 1].data(), y.data(), saved[i].data());
      outputs.push_back(y);
    }
    r.y = outputs.back();
    for (const auto& output : outputs) grads.emplace_back(output.size());
    grads.back() = probe;
    for (size_t i = count; i-- > 0;) {
      std::vector<double> prev_prev(outputs[i].size()), prev(outputs[i + 1].size());
      const CellWeights<double> w = split(shapes[i], r.weights[i].data());
      cell(i).backward(outputs[i].data(), outputs[i + 1].data(), outputs[i + 2].data(),
                       grads[i + 2].data(), saved[i].data(), prev_prev.data(), prev.data(), w);
      for (size_t k = 0; k < prev_prev.size(); ++k) grads[i][k] += prev_prev[k];
      for (size_t k = 0; k < prev.size(); ++k) grads[i + 1][k] += prev[k];
    }
    for (size_t k = 0; k < x.size(); ++k) r.grad_x[k] = grads[0][k] + grads[1][k];
    return r;
  }
};

void check_close(const std::vector<double>& a, const std::vector<double>& b) {
  CHECK(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    CHECK(std::abs(a[i] - b[i]) < 1e-9 * (1 + std::abs(a[i])));
  }
}

TEST_CASE("a cell stack is its cells one after the other") {
  for (const int64_t archs : {1, 2, 3}) {
    for (const bool shared : {false, true}) {
      const Example example(archs, shared);
      const Result got = example.together(1), expected = example.apart();
      check_close(got.y, expected.y);
      check_close(got.grad_x, expected.grad_x);
      for (size_t i = 0; i < got.weights.size(); ++i) {
        check_close(got.weights[i], expected.weights[i]);
      }
    }
  }
}

TEST_CASE("a cell stack gives the same bits on any threads") {
  const Example example(2, true);
  const Result one = example.together(1), four = example.together(4);
  CHECK(one.y == four.y);
  CHECK(one.grad_x == four.grad_x);
  CHECK(one.weights == four.weights);
}

}  // namespace
}  // namespace asng::cpu
