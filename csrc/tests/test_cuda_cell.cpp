// The CUDA kernels of cells and of the stem against those for the CPU.

#include <cstdio>

#include "../cpu/stem.h"
#include "check.h"
#include "cuda_cells.h"
#include "cuda_on_cpu.h"

namespace asng::test {
namespace {

struct CellCase {
  int archs = 2, nodes = 3, images = 2, channels = 6, height = 5, width = 6;
  int older_channels = 20, newer_channels = 4;
  bool reduction = false, older_is_larger = false;
  bool older_is_shared = false, newer_is_shared = false;
  bool wants_older = true, wants_newer = true;
  unsigned seed = 1;
};

template <class T>
struct CellExample {
  CellCase c;
  int padded, out_height, out_width, older_height, older_width, edges;
  Draw draw;
  std::vector<int32_t> inputs, operations;
  std::vector<T> older, newer, probe, older_weight, newer_weight, output_weight;
  OperationWeights<T> weights;

  explicit CellExample(const CellCase& cell)
      : c(cell),
        padded(cuda::padded_channels(c.channels)),
        out_height(c.reduction ? (c.height + 1) / 2 : c.height),
        out_width(c.reduction ? (c.width + 1) / 2 : c.width),
        older_height(c.older_is_larger ? 2 * c.height - 1 : c.height),
        older_width(c.older_is_larger ? 2 * c.width : c.width),
        edges(c.nodes * (c.nodes + 3) / 2),
        draw(c.seed),
        older(draw.images<T>(static_cast<int64_t>(c.older_is_shared ? 1 : c.archs) * c.images *
                                 older_height * older_width,
                             c.older_channels)),
        newer(draw.images<T>(
            static_cast<int64_t>(c.newer_is_shared ? 1 : c.archs) * c.images * c.height * c.width,
            c.newer_channels)),
        probe(draw.images<T>(static_cast<int64_t>(c.archs) * c.images * out_height * out_width,
                             c.channels)),
        older_weight(draw.normal<T>(c.channels * c.older_channels)),
        newer_weight(draw.normal<T>(c.channels * c.newer_channels)),
        output_weight(draw.normal<T>(c.channels * c.nodes * c.channels)),
        weights(draw, edges, c.reduction ? 2 * c.nodes : 0, c.channels) {
    for (int arch = 0; arch < c.archs; ++arch) {
      for (int node = 0; node < c.nodes; ++node) {
        for (int e = 0; e < 2; ++e) {
          inputs.push_back(draw.below(node + 2));
          operations.push_back(draw.below(cuda::kOperationCount));
        }
      }
    }
  }

  Tensors<T> zero_weights() const {
    return {std::vector<T>(older_weight.size()), std::vector<T>(newer_weight.size()),
            std::vector<T>(output_weight.size())};
  }

  template <class W, class M>
  static W pointers(M& older, M& newer, M& output, OperationWeights<T>& operations) {
    W w;
    w.older = older.data();
    w.newer = newer.data();
    w.output = output.data();
    w.operations = operations.template pointers<decltype(w.operations)>();
    return w;
  }

  Tensors<T> on_cpu() {
    cpu::CellShape s;
    s.archs = c.archs;
    s.nodes = c.nodes;
    s.images = c.images;
    s.channels = c.channels;
    s.padded = padded;
    s.older = {c.older_is_shared ? 1 : c.archs, c.older_channels,
               cuda::padded_channels(c.older_channels), older_height, older_width};
    s.newer = {c.newer_is_shared ? 1 : c.archs, c.newer_channels,
               cuda::padded_channels(c.newer_channels), c.height, c.width};
    s.out_height = out_height;
    s.out_width = out_width;
    s.reduction = c.reduction;
    s.older_is_larger = c.older_is_larger;
    std::vector<T> y(probe.size()), saved(static_cast<size_t>(s.saved_bound()));
    std::vector<T> grad_older(c.wants_older ? older.size() : 0);
    std::vector<T> grad_newer(c.wants_newer ? newer.size() : 0);
    const auto w =
        pointers<cpu::CellWeights<const T>>(older_weight, newer_weight, output_weight, weights);
    OperationWeights<T> grads = weights;
    grads.fill(0);
    Tensors<T> others = zero_weights();
    cpu::Cell<T>(s, w, inputs.data(), operations.data())
        .forward(older.data(), newer.data(), y.data(), saved.data());
    cpu::Cell<T>(s, w, inputs.data(), operations.data())
        .backward(older.data(), newer.data(), y.data(), probe.data(), saved.data(),
                  c.wants_older ? grad_older.data() : nullptr,
                  c.wants_newer ? grad_newer.data() : nullptr,
                  pointers<cpu::CellWeights<T>>(others[0], others[1], others[2], grads));
    Tensors<T> result = {y, grad_older, grad_newer, others[0], others[1], others[2]};
    grads.append_to(result);
    return result;
  }

