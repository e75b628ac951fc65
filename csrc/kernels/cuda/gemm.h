// Matmuls of matrices in shared memory, by threads in blocks of 4×4, or on the tensor cores:
// factors rounded to TF32 (10-bit mantissa), accumulated in float32. There matrices are cut into
// tiles of 16×16, which the warps of a block divide among them; sizes are multiples of 16, rows
// multiples of 4 apart, and every tile begins at a multiple of 32 bytes. All functions are to be
// called by all threads of a block.
#pragma once

#include <type_traits>

#include "kernels/cuda/dag.h"

namespace asng::cuda {

namespace wmma = nvcuda::wmma;

inline constexpr int kTile = 16, kTileDepth = 8, kWarps = kThreads / 32;
// Tiles that a warp keeps in registers, and the largest matrix that the warps of a block keep.
inline constexpr int kWarpTiles = 4;
inline constexpr int kLargestMatmul = kWarps * kWarpTiles * kTile * kTile;

// The kernel f(std::true_type) with tensor cores, or f(std::false_type) without. Feature maps in
// bfloat16 lose nothing by TF32 that storing the result would keep, so they always use it.
template <class V, class F>
auto choose_kernel(bool tf32, F f) {
  if constexpr (std::is_same_v<V, BFloat16>) {
    return f(std::true_type());
  } else if constexpr (std::is_same_v<V, float>) {
    return tf32 ? f(std::true_type()) : f(std::false_type());
  } else {
    return f(std::false_type());
  }
}

// sums[i] += Σ_k a[i · row + k] · b[k · b_row + 0…3], for four rows of a. `depth` is a multiple
// of 4.
template <class T>
__device__ __forceinline__ void multiply(const T* a, int row, const T* b, int b_row, int depth,
                                         Vec4<T> (&sums)[4]) {
  for (int k = 0; k < depth; k += 4) {
    Vec4<T> left[4], right[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      left[i] = load_vec4(a + i * row + k);
      right[i] = load_vec4(b + static_cast<int64_t>(k + i) * b_row);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[i].v[c] += left[i].v[j] * right[j].v[c];
      }
    }
  }
}

using TileSum = wmma::fragment<wmma::accumulator, kTile, kTile, kTileDepth, float>;
using TileRight = wmma::fragment<wmma::matrix_b, kTile, kTile, kTileDepth, wmma::precision::tf32,
                                 wmma::row_major>;
// Of a matrix as it lies in memory, or of its transpose.
template <bool kTransposed>
using TileLeft = wmma::fragment<wmma::matrix_a, kTile, kTile, kTileDepth, wmma::precision::tf32,
                                std::conditional_t<kTransposed, wmma::col_major, wmma::row_major>>;

template <class Fragment>
__device__ __forceinline__ void load_rounded(Fragment& to, const float* from, int row) {
  wmma::load_matrix_sync(to, from, row);
#pragma unroll
  for (int i = 0; i < to.num_elements; ++i) to.x[i] = wmma::__float_to_tf32(to.x[i]);
}

// rows × columns sums, in the registers of the block's warps: no more than
// kLargestProduct of them.
class TileMatmul {
 public:
  __device__ TileMatmul(int rows, int columns)
      : across_(columns / kTile), count_(rows / kTile * across_) {
#pragma unroll
    for (int s = 0; s < kWarpTiles; ++s) wmma::fill_fragment(sums_[s], 0.0f);
  }

  // += left (rows, depth) · right (depth, columns); `depth` is a multiple of 8.
  __device__ void add(const float* left, int left_row, const float* right, int right_row,
                      int depth) {
#pragma unroll 2
    for (int k = 0; k < depth; k += kTileDepth) {
      TileRight b;
      int loaded = -1;
#pragma unroll
      for (int s = 0; s < kWarpTiles; ++s) {
        const int tile = tile_of(s), down = tile / across_, across = tile - down * across_;
        if (tile >= count_) break;
        if (across != loaded) {
          load_rounded(b, right + static_cast<int64_t>(k) * right_row + across * kTile, right_row);
          loaded = across;
        }
        TileLeft<false> a;
        load_rounded(a, left + down * kTile * left_row + k, left_row);
        wmma::mma_sync(sums_[s], a, b, sums_[s]);
      }
    }
  }

