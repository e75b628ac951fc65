// The end of an autoencoder's layer in one pass: every number is read once and written once. And
// all weights of an autoencoder, to the order in which convolutions read them and back.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "ops/autoencoder/cuda.h"
#include "platform/cuda.h"

namespace asng::cuda {

namespace {

constexpr int kThreads = 256;
// Enough to hide the latency of memory; what is larger takes a grid-stride loop.
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

// Calls f with a value of the type.
template <class F>
void with_float(Float type, F f) {
  switch (type) {
    case Float::kFloat32:
      return f(float());
    case Float::kFloat64:
      return f(double());
    case Float::kBFloat16:
      return f(__nv_bfloat16());
    case Float::kHalf:
      return f(__half());
  }
}

unsigned int blocks_for(int64_t work) {
  const int64_t most = kBlocksPerMultiprocessor * multiprocessor_count();
  return static_cast<unsigned int>(std::min((work + kThreads - 1) / kThreads, most));
}

// What is done to a sum.
enum class End { kNothing, kRelu, kMask };

template <bool kAdds, End kEnd, class T>
__device__ __forceinline__ void finish(T& y, const T& added, const T& mask) {
  auto value = widen(y);
  if constexpr (kAdds) value += widen(added);
  if constexpr (kEnd == End::kRelu) value = value <= 0 ? decltype(value)(0) : value;
  if constexpr (kEnd == End::kMask) value = widen(mask) <= 0 ? decltype(value)(0) : value;
  narrow(value, y);
}

// The first `packs` packs, then one by one what is left of `count` numbers.
template <class T, bool kAdds, End kEnd>
__global__ __launch_bounds__(kThreads) void finish_kernel(T* y, const T* added, const T* mask,
                                                          int64_t packs, int64_t count) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  auto* wide = reinterpret_cast<Pack<T>*>(y);
  auto* wide_added = reinterpret_cast<const Pack<T>*>(added);
  auto* wide_mask = reinterpret_cast<const Pack<T>*>(mask);
  for (int64_t i = first; i < packs; i += stride) {
    Pack<T> value = wide[i];
    const Pack<T> other = kAdds ? wide_added[i] : value;
    const Pack<T> sign = kEnd == End::kMask ? wide_mask[i] : value;
#pragma unroll
    for (int k = 0; k < Pack<T>::kSize; ++k) {
      finish<kAdds, kEnd>(value.v[k], other.v[k], sign.v[k]);
    }
    wide[i] = value;
  }
  for (int64_t i = packs * Pack<T>::kSize + first; i < count; i += stride) {
    finish<kAdds, kEnd>(y[i], kAdds ? added[i] : y[i], kEnd == End::kMask ? mask[i] : y[i]);
  }
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <class T, bool kAdds, End kEnd>
void start(const LayerEnd& end, CudaStream stream) {
  const bool aligned = is_aligned(end.y) && is_aligned(end.added) && is_aligned(end.mask);
  const int64_t packs = aligned ? end.count / Pack<T>::kSize : 0;
  const int64_t work = std::max(packs, end.count - packs * Pack<T>::kSize);
  launch(finish_kernel<T, kAdds, kEnd>, blocks_for(work), kThreads, 0, stream,
         static_cast<T*>(end.y), static_cast<const T*>(end.added), static_cast<const T*>(end.mask),
         packs, end.count);
}

template <class T, bool kAdds>
void start(const LayerEnd& end, CudaStream stream) {
  if (end.mask != nullptr) {
    start<T, kAdds, End::kMask>(end, stream);
  } else if (end.relu) {
    start<T, kAdds, End::kRelu>(end, stream);
  } else if constexpr (kAdds) {
    start<T, kAdds, End::kNothing>(end, stream);
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void change_channels_kernel(const T* from, int from_channels,
                                                                   T* to, int to_channels,
                                                                   int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += stride) {
    const int64_t pixel = i / to_channels;
    const int channel = static_cast<int>(i - pixel * to_channels);
    T value = {};
    if (channel < from_channels) value = from[pixel * from_channels + channel];
    to[i] = value;
  }
}

// Parameters of a kernel are 4 KiB at most.
constexpr int kMostWeights = 64;
struct WeightTable {
  PaddedWeight weights[kMostWeights];
  unsigned first_row[kMostWeights + 1];  // of each weight; behind the last, the number of all
  int count = 0;
};
static_assert(sizeof(WeightTable) < 4000);

// A tile of a row, as (channels, taps), is turned in shared memory, so that both arrays are
// accessed in the order in which they lie. An odd number of taps has no bank conflicts.
constexpr int kTile = 4096;
static_assert(kTile > kMostTaps);

// A block is a row: of the padded weight, or of the weight, if kCrops.
template <bool kCrops, class W, class T>
__global__ __launch_bounds__(kThreads) void weights_kernel(const WeightTable table) {
  __shared__ std::conditional_t<std::is_same_v<W, double>, double, float> tile[kTile];
  int i = 0;
  while (blockIdx.x >= table.first_row[i + 1]) ++i;
  const PaddedWeight& weight = table.weights[i];
  const int row = static_cast<int>(blockIdx.x - table.first_row[i]), taps = weight.taps;
  const int columns = row < weight.rows ? weight.columns : 0;
  const int64_t padded_columns = weight.padded_columns;
  const int wide = kTile / taps;
  W* plain = static_cast<W*>(weight.weight) + row * weight.pitch;
  T* padded = static_cast<T*>(weight.padded) + row * taps * padded_columns;
  for (int first = 0; first < (kCrops ? columns : weight.padded_columns); first += wide) {
    // Columns of this tile, and as many of them as there are in both.
    const int all = min(wide, weight.padded_columns - first);
    const int real = max(0, min(all, columns - first));
    if constexpr (kCrops) {
      for (int k = threadIdx.x; k < real * taps; k += kThreads) {
        const int tap = k / real, column = k - tap * real;
        tile[column * taps + tap] = widen(padded[tap * padded_columns + first + column]);
      }
    } else {
      for (int k = threadIdx.x; k < real * taps; k += kThreads) {
        tile[k] = widen(plain[first * taps + k]);
      }
    }
    __syncthreads();
    if constexpr (kCrops) {
      for (int k = threadIdx.x; k < real * taps; k += kThreads) {
        narrow(tile[k], plain[first * taps + k]);
      }
    } else {
      for (int k = threadIdx.x; k < all * taps; k += kThreads) {
        const int tap = k / all, column = k - tap * all;
        narrow(column < real ? tile[column * taps + tap] : 0,
               padded[tap * padded_columns + first + column]);
      }
    }
    __syncthreads();
  }
}

template <bool kCrops, class W, class T>
void start_weights(const std::vector<PaddedWeight>& weights, CudaStream stream) {
  for (size_t first = 0; first < weights.size(); first += kMostWeights) {
    WeightTable table;
    table.first_row[0] = 0;
    for (size_t i = first; i < std::min(weights.size(), first + kMostWeights); ++i) {
      const int rows = kCrops ? weights[i].rows : weights[i].padded_rows;
      table.weights[table.count] = weights[i];
      table.first_row[table.count + 1] = table.first_row[table.count] + static_cast<unsigned>(rows);
      ++table.count;
    }
    launch(weights_kernel<kCrops, W, T>, table.first_row[table.count], kThreads, 0, stream, table);
  }
}

// Padded weights have the type of weights, or half precision where that is float32.
template <bool kCrops>
void start_weights(Float type, Float padded_type, const std::vector<PaddedWeight>& weights,
                   CudaStream stream) {
  with_float(padded_type, [&](auto to) {
    using T = decltype(to);
    if (type == padded_type) {
      start_weights<kCrops, T, T>(weights, stream);
    } else if constexpr (sizeof(T) == 2) {
      start_weights<kCrops, float, T>(weights, stream);
    }
  });
}

}  // namespace

void finish_layer(Float type, const LayerEnd& end, CudaStream stream) {
  if (end.count == 0) return;
  with_float(type, [&](auto value) {
    using T = decltype(value);
    end.added != nullptr ? start<T, true>(end, stream) : start<T, false>(end, stream);
  });
}

void change_channels(Float type, const void* from, int64_t from_channels, void* to,
                     int64_t to_channels, int64_t pixels, CudaStream stream) {
  const int64_t count = pixels * to_channels;
  if (count == 0) return;
  with_float(type, [&](auto value) {
    using T = decltype(value);
    launch(change_channels_kernel<T>, blocks_for(count), kThreads, 0, stream,
           static_cast<const T*>(from), static_cast<int>(from_channels), static_cast<T*>(to),
           static_cast<int>(to_channels), count);
  });
}

void pad_weights(Float type, Float padded_type, const std::vector<PaddedWeight>& weights,
                 CudaStream stream) {
  start_weights<false>(type, padded_type, weights, stream);
}

void crop_weights(Float type, Float padded_type, const std::vector<PaddedWeight>& weights,
                  CudaStream stream) {
  start_weights<true>(type, padded_type, weights, stream);
}

}  // namespace asng::cuda
