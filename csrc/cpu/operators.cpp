// The operators on the CPU: checks, memory for results, and the call.

#include <cstring>
#include <tuple>
#include <vector>

#include "cell.h"
#include "memory.h"
#include "tensors.h"

namespace asng::cpu {
namespace {

// Weights of `edges` separable convolutions and of `reductions` factorized reductions.
void check_weights(const std::vector<Tensor>& convolutions, const OptionalTensor& reduction,
                   ScalarType dtype, int64_t edges, int64_t reductions, int64_t channels) {
  check(convolutions[0], "depthwise3", dtype, {edges, 2, channels, 1, 3, 3});
  check(convolutions[1], "pointwise3", dtype, {edges, 2, channels, channels});
  check(convolutions[2], "depthwise5", dtype, {edges, 2, channels, 1, 5, 5});
  check(convolutions[3], "pointwise5", dtype, {edges, 2, channels, channels});
  if (reduction.has_value()) {
    check(*reduction, "reduction", dtype, {reductions, channels, channels});
  }
}

template <class T, class P = T>
NodeWeights<P> pointers(const std::vector<Tensor>& convolutions, const OptionalTensor& reduction) {
  const auto data = [](const Tensor& t) { return static_cast<T*>(t.data_ptr()); };
  NodeWeights<P> weights;
  for (int kind = 0; kind < 2; ++kind) {
    weights.depthwise[kind] = data(convolutions[2 * kind]);
    weights.pointwise[kind] = data(convolutions[2 * kind + 1]);
  }
  weights.reduction = reduction.has_value() ? data(*reduction) : nullptr;
  return weights;
}

struct NodeCall {
  NodeShape shape;
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
    shape.inputs = shape.state_stride = bank.size(0);
    shape.archs = bank.size(1);
    shape.images = bank.size(2);
    height = bank.size(3);
    width = bank.size(4);
    shape.padded = bank.size(5);
    shape.channels = convolutions[1].size(2);
    shape.edges = inputs.size(1);
    shape.out_height = (height + stride - 1) / stride;
    shape.out_width = (width + stride - 1) / stride;
    shape.reduced_inputs = stride == 2 ? shape.inputs : 0;
    STD_TORCH_CHECK(stride == 1 || shape.channels >= 2,
                    "a factorized reduction needs 2 channels, got ", shape.channels);
    STD_TORCH_CHECK(shape.edges > 0, "inputs must have at least one column");
    STD_TORCH_CHECK(padded_channels(shape.channels) == shape.padded, "bank must have ",
                    padded_channels(shape.channels), " channels for weights of ", shape.channels,
                    ", got ", shape.padded);
    check(inputs, "inputs", ScalarType::Int, {shape.archs, shape.edges});
    check(operations, "operations", ScalarType::Int, {shape.archs, shape.edges});
    check_weights(convolutions, reduction, dtype, shape.inputs, shape.inputs, shape.channels);
  }

  std::vector<int64_t> out_sizes() const {
    return {shape.archs, shape.images, shape.out_height, shape.out_width, shape.padded};
  }

  template <class T>
  std::vector<State<T>> states(const T* bank, T* grad) const {
    const int64_t size = shape.images * height * width * shape.padded;
    std::vector<State<T>> states(static_cast<size_t>(shape.archs * shape.inputs));
    for (int64_t arch = 0; arch < shape.archs; ++arch) {
      for (int64_t input = 0; input < shape.inputs; ++input) {
        State<T>& s = states[static_cast<size_t>(arch * shape.inputs + input)];
        s.x = bank + (input * shape.archs + arch) * size;
        s.grad = grad == nullptr ? nullptr : grad + (input * shape.archs + arch) * size;
        s.has_grad = true;  // the gradient of the bank starts from zeros
        s.height = height;
        s.width = width;
      }
    }
    return states;
  }
};

std::tuple<Tensor, Tensor> mixed_node(Tensor bank, Tensor inputs, Tensor operations,
                                      Tensor depthwise3, Tensor pointwise3, Tensor depthwise5,
                                      Tensor pointwise5, OptionalTensor reduction, int64_t stride,
                                      bool save) {
  const std::vector<Tensor> convolutions = {depthwise3, pointwise3, depthwise5, pointwise5};
  const NodeCall call(bank, inputs, operations, convolutions, reduction, stride);
  const int64_t bound = call.shape.saved_bound();
  Tensor out = new_tensor(call.out_sizes(), call.dtype, false);
  Tensor saved = new_tensor({save ? bound : 0}, call.dtype, false);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    Node<T> node(call.shape, pointers<T, const T>(convolutions, reduction),
                 inputs.const_data_ptr<int32_t>(), operations.const_data_ptr<int32_t>(),
                 call.shape.edges);
    const Block block = acquire(save ? 0 : static_cast<size_t>(bound) * sizeof(T));
    Bump<T> memory(static_cast<T*>(save ? saved.data_ptr() : block.get()), bound);
    node.place(std::vector<Bump<T>*>(static_cast<size_t>(call.shape.archs), &memory));
    std::vector<T*> outs;
    for (int64_t arch = 0; arch < call.shape.archs; ++arch) {
      outs.push_back(out.mutable_data_ptr<T>() + arch * call.shape.out_size());
    }
    node.forward(call.states(bank.const_data_ptr<T>(), static_cast<T*>(nullptr)), outs);
  });
  return {out, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mixed_node_backward(
    Tensor grad, Tensor bank, Tensor saved, Tensor inputs, Tensor operations, Tensor depthwise3,
    Tensor pointwise3, Tensor depthwise5, Tensor pointwise5, OptionalTensor reduction,
    int64_t stride) {
  const std::vector<Tensor> convolutions = {depthwise3, pointwise3, depthwise5, pointwise5};
  const NodeCall call(bank, inputs, operations, convolutions, reduction, stride);
  check(grad, "grad", call.dtype, call.out_sizes());
  check(saved, "saved", call.dtype, {call.shape.saved_bound()});
  Tensor grad_bank = zeros_like(bank);
  std::vector<Tensor> grads;
  for (const Tensor& t : convolutions) grads.push_back(zeros_like(t));
  Tensor grad_reduction = zeros_or_empty(reduction, call.dtype);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    Node<T> node(call.shape, pointers<T, const T>(convolutions, reduction),
                 inputs.const_data_ptr<int32_t>(), operations.const_data_ptr<int32_t>(),
                 call.shape.edges);
    Bump<T> memory(static_cast<T*>(saved.data_ptr()), call.shape.saved_bound());
    node.place(std::vector<Bump<T>*>(static_cast<size_t>(call.shape.archs), &memory));
    std::vector<State<T>> states =
        call.states(bank.const_data_ptr<T>(), grad_bank.mutable_data_ptr<T>());
    node.backward(states, grad.const_data_ptr<T>(), pointers<T>(grads, grad_reduction),
                  std::vector<bool>(static_cast<size_t>(call.shape.archs)));
  });
  return {grad_bank, grads[0], grads[1], grads[2], grads[3], grad_reduction};
}