  cuda::CellShape shape() const {
    cuda::CellShape s;
    s.graph.archs = c.archs;
    s.graph.nodes = c.nodes;
    s.graph.edges = 2;
    s.graph.inputs = 2;
    s.graph.images = c.images;
    s.graph.channels = c.channels;
    s.graph.padded = padded;
    s.graph.height = c.height;
    s.graph.width = c.width;
    s.graph.out_height = out_height;
    s.graph.out_width = out_width;
    s.graph.stride = c.reduction ? 2 : 1;
    s.older = {c.older_is_shared, c.older_channels, cuda::padded_channels(c.older_channels),
               older_height, older_width};
    s.newer = {c.newer_is_shared, c.newer_channels, cuda::padded_channels(c.newer_channels),
               c.height, c.width};
    s.older_is_larger = c.older_is_larger;
    return s;
  }

  Tensors<T> on_cuda(bool save = true) {
    const cuda::CellShape s = shape();
    const auto w =
        pointers<cuda::CellWeights<const T>>(older_weight, newer_weight, output_weight, weights);
    const cuda::Choices choices = {inputs.data(), operations.data()};
    const Memory y(probe.size() * sizeof(T));
    const Memory saved(save ? static_cast<size_t>(s.saved_size()) * sizeof(T) : 0);
    {
      const Memory scratch(cuda::cell_forward_scratch<T>(s, save));
      cuda::cell_forward<T>(s, w, choices, older.data(), newer.data(), y.as<T>(),
                            save ? saved.as<T>() : nullptr, scratch.get(), nullptr);
    }
    Tensors<T> result = {take<T>(y, static_cast<int64_t>(probe.size()))};
    if (!save) return result;
    const int64_t older_size = c.wants_older ? static_cast<int64_t>(older.size()) : 0;
    const int64_t newer_size = c.wants_newer ? static_cast<int64_t>(newer.size()) : 0;
    const Memory grad_older(older_size * sizeof(T)), grad_newer(newer_size * sizeof(T));
    OperationWeights<T> grads = weights;
    const T nan = std::numeric_limits<T>::quiet_NaN();
    grads.fill(nan);
    Tensors<T> others = zero_weights();
    for (std::vector<T>& values : others) values.assign(values.size(), nan);
    const Memory scratch(cuda::cell_backward_scratch<T>(s));
    cuda::cell_backward<T>(s, w, choices, older.data(), newer.data(), y.as<T>(), probe.data(),
                           saved.as<T>(), c.wants_older ? grad_older.as<T>() : nullptr,
                           c.wants_newer ? grad_newer.as<T>() : nullptr,
                           pointers<cuda::CellWeights<T>>(others[0], others[1], others[2], grads),
                           scratch.get(), nullptr);
    result.push_back(take<T>(grad_older, older_size));
    result.push_back(take<T>(grad_newer, newer_size));
    for (const std::vector<T>& values : others) result.push_back(values);
    grads.append_to(result);
    return result;
  }
};

template <class T>
void compare(CellExample<T>& example, double tolerance) {
  const Tensors<T> expected = example.on_cpu(), got = example.on_cuda();
  CHECK(expected.size() == got.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = difference(got[i], expected[i]);
    if (error <= tolerance) continue;
    CHECK(error <= tolerance);
    std::fprintf(stderr, "  tensor %zu differs by %.3g: reduction %d, larger %d, shared %d %d\n", i,
                 error, example.c.reduction, example.c.older_is_larger, example.c.older_is_shared,
                 example.c.newer_is_shared);
  }
}

TEST(cuda_cells_are_those_of_the_cpu) {
  unsigned seed = 0;
  for (const bool reduction : {false, true}) {
    for (const bool larger : {false, true}) {
      for (const int shared : {0, 1, 2}) {
        CellCase c;
        c.archs = 1 + static_cast<int>(seed % 3);
        c.reduction = reduction;
        c.older_is_larger = larger;
        c.older_is_shared = shared > 0;
        c.newer_is_shared = shared > 1;
        c.wants_older = seed % 4 != 3;
        c.wants_newer = seed % 5 != 4;
        c.seed = ++seed;
        CellExample<double> in_double(c);
        compare(in_double, 1e-9);
        c.channels = 16;
        CellExample<float> in_float(c);
        compare(in_float, 1e-3);
      }
    }
  }
}

TEST(cuda_cells_of_five_nodes_and_more_channels) {
  CellCase c;
  c.nodes = 5;
  c.archs = 2;
  c.channels = 40;
  c.older_channels = 70;
  c.newer_channels = 48;
  c.height = 4;
  c.width = 3;
  CellExample<double> normal(c);
  compare(normal, 1e-9);
  c.reduction = c.older_is_larger = true;
  CellExample<double> reduction(c);
  compare(reduction, 1e-9);
}

TEST(cuda_inputs_that_nobody_reads_have_a_gradient_of_zeros) {
  for (const bool larger : {false, true}) {
    for (const bool shared : {false, true}) {
      CellCase c;
      c.older_is_larger = larger;
      c.older_is_shared = c.newer_is_shared = shared;
      CellExample<double> example(c);
      for (size_t i = 0; i < example.inputs.size(); ++i) {
        // All nodes are loose. Only the second architecture reads the newer input.
        example.inputs[i] = i >= example.inputs.size() / 2 ? 1 : 0;
      }
      compare(example, 1e-9);
      example.inputs.assign(example.inputs.size(), 1);
      compare(example, 1e-9);
    }
  }
}

TEST(cuda_cells_do_not_depend_on_the_order_of_threads_and_blocks) {
  for (const bool reduction : {false, true}) {
    CellCase c;
    c.images = 4;
    c.reduction = reduction;
    c.older_is_larger = !reduction;
    c.newer_is_shared = true;
    CellExample<float> example(c);
    const Tensors<float> forward = example.on_cuda();
    CHECK(example.on_cuda(false)[0] == forward[0]);
    const cuda_on_cpu::Backward backward;
    CHECK(example.on_cuda() == forward);
  }
}

TEST(cuda_cells_with_an_index_out_of_range_give_nan) {
  for (const int32_t bad : {-1, 3, 100}) {
    CellExample<double> example(CellCase{});
    example.inputs[2] = bad;  // node 1 has three states before it
    const Tensors<double> got = example.on_cuda();
    const size_t size = got[0].size() / 2;
    bool all = true, none = true;
    for (size_t i = 0; i < size; ++i) {
      if (static_cast<int>(i) % example.padded >= example.c.channels) continue;
      all = all && std::isnan(got[0][i]);
      none = none && !std::isnan(got[0][size + i]);
    }
    CHECK(all);
    CHECK(none);
  }
}

struct StemCase {
  int images, height, width, in_channels, channels;
};

template <class T>
void compare_stem(const StemCase& c, double tolerance) {
  Draw draw(3);
  const int64_t pixels = static_cast<int64_t>(c.images) * c.height * c.width;
  const int padded = cuda::padded_channels(c.channels);
  const std::vector<T> x = draw.normal<T>(pixels * c.in_channels);
  const std::vector<T> weight = draw.normal<T>(c.channels * c.in_channels * 9);
  const std::vector<T> scale = draw.normal<T>(c.channels), bias = draw.normal<T>(c.channels);
  const std::vector<T> probe = draw.images<T>(pixels, c.channels);

  const cpu::StemShape cpu_shape = {c.images, c.height, c.width, c.in_channels, c.channels, padded};
  std::vector<T> y(probe.size()), saved(static_cast<size_t>(cpu_shape.saved_size()));
  std::vector<T> grad_weight(weight.size()), grad_scale(scale.size()), grad_bias(bias.size());
  cpu::Stem<T> stem(cpu_shape, weight.data());
  stem.forward(x.data(), scale.data(), bias.data(), y.data(), saved.data());
  stem.backward(x.data(), scale.data(), probe.data(), saved.data(), grad_weight.data(),
                grad_scale.data(), grad_bias.data());

  const cuda::StemShape s = {c.images, c.height, c.width, c.in_channels, c.channels, padded};
  const Memory out(y.size() * sizeof(T)), kept(static_cast<size_t>(s.saved_size()) * sizeof(T));
  {
    const Memory scratch(cuda::stem_scratch<T>(s, false));
    cuda::stem_forward<T>(s, weight.data(), scale.data(), bias.data(), x.data(), out.as<T>(),
                          kept.as<T>(), scratch.get(), nullptr);
  }
  const T nan = std::numeric_limits<T>::quiet_NaN();
  std::vector<T> weight_too(weight.size(), nan), scale_too(scale.size(), nan);
  std::vector<T> bias_too(bias.size(), nan);
  const Memory scratch(cuda::stem_scratch<T>(s, true));
  cuda::stem_backward<T>(s, scale.data(), x.data(), probe.data(), kept.as<T>(), weight_too.data(),
                         scale_too.data(), bias_too.data(), scratch.get(), nullptr);
  CHECK(difference(take<T>(out, static_cast<int64_t>(y.size())), y) <= tolerance);
  CHECK(difference(weight_too, grad_weight) <= tolerance);
  CHECK(difference(scale_too, grad_scale) <= tolerance);
  CHECK(difference(bias_too, grad_bias) <= tolerance);
}

TEST(cuda_stems_are_those_of_the_cpu) {
  for (const StemCase& c : {StemCase{3, 5, 6, 3, 20},
                            {2, 1, 1, 1, 3},
                            {1, 9, 2, 4, 48},
                            {2, 8, 8, 2, 100},
                            {5, 7, 7, 8, 16}}) {
    compare_stem<double>(c, 1e-10);
    compare_stem<float>(c, 1e-4);
  }
}

}  // namespace
}  // namespace asng::test
