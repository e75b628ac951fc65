// The operators of nodes and cells on CUDA devices. Indices stay on the device, unseen: see dag.h
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
void check_pairs(const DagShape& s) {
  STD_TORCH_CHECK(static_cast<int64_t>(s.archs) * s.edges <= 65535 / 2,
                  "architectures times edges must be at most ", 65535 / 2, ", got ", s.archs,
                  " times ", s.edges);
}

Choices choices_of(const Tensor& inputs, const Tensor& operations) {
  return {data<int32_t>(inputs), data<int32_t>(operations)};
}

struct NodeCall {
  DagShape shape;
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
  const DeviceStreamGuard current(bank);
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
  const DeviceStreamGuard current(bank);
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

  CellCall(const Tensor& prev_prev, const Tensor& prev, const Tensor& inputs,
           const Tensor& operations, const Tensor& prev_prev_weight, const Tensor& prev_weight,
           const Convolutions& convolutions, const OptionalTensor& reduction,
           const Tensor& output_weight, bool prev_prev_is_larger, bool tf32) {
    dtype = check_images(prev, "prev", 5);
    STD_TORCH_CHECK(check_images(prev_prev, "prev_prev", 5) == dtype,
                    "prev_prev and prev must have one dtype");
    check_device(prev_prev, "prev_prev", prev);
    STD_TORCH_CHECK(inputs.dim() == 3, "inputs must have 3 dimensions, got ", inputs.dim());
    for (const Tensor* weight : {&prev_prev_weight, &prev_weight}) {
      STD_TORCH_CHECK(weight->dim() == 2,
                      "prev_prev_weight and prev_weight must have 2 dimensions, got ",
                      weight->dim());
    }
    STD_TORCH_CHECK(prev_prev_weight.size(0) > 0, "prev_prev_weight must not be empty");
    DagShape& s = shape.dag;
    STD_TORCH_CHECK(inputs.numel() > 0 && inputs.numel() <= 65535,
                    "inputs must have from 1 to 65535 elements, got ", inputs.numel());
    s.archs = narrow(inputs.size(0));
    s.nodes = narrow(inputs.size(1));
    s.edges = s.inputs = 2;
    s.images = narrow(prev.size(1));
    s.channels = narrow(prev_prev_weight.size(0));
    s.padded = padded_channels(s.channels);
    s.height = narrow(prev.size(2));
    s.width = narrow(prev.size(3));
    s.stride = reduction.has_value() ? 2 : 1;
    s.tf32 = tf32;
    s.out_height = (s.height + s.stride - 1) / s.stride;
    s.out_width = (s.width + s.stride - 1) / s.stride;
    shape.prev_prev_is_larger = prev_prev_is_larger;
    shape.prev_prev = input(prev_prev, "prev_prev", prev_prev_weight);
    shape.prev = input(prev, "prev", prev_weight);
    const int scale = prev_prev_is_larger ? 2 : 1;
    STD_TORCH_CHECK((shape.prev_prev.height + scale - 1) / scale == s.height &&
                        (shape.prev_prev.width + scale - 1) / scale == s.width,
                    "prev_prev must be ", prev_prev_is_larger ? "twice" : "exactly",
                    " as high and wide as prev, got ", shape.prev_prev.height, "×",
                    shape.prev_prev.width, " and ", s.height, "×", s.width);
    STD_TORCH_CHECK(!(prev_prev_is_larger || reduction.has_value()) || s.channels >= 2,
                    "a factorized reduction needs 2 channels, got ", s.channels);
    check_pairs(s);
    const int64_t nodes = s.nodes, channels = s.channels;
    check_like(inputs, "inputs", ScalarType::Int, {s.archs, nodes, 2}, prev);
    check_like(operations, "operations", ScalarType::Int, {s.archs, nodes, 2}, prev);
    const ScalarType compute = compute_type(dtype);
    check_like(prev_prev_weight, "prev_prev_weight", compute, {channels, shape.prev_prev.channels},
               prev);
    check_like(prev_weight, "prev_weight", compute, {channels, shape.prev.channels}, prev);
    check_like(output_weight, "output_weight", compute, {channels, nodes * channels}, prev);
    check_weights(convolutions, reduction, compute, nodes * (nodes + 3) / 2, 2 * nodes, channels,
                  prev);
  }

  InputShape input(const Tensor& images, const char* name, const Tensor& weight) const {
    const int archs = shape.dag.archs;
    const InputShape input = {images.size(0) == 1, narrow(weight.size(1)), narrow(images.size(4)),
                              narrow(images.size(2)), narrow(images.size(3))};
    STD_TORCH_CHECK(images.size(0) == 1 || images.size(0) == archs, "the first dimension of ", name,
                    " must be 1 or the number of architectures, ", archs, ", got ", images.size(0));
    STD_TORCH_CHECK(images.size(1) == shape.dag.images, name, " must have ", shape.dag.images,
                    " images, got ", images.size(1));
    STD_TORCH_CHECK(input.padded == padded_channels(input.channels), name, " must have ",
                    padded_channels(input.channels), " channels for a weight of ", input.channels,
                    ", got ", input.padded);
    return input;
  }

