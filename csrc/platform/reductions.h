// Additions to global memory that wait for nothing: what is there is not loaded by the thread. If
// two threads of a launch add to a place, the sum depends on their order.
#pragma once

#include "platform/bfloat16.h"
#include "platform/cuda.h"

namespace asng::cuda {

#if defined(ASNG_CUDA_ON_CPU)

inline void add_in_memory(float* to, const float4& v) {
  to[0] += v.x;
  to[1] += v.y;
  to[2] += v.z;
  to[3] += v.w;
}

// Four bfloat16 values as they lie in memory; each sum is rounded.
inline void add_in_memory(BFloat16* to, const uint2& v) {
  const unsigned words[2] = {v.x, v.y};
  for (int i = 0; i < 4; ++i) {
    const float value = __uint_as_float((words[i / 2] >> (i % 2 * 16)) << 16);
    const float sum = __uint_as_float(static_cast<unsigned>(to[i].bits) << 16) + value;
    to[i].bits = __bfloat16_as_ushort(__float2bfloat16(sum));
  }
}

#else

__device__ __forceinline__ void add_in_memory(float* to, const float4& v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
               : "memory");
#else
  atomicAdd(to, v.x);
  atomicAdd(to + 1, v.y);
  atomicAdd(to + 2, v.z);
  atomicAdd(to + 3, v.w);
#endif
}

__device__ __forceinline__ void add_in_memory(BFloat16* to, const uint2& v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.noftz.v2.bf16x2 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)),
               "r"(v.x), "r"(v.y)
               : "memory");
#else
  // Devices before have none of this type: what is there is loaded.
  const __nv_bfloat162* words = reinterpret_cast<const __nv_bfloat162*>(&v);
  auto* pairs = reinterpret_cast<__nv_bfloat162*>(to);
  const __nv_bfloat162 first = __hadd2(pairs[0], words[0]), second = __hadd2(pairs[1], words[1]);
  pairs[0] = first;
  pairs[1] = second;
#endif
}

#endif

}  // namespace asng::cuda
