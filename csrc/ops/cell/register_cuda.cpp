// The operators of nodes and cells on CUDA devices. Indices stay on the device, unseen: see graph.h
// for those out of range.

#include <tuple>

#include "ops/cell/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

using Convolutions = std::vector<Tensor>;  // depthwise3, pointwise3, depthwise5, pointwise5

// Weights of `edges` separable convolutions and of `reductions` factorized reductions.
void check_weights(const Convolutions& convolutions, const OptionalTensor& reduction,
                   ScalarType dtype, int64_t edges, int64_t reductions, int64_t channels,
                   const Tensor& like) {
  check_like(convolutions[0], "depthwise3", dtype, {edges, 2, channels, 1, 3, 3}, like);
  check_like(convolutions[1], "pointwise3", dtype, {edges, 2, channels, channels}, like);
  check_like(convolutions[2], "depthwise5", dtype, {edges, 2, channels, 1, 5, 5}, like);
  check_like(convolutions[3], "pointwise5", dtype, {edges, 2, channels, channels}, like);
  if (reduction.has_value()) {
    check_like(*reduction, "reduction", dtype, {reductions, channels, channels}, like);
  }
}

template <class T, class P = T>
NodeWeights<P> pointers(const Convolutions& convolutions, const OptionalTensor& reduction) {
  NodeWeights<P> weights;
  for (int kind = 0; kind < 2; ++kind) {
    weights.depthwise[kind] = data<T>(convolutions[2 * kind]);
    weights.pointwise[kind] = data<T>(convolutions[2 * kind + 1]);
  }
  weights.reduction = reduction.has_value() ? data<T>(*reduction) : nullptr;
  return weights;
}

std::vector<Tensor> new_gradients(const Convolutions& convolutions) {
  std::vector<Tensor> grads;
  for (const Tensor& t : convolutions) grads.push_back(new_like(t));
  return grads;
}

// A launch covers all (architecture, edge) pairs in one dimension of its grid.
void check_pairs(const GraphShape& s) {
  STD_TORCH_CHECK(static_cast<int64_t>(s.archs) * s.edges <= 65535 / 2,
                  "architectures times edges must be at most ", 65535 / 2, ", got ", s.archs,
                  " times ", s.edges);
}

Choices choices_of(const Tensor& inputs, const Tensor& operations) {
  return {data<int32_t>(inputs), data<int32_t>(operations)};
}

struct NodeCall {
  GraphShape shape;
  ScalarType dtype;  // of the images

  NodeCall(const Tensor& bank, const Tensor& inputs, const Tensor& operations,
           const Convolutions& convolutions, const OptionalTensor& reduction, int64_t stride,
           bool tf32) {
    dtype = check_images(bank, "bank", 6);
    STD_TORCH_CHECK(stride == 1 || stride == 2, "stride must be 1 or 2, got ", stride);
    STD_TORCH_CHECK(stride == 1 || reduction.has_value(), "reduction is needed with stride 2");
    STD_TORCH_CHECK(inputs.dim() == 2, "inputs must have 2 dimensions, got ", inputs.dim());
    STD_TORCH_CHECK(convolutions[1].dim() == 4, "pointwise3 must have 4 dimensions, got ",
                    convolutions[1].dim());
    shape.inputs = narrow(bank.size(0));
    shape.archs = narrow(bank.size(1));
    shape.images = narrow(bank.size(2));
    shape.height = narrow(bank.size(3));
    shape.width = narrow(bank.size(4));
    shape.padded = narrow(bank.size(5));
    shape.channels = narrow(convolutions[1].size(2));
    shape.nodes = 1;
    shape.edges = narrow(inputs.size(1));
    shape.stride = narrow(stride);
    shape.tf32 = tf32;
    shape.out_height = narrow((shape.height + stride - 1) / stride);
    shape.out_width = narrow((shape.width + stride - 1) / stride);
    STD_TORCH_CHECK(stride == 1 || shape.channels >= 2,
                    "a factorized reduction needs 2 channels, got ", shape.channels);
    STD_TORCH_CHECK(shape.edges > 0, "inputs must have at least one column");
    STD_TORCH_CHECK(padded_channels(shape.channels) == shape.padded, "bank must have ",
                    padded_channels(shape.channels), " channels for weights of ", shape.channels,
                    ", got ", shape.padded);
    check_pairs(shape);
    check_like(inputs, "inputs", ScalarType::Int, {shape.archs, shape.edges}, bank);
    check_like(operations, "operations", ScalarType::Int, {shape.archs, shape.edges}, bank);
    check_weights(convolutions, reduction, compute_type(dtype), shape.inputs, shape.inputs,
                  shape.channels, bank);
  }