  __device__ void store(float* to, int row) const {
#pragma unroll
    for (int s = 0; s < kWarpTiles; ++s) {
      if (tile_of(s) >= count_) break;
      wmma::store_matrix_sync(place(to, row, tile_of(s)), sums_[s], row, wmma::mem_row_major);
    }
  }

  // Writes the sums to where there are positive values, and zeros elsewhere. Each tile is read and
  // written by one warp.
  __device__ void store_where_positive(float* values, int row) {
#pragma unroll
    for (int s = 0; s < kWarpTiles; ++s) {
      if (tile_of(s) >= count_) break;
      float* at = place(values, row, tile_of(s));
      TileSum value;
      wmma::load_matrix_sync(value, at, row, wmma::mem_row_major);
#pragma unroll
      for (int i = 0; i < value.num_elements; ++i) {
        value.x[i] = value.x[i] > 0.0f ? sums_[s].x[i] : 0.0f;
      }
      wmma::store_matrix_sync(at, value, row, wmma::mem_row_major);
    }
  }

 private:
  // A warp's tiles lie below each other as far as the numbers allow, and have the right factor in
  // common.
  __device__ int tile_of(int s) const { return threadIdx.x / 32 + s * kWarps; }
  __device__ float* place(float* to, int row, int tile) const {
    const int down = tile / across_;
    return to + down * kTile * row + (tile - down * across_) * kTile;
  }

  TileSum sums_[kWarpTiles];
  int across_, count_;
};

// A matrix of sums over pixels, Σ left(pixel, row) · right(pixel, column), in blocks. The workers
// of a thread block, which Blocks says, keep some of them each in registers while the pixels pass
// by; where there are fewer blocks than workers, groups of workers divide the pixels among them.
// Matrices too large for that are kept in `memory`.
template <class Blocks>
class OuterProduct {
 public:
  using T = typename Blocks::Value;

  __device__ OuterProduct(int rows, int columns)
      : across_(columns / kSide), count_(rows / kSide * across_) {
    groups_ = count_ < kWorkers ? kWorkers / count_ : 1;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) Blocks::clear(sums_[s]);
  }

  // Adds `pixels` pixels; rows and columns of a pixel lie `row` values apart from those of the
  // last. `memory` is (rows, memory_row), where this block alone writes; `first` says that nothing
  // was written there yet.
  __device__ void add(const T* left, int left_row, const T* right, int right_row, int pixels,
                      T* memory, int memory_row, bool first) {
    const auto add_block = [&](int block, int group, Sum& sum) {
      const int down = block / across_, across = block - down * across_;
      Blocks::add(left + down * kSide, left_row, right + across * kSide, right_row, group, groups_,
                  pixels, sum);
    };
    const int worker = Blocks::worker();
    if (groups_ > 1) {
      const int group = worker / count_;
      if (group < groups_) add_block(worker - group * count_, group, sums_[0]);
      return;
    }
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int block = worker + s * kWorkers;
      if (block < count_) add_block(block, 0, sums_[s]);
    }
    for (int block = worker + kSlots * kWorkers; block < count_; block += kWorkers) {
      T* to = place(block, memory, memory_row);
      Sum sum;
      if (first) {
        Blocks::clear(sum);
      } else {
        Blocks::load(sum, to, memory_row);
      }
      add_block(block, 0, sum);
      Blocks::write(to, memory_row, sum);
    }
  }

  // Writes the matrix to `memory`; `shared` has room for 16·kThreads values, and `added` says
  // whether there were any pixels. To be called by all threads.
  __device__ void finish(T* memory, int memory_row, T* shared, bool added) const {
    const int worker = Blocks::worker();
    for (int block = worker + kSlots * kWorkers; !added && block < count_; block += kWorkers) {
      Sum zeros;
      Blocks::clear(zeros);
      Blocks::write(place(block, memory, memory_row), memory_row, zeros);
    }
    if (groups_ == 1) {
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        const int block = worker + s * kWorkers;
        if (block < count_) {
          Blocks::write(place(block, memory, memory_row), memory_row, sums_[s]);
        }
      }
      return;
    }
    constexpr int kValues = kSide * kSide;
    if (worker < groups_ * count_) Blocks::store(shared + worker * kValues, kSide, sums_[0]);
    __syncthreads();
    for (int item = threadIdx.x; item < count_ * kValues / 4; item += kThreads) {
      const int block = item / (kValues / 4), at = (item - block * (kValues / 4)) * 4;
      Vec4<T> sum = fill_vec4(T(0));
      for (int g = 0; g < groups_; ++g) {
        sum += load_vec4(shared + (g * count_ + block) * kValues + at);
      }
      write_vec4(place(block, memory, memory_row) + at / kSide * memory_row + at % kSide, sum);
    }
  }

 private:
  using Sum = typename Blocks::Sum;
  static constexpr int kSide = Blocks::kSide, kSlots = Blocks::kSlots, kWorkers = Blocks::kWorkers;

  __device__ T* place(int block, T* memory, int memory_row) const {
    const int down = block / across_;
    return memory + static_cast<int64_t>(down) * kSide * memory_row +
           (block - down * across_) * kSide;
  }

  Sum sums_[kSlots];
  int across_, count_, groups_;
};

