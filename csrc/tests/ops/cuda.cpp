// The CUDA kernels against those for the CPU in float64, on the same numbers: in every type, and
// with products in TF32. python_tests/ops compares more of them with their definitions; here they
// run on memory full of NaN, with sanitizers, and closer to their bounds.
#include <doctest/doctest.h>

#include <stdexcept>
#include <string>

#include "tests/ops/cuda_bounds.h"

namespace asng::test {
namespace {

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
  for (const int64_t stride : {1, 2}) check_bits(mixed(stride), {3, 2, 2});
}

TEST_CASE("CUDA: cells are those of the CPU") {
  for (unsigned kind = 0; kind < kCellKinds; ++kind) {
    INFO("kind ", kind);
    Example<CellShape> e = cell_of_kind(kind, kind % 4 == 0 ? 16 : 20);
    if (kind >= kCellKinds / (kSanitized ? 3 : 2)) {
      compare("float64", on_cuda<double>(e), on_cpu<double>(e), kDouble);
      continue;
    }
    if (kind == 1 || kind == 2) {
      check_bits(e, kCell);
    } else {
      check(e, kCell);
    }
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
    check_bits(e, kMixture);
    // More edges than a launch takes.
    const auto most = mixture_example(6, stride, 2, 5, 4, 3, 3);
    CHECK(most.shape.edges.size() > 64);
    compare("float64", on_cuda<double>(most), on_cpu<double>(most), kDouble);
  }
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
  }
}

}  // namespace
}  // namespace asng::test
