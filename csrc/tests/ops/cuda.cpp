// The CUDA kernels against those for the CPU in float64, on the same numbers: in every type, and
// with products in TF32. python_tests/ops compares more of them with their definitions; here they
// run on memory full of NaN, with sanitizers, and closer to their bounds.
//
// Bounds. A value that is stored is off by at most kStored = 2⁻⁸ of itself, and a difference is
// taken relative to the norm of all values; linear maps and normalizations of random feature maps
// pass relative errors on as they are, and errors of one feature map after another are independent,
// so that they accumulate in squares. So a forward pass that stores n feature maps in a row is off
// by √n·kStored. Gradients are off by as much again, and where an error δ of ReLU's argument turns
// its sign: that befalls δ/π of normally distributed arguments, which is 2δ/π of those that ReLU
// lets pass, and the square root of it in the norm. Maxima that change hands are bounded in the
// same way. A factor of a product that is rounded to TF32 is off by at most 2⁻¹¹ of itself, a
// product of two by kRounded = 2⁻¹⁰; products in a row are to that what feature maps are to
// kStored. With feature maps in bfloat16 products are in TF32, too, which adds little to their
// error.
#include <doctest/doctest.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "platform/grid_on_cpu/grid.h"
#include "tests/ops/cuda_example.h"
#include "tests/platform/sanitized.h"

namespace asng::test {
namespace {

using cuda::BFloat16;

constexpr int kIdentity = operation_number(Form::kIdentity);
constexpr int kMaxPool = operation_number(Form::kMaxPool);
constexpr int kSeparable3 = operation_number(Form::kSeparable, 0);
constexpr int kSeparable5 = operation_number(Form::kSeparable, 1);

constexpr double kStored = 1.0 / 256, kRounded = 1.0 / 1024, kSingle = 1e-6;

// What a forward pass has in a row: feature maps that it stores, ReLUs among that, and products.
struct Depth {
  int maps, kinks, products;
};
// Input, three nodes of three feature maps each, output; a ReLU in front of each but the nodes. And
// the products: of the input, of both stages in three nodes, of the output.
constexpr Depth kCell = {11, 8, 8}, kStem = {2, 0, 1};
// The three nodes alone.
constexpr Depth kMixture = {9, 6, 6};

Depth depth_of(int operation, int64_t stride) {
  if (operation >= kSeparable3) return {3, 2, 2};
  return operation == kIdentity && stride == 2 ? Depth{2, 1, 1} : Depth{1, 0, 0};
}

struct Bounds {
  double forward, backward;
};
constexpr Bounds kDouble = {1e-9, 1e-9};

Bounds bounds(double error, int times, int kinks) {
  const double forward = std::sqrt(times) * error;
  return {forward, 2 * forward + std::sqrt(kinks * 2 * forward / M_PI)};
}

// ‖a − b‖ / (‖b‖ + 1e-3) is at most `bound`; not if one holds a NaN.
bool near(const std::vector<double>& a, const std::vector<double>& b, double bound) {
  double distance = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    distance += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return a.size() == b.size() && std::sqrt(distance) <= bound * (std::sqrt(norm) + 1e-3);
}

// The first tensor is the output.
void compare(const char* what, const Tensors& got, const Tensors& expected, const Bounds& bounds) {
  CHECK(got.size() == expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    INFO(what, ", tensor ", i);
    CHECK(near(got[i], expected[i], i == 0 ? bounds.forward : bounds.backward));
  }
}

// Of feature maps too small for bounds: a sign counts for much there.
template <class Shape>
void check_small(const Example<Shape>& e) {
  compare("float64", on_cuda<double>(e), on_cpu<double>(e), kDouble);
  for (const Tensors& got : {on_cuda<float>(e), on_cuda<float>(e, true), on_cuda<BFloat16>(e)}) {
    for (const std::vector<double>& values : got) {
      CHECK(std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); }));
    }
  }
}

template <class Shape>
void check(const Example<Shape>& e, const Depth& depth) {
  const Tensors expected = on_cpu<double>(e), single = on_cuda<float>(e);
  compare("float64", on_cuda<double>(e), expected, kDouble);
  compare("float32", single, expected, bounds(kSingle, depth.maps, depth.kinks));
  const Tensors tf32 = on_cuda<float>(e, true);
  CHECK((tf32 == single) == (depth.products == 0));
  if (depth.products > 0) {
    compare("TF32", tf32, expected, bounds(kRounded, depth.products, depth.kinks));
  }
  compare("bfloat16", on_cuda<BFloat16>(e), expected, bounds(kStored, depth.maps, depth.kinks));
}

// The same bits whatever the order of threads and blocks, and without a backward pass. Sanitizers
// see no more in another order.
template <class Shape>
void check_bits(const Example<Shape>& e) {
  const auto run = [&](bool save) {
    return std::vector<Tensors>{on_cuda<double>(e, false, save), on_cuda<float>(e, false, save),
                                on_cuda<float>(e, true, save), on_cuda<BFloat16>(e, false, save)};
  };
  const std::vector<Tensors> forward = run(true), unsaved = run(false);
  for (size_t i = 0; i < forward.size(); ++i) CHECK(unsaved[i][0] == forward[i][0]);
  if (kSanitized) return;
  const cuda_on_cpu::Backward backward;
  CHECK(run(true) == forward);
}

