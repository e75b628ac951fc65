// The operators on the CPU: checks, memory for results, and the call. Their last argument allows
// TF32, which a CPU has no use for.

#include <algorithm>
#include <tuple>
#include <vector>

#include "ops/cell/contract.h"
#include "ops/cell/cpu_node.h"
#include "platform/cpu_tensors.h"
#include "platform/memory.h"

namespace asng::cpu {
namespace {

struct NodeCall {
  DagShape shape;
  ScalarType dtype;
  int64_t height, width;

  NodeCall(const Tensor& bank, const Tensor& inputs, const Tensor& operations,
           const std::vector<Tensor>& convolutions, const OptionalTensor& reduction,
           int64_t stride) {
    dtype = check_images(bank, "bank", 6);
    STD_TORCH_CHECK(stride == 1 || stride == 2, "stride must be 1 or 2, got ", stride);
    STD_TORCH_CHECK(stride == 1 || reduction.has_value(), "reduction is needed with stride 2");
    STD_TORCH_CHECK(inputs.dim() == 2, "inputs must have 2 dimensions, got ", inputs.dim());
    STD_TORCH_CHECK(convolutions[1].dim() == 4, "pointwise3 must have 4 dimensions, got ",
                    convolutions[1].dim());
    shape.inputs = bank.size(0);
    shape.archs = bank.size(1);
    shape.images = bank.size(2);
    height = bank.size(3);
    width = bank.size(4);
    shape.padded = bank.size(5);
    shape.channels = convolutions[1].size(2);
    shape.edges = inputs.size(1);
    shape.out_height = (height + stride - 1) / stride;
    shape.out_width = (width + stride - 1) / stride;
    shape.reduction = stride == 2;
    STD_TORCH_CHECK(stride == 1 || shape.channels >= 2,
                    "a factorized reduction needs 2 channels, got ", shape.channels);
    STD_TORCH_CHECK(shape.edges > 0, "inputs must have at least one column");
    STD_TORCH_CHECK(padded_channels(shape.channels) == shape.padded, "bank must have ",
                    padded_channels(shape.channels), " channels for weights of ", shape.channels,
                    ", got ", shape.padded);
    checked_product({shape.archs, shape.edges, 6, shape.images, shape.out_height, shape.out_width,
                     shape.padded});  // saved_bound() is below
    check(inputs, "inputs", ScalarType::Int, {shape.archs, shape.edges});
    check(operations, "operations", ScalarType::Int, {shape.archs, shape.edges});
    check_weights(convolutions, reduction, dtype, shape.inputs, shape.inputs, shape.channels);
  }

  std::vector<int64_t> out_sizes() const {
    return {shape.archs, shape.images, shape.out_height, shape.out_width, shape.padded};
  }

  // With `grad`, of the bank, null in a forward pass.
  template <class T>
  Node<T> node(const Tensor& bank, T* grad, const Tensor& inputs, const Tensor& operations,
               const std::vector<Tensor>& convolutions, const OptionalTensor& reduction) const {
    Node<T> node(shape, pointers<T, const T>(convolutions, reduction),
                 inputs.const_data_ptr<int32_t>(), operations.const_data_ptr<int32_t>());
    for (int64_t arch = 0; arch < shape.archs; ++arch) {
      for (int64_t input = 0; input < shape.inputs; ++input) {
        const int64_t offset = (input * shape.archs + arch) * state_size();
        State<T>& s = node.input(arch, input);
        s.x = bank.const_data_ptr<T>() + offset;
        s.grad = grad == nullptr ? nullptr : grad + offset;
        s.height = height;
        s.width = width;
      }
    }
    return node;
  }

