// Products on the tensor cores of a grid that runs on the CPU, of small integers, which are exact.
#include <doctest/doctest.h>

#include <cmath>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "platform/grid_on_cpu/tensor_cores.h"
#include "tests/kernels/cuda/gemm_samples.h"
#include "tests/platform/device_memory.h"

namespace asng::test {
namespace {

using namespace asng::cuda;

// Memory that begins where a device's does.
struct Matrix {
  DeviceMemory memory;
  int64_t size;

  explicit Matrix(int64_t size) : memory(static_cast<size_t>(size) * sizeof(float)), size(size) {}
  Matrix(std::mt19937& generator, int64_t size) : Matrix(size) {
    for (int64_t i = 0; i < size; ++i) data()[i] = static_cast<float>(generator() % 19) - 9;
  }
  float* data() const { return static_cast<float*>(memory.get()); }
};

struct Case {
  int rows, columns, depth;
};

// Σ left · right, `transposed` for a left factor that lies (depth, rows).
double entry(const Case& c, const Matrix& left, const Matrix& right, bool transposed, int row,
             int column) {
  double sum = 0;
  for (int k = 0; k < c.depth; ++k) {
    const float a = left.data()[transposed ? k * c.rows + row : row * c.depth + k];
    sum += static_cast<double>(a) * static_cast<double>(right.data()[k * c.columns + column]);
  }
  return sum;
}

void check_product(const Case& c, bool transposed) {
  std::mt19937 generator(static_cast<unsigned>(c.rows + c.columns + c.depth));
  const int row = c.columns + 32;
  const Matrix left(generator, c.rows * c.depth), right(generator, c.depth * c.columns),
      out(c.rows * row);
  const SampleProduct product = {c.rows,      c.columns,    c.depth,   row,
                                 left.data(), right.data(), out.data()};
  transposed ? sample_tile_outer_product(product, nullptr) : sample_tile_product(product, nullptr);
  bool all = true;
  for (int i = 0; i < c.rows * row; ++i) {
    const float got = out.data()[i];
    all = all && (i % row < c.columns ? got == entry(c, left, right, transposed, i / row, i % row)
                                      : std::isnan(got));  // nothing is written beside the matrix
  }
  INFO(c.rows, "×", c.columns, ", depth ", c.depth);
  CHECK(all);
}

void in_both_orders(void (*run)()) {
  run();
  const cuda_on_cpu::Backward backward;
  run();
}

TEST_CASE("CUDA: products of tiles are exact") {
  in_both_orders([] {
    for (const Case& c : {Case{16, 16, 16},
                          {128, 16, 16},
                          {128, 32, 48},
                          {64, 64, 32},
                          {64, 48, 32},
                          {32, 80, 80},
                          {256, 16, 16},
                          {64, 144, 16},
                          {16, 256, 16}}) {
      check_product(c, false);
    }
  });
}

TEST_CASE("CUDA: outer products over pixels are exact") {
  in_both_orders([] {
    // From one tile, whose pixels four warps share, to more than the warps keep in registers.
    for (const Case& c : {Case{16, 16, 16},
                          {16, 16, 80},
                          {32, 16, 32},
                          {16, 48, 32},
                          {32, 32, 64},
                          {64, 64, 16},
                          {80, 80, 16},
                          {256, 32, 16},
                          {144, 144, 16}}) {
      check_product(c, true);
    }
  });
}

TEST_CASE("CUDA: outer products over no pixels are zeros") {
  for (const int size : {16, 32, 80}) {
    const Matrix nothing(size * size), out(size * size);
    sample_no_outer_product({size, size, 16, size, nothing.data(), nothing.data(), out.data()},
                            nullptr);
    for (int i = 0; i < size * size; ++i) CHECK(out.data()[i] == 0);
  }
}

TEST_CASE("CUDA: sums over the rows of products are exact") {
  in_both_orders([] {
    for (const Case& c : {Case{16, 16, 16}, {128, 32, 16}, {64, 48, 32}, {32, 144, 16}}) {
      std::mt19937 generator(5);
      const Matrix left(generator, c.rows * c.depth), right(generator, c.depth * c.columns);
      const Matrix out(2 * c.columns);
      sample_tile_sums(
          {c.rows, c.columns, c.depth, c.columns, left.data(), right.data(), out.data()}, nullptr);
      for (int column = 0; column < c.columns; ++column) {
        double sum = 0, squares = 0;
        for (int row = 0; row < c.rows; ++row) {
          const double value = entry(c, left, right, false, row, column);
          sum += value;
          squares += value * value;
        }
        CHECK(out.data()[column] == sum);
        CHECK(out.data()[c.columns + column] == squares);
      }
    }
  });
}

TEST_CASE("CUDA: TF32 rounds to the nearest") {
  const auto rounded = [](float x) { return __uint_as_float(to_tf32(x)); };
  CHECK(rounded(1.0f) == 1.0f);
  CHECK(rounded(1.0f + 0x1p-10f) == 1.0f + 0x1p-10f);
  CHECK(rounded(1.0f + 0x1p-11f) == 1.0f + 0x1p-10f);  // a tie: away from zero
  CHECK(rounded(-1.0f - 0x1p-11f) == -1.0f - 0x1p-10f);
  CHECK(rounded(1.0f + 0x1.ffep-12f) == 1.0f);
  CHECK(std::isinf(rounded(std::numeric_limits<float>::infinity())));
  CHECK(std::isnan(rounded(std::nanf(""))));
}

TEST_CASE("CUDA: misuse of tensor cores is an error that says where") {
  const Matrix out(32);
  const auto error_of = [&](Misuse how) -> std::string {
    try {
      sample_misuse(how, out.data(), nullptr);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  };
  CHECK(error_of(Misuse::kNone).empty());
  CHECK(error_of(Misuse::kUnrounded).find("a factor was not rounded to TF32 at") == 0);
  CHECK(error_of(Misuse::kAbsent).find("thread (7, 0, 0) has ended") != std::string::npos);
}

}  // namespace
}  // namespace asng::test
