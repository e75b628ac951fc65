// The operators of a stack of cells on the CPU.

#include <tuple>
#include <vector>

#include "ops/cell/contract.h"
#include "ops/cell/cpu_stack.h"

namespace asng::cpu {
namespace {

// Tensors of a cell in the list of weights.
constexpr size_t kPerCell = 8;

struct CellStackCall {
  ScalarType dtype;
  int64_t archs = 0, nodes = 0;
  std::vector<CellTensors> weights;
  std::vector<CellShape> shapes;

  CellStackCall(const Tensor& images, const Tensor& inputs, const Tensor& operations,
                const std::vector<Tensor>& tensors) {
    dtype = check_images(images, "images", 5);
    STD_TORCH_CHECK(inputs.dim() == 4, "inputs must have 4 dimensions, got ", inputs.dim());
    archs = inputs.size(1);
    nodes = inputs.size(2);
    check(inputs, "inputs", ScalarType::Int, {2, archs, nodes, 2});
    check(operations, "operations", ScalarType::Int, {2, archs, nodes, 2});
    STD_TORCH_CHECK(!tensors.empty() && tensors.size() % kPerCell == 0, "weights must be ",
                    kPerCell, " for each cell, got ", tensors.size());
    CellInput prev_prev = cell_input(images), prev = prev_prev;
    bool prev_prev_is_larger = false;
    for (size_t i = 0; i < tensors.size(); i += kPerCell) {
      const auto at = tensors.begin() + static_cast<std::ptrdiff_t>(i);
      CellTensors w = {at[0], at[1], {at[2], at[3], at[4], at[5]}, {}, at[7]};
      if (at[6].numel() != 0) w.reduction = at[6];
      const CellShape s =
          cell_shape(archs, nodes, images.size(1), prev_prev, prev, w, prev_prev_is_larger, dtype);
      prev_prev = prev;
      prev = {archs, s.channels, s.padded, s.out_height, s.out_width};
      prev_prev_is_larger = s.reduction;
      weights.push_back(w);
      shapes.push_back(s);
    }
  }

  std::vector<int64_t> out_sizes() const {
    const CellShape& s = shapes.back();
    return {archs, s.images, s.out_height, s.out_width, s.padded};
  }

  template <class T>
  CellStack<T> stack(const Tensor& inputs, const Tensor& operations) const {
    std::vector<CellWeights<const T>> pointers;
    std::vector<const int32_t*> from, kinds;
    for (size_t i = 0; i < shapes.size(); ++i) {
      pointers.push_back(weights[i].pointers<T, const T>());
      // Normal cells come first, then reduction cells.
      const int64_t offset = shapes[i].reduction ? archs * nodes * 2 : 0;
      from.push_back(inputs.const_data_ptr<int32_t>() + offset);
      kinds.push_back(operations.const_data_ptr<int32_t>() + offset);
    }
    return CellStack<T>(shapes, pointers, from, kinds);
  }
};

std::tuple<Tensor, Tensor> cells(Tensor images, Tensor inputs, Tensor operations,
                                 std::vector<Tensor> weights, bool save) {
  const CellStackCall call(images, inputs, operations, weights);
  Tensor out = new_tensor(call.out_sizes(), call.dtype, false);
  Tensor saved =
      new_tensor({save ? CellStack<float>::saved_bound(call.shapes) : 0}, call.dtype, false);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    const T* x = images.const_data_ptr<T>();
    call.stack<T>(inputs, operations)
        .forward(x, x, out.mutable_data_ptr<T>(), save ? saved.mutable_data_ptr<T>() : nullptr);
  });
  return {out, saved};
}

std::tuple<Tensor, std::vector<Tensor>> cells_backward(Tensor grad, Tensor images, Tensor output,
                                                       Tensor saved, Tensor inputs,
                                                       Tensor operations,
                                                       std::vector<Tensor> weights,
                                                       bool images_need_grad) {
  const CellStackCall call(images, inputs, operations, weights);
  check(grad, "grad", call.dtype, call.out_sizes());
  check(output, "output", call.dtype, call.out_sizes());
  check(saved, "saved", call.dtype, {CellStack<float>::saved_bound(call.shapes)});
  Tensor grad_images =
      images_need_grad ? uninitialized_like(images) : new_tensor({0}, call.dtype, false);
  std::vector<CellTensors> grads;
  for (const CellTensors& w : call.weights) grads.push_back(zeros_like(w));
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    std::vector<CellWeights<T>> pointers;
    for (const CellTensors& g : grads) pointers.push_back(g.pointers<T>());
    T* to = images_need_grad ? grad_images.mutable_data_ptr<T>() : nullptr;
    const T* x = images.const_data_ptr<T>();
    call.stack<T>(inputs, operations)
        .backward(x, x, output.const_data_ptr<T>(), grad.const_data_ptr<T>(),
                  saved.mutable_data_ptr<T>(), to, to, pointers);
  });
  std::vector<Tensor> all;
  for (const CellTensors& g : grads) {
    all.insert(all.end(), {g.prev_prev, g.prev});
    all.insert(all.end(), g.convolutions.begin(), g.convolutions.end());
    all.push_back(g.reduction.has_value() ? *g.reduction : new_tensor({0}, call.dtype, false));
    all.push_back(g.output);
  }
  return {grad_images, all};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, CPU, m) {
  m.impl("cells", TORCH_BOX(&cells));
  m.impl("_cells_backward", TORCH_BOX(&cells_backward));
}

}  // namespace asng::cpu
