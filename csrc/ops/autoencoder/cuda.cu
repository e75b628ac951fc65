// The end of an autoencoder's layer in one pass: every number is read once and written once. And
// all weights of an autoencoder, to the order in which convolutions read them and back.
#include <algorithm>
#include <cstdint>
#include <stdexcept>
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

// The same, and to TF32 if `rounds`.
template <class Value, class T>
__device__ __forceinline__ void narrow(Value x, bool rounds, T& to) {
  if constexpr (std::is_same_v<T, float>) {
    if (rounds) x = __uint_as_float(to_tf32(x));
  }
  narrow(x, to);
}

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
__device__ __forceinline__ void finish(T& y, const T& added, const T& mask, bool rounds) {
  auto value = widen(y);
  if constexpr (kAdds) value += widen(added);
  if constexpr (kEnd == End::kRelu) value = value <= 0 ? decltype(value)(0) : value;
  if constexpr (kEnd == End::kMask) value = widen(mask) <= 0 ? decltype(value)(0) : value;
  narrow(value, rounds, y);
}

// The first `packs` packs, then one by one what is left of `count` numbers.
template <class T, bool kAdds, End kEnd>
__global__ __launch_bounds__(kThreads) void finish_kernel(T* y, const T* added, const T* mask,
                                                          int64_t packs, int64_t count,
                                                          bool rounds) {
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
      finish<kAdds, kEnd>(value.v[k], other.v[k], sign.v[k], rounds);
    }
    wide[i] = value;
  }
  for (int64_t i = packs * Pack<T>::kSize + first; i < count; i += stride) {
    finish<kAdds, kEnd>(y[i], kAdds ? added[i] : y[i], kEnd == End::kMask ? mask[i] : y[i], rounds);
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
         packs, end.count, end.rounds);
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

constexpr int kMostChanges = 32;
struct ChannelTable {
  ChannelChange changes[kMostChanges];
};

// Of each one of the table a row of blocks.
template <class T>
__global__ __launch_bounds__(kThreads) void change_channels_kernel(const ChannelTable table,
                                                                   int from_channels,
                                                                   int to_channels, int64_t count,
                                                                   bool rounds) {
  wait_for_earlier_kernels();
  const T* from = static_cast<const T*>(table.changes[blockIdx.y].from);
  T* to = static_cast<T*>(table.changes[blockIdx.y].to);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += stride) {
    const int64_t pixel = i / to_channels;
    const int channel = static_cast<int>(i - pixel * to_channels);
    T value = {};
    if (channel < from_channels)
      narrow(widen(from[pixel * from_channels + channel]), rounds, value);
    to[i] = value;
  }
}

// Parameters of a kernel are 4 KiB at most.
constexpr int kMostWeights = 56;
struct WeightTable {
  PaddedWeight weights[kMostWeights];
  unsigned first_block[kMostWeights + 1];  // of each weight; behind the last, the number of all
  int count = 0;
  bool rounds = false;
};
static_assert(sizeof(WeightTable) < 4000);

// A tile of a row, as (channels, taps), is turned in shared memory, so that both arrays are
// accessed in the order in which they lie. An odd number of taps has no bank conflicts.
constexpr int kTile = 1024;
static_assert(kTile > kMostTaps);

// Parts of a sum that are loaded at the same time.
constexpr int kPartsAtOnce = 4;