  std::vector<int64_t> out_sizes() const {
    const DagShape& s = shape.dag;
    return {s.archs, s.images, s.out_height, s.out_width, s.padded};
  }
  int64_t saved_size() const {
    int64_t size = 0;
    with_type(dtype, [&](auto type) { size = cell_saved_size<decltype(type)>(shape); });
    return size;
  }
};

template <class T, class P = T>
CellWeights<P> cell_pointers(const Tensor& prev_prev, const Tensor& prev,
                             const Convolutions& convolutions, const OptionalTensor& reduction,
                             const Tensor& output) {
  CellWeights<P> weights;
  weights.prev_prev = data<T>(prev_prev);
  weights.prev = data<T>(prev);
  weights.output = data<T>(output);
  weights.operations = pointers<T, P>(convolutions, reduction);
  return weights;
}

std::tuple<Tensor, Tensor> cell(Tensor prev_prev, Tensor prev, Tensor inputs, Tensor operations,
                                Tensor prev_prev_weight, Tensor prev_weight, Tensor depthwise3,
                                Tensor pointwise3, Tensor depthwise5, Tensor pointwise5,
                                OptionalTensor reduction, Tensor output_weight,
                                bool prev_prev_is_larger, bool save, bool tf32) {
  const Convolutions convolutions = {depthwise3, pointwise3, depthwise5, pointwise5};
  const CellCall call(prev_prev, prev, inputs, operations, prev_prev_weight, prev_weight,
                      convolutions, reduction, output_weight, prev_prev_is_larger, tf32);
  const DeviceStreamGuard current(prev);
  Tensor out = new_tensor(prev, call.out_sizes());
  Tensor saved = new_saved(prev, save ? call.saved_size() : 0);
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    const Tensor scratch = new_scratch(prev, cell_forward_scratch<V>(call.shape, save));
    cell_forward<V>(call.shape,
                    cell_pointers<T, const T>(prev_prev_weight, prev_weight, convolutions,
                                              reduction, output_weight),
                    choices_of(inputs, operations), data<V>(prev_prev), data<V>(prev), data<V>(out),
                    save ? data<T>(saved) : nullptr, scratch.data_ptr(), current.stream());
  });
  return {out, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
cell_backward_operator(Tensor grad, Tensor prev_prev, Tensor prev, Tensor output, Tensor saved,
                       Tensor inputs, Tensor operations, Tensor prev_prev_weight,
                       Tensor prev_weight, Tensor depthwise3, Tensor pointwise3, Tensor depthwise5,
                       Tensor pointwise5, OptionalTensor reduction, Tensor output_weight,
                       bool prev_prev_is_larger, bool prev_prev_needs_grad, bool prev_needs_grad,
                       bool tf32) {
  const Convolutions convolutions = {depthwise3, pointwise3, depthwise5, pointwise5};
  const CellCall call(prev_prev, prev, inputs, operations, prev_prev_weight, prev_weight,
                      convolutions, reduction, output_weight, prev_prev_is_larger, tf32);
  check_like(grad, "grad", call.dtype, call.out_sizes(), prev);
  check_aligned(grad, "grad");
  check_like(output, "output", call.dtype, call.out_sizes(), prev);
  check_like(saved, "saved", compute_type(call.dtype), {call.saved_size()}, prev);
  check_aligned(saved, "saved");
  const DeviceStreamGuard current(prev);
  const auto images_like = [&](const Tensor& t, bool wanted) {
    return wanted ? new_like(t) : new_tensor(prev, {0});
  };
  Tensor grad_prev_prev = images_like(prev_prev, prev_prev_needs_grad),
         grad_prev = images_like(prev, prev_needs_grad);
  Tensor prev_prev_grad = new_like(prev_prev_weight), prev_grad = new_like(prev_weight);
  Tensor output_grad = new_like(output_weight);
  const std::vector<Tensor> grads = new_gradients(convolutions);
  const OptionalTensor grad_reduction =
      reduction.has_value() ? OptionalTensor(new_like(*reduction)) : std::nullopt;
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    const Tensor scratch = new_scratch(prev, cell_backward_scratch<V>(call.shape));
    cell_backward<V>(
        call.shape,
        cell_pointers<T, const T>(prev_prev_weight, prev_weight, convolutions, reduction,
                                  output_weight),
        choices_of(inputs, operations), data<V>(prev_prev), data<V>(prev), data<V>(output),
        data<V>(grad), data<T>(saved), prev_prev_needs_grad ? data<V>(grad_prev_prev) : nullptr,
        prev_needs_grad ? data<V>(grad_prev) : nullptr,
        cell_pointers<T>(prev_prev_grad, prev_grad, grads, grad_reduction, output_grad),
        scratch.data_ptr(), current.stream());
  });
  return {grad_prev_prev, grad_prev, prev_prev_grad,
          prev_grad,      grads[0],  grads[1],
          grads[2],       grads[3],  grad_reduction.value_or(new_tensor(output_weight, {0})),
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