  std::vector<int64_t> out_sizes() const {
    return {shape.archs, shape.images, shape.out_height, shape.out_width, shape.padded};
  }
  int64_t saved_size() const {
    int64_t size = 0;
    with_type(dtype, [&](auto type) { size = node_saved_size<decltype(type)>(shape); });
    return size;
  }
};

std::tuple<Tensor, Tensor> mixed_node(Tensor bank, Tensor inputs, Tensor operations,
                                      Tensor depthwise3, Tensor pointwise3, Tensor depthwise5,
                                      Tensor pointwise5, OptionalTensor reduction, int64_t stride,
                                      bool save, bool tf32) {
  const Convolutions convolutions = {depthwise3, pointwise3, depthwise5, pointwise5};
  const NodeCall call(bank, inputs, operations, convolutions, reduction, stride, tf32);
  const Current current(bank);
  Tensor out = new_tensor(bank, call.out_sizes());
  Tensor saved = new_saved(bank, save ? call.saved_size() : 0);
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    const Tensor scratch = new_scratch(bank, node_forward_scratch<V>(call.shape, save));
    node_forward<V>(call.shape, pointers<T, const T>(convolutions, reduction),
                    choices_of(inputs, operations), data<V>(bank), data<V>(out),
                    save ? data<T>(saved) : nullptr, scratch.data_ptr(), current.stream());
  });
  return {out, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mixed_node_backward(
    Tensor grad, Tensor bank, Tensor saved, Tensor inputs, Tensor operations, Tensor depthwise3,
    Tensor pointwise3, Tensor depthwise5, Tensor pointwise5, OptionalTensor reduction,
    int64_t stride, bool tf32) {
  const Convolutions convolutions = {depthwise3, pointwise3, depthwise5, pointwise5};
  const NodeCall call(bank, inputs, operations, convolutions, reduction, stride, tf32);
  check_like(grad, "grad", call.dtype, call.out_sizes(), bank);
  check_aligned(grad, "grad");
  check_like(saved, "saved", compute_type(call.dtype), {call.saved_size()}, bank);
  check_aligned(saved, "saved");
  const Current current(bank);
  Tensor grad_bank = new_like(bank);
  const std::vector<Tensor> grads = new_gradients(convolutions);
  const OptionalTensor grad_reduction =
      reduction.has_value() ? OptionalTensor(new_like(*reduction)) : std::nullopt;
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    const Tensor scratch = new_scratch(bank, node_backward_scratch<V>(call.shape));
    node_backward<V>(call.shape, pointers<T, const T>(convolutions, reduction),
                     choices_of(inputs, operations), data<V>(bank), data<V>(grad), data<T>(saved),
                     data<V>(grad_bank), pointers<T>(grads, grad_reduction), scratch.data_ptr(),
                     current.stream());
  });
  return {grad_bank, grads[0], grads[1],
          grads[2],  grads[3], grad_reduction.value_or(new_tensor(pointwise3, {0}))};
}

struct CellCall {
  CellShape shape;
  ScalarType dtype;  // of the images

