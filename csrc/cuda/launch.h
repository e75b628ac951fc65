// Everything a .cu file needs to launch its kernels. The same file compiles with nvcc and, with
// ASNG_CUDA_ON_CPU defined, as plain C++, where a launch runs the grid at once on the calling
// thread (csrc/tests/cuda_on_cpu.h). What only a device can do, such as asynchronous copies or
// tensor cores, belongs between #if !defined(ASNG_CUDA_ON_CPU), beside a path that does without.
//
// Kernels are called by launch() instead of <<<>>>, and get their dynamic shared memory from
// dynamic_shared<T>() instead of an extern array.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "stream.h"

#if defined(ASNG_CUDA_ON_CPU)
#include "../tests/cuda_on_cpu.h"
#else
#include <cuda_runtime.h>
#endif

namespace asng::cuda {

// Shared memory that every kernel may use without asking for more.
constexpr std::size_t kPlainSharedBytes = 48 * 1024;

#if defined(ASNG_CUDA_ON_CPU)

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(cuda_on_cpu::dynamic_shared());
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes, CudaStream,
            A&&... arguments) {
  const std::tuple<P...> values(std::forward<A>(arguments)...);
  cuda_on_cpu::run(grid, block, shared_bytes, [&] { std::apply(kernel, values); });
}

// Few, so that small tests also reach the code for more work than multiprocessors.
inline int multiprocessor_count() { return 3; }
inline std::size_t largest_shared_bytes() { return 96 * 1024; }

inline void fill_zero(void* memory, std::size_t bytes, CudaStream) {
  std::memset(memory, 0, bytes);
}

#else

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + what + " failed: " +
                             cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
  }
}

template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char asng_dynamic_shared[];
  return reinterpret_cast<T*>(asng_dynamic_shared);
}

// Queues kernel(arguments...) on the stream of the current device; throws std::runtime_error if the
// launch fails. Errors inside the kernel show up later, as CUDA has it.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes,
            CudaStream stream, A&&... arguments) {
  std::tuple<P...> values(std::forward<A>(arguments)...);
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > kPlainSharedBytes) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          "asking for shared memory");
  }
  std::apply(
      [&](auto&... value) {
        // One more, because an array must not be empty.
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))..., nullptr};
        check(cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream),
              "a kernel launch");
      },
      values);
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&value, attribute, device), "asking for a device attribute");
  return value;
}

inline int multiprocessor_count() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// Dynamic and static shared memory that a block of the current device may use.
inline std::size_t largest_shared_bytes() {
  return static_cast<std::size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

inline void fill_zero(void* memory, std::size_t bytes, CudaStream stream) {
  check(cudaMemsetAsync(memory, 0, bytes, stream), "filling memory with zeros");
}

#endif

}  // namespace asng::cuda
