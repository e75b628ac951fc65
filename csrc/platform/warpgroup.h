// Products on the tensor cores of Hopper GPUs by whole warpgroups, of 128 threads: both factors
// come from shared memory, and the tensor cores work on their own meanwhile. Compute capability 9.0
// has them, if compiled for sm_90a.
//
// A factor is a matrix of rows of 128 bytes in shared memory, one behind the other, of which an
// instruction takes 32 bytes: 8 values in TF32, or 16 in bfloat16. Row r has its piece p, of 16
// bytes, in place p ^ r % 8. The matrix begins at a multiple of 1,024 bytes.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "platform/cuda.h"

#if defined(ASNG_CUDA_ON_CPU)
#include "platform/grid_on_cpu/warpgroup.h"
#else

namespace asng::cuda {

// Whether this library has them and the current device, too.
inline bool has_warpgroup_products() {
#if defined(ASNG_SM90A)
  return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         device_attribute(cudaDevAttrComputeCapabilityMinor) == 0;
#else
  return false;
#endif
}

// Whether what is being compiled may call the functions below. A kernel that must not does nothing.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kMayMultiplyByWarpgroups = false;
#else
inline constexpr bool kMayMultiplyByWarpgroups = true;
#endif

// What this thread has written to shared memory, and copies that it has waited for, are there for
// products of those that meet it at a barrier thereafter.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// What is done to a sum before and what thereafter stay on their sides. Compilers do not know that
// products begun before change it until they are waited for.
__device__ __forceinline__ void fence_operand(float& sum) {
  asm volatile("" : "+f"(sum)::"memory");
}
// Before the first product of some, behind a fence of their sums.
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Makes a group of the products begun since the last one, and waits for all groups but the last
// kOpen ones. Until then neither sums nor factors may be touched; sums need a fence thereafter.
__device__ __forceinline__ void close_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kOpen>
__device__ __forceinline__ void wait_for_closed_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kOpen) : "memory");
}

// 32 bytes, in depth, of a factor that stands in shared memory, as instructions want it said: its
// address, the distances to the next 64 values of a turned one and from 8 rows to the next 8, and
// the order of pieces. The depth lies in its rows, as said above; or it is turned, in bfloat16
// alone: each row has 64 values of the same depth, and the next 64 of them begin `leading` bytes
// behind.
template <bool kTurned>
struct MatrixDescriptor {
  uint64_t bits;

  __device__ __forceinline__ explicit MatrixDescriptor(const void* first, unsigned leading = 16)
      : bits((static_cast<uint64_t>(__cvta_generic_to_shared(first)) & 0x3ffff) >> 4 |
             uint64_t{leading / 16} << 16 | uint64_t{1024 / 16} << 32 | uint64_t{1} << 62) {}
  // Of what stands so many bytes behind.
  __device__ __forceinline__ MatrixDescriptor behind(int bytes) const {
    MatrixDescriptor other = *this;
    other.bits += bytes / 16;
    return other;
  }
};

// c += a·bᵀ of 64 rows of a and 8·kBeside of b. Warp w of the warpgroup has rows 16·w to 16·w + 15
// of c, as of mma_tf32: lane 4·g + t holds of product j columns 8·j + 2·t and 8·j + 2·t + 1, first
// of row g, then of row g + 8.
//
// A statement cannot be written for any number of registers, so there is one for each.
#define ASNG_C4(j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define ASNG_C16(j) ASNG_C4(j), ASNG_C4(j + 1), ASNG_C4(j + 2), ASNG_C4(j + 3)
#define ASNG_R16_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define ASNG_R16_1 \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ASNG_R16_2 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define ASNG_R16_3 \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define ASNG_R16_4 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define ASNG_PRODUCT(kBeside, Type, Matrix, kShape, registers, kRegisters, kTo, kMore, ...)  \
  __device__ __forceinline__ void multiply_matrices(Type, float (&c)[kBeside][4], Matrix a,  \
                                                    Matrix b) {                              \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" kShape " {" registers "}, %" kRegisters \
                 ", %" kTo ", 1, 1, 1" kMore ";"                                             \
                 : __VA_ARGS__                                                               \
                 : "l"(a.bits), "l"(b.bits));                                                \
  }
#define ASNG_PRODUCTS(kBeside, kColumns, registers, kRegisters, kTo, ...)                       \
  ASNG_PRODUCT(kBeside, float, MatrixDescriptor<false>, kColumns "k8.f32.tf32.tf32", registers, \
               kRegisters, kTo, "", __VA_ARGS__)                                                \
  ASNG_PRODUCT(kBeside, __nv_bfloat16, MatrixDescriptor<false>, kColumns "k16.f32.bf16.bf16",   \
               registers, kRegisters, kTo, ", 0, 0", __VA_ARGS__)                               \
  ASNG_PRODUCT(kBeside, __nv_bfloat16, MatrixDescriptor<true>, kColumns "k16.f32.bf16.bf16",    \
               registers, kRegisters, kTo, ", 1, 1", __VA_ARGS__)
ASNG_PRODUCTS(8, "64", ASNG_R16_0 ASNG_R16_1, "32", "33", ASNG_C16(0), ASNG_C16(4))
ASNG_PRODUCTS(12, "96", ASNG_R16_0 ASNG_R16_1 ASNG_R16_2, "48", "49", ASNG_C16(0), ASNG_C16(4),
              ASNG_C16(8))
ASNG_PRODUCTS(16, "128", ASNG_R16_0 ASNG_R16_1 ASNG_R16_2 ASNG_R16_3, "64", "65", ASNG_C16(0),
              ASNG_C16(4), ASNG_C16(8), ASNG_C16(12))
ASNG_PRODUCTS(20, "160", ASNG_R16_0 ASNG_R16_1 ASNG_R16_2 ASNG_R16_3 ASNG_R16_4, "80", "81",
              ASNG_C16(0), ASNG_C16(4), ASNG_C16(8), ASNG_C16(12), ASNG_C16(16))
#undef ASNG_PRODUCTS
#undef ASNG_PRODUCT
#undef ASNG_R16_0
#undef ASNG_R16_1
#undef ASNG_R16_2
#undef ASNG_R16_3
#undef ASNG_R16_4
#undef ASNG_C16
#undef ASNG_C4

}  // namespace asng::cuda

#endif

namespace asng::cuda {

inline void require_warpgroup_products() {
  if (has_warpgroup_products()) return;
  throw std::runtime_error(
      "products by warpgroups (wgmma) take a GPU of compute capability 9.0 and a build for it, by "
      "TORCH_CUDA_ARCH_LIST with 9.0");
}

}  // namespace asng::cuda