  CellCall(const Tensor& older, const Tensor& newer, const Tensor& inputs, const Tensor& operations,
           const Tensor& older_weight, const Tensor& newer_weight, const Convolutions& convolutions,
           const OptionalTensor& reduction, const Tensor& output_weight, bool older_is_larger,
           bool tf32) {
    dtype = check_images(newer, "newer", 5);
    STD_TORCH_CHECK(check_images(older, "older", 5) == dtype,
                    "older and newer must have one dtype");
    check_device(older, "older", newer);
    STD_TORCH_CHECK(inputs.dim() == 3, "inputs must have 3 dimensions, got ", inputs.dim());
    for (const Tensor* weight : {&older_weight, &newer_weight}) {
      STD_TORCH_CHECK(weight->dim() == 2,
                      "older_weight and newer_weight must have 2 dimensions, got ", weight->dim());
    }
    STD_TORCH_CHECK(older_weight.size(0) > 0, "older_weight must not be empty");
    GraphShape& s = shape.graph;
    STD_TORCH_CHECK(inputs.numel() > 0 && inputs.numel() <= 65535,
                    "inputs must have from 1 to 65535 elements, got ", inputs.numel());
    s.archs = narrow(inputs.size(0));
    s.nodes = narrow(inputs.size(1));
    s.edges = s.inputs = 2;
    s.images = narrow(newer.size(1));
    s.channels = narrow(older_weight.size(0));
    s.padded = padded_channels(s.channels);
    s.height = narrow(newer.size(2));
    s.width = narrow(newer.size(3));
    s.stride = reduction.has_value() ? 2 : 1;
    s.tf32 = tf32;
    s.out_height = (s.height + s.stride - 1) / s.stride;
    s.out_width = (s.width + s.stride - 1) / s.stride;
    shape.older_is_larger = older_is_larger;
    shape.older = input(older, "older", older_weight);
    shape.newer = input(newer, "newer", newer_weight);
    const int scale = older_is_larger ? 2 : 1;
    STD_TORCH_CHECK((shape.older.height + scale - 1) / scale == s.height &&
                        (shape.older.width + scale - 1) / scale == s.width,
                    "older must be ", older_is_larger ? "twice" : "exactly",
                    " as high and wide as newer, got ", shape.older.height, "×", shape.older.width,
                    " and ", s.height, "×", s.width);
    STD_TORCH_CHECK(!(older_is_larger || reduction.has_value()) || s.channels >= 2,
                    "a factorized reduction needs 2 channels, got ", s.channels);
    check_pairs(s);
    const int64_t nodes = s.nodes, channels = s.channels;
    check_like(inputs, "inputs", ScalarType::Int, {s.archs, nodes, 2}, newer);
    check_like(operations, "operations", ScalarType::Int, {s.archs, nodes, 2}, newer);
    const ScalarType compute = compute_type(dtype);
    check_like(older_weight, "older_weight", compute, {channels, shape.older.channels}, newer);
    check_like(newer_weight, "newer_weight", compute, {channels, shape.newer.channels}, newer);
    check_like(output_weight, "output_weight", compute, {channels, nodes * channels}, newer);
    check_weights(convolutions, reduction, compute, nodes * (nodes + 3) / 2, 2 * nodes, channels,
                  newer);
  }

  InputShape input(const Tensor& images, const char* name, const Tensor& weight) const {
    const int archs = shape.graph.archs;
    const InputShape input = {images.size(0) == 1, narrow(weight.size(1)), narrow(images.size(4)),
                              narrow(images.size(2)), narrow(images.size(3))};
    STD_TORCH_CHECK(images.size(0) == 1 || images.size(0) == archs, "the first dimension of ", name,
                    " must be 1 or the number of architectures, ", archs, ", got ", images.size(0));
    STD_TORCH_CHECK(images.size(1) == shape.graph.images, name, " must have ", shape.graph.images,
                    " images, got ", images.size(1));
    STD_TORCH_CHECK(input.padded == padded_channels(input.channels), name, " must have ",
                    padded_channels(input.channels), " channels for a weight of ", input.channels,
                    ", got ", input.padded);
    return input;
  }

  std::vector<int64_t> out_sizes() const {
    const GraphShape& s = shape.graph;
    return {s.archs, s.images, s.out_height, s.out_width, s.padded};
  }
  int64_t saved_size() const {
    int64_t size = 0;
    with_type(dtype, [&](auto type) { size = cell_saved_size<decltype(type)>(shape); });
    return size;
  }
};

template <class T, class P = T>
CellWeights<P> cell_pointers(const Tensor& older, const Tensor& newer,
                             const Convolutions& convolutions, const OptionalTensor& reduction,
                             const Tensor& output) {
  CellWeights<P> weights;
  weights.older = data<T>(older);
  weights.newer = data<T>(newer);
  weights.output = data<T>(output);
  weights.operations = pointers<T, P>(convolutions, reduction);
  return weights;
}

