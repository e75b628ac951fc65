// The operator of mixtures on CUDA devices.

#include <tuple>
#include <vector>

#include "ops/mixture/contract.h"
#include "ops/mixture/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

MixtureCall mixture_call(const std::vector<Tensor>& inputs, const Tensor& coefficients,
                         const std::vector<int64_t>& edges, const std::vector<Tensor>& weights,
                         int64_t nodes, int64_t stride) {
  const MixtureCall call(inputs, coefficients, edges, weights, nodes, stride, kBackend);
  check_limits(inputs[0], "inputs[0]");
  // A launch covers all edges of a node in one dimension of its grid.
  STD_TORCH_CHECK(edges.size() / 3 <= 65535, "edges must be at most 65535, got ", edges.size() / 3);
  return call;
}

// In values of compute_type(call.dtype): what is kept of stages, then the maxima.
int64_t saved_size(const MixtureCall& call) {
  const int64_t bytes = call.dtype == ScalarType::Double ? 8 : 4;
  return saved_values(call.shape.saved_on_cuda(), call.dtype) + call.shape.maxima_bytes() / bytes;
}

template <class T, class Pointer = T*>
std::vector<Pointer> data_of(const std::vector<Tensor>& tensors) {
  std::vector<Pointer> pointers;
  for (const Tensor& t : tensors) pointers.push_back(data<T>(t));
  return pointers;
}

template <class V>
MixtureArguments<V> arguments_of(const std::vector<Tensor>& inputs, const Tensor& coefficients,
                                 const std::vector<Tensor>& weights, bool tf32) {
  using T = Compute<V>;
  return {tf32, data_of<V, const V*>(inputs), data<T>(coefficients), data_of<T, const T*>(weights)};
}

std::tuple<Tensor, Tensor> mixture(std::vector<Tensor> inputs, Tensor coefficients,
                                   std::vector<int64_t> edges, std::vector<Tensor> weights,
                                   int64_t nodes, int64_t stride, bool save, bool tf32) {
  const MixtureCall call = mixture_call(inputs, coefficients, edges, weights, nodes, stride);
  const Tensor& like = inputs[0];
  const DeviceStreamGuard current(like);
  Tensor out = new_tensor(like, call.out_sizes());
  Tensor saved = new_saved(like, save ? saved_size(call) : 0);
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    const Tensor scratch = new_scratch(like, mixture_scratch<V>(call.shape, save, false));
    mixture_forward<V>(call.shape, arguments_of<V>(inputs, coefficients, weights, tf32),
                       data<V>(out), save ? data<Compute<V>>(saved) : nullptr, scratch.data_ptr(),
                       current.stream());
  });
  return {out, saved};
}

std::tuple<std::vector<Tensor>, Tensor, std::vector<Tensor>> mixture_backward_operator(
    Tensor grad, std::vector<Tensor> inputs, Tensor coefficients, Tensor output, Tensor saved,
    std::vector<int64_t> edges, std::vector<Tensor> weights, int64_t nodes, int64_t stride,
    bool weights_need_grad, bool tf32) {
  const MixtureCall call = mixture_call(inputs, coefficients, edges, weights, nodes, stride);
  const Tensor& like = inputs[0];
  check_like(grad, "grad", call.dtype, call.out_sizes(), like);
  check_like(output, "output", call.dtype, call.out_sizes(), like);
  check_like(saved, "saved", compute_type(call.dtype), {saved_size(call)}, like);
  check_aligned(grad, "grad");
  check_aligned(output, "output");
  check_aligned(saved, "saved");
  const DeviceStreamGuard current(like);
  const std::vector<Tensor> grad_inputs = new_like(inputs);
  std::vector<Tensor> grad_weights;
  if (weights_need_grad) grad_weights = new_like(weights);
  Tensor grad_coefficients = new_like(coefficients);
  with_type(call.dtype, [&](auto type) {
    using V = decltype(type);
    using T = Compute<V>;
    const Tensor scratch = new_scratch(like, mixture_scratch<V>(call.shape, true, true));
    mixture_backward<V>(call.shape, arguments_of<V>(inputs, coefficients, weights, tf32),
                        data<V>(output), data<V>(grad), data<T>(saved), data_of<V>(grad_inputs),
                        data<T>(grad_coefficients), data_of<T>(grad_weights), scratch.data_ptr(),
                        current.stream());
  });
  return {grad_inputs, grad_coefficients, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) {
  m.impl("mixture", TORCH_BOX(&mixture));
  m.impl("_mixture_backward", TORCH_BOX(&mixture_backward_operator));
}

}  // namespace asng::cuda