  int64_t state_size() const { return shape.images * height * width * shape.padded; }
};

std::tuple<Tensor, Tensor> mixed_node(Tensor bank, Tensor inputs, Tensor operations,
                                      Tensor depthwise3, Tensor pointwise3, Tensor depthwise5,
                                      Tensor pointwise5, OptionalTensor reduction, int64_t stride,
                                      bool save, bool) {
  const std::vector<Tensor> convolutions = {depthwise3, pointwise3, depthwise5, pointwise5};
  const NodeCall call(bank, inputs, operations, convolutions, reduction, stride);
  const int64_t bound = call.shape.saved_bound();
  Tensor out = new_tensor(call.out_sizes(), call.dtype, false);
  Tensor saved = new_tensor({save ? bound : 0}, call.dtype, false);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    Node<T> node = call.node<T>(bank, nullptr, inputs, operations, convolutions, reduction);
    const Block block = acquire(save ? 0 : static_cast<size_t>(bound) * sizeof(T));
    node.forward(static_cast<T*>(save ? saved.data_ptr() : block.get()), out.mutable_data_ptr<T>());
  });
  return {out, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mixed_node_backward(
    Tensor grad, Tensor bank, Tensor saved, Tensor inputs, Tensor operations, Tensor depthwise3,
    Tensor pointwise3, Tensor depthwise5, Tensor pointwise5, OptionalTensor reduction,
    int64_t stride, bool) {
  const std::vector<Tensor> convolutions = {depthwise3, pointwise3, depthwise5, pointwise5};
  const NodeCall call(bank, inputs, operations, convolutions, reduction, stride);
  check(grad, "grad", call.dtype, call.out_sizes());
  check(saved, "saved", call.dtype, {call.shape.saved_bound()});
  Tensor grad_bank = uninitialized_like(bank);
  std::vector<Tensor> grads;
  for (const Tensor& t : convolutions) grads.push_back(zeros_like(t));
  Tensor grad_reduction = zeros_or_empty(reduction, call.dtype);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    Node<T> node = call.node<T>(bank, grad_bank.mutable_data_ptr<T>(), inputs, operations,
                                convolutions, reduction);
    node.backward(static_cast<T*>(saved.data_ptr()), grad.const_data_ptr<T>(),
                  pointers<T>(grads, grad_reduction));
    for (int64_t arch = 0; arch < call.shape.archs; ++arch) {
      for (int64_t input = 0; input < call.shape.inputs; ++input) {
        const State<T>& s = node.input(arch, input);
        if (!s.has_grad) std::fill_n(s.grad, call.state_size(), T(0));
      }
    }
  });
  return {grad_bank, grads[0], grads[1], grads[2], grads[3], grad_reduction};
}

struct CellCall {
  CellShape shape;
  ScalarType dtype;

  CellCall(const Tensor& prev_prev, const Tensor& prev, const Tensor& inputs,
           const Tensor& operations, const CellTensors& weights, bool prev_prev_is_larger) {
    dtype = check_images(prev, "prev", 5);
    STD_TORCH_CHECK(check_images(prev_prev, "prev_prev", 5) == dtype,
                    "prev_prev and prev must have one dtype");
    STD_TORCH_CHECK(inputs.dim() == 3, "inputs must have 3 dimensions, got ", inputs.dim());
    STD_TORCH_CHECK(prev_prev.size(1) == prev.size(1), "prev_prev must have ", prev.size(1),
                    " images, got ", prev_prev.size(1));
    shape = cell_shape(inputs.size(0), inputs.size(1), prev.size(1), cell_input(prev_prev),
                       cell_input(prev), weights, prev_prev_is_larger, dtype);
    check(inputs, "inputs", ScalarType::Int, {shape.archs, shape.nodes, 2});
    check(operations, "operations", ScalarType::Int, {shape.archs, shape.nodes, 2});
  }

  std::vector<int64_t> out_sizes() const {
    return {shape.archs, shape.images, shape.out_height, shape.out_width, shape.padded};
  }
};