struct CellCall {
  CellShape shape;
  ScalarType dtype;

  CellCall(const Tensor& older, const Tensor& newer, const Tensor& inputs, const Tensor& operations,
           const Tensor& older_weight, const Tensor& newer_weight,
           const std::vector<Tensor>& convolutions, const OptionalTensor& reduction,
           const Tensor& output_weight, bool older_is_larger) {
    dtype = check_images(newer, "newer", 5);
    STD_TORCH_CHECK(check_images(older, "older", 5) == dtype,
                    "older and newer must have one dtype");
    STD_TORCH_CHECK(inputs.dim() == 3, "inputs must have 3 dimensions, got ", inputs.dim());
    for (const Tensor* weight : {&older_weight, &newer_weight}) {
      STD_TORCH_CHECK(weight->dim() == 2,
                      "older_weight and newer_weight must have 2 dimensions, got ", weight->dim());
    }
    shape.archs = inputs.size(0);
    shape.nodes = inputs.size(1);
    STD_TORCH_CHECK(shape.archs > 0 && shape.nodes > 0, "inputs must not be empty");
    shape.images = newer.size(1);
    shape.channels = older_weight.size(0);
    shape.padded = padded_channels(shape.channels);
    shape.reduction = reduction.has_value();
    shape.older_is_larger = older_is_larger;
    shape.older = input(older, "older", older_weight);
    shape.newer = input(newer, "newer", newer_weight);
    const int64_t scale = older_is_larger ? 2 : 1;
    STD_TORCH_CHECK((shape.older.height + scale - 1) / scale == shape.newer.height &&
                        (shape.older.width + scale - 1) / scale == shape.newer.width,
                    "older must be ", older_is_larger ? "twice" : "exactly",
                    " as high and wide as newer, got ", shape.older.height, "×", shape.older.width,
                    " and ", shape.newer.height, "×", shape.newer.width);
    STD_TORCH_CHECK(!(older_is_larger || shape.reduction) || shape.channels >= 2,
                    "a factorized reduction needs 2 channels, got ", shape.channels);
    const int64_t step = shape.reduction ? 2 : 1;
    shape.out_height = (shape.newer.height + step - 1) / step;
    shape.out_width = (shape.newer.width + step - 1) / step;
    const int64_t nodes = shape.nodes, channels = shape.channels;
    check(inputs, "inputs", ScalarType::Int, {shape.archs, nodes, 2});
    check(operations, "operations", ScalarType::Int, {shape.archs, nodes, 2});
    check(older_weight, "older_weight", dtype, {channels, shape.older.channels});
    check(newer_weight, "newer_weight", dtype, {channels, shape.newer.channels});
    check(output_weight, "output_weight", dtype, {channels, nodes * channels});
    check_weights(convolutions, reduction, dtype, nodes * (nodes + 3) / 2, 2 * nodes, channels);
  }

