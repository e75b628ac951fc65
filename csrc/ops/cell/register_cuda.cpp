// The operators of nodes and cells on CUDA devices. Indices stay on the device, unvalidated: see
// kernels/cuda/dag.h for those out of range.

#include <optional>
#include <tuple>
#include <vector>

#include "ops/cell/contract.h"
#include "ops/cell/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

// What kernels can count, and that they read feature maps 16 bytes at a time.
void check_feature_map_limits(const Tensor& t, const char* name) {
  check_limits(t, name);
  check_aligned(t, name);
}

// A launch covers all (architecture, edge) pairs in one dimension of its grid.
void check_pairs(int64_t archs, int64_t edges) {
  STD_TORCH_CHECK(archs * edges <= 65535 / 2, "architectures times edges must be at most ",
                  65535 / 2, ", got ", archs, " times ", edges);
}

NodeCall node_call(const Tensor& bank, const Tensor& inputs, const Tensor& operations,
                   const std::vector<Tensor>& weights, int64_t stride) {
  const NodeCall call(bank, inputs, operations, weights, stride, kBackend);
  check_feature_map_limits(bank, "bank");
  check_pairs(call.shape.archs, call.shape.edges);
  return call;
}

CellCall cell_call(const Tensor& prev_prev, const Tensor& prev, const Tensor& inputs,
                   const Tensor& operations, const std::vector<Tensor>& weights,
                   bool prev_prev_is_larger) {
  const CellCall call(prev_prev, prev, inputs, operations, weights, prev_prev_is_larger, kBackend);
  check_feature_map_limits(prev_prev, "prev_prev");
  check_feature_map_limits(prev, "prev");
  check_pairs(call.shape.archs, 2);
  STD_TORCH_CHECK(inputs.numel() <= 65535, "inputs must have at most 65535 elements, got ",
                  inputs.numel());
  return call;
}

Choices choices_of(const Tensor& inputs, const Tensor& operations) {
  return {data<int32_t>(inputs), data<int32_t>(operations)};
}

Tensor new_gradient(const Tensor& t, bool needs_grad) {
  return needs_grad ? new_like(t) : new_tensor(t, {0});
}

std::tuple<Tensor, Tensor> mixed_node(Tensor bank, Tensor inputs, Tensor operations,
                                      std::vector<Tensor> weights, int64_t stride, bool save,
                                      bool tf32) {
  const NodeCall call = node_call(bank, inputs, operations, weights, stride);
  const DeviceStreamGuard current(bank);
  Tensor out = new_tensor(bank, call.out_sizes());
  Tensor saved = new_saved(bank, save ? call.saved_size() : 0);
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    const Tensor scratch = new_scratch(bank, node_scratch<V>(call.shape, save, false));
    node_forward<V>(call.shape, tf32, pointers<OperationWeights, const T>(weights.data()),
                    choices_of(inputs, operations), data<V>(bank), data<V>(out),
                    save ? data<T>(saved) : nullptr, scratch.data_ptr(), current.stream());
  });
  return {out, saved};
}

std::tuple<Tensor, std::vector<Tensor>> mixed_node_backward(Tensor grad, Tensor bank, Tensor saved,
                                                            Tensor inputs, Tensor operations,
                                                            std::vector<Tensor> weights,
                                                            int64_t stride, bool tf32) {
  const NodeCall call = node_call(bank, inputs, operations, weights, stride);
  call.check_backward(grad, saved, bank);
  check_aligned(grad, "grad");
  check_aligned(saved, "saved");
  const DeviceStreamGuard current(bank);
  Tensor grad_bank = new_like(bank);
  const std::vector<Tensor> grads = new_like(weights);
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    const Tensor scratch = new_scratch(bank, node_scratch<V>(call.shape, true, true));
    node_backward<V>(call.shape, tf32, pointers<OperationWeights, const T>(weights.data()),
                     choices_of(inputs, operations), data<V>(bank), data<V>(grad), data<T>(saved),
                     data<V>(grad_bank), pointers<OperationWeights, T>(grads.data()),
                     scratch.data_ptr(), current.stream());
  });
  return {grad_bank, grads};
}

