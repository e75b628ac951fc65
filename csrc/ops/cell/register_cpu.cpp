// The operators of nodes, cells and stacks of cells on the CPU: memory for results, and the call.
// Where they have an argument that allows TF32, a CPU has no use for it.

#include <algorithm>
#include <tuple>
#include <vector>

#include "ops/cell/contract.h"
#include "ops/cell/cpu.h"
#include "platform/cpu_tensors.h"
#include "platform/memory.h"

namespace asng::cpu {
namespace {

std::vector<Tensor> zeros_like(const std::vector<Tensor>& weights) {
  std::vector<Tensor> grads;
  for (const Tensor& weight : weights) grads.push_back(cpu::zeros_like(weight));
  return grads;
}

Tensor new_gradient(const Tensor& t, bool needs_grad) {
  return needs_grad ? uninitialized_like(t) : new_tensor({0}, t.scalar_type(), false);
}

// With `grad`, of the bank, null in a forward pass.
template <class T>
Node<T> make_node(const DagShape& s, const Tensor& bank, T* grad, const Tensor& inputs,
                  const Tensor& operations, const std::vector<Tensor>& weights) {
  Node<T> node(s, pointers<OperationWeights, const T>(weights.data()),
               inputs.const_data_ptr<int32_t>(), operations.const_data_ptr<int32_t>());
  for (int64_t arch = 0; arch < s.archs; ++arch) {
    for (int64_t input = 0; input < s.inputs; ++input) {
      const int64_t offset = (input * s.archs + arch) * s.in_size();
      State<T>& state = node.input(arch, input);
      state.x = bank.const_data_ptr<T>() + offset;
      state.grad = grad == nullptr ? nullptr : grad + offset;
      state.height = s.height;
      state.width = s.width;
    }
  }
  return node;
}

std::tuple<Tensor, Tensor> mixed_node(Tensor bank, Tensor inputs, Tensor operations,
                                      std::vector<Tensor> weights, int64_t stride, bool save,
                                      bool) {
  const NodeCall call(bank, inputs, operations, weights, stride, kBackend);
  const int64_t size = call.saved_size();
  Tensor out = new_tensor(call.out_sizes(), call.dtype, false);
  Tensor saved = new_tensor({save ? size : 0}, call.dtype, false);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    Node<T> node = make_node<T>(call.shape, bank, nullptr, inputs, operations, weights);
    const Block block = acquire(save ? 0 : static_cast<size_t>(size) * sizeof(T));
    node.forward(static_cast<T*>(save ? saved.data_ptr() : block.get()), out.mutable_data_ptr<T>());
  });
  return {out, saved};
}

std::tuple<Tensor, std::vector<Tensor>> mixed_node_backward(Tensor grad, Tensor bank, Tensor saved,
                                                            Tensor inputs, Tensor operations,
                                                            std::vector<Tensor> weights,
                                                            int64_t stride, bool) {
  const NodeCall call(bank, inputs, operations, weights, stride, kBackend);
  const DagShape& s = call.shape;
  call.check_backward(grad, saved, bank);
  Tensor grad_bank = uninitialized_like(bank);
  const std::vector<Tensor> grads = zeros_like(weights);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    Node<T> node =
        make_node<T>(s, bank, grad_bank.mutable_data_ptr<T>(), inputs, operations, weights);
    node.backward(static_cast<T*>(saved.data_ptr()), grad.const_data_ptr<T>(),
                  pointers<OperationWeights, T>(grads.data()));
    for (int64_t arch = 0; arch < s.archs; ++arch) {
      for (int64_t input = 0; input < s.inputs; ++input) {
        const State<T>& state = node.input(arch, input);
        if (!state.has_grad) std::fill_n(state.grad, s.in_size(), T(0));
      }
    }
  });
  return {grad_bank, grads};
}

template <class T>
Cell<T> make_cell(const CellShape& shape, const Tensor& inputs, const Tensor& operations,
                  const std::vector<Tensor>& weights) {
  return Cell<T>(shape, pointers<CellWeights, const T>(weights.data()),
                 inputs.const_data_ptr<int32_t>(), operations.const_data_ptr<int32_t>());
}

