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

// A matrix of sums over pixels, Σ left(pixel, row) · right(pixel, column), in blocks of 4×4. Every
// thread keeps some blocks in registers while the pixels pass by; where there are fewer blocks than
// threads, groups of threads divide the pixels among them. Matrices too large for that are kept in
// `memory`.
template <class T>
class OuterProduct {
 public:
  __device__ OuterProduct(int rows, int columns)
      : across_(columns / 4), count_(rows / 4 * across_) {
    groups_ = count_ < kThreads ? kThreads / count_ : 1;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums_[s][i] = fill_vec4(T(0));
    }
  }

  // Adds `pixels` pixels; rows and columns of a pixel lie `row` values apart from those of the
  // last. `memory` is (rows, memory_row), where this block alone writes; `first` says that nothing
  // was written there yet.
  __device__ void add(const T* left, int left_row, const T* right, int right_row, int pixels,
                      T* memory, int memory_row, bool first) {
    const int t = threadIdx.x;
    if (groups_ > 1) {
      if (t < groups_ * count_) {
        const int group = t / count_;
        add_block(t - group * count_, left, left_row, right, right_row, group, groups_, pixels,
                  sums_[0]);
      }
      return;
    }
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int block = t + s * kThreads;
      if (block < count_) {
        add_block(block, left, left_row, right, right_row, 0, 1, pixels, sums_[s]);
      }
    }
    for (int block = t + kSlots * kThreads; block < count_; block += kThreads) {
      Vec4<T> sums[4];
      T* to = place(block, memory, memory_row);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[i] = first ? fill_vec4(T(0)) : load_vec4(to + i * memory_row);
      add_block(block, left, left_row, right, right_row, 0, 1, pixels, sums);
#pragma unroll
      for (int i = 0; i < 4; ++i) write_vec4(to + i * memory_row, sums[i]);
    }
  }

  // Writes the matrix to `memory`; `shared` has room for 16·kThreads values, and `added` says
  // whether there were any pixels. To be called by all threads.
  __device__ void finish(T* memory, int memory_row, T* shared, bool added) const {
    const int t = threadIdx.x;
    for (int block = t + kSlots * kThreads; !added && block < count_; block += kThreads) {
      for (int i = 0; i < 4; ++i) {
        write_vec4(place(block, memory, memory_row) + i * memory_row, fill_vec4(T(0)));
      }
    }
    if (groups_ == 1) {
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        const int block = t + s * kThreads;
        if (block < count_) {
          T* to = place(block, memory, memory_row);
#pragma unroll
          for (int i = 0; i < 4; ++i) write_vec4(to + i * memory_row, sums_[s][i]);
        }
      }
      return;
    }
    if (t < groups_ * count_) {
#pragma unroll
      for (int i = 0; i < 4; ++i) store_vec4(shared + t * 16 + i * 4, sums_[0][i]);
    }
    __syncthreads();
    for (int item = t; item < count_ * 4; item += kThreads) {
      const int block = item / 4, i = item - block * 4;
      Vec4<T> sum = fill_vec4(T(0));
      for (int g = 0; g < groups_; ++g)
        sum += load_vec4(shared + (g * count_ + block) * 16 + i * 4);
      write_vec4(place(block, memory, memory_row) + i * memory_row, sum);
    }
  }

 private:
  static constexpr int kSlots = 2;

  __device__ T* place(int block, T* memory, int memory_row) const {
    const int down = block / across_;
    return memory + static_cast<int64_t>(down) * 4 * memory_row + (block - down * across_) * 4;
  }

  __device__ void add_block(int block, const T* left, int left_row, const T* right, int right_row,
                            int first, int step, int pixels, Vec4<T> (&sums)[4]) const {
    const int down = block / across_, across = block - down * across_;
    left += down * 4;
    right += across * 4;
#pragma unroll 2
    for (int p = first; p < pixels; p += step) {
      const Vec4<T> a = load_vec4(left + p * left_row), b = load_vec4(right + p * right_row);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i].v[j] += a.v[i] * b.v[j];
      }
    }
  }

  Vec4<T> sums_[kSlots][4];
  int across_, count_, groups_;
};

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

// OuterProduct on the tensor cores: Σ left(pixel, row) · right(pixel, column). Where there
// are fewer tiles than warps, groups of warps divide the pixels.
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
      write_vec4(place(tile, memory, memory_row) + at / kTile * memory_row + at % kTile, sum);
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

// Sums over pixels on the tensor cores or not.
template <bool kTensorCores, class T>
using PixelOuterProduct = std::conditional_t<kTensorCores, TileOuterProduct, OuterProduct<T>>;

}  // namespace asng::cuda