std::vector<Tensor> cell_plans(Tensor images, Tensor inputs, Tensor operations,
                               std::vector<Tensor> weights, bool backward) {
  const CellStackCall call(images, inputs, operations, weights, kBackend);
  check_pairs(inputs.size(1), 2);
  const DeviceStreamGuard current(images);
  std::vector<Tensor> plans;
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    const auto of_cells = CellStackCall::of_cells<const Compute<V>>(weights);
    std::vector<CellToPlan<V>> cells;
    for (size_t i = 0; i < call.shapes.size(); ++i) {
      const CellShape& s = call.shapes[i];
      plans.push_back(new_scratch(images, cell_plan_size<V>(s, backward)));
      const Choices choices = {call.of_cell(s, inputs), call.of_cell(s, operations)};
      cells.push_back({s, of_cells[i], choices, plans.back().data_ptr()});
    }
    plan_cells<V>(cells, backward, current.stream());
  });
  return plans;
}

// Where it lies; null if there is none.
template <class V>
void* plan_pointer(const std::optional<Tensor>& plan, const CellShape& shape, bool backward,
                   const Tensor& like) {
  if (!plan) return nullptr;
  const int64_t size = static_cast<int64_t>(cell_plan_size<V>(shape, backward));
  check_like(*plan, "plan", ScalarType::Byte, {size}, like);
  return plan->data_ptr();
}

std::tuple<Tensor, Tensor> run_cell(const std::optional<Tensor>& plan, const Tensor& prev_prev,
                                    const Tensor& prev, const Tensor& inputs,
                                    const Tensor& operations, const std::vector<Tensor>& weights,
                                    bool prev_prev_is_larger, bool save, bool tf32) {
  const CellCall call =
      cell_call(prev_prev, prev, inputs, operations, weights, prev_prev_is_larger);
  const DeviceStreamGuard current(prev);
  Tensor out = new_tensor(prev, call.out_sizes());
  Tensor saved = new_saved(prev, save ? call.saved_size() : 0);
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    void* const ready = plan_pointer<V>(plan, call.shape, false, prev);
    const Tensor scratch =
        new_scratch(prev, cell_scratch<V>(call.shape, save, false, ready != nullptr));
    cell_forward<V>(call.shape, tf32, pointers<CellWeights, const T>(weights.data()),
                    choices_of(inputs, operations), data<V>(prev_prev), data<V>(prev), data<V>(out),
                    save ? data<T>(saved) : nullptr, scratch.data_ptr(), current.stream(), ready);
  });
  return {out, saved};
}

std::tuple<Tensor, Tensor> cell(Tensor prev_prev, Tensor prev, Tensor inputs, Tensor operations,
                                std::vector<Tensor> weights, bool prev_prev_is_larger, bool save,
                                bool tf32) {
  return run_cell({}, prev_prev, prev, inputs, operations, weights, prev_prev_is_larger, save,
                  tf32);
}

std::tuple<Tensor, Tensor> planned_cell(Tensor plan, Tensor prev_prev, Tensor prev, Tensor inputs,
                                        Tensor operations, std::vector<Tensor> weights,
                                        bool prev_prev_is_larger, bool save, bool tf32) {
  return run_cell(plan, prev_prev, prev, inputs, operations, weights, prev_prev_is_larger, save,
                  tf32);
}

