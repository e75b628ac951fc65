// What the calls of example.h give on the CUDA kernels that run on the CPU.
#pragma once

#include <list>

#include "ops/cell/cuda.h"
#include "ops/mixture/cuda.h"
#include "ops/stem/cuda.h"
#include "tests/ops/example.h"
#include "tests/platform/device_memory.h"

namespace asng::test {

template <class Shape>
cuda::Choices choices(const Example<Shape>& e) {
  return {e.inputs.data(), e.operations.data()};
}

template <class V, class T = cuda::Compute<V>>
void run_on_cuda(const Example<DagShape>& e, bool tf32, Buffers<V>& b) {
  const bool save = !b.saved.empty();
  const auto weights = pointers<OperationWeights<const T>>(b.weights);
  const DeviceMemory scratch(cuda::node_scratch<V>(e.shape, save, false));
  cuda::node_forward<V>(e.shape, tf32, weights, choices(e), b.maps[0].data(), b.out.data(),
                        or_null(b.saved), scratch.get(), nullptr);
  if (!save) return;
  const DeviceMemory other(cuda::node_scratch<V>(e.shape, true, true));
  cuda::node_backward<V>(e.shape, tf32, weights, choices(e), b.maps[0].data(), b.probe.data(),
                         b.saved.data(), b.grad_maps[0].data(),
                         pointers<OperationWeights<T>>(b.grads), other.get(), nullptr);
}

// Null: it is not planned.
struct Plans {
  void *forward = nullptr, *backward = nullptr;
};

template <class V, class T = cuda::Compute<V>>
void run_on_cuda(const Example<CellShape>& e, bool tf32, Buffers<V>& b, const Plans& plans = {}) {
  const bool save = !b.saved.empty(), planned = plans.forward != nullptr;
  const auto weights = pointers<CellWeights<const T>>(b.weights);
  const DeviceMemory scratch(cuda::cell_scratch<V>(e.shape, save, false, planned));
  cuda::cell_forward<V>(e.shape, tf32, weights, choices(e), b.maps[0].data(), b.maps[1].data(),
                        b.out.data(), or_null(b.saved), scratch.get(), nullptr, plans.forward);
  if (!save) return;
  const DeviceMemory other(cuda::cell_scratch<V>(e.shape, true, true, planned));
  cuda::cell_backward<V>(e.shape, tf32, weights, choices(e), b.maps[0].data(), b.maps[1].data(),
                         b.out.data(), b.probe.data(), b.saved.data(), or_null(b.grad_maps[0]),
                         or_null(b.grad_maps[1]), pointers<CellWeights<T>>(b.grads), other.get(),
                         nullptr, false, plans.backward);
}

template <class V>
void run_on_cuda(const Example<StemShape>& e, bool tf32, Buffers<V>& b) {
  const DeviceMemory scratch(cuda::stem_scratch<V>(e.shape, false));
  cuda::stem_forward<V>(e.shape, tf32, b.weights[0].data(), b.weights[1].data(),
                        b.weights[2].data(), b.maps[0].data(), b.out.data(), b.saved.data(),
                        scratch.get(), nullptr);
  const DeviceMemory other(cuda::stem_scratch<V>(e.shape, true));
  cuda::stem_backward<V>(e.shape, tf32, b.weights[1].data(), b.maps[0].data(), b.probe.data(),
                         b.saved.data(), b.grads[0].data(), b.grads[1].data(), b.grads[2].data(),
                         other.get(), nullptr);
}

template <class V, class T = cuda::Compute<V>>
void run_on_cuda(const Example<MixtureShape>& e, bool tf32, Buffers<V>& b) {
  const bool save = !b.saved.empty();
  cuda::MixtureArguments<V> arguments;
  arguments.tf32 = tf32;
  arguments.coefficients = b.weights.back().data();
  std::vector<V*> grad_inputs;
  std::vector<T*> grad_weights;
  for (size_t i = 0; i < b.maps.size(); ++i) {
    arguments.inputs.push_back(b.maps[i].data());
    grad_inputs.push_back(b.grad_maps[i].data());
  }
  for (size_t i = 0; i + 1 < b.weights.size(); ++i) {
    arguments.weights.push_back(b.weights[i].data());
    grad_weights.push_back(b.grads[i].data());
  }
  const DeviceMemory scratch(cuda::mixture_scratch<V>(e.shape, save, false));
  cuda::mixture_forward<V>(e.shape, arguments, b.out.data(), or_null(b.saved), scratch.get(),
                           nullptr);
  if (!save) return;
  const DeviceMemory other(cuda::mixture_scratch<V>(e.shape, true, true));
  cuda::mixture_backward<V>(e.shape, arguments, b.out.data(), b.probe.data(), b.saved.data(),
                            grad_inputs, b.grads.back().data(), grad_weights, other.get(), nullptr);
}

// Values that are saved with feature maps stored as V.
template <class V, class Shape>
int64_t saved_on_cuda(const Shape& shape) {
  if constexpr (std::is_same_v<Shape, MixtureShape>) {
    const SavedSize size = shape.saved_on_cuda();
    return cuda::saved_values<V>(size.statistics, size.feature_maps) +
           shape.maxima_bytes() / static_cast<int64_t>(sizeof(cuda::Compute<V>));
  } else {
    const SavedSize size = shape.saved();
    return cuda::saved_values<V>(size.statistics, size.feature_maps);
  }
}

// With feature maps stored as V.
template <class V, class Shape>
Tensors on_cuda(const Example<Shape>& e, bool tf32 = false, bool save = true) {
  Buffers<V> buffers(e, save ? saved_on_cuda<V>(e.shape) : 0, 0xff);
  run_on_cuda(e, tf32, buffers);
  return buffers.results(save);
}

// Cells that are planned together.
template <class V>
std::vector<Tensors> on_cuda_together(const std::vector<Example<CellShape>>& examples) {
  using T = cuda::Compute<V>;
  std::vector<Buffers<V>> buffers;
  for (const auto& e : examples) buffers.emplace_back(e, saved_on_cuda<V>(e.shape), 0xff);
  std::list<DeviceMemory> memory;
  std::vector<Plans> plans(examples.size());
  for (const bool backward : {false, true}) {
    std::vector<cuda::CellToPlan<V>> cells;
    for (size_t i = 0; i < examples.size(); ++i) {
      const Example<CellShape>& e = examples[i];
      void* const plan = memory.emplace_back(cuda::cell_plan_size<V>(e.shape, backward)).get();
      (backward ? plans[i].backward : plans[i].forward) = plan;
      cells.push_back(
          {e.shape, pointers<CellWeights<const T>>(buffers[i].weights), choices(e), plan});
    }
    cuda::plan_cells<V>(cells, backward, nullptr);
  }
  std::vector<Tensors> results;
  for (size_t i = 0; i < examples.size(); ++i) {
    run_on_cuda(examples[i], false, buffers[i], plans[i]);
    results.push_back(buffers[i].results(true));
  }
  return results;
}

}  // namespace asng::test