TEST_CASE("CUDA: operations are those of the CPU") {
  for (int operation = 0; operation < kOperationCount; ++operation) {
    for (const int stride : {1, 2}) {
      for (const int channels : {3, 20, 48}) {
        if (kSanitized && channels == 3) continue;
        const int archs = 1 + (operation + channels) % 3;
        INFO("operation ", operation, ", stride ", stride, ", channels ", channels);
        // With few channels more of a batch, so that no sign counts for much.
        check(single(operation, stride, archs, 9, 11, channels, channels < 16 ? 12 : 2),
              depth_of(operation, stride));
      }
    }
  }
}

TEST_CASE("CUDA: feature maps of any size") {
  for (const int stride : {1, 2}) {
    for (const auto& [height, width] : {std::pair{1, 1}, {1, 9}, {9, 1}, {3, 19}, {17, 18}}) {
      for (int operation = 0; operation < kOperationCount; ++operation) {
        INFO("operation ", operation, ", stride ", stride, ", ", height, "×", width);
        check_small(single(operation, stride, 2, height, width, 4));
      }
    }
  }
}

TEST_CASE("CUDA: large batches and many channels") {
  for (const int64_t stride : {1, 2}) {
    // More tiles than splits of the gradients of weights, and larger ones in the larger batch.
    for (const auto& [channels, images] : {std::pair{16, 120}, {32, 60}, {64, 60}}) {
      const auto e = single(kSeparable5, stride, 1, 9, 17, channels, images / stride);
      compare("batch", on_cuda<float>(e), on_cpu<double>(e), bounds(kSingle, 3, 2));
    }
    const int operation = stride == 1 ? kSeparable3 : kIdentity;
    for (const int channels : {64, 130}) {
      if (kSanitized && channels == 64) continue;
      check(single(operation, stride, 1, 6, 7, channels, 256 / channels),
            depth_of(operation, stride));
    }
    const auto most = single(operation, stride, 1, 6, 7, 256, 1);
    const Depth depth = depth_of(operation, stride);
    const Tensors expected = on_cpu<double>(most);
    compare("TF32", on_cuda<float>(most, true), expected,
            bounds(kRounded, depth.products, depth.kinks));
    compare("bfloat16", on_cuda<BFloat16>(most), expected,
            bounds(kStored, depth.maps, depth.kinks));
    // Tiles that are smaller, because those of other numbers of channels would not fit.
    const auto e = node_example(490, 3, 5, stride, 1, 1, 1, {0}, {kSeparable3});
    compare("490 channels", on_cuda<double>(e), on_cpu<double>(e), kDouble);
  }
}

TEST_CASE("CUDA: more tiles than blocks share a sum") {
  for (const int64_t stride : {1, 2}) {
    const auto e = single(kSeparable5, stride, 1, 2, 3, 16, 1100);
    compare("many images", on_cuda<float>(e), on_cpu<double>(e), bounds(kSingle, 3, 2));
  }
}

TEST_CASE("CUDA: edges may share inputs and occur twice") {
  for (const int64_t stride : {1, 2}) {
    check(mixed(stride), {3, 2, 2});
    check_bits(mixed(stride));
  }
}

TEST_CASE("CUDA: cells are those of the CPU") {
  for (unsigned kind = 0; kind < kCellKinds; ++kind) {
    INFO("kind ", kind);
    Example<CellShape> e = cell_of_kind(kind, kind % 4 == 0 ? 16 : 20);
    if (kind >= kCellKinds / (kSanitized ? 3 : 2)) {
      compare("float64", on_cuda<double>(e), on_cpu<double>(e), kDouble);
      continue;
    }
    check(e, kCell);
    if (kind == 1 || kind == 2) check_bits(e);
    e.needs_grad = {kind % 2 == 0, kind % 2 == 1};
    compare("one gradient", on_cuda<double>(e), on_cpu<double>(e), kDouble);
    e.needs_grad = {true, true};
    // All nodes are leaf nodes. Only the second architecture reads prev, then all do.
    for (size_t i = 0; i < e.inputs.size(); ++i) e.inputs[i] = i / 6 == 1;
    compare("leaf nodes", on_cuda<double>(e), on_cpu<double>(e), kDouble);
    e.inputs.assign(e.inputs.size(), 1);
    compare("only prev", on_cuda<double>(e), on_cpu<double>(e), kDouble);
  }
}

TEST_CASE("CUDA: cells of five nodes and more channels") {
  for (const bool reduction : {false, true}) {
    CellShape s;
    s.archs = 2;
    s.nodes = 5;
    s.images = 2;
    s.channels = 40;
    s.prev_prev = {2, 70};
    s.prev = {2, 48, 0, 4, 3};
    s.reduction = s.prev_prev_is_larger = reduction;
    const auto e = cell_example(s, 1);
    compare("float64", on_cuda<double>(e), on_cpu<double>(e), kDouble);
  }
}