// A block takes some tiles of a row: of the padded weight, or of the weight, if kCrops.
template <bool kCrops, class W, class T>
__global__ __launch_bounds__(kThreads) void weights_kernel(const WeightTable table) {
  __shared__ std::conditional_t<std::is_same_v<W, double>, double, float> tile[kTile];
  wait_for_earlier_kernels();
  int i = 0;
  while (blockIdx.x >= table.first_block[i + 1]) ++i;
  const PaddedWeight& weight = table.weights[i];
  const int row = static_cast<int>(blockIdx.x - table.first_block[i]), taps = weight.taps;
  const int columns = row < weight.rows ? weight.columns : 0;
  const int64_t padded_columns = weight.padded_columns;
  const int wide = kTile / taps;
  W* plain = static_cast<W*>(weight.weight) + row * weight.pitch;
  T* padded = static_cast<T*>(weight.padded) + row * taps * padded_columns;
  for (int first = static_cast<int>(blockIdx.y) * wide;
       first < (kCrops ? columns : weight.padded_columns);
       first += static_cast<int>(gridDim.y) * wide) {
    // Columns of this tile, and as many of them as there are in both.
    const int all = min(wide, weight.padded_columns - first);
    const int real = max(0, min(all, columns - first));
    if constexpr (kCrops) {
      const int64_t part = weight.padded_rows * taps * padded_columns;
      for (int k = threadIdx.x; k < real * taps; k += kThreads) {
        const int tap = k / real, column = k - tap * real;
        const T* from = padded + tap * padded_columns + first + column;
        decltype(widen(*from)) sum = 0;
        // In their order, but with several loads under way.
        for (int first_part = 0; first_part < weight.parts; first_part += kPartsAtOnce) {
          decltype(sum) some[kPartsAtOnce];
#pragma unroll
          for (int p = 0; p < kPartsAtOnce; ++p) {
            const bool there = first_part + p < weight.parts;
            some[p] = there ? widen(from[(first_part + p) * part]) : 0;
          }
#pragma unroll
          for (int p = 0; p < kPartsAtOnce; ++p) sum += some[p];
        }
        tile[column * taps + tap] = sum;
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
        narrow(column < real ? tile[column * taps + tap] : 0, table.rounds,
               padded[tap * padded_columns + first + column]);
      }
    }
    __syncthreads();
  }
}

// Of turned weights a block takes a tile of rows and of columns with all their taps.
constexpr int kTurnedTile = 8192;
__host__ __device__ constexpr int turned_rows(int taps) { return taps < 256 ? 32 : 8; }
__host__ __device__ constexpr int turned_columns(int taps) {
  return (kTurnedTile / turned_rows(taps) - 1) / taps;
}
static_assert(turned_columns(kMostTaps) > 0);

template <class W, class T>
__global__ __launch_bounds__(kThreads) void turn_weights_kernel(const WeightTable table) {
  __shared__ float tile[kTurnedTile];
  wait_for_earlier_kernels();
  int i = 0;
  while (blockIdx.x >= table.first_block[i + 1]) ++i;
  const PaddedWeight& weight = table.weights[i];
  const int taps = weight.taps, high = turned_rows(taps), wide = turned_columns(taps);
  const int pitch = wide * taps | 1;  // odd: rows begin in banks of their own
  const int block = static_cast<int>(blockIdx.x - table.first_block[i]);
  const int across = (weight.padded_columns + wide - 1) / wide;
  const int first_row = block / across * high, first_column = block % across * wide;
  const W* plain = static_cast<const W*>(weight.weight);
  for (int k = threadIdx.x; k < high * wide * taps; k += kThreads) {
    const int r = k / (wide * taps), in_row = k - r * wide * taps;
    const bool real = first_row + r < weight.rows && first_column + in_row / taps < weight.columns;
    tile[r * pitch + in_row] =
        real ? widen(plain[(first_row + r) * weight.pitch + first_column * taps + in_row]) : 0;
  }
  __syncthreads();
  T* padded = static_cast<T*>(weight.padded);
  for (int k = threadIdx.x; k < high * wide * taps; k += kThreads) {
    const int in_row = k / high, r = k - in_row * high;
    if (first_row + r >= weight.padded_rows ||
        first_column + in_row / taps >= weight.padded_columns)
      continue;
    const int tap = in_row % taps, flip = weight.flipped ? taps - 1 - 2 * tap : 0;
    const int64_t to =
        static_cast<int64_t>(first_column * taps + in_row + flip) * weight.padded_rows;
    narrow(tile[r * pitch + in_row], table.rounds, padded[to + first_row + r]);
  }
}

// A table of some weights and of the blocks that each has, for each launch.
template <class Blocks, class Launch>
void each_table(const std::vector<PaddedWeight>& weights, Blocks blocks, bool rounds,
                Launch launch_table) {
  for (size_t first = 0; first < weights.size(); first += kMostWeights) {
    WeightTable table;
    table.rounds = rounds;
    table.first_block[0] = 0;
    for (size_t i = first; i < std::min(weights.size(), first + kMostWeights); ++i) {
      table.weights[table.count] = weights[i];
      table.first_block[table.count + 1] =
          table.first_block[table.count] + static_cast<unsigned>(blocks(weights[i]));
      ++table.count;
    }
    launch_table(table, table.first_block[table.count]);
  }
}