std::tuple<Tensor, Tensor> cell(Tensor prev_prev, Tensor prev, Tensor inputs, Tensor operations,
                                std::vector<Tensor> weights, bool prev_prev_is_larger, bool save,
                                bool) {
  const CellCall call(prev_prev, prev, inputs, operations, weights, prev_prev_is_larger, kBackend);
  Tensor out = new_tensor(call.out_sizes(), call.dtype, false);
  Tensor saved = new_tensor({save ? call.saved_size() : 0}, call.dtype, false);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    make_cell<T>(call.shape, inputs, operations, weights)
        .forward(prev_prev.const_data_ptr<T>(), prev.const_data_ptr<T>(), out.mutable_data_ptr<T>(),
                 save ? saved.mutable_data_ptr<T>() : nullptr);
  });
  return {out, saved};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> cell_backward(
    Tensor grad, Tensor prev_prev, Tensor prev, Tensor output, Tensor saved, Tensor inputs,
    Tensor operations, std::vector<Tensor> weights, bool prev_prev_is_larger,
    bool prev_prev_needs_grad, bool prev_needs_grad, bool) {
  const CellCall call(prev_prev, prev, inputs, operations, weights, prev_prev_is_larger, kBackend);
  call.check_backward(grad, saved, prev);
  check_like(output, "output", call.dtype, call.out_sizes(), prev);
  Tensor grad_prev_prev = new_gradient(prev_prev, prev_prev_needs_grad);
  Tensor grad_prev = new_gradient(prev, prev_needs_grad);
  const std::vector<Tensor> grads = zeros_like(weights);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    make_cell<T>(call.shape, inputs, operations, weights)
        .backward(prev_prev.const_data_ptr<T>(), prev.const_data_ptr<T>(),
                  output.const_data_ptr<T>(), grad.const_data_ptr<T>(), saved.mutable_data_ptr<T>(),
                  prev_prev_needs_grad ? grad_prev_prev.mutable_data_ptr<T>() : nullptr,
                  prev_needs_grad ? grad_prev.mutable_data_ptr<T>() : nullptr,
                  pointers<CellWeights, T>(grads.data()));
  });
  return {grad_prev_prev, grad_prev, grads};
}

struct StackCall : CellStackCall {
  StackCall(const Tensor& images, const Tensor& inputs, const Tensor& operations,
            const std::vector<Tensor>& weights)
      : CellStackCall(images, inputs, operations, weights, kBackend) {}

  std::vector<int64_t> out_sizes() const {
    const CellShape& s = shapes.back();
    return {s.archs, s.images, s.out_height, s.out_width, s.padded};
  }
  int64_t saved_size() const { return CellStack<float>::saved_size(shapes); }

  template <class T>
  CellStack<T> stack(const Tensor& inputs, const Tensor& operations,
                     const std::vector<Tensor>& weights) const {
    std::vector<const int32_t*> from, kinds;
    for (const CellShape& s : shapes) {
      from.push_back(of_cell(s, inputs));
      kinds.push_back(of_cell(s, operations));
    }
    return CellStack<T>(shapes, of_cells<const T>(weights), from, kinds);
  }
};

std::tuple<Tensor, Tensor> cells(Tensor images, Tensor inputs, Tensor operations,
                                 std::vector<Tensor> weights, bool save) {
  const StackCall call(images, inputs, operations, weights);
  Tensor out = new_tensor(call.out_sizes(), call.dtype, false);
  Tensor saved = new_tensor({save ? call.saved_size() : 0}, call.dtype, false);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    const T* x = images.const_data_ptr<T>();
    call.stack<T>(inputs, operations, weights)
        .forward(x, x, out.mutable_data_ptr<T>(), save ? saved.mutable_data_ptr<T>() : nullptr);
  });
  return {out, saved};
}

std::tuple<Tensor, std::vector<Tensor>> cells_backward(Tensor grad, Tensor images, Tensor output,
                                                       Tensor saved, Tensor inputs,
                                                       Tensor operations,
                                                       std::vector<Tensor> weights,
                                                       bool images_need_grad) {
  const StackCall call(images, inputs, operations, weights);
  check_like(grad, "grad", call.dtype, call.out_sizes(), images);
  check_like(output, "output", call.dtype, call.out_sizes(), images);
  check_like(saved, "saved", call.dtype, {call.saved_size()}, images);
  Tensor grad_images = new_gradient(images, images_need_grad);
  const std::vector<Tensor> grads = zeros_like(weights);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    T* to = images_need_grad ? grad_images.mutable_data_ptr<T>() : nullptr;
    const T* x = images.const_data_ptr<T>();
    call.stack<T>(inputs, operations, weights)
        .backward(x, x, output.const_data_ptr<T>(), grad.const_data_ptr<T>(),
                  saved.mutable_data_ptr<T>(), to, to, StackCall::of_cells<T>(grads));
  });
  return {grad_images, grads};
}

int64_t release() { return static_cast<int64_t>(release_cached()); }

int64_t capability_index() { return static_cast<int64_t>(capability()); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, CPU, m) {
  m.impl("mixed_node", TORCH_BOX(&mixed_node));
  m.impl("_mixed_node_backward", TORCH_BOX(&mixed_node_backward));
  m.impl("cell", TORCH_BOX(&cell));
  m.impl("_cell_backward", TORCH_BOX(&cell_backward));
  m.impl("cells", TORCH_BOX(&cells));
  m.impl("_cells_backward", TORCH_BOX(&cells_backward));
}

// Without a tensor among their arguments they belong to no device.
STABLE_TORCH_LIBRARY_IMPL(asng, CompositeExplicitAutograd, m) {
  m.impl("_release_cached", TORCH_BOX(&release));
  m.impl("_cpu_capability", TORCH_BOX(&capability_index));
}

}  // namespace asng::cpu
