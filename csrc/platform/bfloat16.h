// The types in which CUDA kernels store feature maps, bfloat16 among them, and those in which they
// compute; kernels/cuda/vec4.h loads and stores them. Without the toolkit's headers.
#pragma once

#include <cstdint>

namespace asng::cuda {

// float32 and float64 are computed with as they are, bfloat16 in float32. Kernels are templates of
// the stored type V and compute in Compute<V>, the type of weights, statistics and their gradients.
struct BFloat16 {
  uint16_t bits;
};

template <class V>
struct ComputeOf {
  using Type = V;
};
template <>
struct ComputeOf<BFloat16> {
  using Type = float;
};
template <class V>
using Compute = typename ComputeOf<V>::Type;

// Explicit instantiations for every stored type, of which LIST(V) gives one's.
#define ASNG_EVERY_STORED_TYPE(LIST) LIST(float) LIST(double) LIST(BFloat16)

// What a forward pass keeps for the backward pass is one array of Compute<V>: statistics and then
// feature maps, whose values lie there as they are stored. Both counts are multiples of 16, so that
// every piece begins at a multiple of 16 bytes. Returns the size of the array.
template <class V>
constexpr int64_t saved_values(int64_t statistics, int64_t image_values) {
  return statistics +
         image_values * static_cast<int64_t>(sizeof(V)) / static_cast<int64_t>(sizeof(Compute<V>));
}

}  // namespace asng::cuda
