// Steps of weights of which leading slices are in use, on a grid that runs on the CPU.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "ops/active_sgd/cuda.h"

namespace {

using namespace asng::cuda;

struct Shape {
  int rows, run, gradient_rows, gradient_run;
  int64_t pitch;
};

// Arrays are as large as they must be, so that a sanitizer sees what goes beyond.
struct Case {
  std::vector<Shape> shapes;
  std::vector<std::vector<double>> weights, velocities, gradients;

  explicit Case(std::vector<Shape> given) : shapes(std::move(given)) {
    for (const Shape& shape : shapes) {
      weights.push_back(numbers((shape.rows - 1) * shape.pitch + shape.run, 37));
      velocities.push_back(numbers(int64_t{shape.rows} * shape.run, 41));
      gradients.push_back(numbers(int64_t{shape.gradient_rows} * shape.gradient_run, 43));
    }
  }

  static std::vector<double> numbers(int64_t count, int64_t factor) {
    std::vector<double> values;
    for (int64_t i = 0; i < count; ++i) {
      values.push_back(static_cast<double>(i * factor % 101 - 50) / 64);
    }
    return values;
  }

  std::vector<ActiveWeight<double>> arguments() {
    std::vector<ActiveWeight<double>> all;
    for (size_t i = 0; i < shapes.size(); ++i) {
      const Shape& shape = shapes[i];
      const auto number = static_cast<double>(i);
      all.push_back({weights[i].data(), velocities[i].data(), gradients[i].data(), shape.pitch,
                     shape.rows, shape.run, shape.gradient_rows, shape.gradient_run,
                     0.25 + number / 8, 0.5 + number / 64});
    }
    return all;
  }

  // Calls f(weight, velocity, gradient or 0) for each number of each velocity.
  template <class F>
  void each(F f) {
    for (size_t i = 0; i < shapes.size(); ++i) {
      const Shape& shape = shapes[i];
      for (int row = 0; row < shape.rows; ++row) {
        for (int k = 0; k < shape.run; ++k) {
          const bool given = row < shape.gradient_rows && k < shape.gradient_run;
          f(i, weights[i][row * shape.pitch + k], velocities[i][row * shape.run + k],
            given ? gradients[i][row * shape.gradient_run + k] : 0.0);
        }
      }
    }
  }

  void check_like(const Case& other) const {
    for (size_t i = 0; i < shapes.size(); ++i) {
      bool right = gradients[i] == other.gradients[i];
      for (size_t k = 0; k < weights[i].size(); ++k) {
        right &= std::abs(weights[i][k] - other.weights[i][k]) < 1e-12;
      }
      for (size_t k = 0; k < velocities[i].size(); ++k) {
        right &= std::abs(velocities[i][k] - other.velocities[i][k]) < 1e-12;
      }
      CHECK(right);
    }
  }
};

std::vector<Shape> some_shapes(int copies) {
  std::vector<Shape> shapes;
  for (int i = 0; i < copies; ++i) {
    shapes.insert(shapes.end(), {{3, 7, 2, 5, 11}, {1, 600, 1, 600, 600}, {9, 1, 9, 1, 4}});
  }
  return shapes;
}

void check_step(const std::vector<Shape>& shapes, double max_norm) {
  Case got(shapes), expected(shapes);
  double squares = 0;
  expected.each([&](size_t, double, double, double gradient) { squares += gradient * gradient; });
  const double scale = std::min(1.0, max_norm / (std::sqrt(squares) + 1e-6));
  expected.each([&](size_t, double& weight, double& velocity, double gradient) {
    velocity = 0.75 * velocity + scale * gradient;
    weight -= 0.5 * velocity;
  });
  const auto weights = got.arguments();
  std::vector<double> scratch(active_sgd_scratch(weights));
  active_sgd_step(weights, {0.5, 0.75, max_norm}, scratch.data(), nullptr);
  got.check_like(expected);
}

}  // namespace

TEST_CASE("CUDA: slices of weights move by a step") {
  for (const double max_norm : {0.5, 1e6, std::numeric_limits<double>::infinity()}) {
    check_step(some_shapes(1), max_norm);
  }
  // More than fit into a launch, and more rows than there are parts of the norm.
  check_step(some_shapes(20), 0.5);
  check_step({{1100, 2, 1050, 1, 3}}, 0.5);
}

TEST_CASE("CUDA: slices of weights make up for steps") {
  Case got(some_shapes(20)), expected(some_shapes(20));
  const auto weights = got.arguments();
  expected.each([&](size_t i, double& weight, double& velocity, double) {
    weight -= weights[i].distance * velocity;
    velocity *= weights[i].factor;
  });
  active_sgd_catch_up(weights, nullptr);
  got.check_like(expected);
}