std::tuple<Tensor, Tensor> cell(Tensor older, Tensor newer, Tensor inputs, Tensor operations,
                                Tensor older_weight, Tensor newer_weight, Tensor depthwise3,
                                Tensor pointwise3, Tensor depthwise5, Tensor pointwise5,
                                OptionalTensor reduction, Tensor output_weight,
                                bool older_is_larger, bool save, bool tf32) {
  const Convolutions convolutions = {depthwise3, pointwise3, depthwise5, pointwise5};
  const CellCall call(older, newer, inputs, operations, older_weight, newer_weight, convolutions,
                      reduction, output_weight, older_is_larger, tf32);
  const Current current(newer);
  Tensor out = new_tensor(newer, call.out_sizes());
  Tensor saved = new_saved(newer, save ? call.saved_size() : 0);
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    const Tensor scratch = new_scratch(newer, cell_forward_scratch<V>(call.shape, save));
    cell_forward<V>(call.shape,
                    cell_pointers<T, const T>(older_weight, newer_weight, convolutions, reduction,
                                              output_weight),
                    choices_of(inputs, operations), data<V>(older), data<V>(newer), data<V>(out),
                    save ? data<T>(saved) : nullptr, scratch.data_ptr(), current.stream());
  });
  return {out, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
cell_backward_operator(Tensor grad, Tensor older, Tensor newer, Tensor output, Tensor saved,
                       Tensor inputs, Tensor operations, Tensor older_weight, Tensor newer_weight,
                       Tensor depthwise3, Tensor pointwise3, Tensor depthwise5, Tensor pointwise5,
                       OptionalTensor reduction, Tensor output_weight, bool older_is_larger,
                       bool wants_older, bool wants_newer, bool tf32) {
  const Convolutions convolutions = {depthwise3, pointwise3, depthwise5, pointwise5};
  const CellCall call(older, newer, inputs, operations, older_weight, newer_weight, convolutions,
                      reduction, output_weight, older_is_larger, tf32);
  check_like(grad, "grad", call.dtype, call.out_sizes(), newer);
  check_aligned(grad, "grad");
  check_like(output, "output", call.dtype, call.out_sizes(), newer);
  check_like(saved, "saved", compute_type(call.dtype), {call.saved_size()}, newer);
  check_aligned(saved, "saved");
  const Current current(newer);
  const auto images_like = [&](const Tensor& t, bool wanted) {
    return wanted ? new_like(t) : new_tensor(newer, {0});
  };
  Tensor grad_older = images_like(older, wants_older), grad_newer = images_like(newer, wants_newer);
  Tensor older_grad = new_like(older_weight), newer_grad = new_like(newer_weight);
  Tensor output_grad = new_like(output_weight);
  const std::vector<Tensor> grads = new_gradients(convolutions);
  const OptionalTensor grad_reduction =
      reduction.has_value() ? OptionalTensor(new_like(*reduction)) : std::nullopt;
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    const Tensor scratch = new_scratch(newer, cell_backward_scratch<V>(call.shape));
    cell_backward<V>(call.shape,
                     cell_pointers<T, const T>(older_weight, newer_weight, convolutions, reduction,
                                               output_weight),
                     choices_of(inputs, operations), data<V>(older), data<V>(newer),
                     data<V>(output), data<V>(grad), data<T>(saved),
                     wants_older ? data<V>(grad_older) : nullptr,
                     wants_newer ? data<V>(grad_newer) : nullptr,
                     cell_pointers<T>(older_grad, newer_grad, grads, grad_reduction, output_grad),
                     scratch.data_ptr(), current.stream());
  });
  return {grad_older, grad_newer, older_grad,
          newer_grad, grads[0],   grads[1],
          grads[2],   grads[3],   grad_reduction.value_or(new_tensor(output_weight, {0})),
          output_grad};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) {
  m.impl("mixed_node", TORCH_BOX(&mixed_node));
  m.impl("_mixed_node_backward", TORCH_BOX(&mixed_node_backward));
  m.impl("cell", TORCH_BOX(&cell));
  m.impl("_cell_backward", TORCH_BOX(&cell_backward_operator));
}

}  // namespace asng::cuda
