// Cells in one launch against those for the CPU in float64, and against a launch for each step.
#include <doctest/doctest.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "tests/ops/cuda_bounds.h"

namespace asng::test {
namespace {

// Sets ASNG_CUDA_PATH for as long as it lives.
class PathSet {
 public:
  explicit PathSet(const char* path) { setenv("ASNG_CUDA_PATH", path, 1); }
  ~PathSet() { unsetenv("ASNG_CUDA_PATH"); }
  PathSet(const PathSet&) = delete;
  PathSet& operator=(const PathSet&) = delete;
};

// Of five nodes whose operations and inputs are random, as wide as one launch can have them.
Example<CellShape> wide_cell(int64_t channels, int64_t archs, int64_t images, int64_t height,
                             int64_t width, bool reduction, unsigned seed) {
  CellShape s;
  s.archs = archs;
  s.nodes = 5;
  s.images = images;
  s.channels = channels;
  s.prev_prev = {archs, channels};
  s.prev = {archs, channels, 0, height, width};
  s.reduction = reduction;
  return cell_example(s, seed);
}

// Five nodes in a row.
constexpr Depth kFive = {17, 12, 12};

// What is taken by itself is one launch, and near what many launches give.
void check_path(const Example<CellShape>& e) {
  const Tensors taken = check(e, kFive)[1];
  if (kSanitized) return;
  const PathSet path("persistent");
  CHECK(on_cuda<float>(e) == taken);
  const PathSet other("generic");
  compare("generic", on_cuda<float>(e), taken, bounds(2 * kSingle, kFive.maps, kFive.kinks));
}

TEST_CASE("CUDA: chains and edges that occur twice in one launch") {
  // With one image a block goes on to a stage right after the one whose output that reads.
  for (unsigned kind = 0; kind < 3; ++kind) {
    auto e = wide_cell(16, 2, kind == 2 ? 1 : 4, 8, 8, kind % 2 == 1, 20 + kind);
    for (size_t i = 0; i < e.inputs.size(); ++i) {
      e.inputs[i] = static_cast<int32_t>(i / 2 % 5 + 1);
      e.operations[i] = static_cast<int32_t>((i / 2 + kind) % kOperationCount);
    }
    check_path(e);
  }
}

TEST_CASE("CUDA: strips of large images in one launch") {
  for (const bool reduction : {false, true}) {
    const auto e = wide_cell(64, 1, 1, 18, 64, reduction, 31);
    const PathSet path("persistent");
    const Tensors one = on_cuda<float>(e, false, false);
    const PathSet other("generic");
    compare("generic", {one[0]}, {on_cuda<float>(e, false, false)[0]},
            bounds(2 * kSingle, kFive.maps, kFive.kinks));
  }
}

TEST_CASE("CUDA: cells that one launch is not for") {
  const auto e = wide_cell(16, 1, 1, 4, 5, false, 1);
  std::string error;
  try {
    const PathSet path("persistent");
    on_cuda<float>(e);
  } catch (const std::runtime_error& thrown) {
    error = thrown.what();
  }
  CHECK(error.find("ASNG_CUDA_PATH is persistent") == 0);
  error.clear();
  try {
    const PathSet path("fast");
    on_cuda<float>(e);
  } catch (const std::runtime_error& thrown) {
    error = thrown.what();
  }
  CHECK(error == "ASNG_CUDA_PATH must be generic, persistent or auto, got fast");
}

// A cell whose nodes are computed in one launch where that is allowed.
Example<CellShape> whole_cell(bool reduction, int64_t archs, int64_t images, int64_t channels,
                              int64_t out_height, int64_t out_width, unsigned seed,
                              bool odd = false) {
  const int64_t stride = reduction ? 2 : 1, missing = reduction && odd ? 1 : 0;
  CellShape s;
  s.archs = archs;
  s.nodes = 3;
  s.images = images;
  s.channels = channels;
  s.reduction = reduction;
  s.prev_prev = {seed % 2 == 1 ? 1 : archs, 20};
  s.prev = {seed % 4 == 3 ? 1 : archs, 16, 0, out_height * stride - missing,
            out_width * stride - missing};
  s.prev_prev_is_larger = seed % 3 == 0;
  return cell_example(s, seed);
}

// What a cell gives in one launch: with products in TF32, in float32 and in bfloat16.
Tensors in_tf32(const Example<CellShape>& e) {
  const PathSet chosen("persistent");
  return on_cuda<float>(e, true);
}
std::vector<Tensors> in_every_type(const Example<CellShape>& e) {
  const Tensors tf32 = in_tf32(e);
  const PathSet chosen("persistent");
  return {tf32, on_cuda<float>(e), on_cuda<BFloat16>(e)};
}

TEST_CASE("CUDA: cells in one launch are those of the CPU") {
  const Bounds tf32 = bounds(kRounded, kCell.products, kCell.kinks);
  for (const bool reduction : {false, true}) {
    for (int operation = 0; operation < kOperationCount; ++operation) {
      INFO("operation ", operation, ", reduction ", reduction);
      Example<CellShape> e = whole_cell(reduction, 1, 4, 20, 8, 4, 5 + operation);
      std::fill(e.operations.begin(), e.operations.end(), operation);
      compare("TF32", in_tf32(e), on_cpu<double>(e), tf32);
    }
    // All operations on the six edges in turn, in every type.
    int shift = 0;
    for (const int archs : {1, 2, 3}) {
      const int channels = 8 << archs;
      INFO("archs ", archs, ", channels ", channels, ", reduction ", reduction);
      Example<CellShape> e = whole_cell(reduction, archs, archs == 2 ? 5 : 2, channels, 8, 8,
                                        (reduction ? 30 : 20) + archs);
      for (size_t i = 0; i < e.operations.size(); ++i) {
        if (i % 6 == 0) ++shift;
        e.operations[i] = (static_cast<int32_t>(i) + shift) % kOperationCount;
      }
      const Tensors expected = on_cpu<double>(e);
      const std::vector<Tensors> got = in_every_type(e);
      compare("TF32", got[0], expected, tf32);
      compare("float32", got[1], expected, bounds(kSingle, kCell.maps, kCell.kinks));
      compare("bfloat16", got[2], expected, bounds(kStored, kCell.maps, kCell.kinks));
      // The same bits whatever the order of threads and blocks; every type has those barriers.
      if (kSanitized) continue;
      const cuda_on_cpu::Backward backward;
      if (archs == 2) {
        CHECK(in_every_type(e) == got);
      } else {
        CHECK(in_tf32(e) == got[0]);
      }
    }
  }
}

// More than one launch plans, of different numbers of edges.
template <class V>
void check_planned_together(std::vector<Example<CellShape>> examples) {
  for (unsigned seed = 0; seed < 14; ++seed) {
    CellShape s;
    s.archs = 1 + seed % 2;
    s.nodes = 1 + seed % 4;
    s.images = 1;
    s.channels = 3;
    s.prev_prev = s.prev = {s.archs, 4, 0, 4, 4};
    examples.push_back(cell_example(s, seed));
  }
  const std::vector<Tensors> together = on_cuda_together<V>(examples);
  for (size_t i = 0; i < examples.size(); ++i) CHECK(together[i] == on_cuda<V>(examples[i]));
}

// All operations on the edges of the architectures in turn.
void set_operations(Example<CellShape>& e, int first) {
  for (size_t i = 0; i < e.operations.size(); ++i) {
    e.operations[i] = (static_cast<int32_t>(i) + first) % kOperationCount;
  }
}

// So much shared memory that small images of 64, 32 and 16 channels are in strips of four rows.
constexpr size_t kSmallShared[] = {188000, 94500, 62500};

TEST_CASE("CUDA: small strips in one launch are those of the CPU") {
  const Bounds tf32 = bounds(kRounded, kCell.products, kCell.kinks);
  for (const bool reduction : {false, true}) {
    for (const int archs : {1, 2, 3}) {
      const int channels = 128 >> archs, height = archs == 2 ? 10 : 9;
      INFO("archs ", archs, ", reduction ", reduction);
      Example<CellShape> e = whole_cell(reduction, archs, archs == 2 ? 3 : 1, channels, height, 8,
                                        (reduction ? 30 : 20) + archs, archs != 2);
      set_operations(e, archs);
      const Tensors expected = on_cpu<double>(e);
      const Tensors whole = in_tf32(e);
      const cuda_on_cpu::SharedLimit limit(kSmallShared[archs - 1]);
      const std::vector<Tensors> got = in_every_type(e);
      compare("TF32", got[0], expected, tf32);
      compare("float32", got[1], expected, bounds(kSingle, kCell.maps, kCell.kinks));
      compare("bfloat16", got[2], expected, bounds(kStored, kCell.maps, kCell.kinks));
      // Sums are in another order.
      CHECK(got[0] != whole);
      if (kSanitized || archs != 2) continue;
      const cuda_on_cpu::Backward backward;
      CHECK(in_tf32(e) == got[0]);
    }
  }
}

// The first ones have rows of 1,024 values, then there are some of 2,048.
TEST_CASE("CUDA: strips of large images backward are those of the CPU") {
  for (const auto& [reduction, archs, images, channels, height, width] :
       {std::tuple{false, 1, 4, 16, 18, 64},
        {false, 2, 1, 32, 15, 32},
        {false, 1, 1, 64, 10, 16},
        {true, 1, 1, 32, 6, 32},
        {true, 1, 1, 64, 5, 16},
        {false, 1, 1, 32, 5, 64},
        {false, 1, 1, 64, 6, 32},
        {true, 1, 1, 16, 32, 32}}) {
    INFO("channels ", channels, ", size ", height, " x ", width, ", reduction ", reduction);
    Example<CellShape> e = whole_cell(reduction, archs, images, channels, height, width, 4, true);
    set_operations(e, width);
    const PathSet chosen("persistent");
    compare("float32", on_cuda<float>(e), on_cpu<double>(e),
            bounds(kSingle, kCell.maps, kCell.kinks));
  }
}

// Four rows of these do not fit, or inputs are wider than 64 pixels.
TEST_CASE("CUDA: rows that are too large for strips") {
  for (const auto& [reduction, channels, width] :
       {std::tuple{false, 64, 64}, {true, 64, 32}, {true, 32, 64}}) {
    const auto e = whole_cell(reduction, 1, 1, channels, 4, width, 1);
    const PathSet chosen("persistent");
    CHECK_THROWS_AS(on_cuda<float>(e), std::runtime_error);
  }
}

TEST_CASE("CUDA: cells that are planned together are the same as each by itself") {
  std::vector<Example<CellShape>> examples;
  for (unsigned kind = 0; kind < 4; ++kind) examples.push_back(cell_of_kind(kind, 6));
  check_planned_together<double>(examples);
  check_planned_together<float>({whole_cell(false, 2, 4, 16, 4, 4, 1),
                                 whole_cell(true, 2, 4, 20, 4, 4, 3),
                                 whole_cell(false, 1, 1, 32, 14, 32, 2)});
}

TEST_CASE("CUDA: large images and batches in one launch") {
  const PathSet chosen("persistent");
  for (const auto& [reduction, images, channels, size] :
       {std::tuple{false, 1, 16, 32}, {true, 1, 32, 16}, {false, 64, 16, 4}}) {
    INFO("images ", images, ", channels ", channels, ", size ", size, ", reduction ", reduction);
    const auto e = whole_cell(reduction, 1, images, channels, size, size, 2 + channels);
    compare("float32", on_cuda<float>(e), on_cpu<double>(e),
            bounds(kSingle, kCell.maps, kCell.kinks));
  }
}

TEST_CASE("CUDA: cells of other shapes have a launch for each step") {
  for (const auto& e : {whole_cell(false, 8, 1, 16, 4, 4, 1), whole_cell(false, 1, 2, 16, 8, 6, 2),
                        whole_cell(true, 1, 2, 80, 4, 4, 3)}) {
    const Tensors got = on_cuda<float>(e);
    CHECK(got == [&] {
      const PathSet chosen("generic");
      return on_cuda<float>(e);
    }());
    const PathSet chosen("persistent");
    CHECK_THROWS_AS(on_cuda<float>(e), std::runtime_error);
  }
  const PathSet chosen("persistent");
  CHECK_THROWS_AS(on_cuda<double>(whole_cell(false, 1, 2, 16, 4, 4, 1)), std::runtime_error);
}

// Blocks have to hand over NaN.
TEST_CASE("CUDA: an index out of range makes NaN of its architecture alone in one launch") {
  const PathSet chosen("persistent");
  const Example<CellShape> good = whole_cell(false, 2, 3, 16, 4, 4, 2);
  for (const int32_t bad : {-1, 3, 1 << 30}) {
    Example<CellShape> e = good;
    e.inputs[2] = bad;
    check_nan<float>(e, good, 0);
  }
}

}  // namespace
}  // namespace asng::test