// Of a row, but no more than leave all blocks some work.
unsigned most_tiles(const std::vector<PaddedWeight>& weights) {
  int most = 1;
  for (const PaddedWeight& weight : weights) {
    const int wide = kTile / weight.taps;
    most = std::max(most, (weight.padded_columns + wide - 1) / wide);
  }
  return static_cast<unsigned>(std::min(most, 8));
}

template <class W, class T>
void start_padding(const std::vector<PaddedWeight>& weights, bool rounds, CudaStream stream) {
  std::vector<PaddedWeight> plain, turned;
  for (const PaddedWeight& weight : weights) (weight.turned ? turned : plain).push_back(weight);
  each_table(
      plain, [](const PaddedWeight& weight) { return weight.padded_rows; }, rounds,
      [&](const WeightTable& table, unsigned blocks) {
        launch_early(weights_kernel<false, W, T>, {blocks, most_tiles(plain)}, kThreads, 0, stream,
                     table);
      });
  const auto tiles = [](const PaddedWeight& weight) {
    const int high = turned_rows(weight.taps), wide = turned_columns(weight.taps);
    return ((weight.padded_rows + high - 1) / high) * ((weight.padded_columns + wide - 1) / wide);
  };
  if constexpr (!std::is_same_v<T, double>) {
    each_table(turned, tiles, rounds, [&](const WeightTable& table, unsigned blocks) {
      launch_early(turn_weights_kernel<W, T>, blocks, kThreads, 0, stream, table);
    });
  } else if (!turned.empty()) {
    throw std::runtime_error("weights in float64 are not turned");
  }
}

template <class W, class T>
void start_cropping(const std::vector<PaddedWeight>& weights, CudaStream stream) {
  each_table(
      weights, [](const PaddedWeight& weight) { return weight.rows; }, false,
      [&](const WeightTable& table, unsigned blocks) {
        launch_early(weights_kernel<true, W, T>, {blocks, most_tiles(weights)}, kThreads, 0, stream,
                     table);
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

void change_channels(Float type, const std::vector<ChannelChange>& changes, int64_t from_channels,
                     int64_t to_channels, int64_t pixels, bool rounds, CudaStream stream) {
  const int64_t count = pixels * to_channels;
  if (count == 0) return;
  with_float(type, [&](auto value) {
    using T = decltype(value);
    for (std::size_t first = 0; first < changes.size(); first += kMostChanges) {
      const std::size_t size = std::min<std::size_t>(changes.size() - first, kMostChanges);
      ChannelTable table;
      std::copy_n(changes.begin() + first, size, table.changes);
      launch_early(change_channels_kernel<T>, {blocks_for(count), static_cast<unsigned>(size)},
                   kThreads, 0, stream, table, static_cast<int>(from_channels),
                   static_cast<int>(to_channels), count, rounds);
    }
  });
}

// Padded weights have the type of weights, or half precision where that is float32.
void pad_weights(Float type, Float padded_type, const std::vector<PaddedWeight>& weights,
                 bool rounds, CudaStream stream) {
  with_float(padded_type, [&](auto to) {
    using T = decltype(to);
    if (type == padded_type) {
      start_padding<T, T>(weights, rounds, stream);
    } else if constexpr (sizeof(T) == 2) {
      start_padding<float, T>(weights, rounds, stream);
    }
  });
}

// Either one may be float32 and the other half precision.
void crop_weights(Float type, Float padded_type, const std::vector<PaddedWeight>& weights,
                  CudaStream stream) {
  with_float(type, [&](auto to) {
    using W = decltype(to);
    with_float(padded_type, [&](auto from) {
      using T = decltype(from);
      if constexpr (std::is_same_v<W, T> || (std::is_same_v<W, float> && sizeof(T) == 2) ||
                    (std::is_same_v<T, float> && sizeof(W) == 2)) {
        start_cropping<W, T>(weights, stream);
      }
    });
  });
}

}  // namespace asng::cuda
