// What the calls of example.h give on the CUDA kernels that run on the CPU.
#pragma once

#include "ops/cell/cuda.h"
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

template <class V, class T = cuda::Compute<V>>
void run_on_cuda(const Example<CellShape>& e, bool tf32, Buffers<V>& b) {
  const bool save = !b.saved.empty();
  const auto weights = pointers<CellWeights<const T>>(b.weights);
  const DeviceMemory scratch(cuda::cell_scratch<V>(e.shape, save, false));
  cuda::cell_forward<V>(e.shape, tf32, weights, choices(e), b.maps[0].data(), b.maps[1].data(),
                        b.out.data(), or_null(b.saved), scratch.get(), nullptr);
  if (!save) return;
  const DeviceMemory other(cuda::cell_scratch<V>(e.shape, true, true));
  cuda::cell_backward<V>(e.shape, tf32, weights, choices(e), b.maps[0].data(), b.maps[1].data(),
                         b.out.data(), b.probe.data(), b.saved.data(), or_null(b.grad_maps[0]),
                         or_null(b.grad_maps[1]), pointers<CellWeights<T>>(b.grads), other.get(),
                         nullptr);
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

// With feature maps stored as V.
template <class V, class Shape>
Tensors on_cuda(const Example<Shape>& e, bool tf32 = false, bool save = true) {
  const SavedSize size = e.shape.saved();
  Buffers<V> buffers(e, save ? cuda::saved_values<V>(size.statistics, size.feature_maps) : 0, 0xff);
  run_on_cuda(e, tf32, buffers);
  return buffers.results(save);
}

}  // namespace asng::test