// Blocks of 4×4, each a thread's.
template <class T>
struct ThreadBlocks {
  using Value = T;
  using Sum = Vec4<T>[4];
  static constexpr int kSide = 4, kSlots = 2, kWorkers = kThreads;

  static __device__ __forceinline__ int worker() { return threadIdx.x; }
  static __device__ __forceinline__ void clear(Sum& sum) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = fill_vec4(T(0));
  }
  static __device__ __forceinline__ void load(Sum& sum, const T* from, int row) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = load_vec4(from + i * row);
  }
  // To global memory, where `store` is for shared memory.
  static __device__ __forceinline__ void write(T* to, int row, const Sum& sum) {
#pragma unroll
    for (int i = 0; i < 4; ++i) write_vec4(to + i * row, sum[i]);
  }
  static __device__ __forceinline__ void store(T* to, int row, const Sum& sum) {
#pragma unroll
    for (int i = 0; i < 4; ++i) store_vec4(to + i * row, sum[i]);
  }
  // Pixels `first`, `first` + `step` and so on.
  static __device__ __forceinline__ void add(const T* left, int left_row, const T* right,
                                             int right_row, int first, int step, int pixels,
                                             Sum& sum) {
#pragma unroll 2
    for (int p = first; p < pixels; p += step) {
      const Vec4<T> a = load_vec4(left + p * left_row), b = load_vec4(right + p * right_row);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i].v[j] += a.v[i] * b.v[j];
      }
    }
  }
};

// Tiles on the tensor cores, each a warp's; `pixels` is a multiple of 8.
struct WarpTiles {
  using Value = float;
  using Sum = TileSum;
  static constexpr int kSide = kTile, kSlots = kWarpTiles, kWorkers = kWarps;

  static __device__ __forceinline__ int worker() { return threadIdx.x / 32; }
  static __device__ __forceinline__ void clear(Sum& sum) { wmma::fill_fragment(sum, 0.0f); }
  static __device__ __forceinline__ void load(Sum& sum, const float* from, int row) {
    wmma::load_matrix_sync(sum, from, row, wmma::mem_row_major);
  }
  static __device__ __forceinline__ void write(float* to, int row, const Sum& sum) {
    wmma::store_matrix_sync(to, sum, row, wmma::mem_row_major);
  }
  static __device__ __forceinline__ void store(float* to, int row, const Sum& sum) {
    write(to, row, sum);
  }
  static __device__ __forceinline__ void add(const float* left, int left_row, const float* right,
                                             int right_row, int first, int step, int pixels,
                                             Sum& sum) {
#pragma unroll 2
    for (int p = first * kTileDepth; p < pixels; p += step * kTileDepth) {
      TileLeft<true> a;
      TileRight b;
      load_rounded(a, left + p * left_row, left_row);
      load_rounded(b, right + p * right_row, right_row);
      wmma::mma_sync(sum, a, b, sum);
    }
  }
};

// Sums over pixels on the tensor cores or not.
template <bool kTensorCores, class T>
using PixelOuterProduct =
    OuterProduct<std::conditional_t<kTensorCores, WarpTiles, ThreadBlocks<T>>>;

}  // namespace asng::cuda
