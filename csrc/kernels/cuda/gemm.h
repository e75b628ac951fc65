// Products of matrices in shared memory on the tensor cores: factors rounded to TF32 (10 bits
// behind the point), sums in float32. Matrices are cut into tiles of 16×16, which the warps of a
// block share; sizes are multiples of 16, rows multiples of 4 apart, and every tile begins at a
// multiple of 32 bytes. All functions are to be called by all threads of a block.
#pragma once

#include <type_traits>

#include "kernels/cuda/dag.h"

#if defined(ASNG_CUDA_ON_CPU)
#include "platform/grid_on_cpu/tensor_cores.h"
#else
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "the CUDA kernels need compute capability 8.0 or newer; see TORCH_CUDA_ARCH_LIST"
#endif
#include <mma.h>
#endif

namespace asng::cuda {

namespace wmma = nvcuda::wmma;

inline constexpr int kTile = 16, kTileDepth = 8, kWarps = kThreads / 32;
// Tiles that a warp keeps in registers, and the largest matrix that the warps of a block keep.
inline constexpr int kWarpTiles = 4;
inline constexpr int kLargestProduct = kWarps * kWarpTiles * kTile * kTile;

// The kernel f(std::true_type) with tensor cores, or f(std::false_type) without. Images in bfloat16
// lose nothing by TF32 that storing the result would keep, so they always use it.
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

// rows × columns sums of products, in the registers of the block's warps: no more than
// kLargestProduct of them.
class TileProduct {
 public:
  __device__ TileProduct(int rows, int columns)
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
  // A warp's tiles lie below each other as far as the numbers allow, and share their right factor.
  __device__ int tile_of(int s) const { return threadIdx.x / 32 + s * kWarps; }
  __device__ float* place(float* to, int row, int tile) const {
    const int down = tile / across_;
    return to + down * kTile * row + (tile - down * across_) * kTile;
  }

  TileSum sums_[kWarpTiles];
  int across_, count_;
};

// OuterProduct (tile.h) on the tensor cores: Σ left(pixel, row) · right(pixel, column). Where there
// are fewer tiles than warps, groups of warps share the pixels.
class TileOuterProduct {
 public:
  __device__ TileOuterProduct(int rows, int columns)
      : across_(columns / kTile), count_(rows / kTile * across_) {
    groups_ = count_ < kWarps ? kWarps / count_ : 1;
#pragma unroll
    for (int s = 0; s < kWarpTiles; ++s) wmma::fill_fragment(sums_[s], 0.0f);
  }

  // `pixels` is a multiple of 8; see OuterProduct::add.
  __device__ void add(const float* left, int left_row, const float* right, int right_row,
                      int pixels, float* memory, int memory_row, bool first) {
    const int warp = threadIdx.x / 32;
    if (groups_ > 1) {
      const int group = warp / count_;
      if (group < groups_) {
        add_tile(warp - group * count_, left, left_row, right, right_row, group, groups_, pixels,
                 sums_[0]);
      }
      return;
    }
#pragma unroll
    for (int s = 0; s < kWarpTiles; ++s) {
      const int tile = warp + s * kWarps;
      if (tile >= count_) break;
      add_tile(tile, left, left_row, right, right_row, 0, 1, pixels, sums_[s]);
    }
    for (int tile = warp + kWarpTiles * kWarps; tile < count_; tile += kWarps) {
      float* to = place(tile, memory, memory_row);
      TileSum sum;
      if (first) {
        wmma::fill_fragment(sum, 0.0f);
      } else {
        wmma::load_matrix_sync(sum, to, memory_row, wmma::mem_row_major);
      }
      add_tile(tile, left, left_row, right, right_row, 0, 1, pixels, sum);
      wmma::store_matrix_sync(to, sum, memory_row, wmma::mem_row_major);
    }
  }

  // See OuterProduct::finish.
  __device__ void finish(float* memory, int memory_row, float* shared, bool added) const {
    const int warp = threadIdx.x / 32;
    for (int tile = warp + kWarpTiles * kWarps; !added && tile < count_; tile += kWarps) {
      TileSum zeros;
      wmma::fill_fragment(zeros, 0.0f);
      wmma::store_matrix_sync(place(tile, memory, memory_row), zeros, memory_row,
                              wmma::mem_row_major);
    }
    if (groups_ == 1) {
#pragma unroll
      for (int s = 0; s < kWarpTiles; ++s) {
        const int tile = warp + s * kWarps;
        if (tile >= count_) break;
        wmma::store_matrix_sync(place(tile, memory, memory_row), sums_[s], memory_row,
                                wmma::mem_row_major);
      }
      return;
    }
    constexpr int kValues = kTile * kTile;
    if (warp < groups_ * count_) {
      wmma::store_matrix_sync(shared + warp * kValues, sums_[0], kTile, wmma::mem_row_major);
    }
    __syncthreads();
    for (int item = threadIdx.x; item < count_ * kValues / 4; item += kThreads) {
      const int tile = item / (kValues / 4), at = (item - tile * (kValues / 4)) * 4;
      Vec4<float> sum = fill_vec4(0.0f);
      for (int g = 0; g < groups_; ++g)
        sum += load_vec4(shared + (g * count_ + tile) * kValues + at);
      write4(place(tile, memory, memory_row) + at / kTile * memory_row + at % kTile, sum);
    }
  }

 private:
  __device__ float* place(int tile, float* memory, int memory_row) const {
    const int down = tile / across_;
    return memory + static_cast<int64_t>(down) * kTile * memory_row +
           (tile - down * across_) * kTile;
  }

  __device__ void add_tile(int tile, const float* left, int left_row, const float* right,
                           int right_row, int first, int step, int pixels, TileSum& sum) const {
    const int down = tile / across_, across = tile - down * across_;
#pragma unroll 2
    for (int p = first * kTileDepth; p < pixels; p += step * kTileDepth) {
      TileLeft<true> a;
      TileRight b;
      load_rounded(a, left + p * left_row + down * kTile, left_row);
      load_rounded(b, right + p * right_row + across * kTile, right_row);
      wmma::mma_sync(sum, a, b, sum);
    }
  }

  TileSum sums_[kWarpTiles];
  int across_, count_, groups_;
};

}  // namespace asng::cuda
