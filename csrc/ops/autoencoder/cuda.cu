// The end of an autoencoder's layer in one pass: every number is read once and written once.
#include <algorithm>
#include <cstdint>

#include "ops/autoencoder/cuda.h"
#include "platform/cuda.h"

namespace asng::cuda {

namespace {

constexpr int kThreads = 256;
// Enough to hide the latency of memory; what is larger is gone through in strides.
constexpr int64_t kBlocksPerMultiprocessor = 32;

// What a thread reads and writes at once.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T v[kSize];
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(double x, double& to) { to = x; }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16(x); }
__device__ __forceinline__ void narrow(float x, __half& to) { to = __float2half(x); }

template <bool kSkip, bool kRelu, class T>
__device__ __forceinline__ void finish(T& y, const T& skipped) {
  auto value = widen(y);
  if constexpr (kSkip) value += widen(skipped);
  if constexpr (kRelu) value = value <= 0 ? decltype(value)(0) : value;
  narrow(value, y);
}

// The first `packs` packs, then one by one what is left of `count` numbers.
template <class T, bool kSkip, bool kRelu>
__global__ __launch_bounds__(kThreads) void finish_kernel(T* y, const T* skipped, int64_t packs,
                                                          int64_t count) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  auto* wide = reinterpret_cast<Pack<T>*>(y);
  auto* wide_skipped = reinterpret_cast<const Pack<T>*>(skipped);
  for (int64_t i = first; i < packs; i += stride) {
    Pack<T> value = wide[i];
    const Pack<T> other = kSkip ? wide_skipped[i] : value;
#pragma unroll
    for (int k = 0; k < Pack<T>::kSize; ++k) finish<kSkip, kRelu>(value.v[k], other.v[k]);
    wide[i] = value;
  }
  for (int64_t i = packs * Pack<T>::kSize + first; i < count; i += stride) {
    finish<kSkip, kRelu>(y[i], kSkip ? skipped[i] : y[i]);
  }
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <class T, bool kSkip, bool kRelu>
void start(void* y, const void* skipped, int64_t count, CudaStream stream) {
  const int64_t packs = is_aligned(y) && is_aligned(skipped) ? count / Pack<T>::kSize : 0;
  const int64_t work = std::max(packs, count - packs * Pack<T>::kSize);
  const int64_t most = kBlocksPerMultiprocessor * multiprocessor_count();
  const int64_t blocks = std::min((work + kThreads - 1) / kThreads, most);
  launch(finish_kernel<T, kSkip, kRelu>, static_cast<unsigned int>(blocks), kThreads, 0, stream,
         static_cast<T*>(y), static_cast<const T*>(skipped), packs, count);
}

template <class T>
void finish_of(void* y, const void* skipped, bool relu, int64_t count, CudaStream stream) {
  if (skipped == nullptr) {
    start<T, false, true>(y, skipped, count, stream);
  } else if (relu) {
    start<T, true, true>(y, skipped, count, stream);
  } else {
    start<T, true, false>(y, skipped, count, stream);
  }
}

}  // namespace

void finish_layer(Float type, void* y, const void* skipped, bool relu, int64_t count,
                  CudaStream stream) {
  if (count == 0 || (skipped == nullptr && !relu)) return;
  switch (type) {
    case Float::kFloat32:
      return finish_of<float>(y, skipped, relu, count, stream);
    case Float::kFloat64:
      return finish_of<double>(y, skipped, relu, count, stream);
    case Float::kBFloat16:
      return finish_of<__nv_bfloat16>(y, skipped, relu, count, stream);
    case Float::kHalf:
      return finish_of<__half>(y, skipped, relu, count, stream);
  }
}

}  // namespace asng::cuda
