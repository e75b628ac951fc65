// The operator of mixtures on the CPU: memory for results, and the call.

#include <tuple>
#include <vector>

#include "ops/mixture/contract.h"
#include "ops/mixture/cpu.h"
#include "platform/cpu_tensors.h"

namespace asng::cpu {
namespace {

template <class T>
std::vector<const T*> read_pointers(const std::vector<Tensor>& tensors) {
  std::vector<const T*> pointers;
  for (const Tensor& t : tensors) pointers.push_back(t.const_data_ptr<T>());
  return pointers;
}

template <class T>
std::vector<T*> written_pointers(const std::vector<Tensor>& tensors) {
  std::vector<T*> pointers;
  for (const Tensor& t : tensors) pointers.push_back(static_cast<T*>(t.data_ptr()));
  return pointers;
}

std::vector<Tensor> uninitialized_like(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> all;
  for (const Tensor& t : tensors) all.push_back(cpu::uninitialized_like(t));
  return all;
}

std::tuple<Tensor, Tensor> mixture(std::vector<Tensor> inputs, Tensor coefficients,
                                   std::vector<int64_t> edges, std::vector<Tensor> weights,
                                   int64_t nodes, int64_t stride, bool save, bool) {
  const MixtureCall call(inputs, coefficients, edges, weights, nodes, stride, kBackend);
  Tensor out = new_tensor(call.out_sizes(), call.dtype, false);
  Tensor saved = new_tensor({save ? call.saved_size() : 0}, call.dtype, false);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    Mixture<T>(call.shape, read_pointers<T>(weights), coefficients.const_data_ptr<T>(),
               read_pointers<T>(inputs), out.mutable_data_ptr<T>())
        .forward(save ? saved.mutable_data_ptr<T>() : nullptr);
  });
  return {out, saved};
}

std::tuple<std::vector<Tensor>, Tensor, std::vector<Tensor>> mixture_backward(
    Tensor grad, std::vector<Tensor> inputs, Tensor coefficients, Tensor output, Tensor saved,
    std::vector<int64_t> edges, std::vector<Tensor> weights, int64_t nodes, int64_t stride,
    bool weights_need_grad, bool) {
  const MixtureCall call(inputs, coefficients, edges, weights, nodes, stride, kBackend);
  check_like(grad, "grad", call.dtype, call.out_sizes(), inputs[0]);
  check_like(output, "output", call.dtype, call.out_sizes(), inputs[0]);
  check_like(saved, "saved", compute_type(call.dtype), {call.saved_size()}, inputs[0]);
  const std::vector<Tensor> grad_inputs = uninitialized_like(inputs);
  std::vector<Tensor> grad_weights;
  if (weights_need_grad) grad_weights = uninitialized_like(weights);
  Tensor grad_coefficients = cpu::uninitialized_like(coefficients);
  with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    // A backward pass only reads the nodes and what is saved.
    Mixture<T>(call.shape, read_pointers<T>(weights), coefficients.const_data_ptr<T>(),
               read_pointers<T>(inputs), static_cast<T*>(output.data_ptr()))
        .backward(static_cast<T*>(saved.data_ptr()), grad.const_data_ptr<T>(),
                  written_pointers<T>(grad_inputs), grad_coefficients.mutable_data_ptr<T>(),
                  written_pointers<T>(grad_weights));
  });
  return {grad_inputs, grad_coefficients, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, CPU, m) {
  m.impl("mixture", TORCH_BOX(&mixture));
  m.impl("_mixture_backward", TORCH_BOX(&mixture_backward));
}

}  // namespace asng::cpu