TEST_CASE("CUDA: mixtures are those of the CPU") {
  for (const int64_t stride : {1, 2}) {
    const auto e = mixture_example(3, stride, 4, 20, 7, 6, static_cast<unsigned>(stride));
    check(e, kMixture);
    check_bits(e);
    // More edges than a launch takes.
    const auto most = mixture_example(6, stride, 2, 5, 4, 3, 3);
    CHECK(most.shape.edges.size() > 64);
    compare("float64", on_cuda<double>(most), on_cpu<double>(most), kDouble);
  }
}

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
  check(e, kFive);
  if (kSanitized) return;
  const Tensors taken = on_cuda<float>(e);
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

// So many that a block has more than a thread's work, and that not all blocks of an input that
// architectures share are needed.
TEST_CASE("CUDA: many architectures") {
  for (const int64_t stride : {1, 2}) {
    const auto e = single(kSeparable5, stride, 70, 5, 6, 16, 2);
    compare("node", on_cuda<double>(e), on_cpu<double>(e), kDouble);
  }
  for (const bool reduction : {false, true}) {
    CellShape s;
    s.archs = 260;
    s.nodes = 2;
    s.images = 2;
    s.channels = 4;
    s.prev_prev = {1, 5};
    s.prev = {1, 6, 0, 3, 3};
    s.reduction = reduction;
    const auto e = cell_example(s, 1);
    compare("cell", on_cuda<double>(e), on_cpu<double>(e), kDouble);
  }
}

TEST_CASE("CUDA: stems are those of the CPU") {
  for (const auto& e : {stem_example(3, 5, 6, 3, 20), stem_example(1, 9, 2, 4, 48),
                        stem_example(2, 8, 8, 2, 100), stem_example(5, 7, 7, 8, 16)}) {
    check(e, kStem);
  }
  check_small(stem_example(2, 1, 1, 1, 3));
}

TEST_CASE("CUDA: bfloat16 copies are exact") {
  for (const int operation : {kIdentity, kMaxPool}) {
    const auto e = single(operation, 1, 2, 5, 7, 20);
    const Tensors got = on_cuda<BFloat16>(e), expected = on_cuda<float>(e);
    CHECK(got[0] == expected[0]);
    if (operation == kIdentity) CHECK(got[1] == expected[1]);
  }
}

// What is kept of the statistics is not rounded: one pixel alone is its own mean, and a constant
// image has no variance.
TEST_CASE("CUDA: bfloat16 statistics are those of what is stored") {
  const Tensors got = on_cuda<BFloat16>(single(kSeparable3, 1, 1, 1, 1, 16, 1));
  for (const double value : got[0]) CHECK(std::fabs(value) <= 1e-3);
}

// Their products take several passes.
TEST_CASE("CUDA: very many channels") {
  check(single(kSeparable3, 1, 1, 4, 5, 260, 1), depth_of(kSeparable3, 1));
}

TEST_CASE("CUDA: TF32 leaves float64 alone") {
  for (const int64_t stride : {1, 2}) {
    CHECK(on_cuda<double>(mixed(stride), true) == on_cuda<double>(mixed(stride)));
  }
}

TEST_CASE("CUDA: too many channels are an error that says so") {
  std::string error;
  try {
    on_cuda<double>(node_example(700, 2, 2, 1, 2, 1, 1, {0}, {kSeparable3}));
  } catch (const std::runtime_error& thrown) {
    error = thrown.what();
  }
  CHECK(error.find("700 channels need ") == 0);
}

// The output of `bad` is NaN in one architecture, and elsewhere that of `good`.
template <class V = double, class Shape>
void check_nan(const Example<Shape>& bad, const Example<Shape>& good, size_t arch) {
  const Tensors got = on_cuda<V>(bad), expected = on_cuda<V>(good);
  const size_t size = static_cast<size_t>(good.shape.out_size());
  for (size_t i = 0; i < got[0].size(); ++i) {
    const bool real = static_cast<int64_t>(i) % good.shape.padded < good.shape.channels;
    if (real) CHECK((i / size == arch ? std::isnan(got[0][i]) : got[0][i] == expected[0][i]));
  }
}

TEST_CASE("CUDA: an index out of range makes NaN of its architecture alone") {
  for (const int32_t bad : {-1, kOperationCount, 1 << 30}) {
    for (const bool of_operation : {false, true}) {
      Example<DagShape> node = mixed(1);
      (of_operation ? node.operations : node.inputs)[4] = bad;
      check_nan(node, mixed(1), 1);
    }
    // Node 1 has three states before it.
    Example<CellShape> cell = cell_of_kind(2, 6);
    cell.inputs[2] = bad < 0 ? bad : 3;
    check_nan(cell, cell_of_kind(2, 6), 0);
    // In one launch, whose blocks have to hand over NaN.
    const PathSet chosen("persistent");
    const Example<CellShape> good = whole_cell(false, 2, 3, 16, 4, 4, 2);
    Example<CellShape> whole = good;
    whole.inputs[2] = bad < 0 ? bad : 3;
    check_nan<float>(whole, good, 0);
  }
}

}  // namespace
}  // namespace asng::test