  CellInput input(const Tensor& images, const char* name, const Tensor& weight) const {
    const CellInput input = {images.size(0), weight.size(1), images.size(4), images.size(2),
                             images.size(3)};
    STD_TORCH_CHECK(input.archs == 1 || input.archs == shape.archs, "the first dimension of ", name,
                    " must be 1 or the number of architectures, ", shape.archs, ", got ",
                    input.archs);
    STD_TORCH_CHECK(images.size(1) == shape.images, name, " must have ", shape.images,
                    " images, got ", images.size(1));
    STD_TORCH_CHECK(input.padded == padded_channels(input.channels), name, " must have ",
                    padded_channels(input.channels), " channels for a weight of ", input.channels,
                    ", got ", input.padded);
    return input;
  }

  std::vector<int64_t> out_sizes() const {
    return {shape.archs, shape.images, shape.out_height, shape.out_width, shape.padded};
  }
};

template <class T, class P = T>
CellWeights<P> cell_pointers(const Tensor& older, const Tensor& newer,
                             const std::vector<Tensor>& convolutions,
                             const OptionalTensor& reduction, const Tensor& output) {
  CellWeights<P> weights;
  weights.older = static_cast<T*>(older.data_ptr());
  weights.newer = static_cast<T*>(newer.data_ptr());
  weights.output = static_cast<T*>(output.data_ptr());
  weights.operations = pointers<T, P>(convolutions, reduction);
  return weights;
}

std::tuple<Tensor, Tensor> cell(Tensor older, Tensor newer, Tensor inputs, Tensor operations,
                                Tensor older_weight, Tensor newer_weight, Tensor depthwise3,
                                Tensor pointwise3, Tensor depthwise5, Tensor pointwise5,
                                OptionalTensor reduction, Tensor output_weight,
                                bool older_is_larger, bool save) {
  const std::vector<Tensor> convolutions = {depthwise3, pointwise3, depthwise5, pointwise5};
  const CellCall call(older, newer, inputs, operations, older_weight, newer_weight, convolutions,
                      reduction, output_weight, older_is_larger);
  Tensor out = new_tensor(call.out_sizes(), call.dtype, false);
  Tensor saved = new_tensor({save ? call.shape.saved_bound() : 0}, call.dtype, false);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    Cell<T> cell(call.shape,
                 cell_pointers<T, const T>(older_weight, newer_weight, convolutions, reduction,
                                           output_weight),
                 inputs.const_data_ptr<int32_t>(), operations.const_data_ptr<int32_t>());
    cell.forward(older.const_data_ptr<T>(), newer.const_data_ptr<T>(), out.mutable_data_ptr<T>(),
                 save ? saved.mutable_data_ptr<T>() : nullptr);
  });
  return {out, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
cell_backward(Tensor grad, Tensor older, Tensor newer, Tensor output, Tensor saved, Tensor inputs,
              Tensor operations, Tensor older_weight, Tensor newer_weight, Tensor depthwise3,
              Tensor pointwise3, Tensor depthwise5, Tensor pointwise5, OptionalTensor reduction,
              Tensor output_weight, bool older_is_larger, bool wants_older, bool wants_newer) {
  const std::vector<Tensor> convolutions = {depthwise3, pointwise3, depthwise5, pointwise5};
  const CellCall call(older, newer, inputs, operations, older_weight, newer_weight, convolutions,
                      reduction, output_weight, older_is_larger);
  check(grad, "grad", call.dtype, call.out_sizes());
  check(output, "output", call.dtype, call.out_sizes());
  check(saved, "saved", call.dtype, {call.shape.saved_bound()});
  const auto images_like = [&](const Tensor& t, bool wanted) {
    return wanted ? uninitialised_like(t) : new_tensor({0}, call.dtype, false);
  };
  Tensor grad_older = images_like(older, wants_older), grad_newer = images_like(newer, wants_newer);
  Tensor older_grad = zeros_like(older_weight), newer_grad = zeros_like(newer_weight);
  Tensor output_grad = zeros_like(output_weight);
  std::vector<Tensor> grads;
  for (const Tensor& t : convolutions) grads.push_back(zeros_like(t));
  Tensor grad_reduction = zeros_or_empty(reduction, call.dtype);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    Cell<T> cell(call.shape,
                 cell_pointers<T, const T>(older_weight, newer_weight, convolutions, reduction,
                                           output_weight),
                 inputs.const_data_ptr<int32_t>(), operations.const_data_ptr<int32_t>());
    cell.backward(older.const_data_ptr<T>(), newer.const_data_ptr<T>(), output.const_data_ptr<T>(),
                  grad.const_data_ptr<T>(), saved.mutable_data_ptr<T>(),
                  wants_older ? grad_older.mutable_data_ptr<T>() : nullptr,
                  wants_newer ? grad_newer.mutable_data_ptr<T>() : nullptr,
                  cell_pointers<T>(older_grad, newer_grad, grads, grad_reduction, output_grad));
  });
  return {grad_older, grad_newer, older_grad, newer_grad,     grads[0],
          grads[1],   grads[2],   grads[3],   grad_reduction, output_grad};
}

int64_t release() { return static_cast<int64_t>(release_cached()); }

int64_t capability_index() {
  const char* name = capability();
  return std::strcmp(name, "avx512") == 0 ? 2 : std::strcmp(name, "avx2") == 0 ? 1 : 0;
}

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