// Writes the gradient of prev to grad_prev, or adds it, unless that is empty; returns the others.
std::tuple<Tensor, std::vector<Tensor>> gradients_of_cell(
    const Tensor& grad, const Tensor& prev_prev, const Tensor& prev, const Tensor& output,
    const Tensor& saved, const Tensor& inputs, const Tensor& operations,
    const std::vector<Tensor>& weights, bool prev_prev_is_larger, bool prev_prev_needs_grad,
    const Tensor& grad_prev, bool adds_to_prev, const std::optional<Tensor>& plan, bool tf32) {
  const CellCall call =
      cell_call(prev_prev, prev, inputs, operations, weights, prev_prev_is_larger);
  call.check_backward(grad, saved, prev);
  check_like(output, "output", call.dtype, call.out_sizes(), prev);
  check_aligned(grad, "grad");
  check_aligned(saved, "saved");
  const DeviceStreamGuard current(prev);
  Tensor grad_prev_prev = new_gradient(prev_prev, prev_prev_needs_grad);
  const std::vector<Tensor> grads = new_like(weights);
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    void* const ready = plan_pointer<V>(plan, call.shape, true, prev);
    const Tensor scratch =
        new_scratch(prev, cell_scratch<V>(call.shape, true, true, ready != nullptr));
    cell_backward<V>(call.shape, tf32, pointers<CellWeights, const T>(weights.data()),
                     choices_of(inputs, operations), data<V>(prev_prev), data<V>(prev),
                     data<V>(output), data<V>(grad), data<T>(saved),
                     prev_prev_needs_grad ? data<V>(grad_prev_prev) : nullptr,
                     grad_prev.numel() > 0 ? data<V>(grad_prev) : nullptr,
                     pointers<CellWeights, T>(grads.data()), scratch.data_ptr(), current.stream(),
                     adds_to_prev, ready);
  });
  return {grad_prev_prev, grads};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> cell_backward_operator(
    Tensor grad, Tensor prev_prev, Tensor prev, Tensor output, Tensor saved, Tensor inputs,
    Tensor operations, std::vector<Tensor> weights, bool prev_prev_is_larger,
    bool prev_prev_needs_grad, bool prev_needs_grad, bool tf32) {
  Tensor grad_prev = new_gradient(prev, prev_needs_grad);
  const auto [grad_prev_prev, grads] =
      gradients_of_cell(grad, prev_prev, prev, output, saved, inputs, operations, weights,
                        prev_prev_is_larger, prev_prev_needs_grad, grad_prev, false, {}, tf32);
  return {grad_prev_prev, grad_prev, grads};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> cell_backward_onto(
    Tensor grad, Tensor prev_prev, Tensor prev, Tensor output, Tensor saved, Tensor inputs,
    Tensor operations, std::vector<Tensor> weights, bool prev_prev_is_larger,
    bool prev_prev_needs_grad, bool prev_needs_grad, std::optional<Tensor> grad_prev,
    std::optional<Tensor> plan, bool tf32) {
  const auto sizes = prev.sizes();
  if (grad_prev) {
    check_like(*grad_prev, "grad_prev", prev.scalar_type(), {sizes.begin(), sizes.end()}, prev);
    check_aligned(*grad_prev, "grad_prev");
  }
  // What is added to is not a result.
  Tensor new_prev = new_gradient(prev, prev_needs_grad && !grad_prev);
  const auto [grad_prev_prev, grads] = gradients_of_cell(
      grad, prev_prev, prev, output, saved, inputs, operations, weights, prev_prev_is_larger,
      prev_prev_needs_grad, grad_prev.value_or(new_prev), grad_prev.has_value(), plan, tf32);
  return {grad_prev_prev, new_prev, grads};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) {
  m.impl("mixed_node", TORCH_BOX(&mixed_node));
  m.impl("_mixed_node_backward", TORCH_BOX(&mixed_node_backward));
  m.impl("cell", TORCH_BOX(&cell));
  m.impl("_cell_backward", TORCH_BOX(&cell_backward_operator));
  m.impl("_cell_plans", TORCH_BOX(&cell_plans));
  m.impl("_planned_cell", TORCH_BOX(&planned_cell));
  m.impl("_cell_backward_onto", TORCH_BOX(&cell_backward_onto));
}

}  // namespace asng::cuda