std::tuple<Tensor, Tensor> cell(Tensor prev_prev, Tensor prev, Tensor inputs, Tensor operations,
                                Tensor prev_prev_weight, Tensor prev_weight, Tensor depthwise3,
                                Tensor pointwise3, Tensor depthwise5, Tensor pointwise5,
                                OptionalTensor reduction, Tensor output_weight,
                                bool prev_prev_is_larger, bool save, bool) {
  const CellTensors weights = {prev_prev_weight,
                               prev_weight,
                               {depthwise3, pointwise3, depthwise5, pointwise5},
                               reduction,
                               output_weight};
  const CellCall call(prev_prev, prev, inputs, operations, weights, prev_prev_is_larger);
  Tensor out = new_tensor(call.out_sizes(), call.dtype, false);
  Tensor saved = new_tensor({save ? call.shape.saved_bound() : 0}, call.dtype, false);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    Cell<T> cell(call.shape, weights.pointers<T, const T>(), inputs.const_data_ptr<int32_t>(),
                 operations.const_data_ptr<int32_t>());
    cell.forward(prev_prev.const_data_ptr<T>(), prev.const_data_ptr<T>(), out.mutable_data_ptr<T>(),
                 save ? saved.mutable_data_ptr<T>() : nullptr);
  });
  return {out, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
cell_backward(Tensor grad, Tensor prev_prev, Tensor prev, Tensor output, Tensor saved,
              Tensor inputs, Tensor operations, Tensor prev_prev_weight, Tensor prev_weight,
              Tensor depthwise3, Tensor pointwise3, Tensor depthwise5, Tensor pointwise5,
              OptionalTensor reduction, Tensor output_weight, bool prev_prev_is_larger,
              bool prev_prev_needs_grad, bool prev_needs_grad, bool) {
  const CellTensors weights = {prev_prev_weight,
                               prev_weight,
                               {depthwise3, pointwise3, depthwise5, pointwise5},
                               reduction,
                               output_weight};
  const CellCall call(prev_prev, prev, inputs, operations, weights, prev_prev_is_larger);
  check(grad, "grad", call.dtype, call.out_sizes());
  check(output, "output", call.dtype, call.out_sizes());
  check(saved, "saved", call.dtype, {call.shape.saved_bound()});
  const auto images_like = [&](const Tensor& t, bool wanted) {
    return wanted ? uninitialized_like(t) : new_tensor({0}, call.dtype, false);
  };
  Tensor grad_prev_prev = images_like(prev_prev, prev_prev_needs_grad),
         grad_prev = images_like(prev, prev_needs_grad);
  const CellTensors grads = zeros_like(weights);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    Cell<T> cell(call.shape, weights.pointers<T, const T>(), inputs.const_data_ptr<int32_t>(),
                 operations.const_data_ptr<int32_t>());
    cell.backward(prev_prev.const_data_ptr<T>(), prev.const_data_ptr<T>(),
                  output.const_data_ptr<T>(), grad.const_data_ptr<T>(), saved.mutable_data_ptr<T>(),
                  prev_prev_needs_grad ? grad_prev_prev.mutable_data_ptr<T>() : nullptr,
                  prev_needs_grad ? grad_prev.mutable_data_ptr<T>() : nullptr, grads.pointers<T>());
  });
  return {grad_prev_prev,
          grad_prev,
          grads.prev_prev,
          grads.prev,
          grads.convolutions[0],
          grads.convolutions[1],
          grads.convolutions[2],
          grads.convolutions[3],
          grads.reduction.has_value() ? *grads.reduction : new_tensor({0}, call.dtype, false),
          grads.output};
}

int64_t release() { return static_cast<int64_t>(release_cached()); }

int64_t capability_index() { return static_cast<int64_t>(capability()); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, CPU, m) {
  m.impl("mixed_node", TORCH_BOX(&mixed_node));
  m.impl("_mixed_node_backward", TORCH_BOX(&mixed_node_backward));
  m.impl("cell", TORCH_BOX(&cell));
  m.impl("_cell_backward", TORCH_BOX(&cell_backward));
}

// Without a tensor among their arguments they belong to no device.
STABLE_TORCH_LIBRARY_IMPL(asng, CompositeExplicitAutograd, m) {
  m.impl("_release_cached", TORCH_BOX(&release));
  m.impl("_cpu_capability", TORCH_BOX(&capability_index));
}

}  // namespace asng::cpu
