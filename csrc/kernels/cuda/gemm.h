// Matmuls of matrices in shared memory, by threads in blocks of 4×4, or on the tensor cores:
// factors rounded to TF32 (10-bit mantissa), accumulated in float32. There matrices are cut into
// tiles of 16×16, which the warps of a block divide among them; sizes are multiples of 16. Rows are
// multiples of 4 apart; where they are 4 more than a multiple of 16, no two lanes ask a bank for
// different words. All functions are to be called by all threads of a block.
#pragma once

#include <type_traits>

#include "kernels/cuda/dag.h"

namespace asng::cuda {

inline constexpr int kTile = 16, kTileDepth = 8, kWarps = kThreads / 32;
// Tiles that a warp keeps in registers.
inline constexpr int kWarpTiles = 4;

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

// A lane's part of a tile of sums. Column n of the first product of fragments is the tile's column
// 2·n, and of the second 2·n + 1, so that a lane reads two neighbors of the right factor at once
// and holds four neighbors of rows g and g + 8, where its number is 4·g + t.
struct TileSum {
  float products[2][4];

  // Of row g + 8·half, columns 4·t to 4·t + 3.
  __device__ __forceinline__ Vec4<float> quad(int half) const {
    return {{products[0][2 * half], products[1][2 * half], products[0][2 * half + 1],
             products[1][2 * half + 1]}};
  }
  __device__ __forceinline__ void set_quad(int half, const Vec4<float>& value) {
#pragma unroll
    for (int i = 0; i < 4; ++i) products[i % 2][2 * half + i / 2] = value.v[i];
  }
};
__device__ __forceinline__ int lane_row() { return threadIdx.x % 32 / 4; }
__device__ __forceinline__ int lane_column() { return threadIdx.x % 4; }

// A factor that lies in shared memory is rounded where it is written, and not by every warp that
// reads it.
template <bool kTensorCores, class T>
__device__ __forceinline__ Vec4<T> as_factor(Vec4<T> value) {
  if constexpr (kTensorCores) {
#pragma unroll
    for (int i = 0; i < 4; ++i) value.v[i] = __uint_as_float(to_tf32(value.v[i]));
  }
  return value;
}

// Eight rows of the right factor, of which a lane has two, and two columns of each.
struct TileRight {
  unsigned columns[2][2];

  __device__ TileRight(const float* first, const float* second, bool rounded) {
    const float2 a = *reinterpret_cast<const float2*>(first),
                 b = *reinterpret_cast<const float2*>(second);
    const auto bits = [&](float x) { return rounded ? __float_as_uint(x) : to_tf32(x); };
    columns[0][0] = bits(a.x);
    columns[0][1] = bits(b.x);
    columns[1][0] = bits(a.y);
    columns[1][1] = bits(b.y);
  }
};

__device__ __forceinline__ void add_tile(TileSum& sum, const float (&left)[4],
                                         const TileRight& right) {
  const unsigned a[4] = {__float_as_uint(left[0]), __float_as_uint(left[1]),
                         __float_as_uint(left[2]), __float_as_uint(left[3])};
  mma_tf32(sum.products[0], a, right.columns[0]);
  mma_tf32(sum.products[1], a, right.columns[1]);
}

// rows × columns sums Σ left(row, k) · right(k, column) in the registers of a block's threads.
// Those of more than they hold take several passes. Both numbers are multiples of 4.
template <bool kTensorCores, class T>
class Matmul {
 public:
  __device__ Matmul(int rows, int columns, int pass = 0)
      : first_(pass * kSlots * kThreads + threadIdx.x),
        across_(columns / 4),
        count_(rows / 4 * across_) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums_[s][i] = fill_vec4(T(0));
    }
  }
  __device__ static int passes(int rows, int columns) {
    return (rows * columns - 1) / (16 * kSlots * kThreads) + 1;
  }

  // += left (rows, depth) · right (depth, columns)
  __device__ void add(const T* left, int left_row, const T* right, int right_row, int depth) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int block = first_ + s * kThreads, down = block / across_;
      if (block >= count_) continue;
      multiply(left + down * 4 * left_row, left_row, right + (block - down * across_) * 4,
               right_row, depth, sums_[s]);
    }
  }

  // Calls f(row, column, value) for all of four neighboring columns that this thread has.
  template <class F>
  __device__ void each(F f) const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int block = first_ + s * kThreads, down = block / across_;
      if (block >= count_) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) f(down * 4 + i, (block - down * across_) * 4, sums_[s][i]);
    }
  }

  // Likewise, and writes Σ and Σ² of what f returns over each of the groups of rows to shared
  // memory (groups, 2, columns).
  template <class F>
  __device__ void sum_each(T* groups, F f) const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int block = first_ + s * kThreads, down = block / across_;
      if (block >= count_) continue;
      const int column = (block - down * across_) * 4;
      Vec4<T> sum = fill_vec4(T(0)), squares = fill_vec4(T(0));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Vec4<T> kept = f(down * 4 + i, column, sums_[s][i]);
        sum += kept;
        add_product(squares, kept, kept);
      }
      store_vec4(groups + down * 8 * across_ + column, sum);
      store_vec4(groups + (down * 8 + 4) * across_ + column, squares);
    }
  }
  __device__ int groups() const { return count_ / across_; }

 private:
  static constexpr int kSlots = sizeof(T) == 8 ? 1 : 2;

  Vec4<T> sums_[kSlots][4];
  int first_, across_, count_;
};

// A warp has up to four tiles below each other, and as few as leave work for all warps; the number
// of tiles below each other is a power of two.
template <>
class Matmul<true, float> {
 public:
  __device__ Matmul(int rows, int columns, int pass = 0)
      : columns_(columns), log_tiles_(log_strip_tiles(rows, columns)) {
    while (rows >> (log_tiles_ + log_strips_) > kTile) ++log_strips_;
    const int strip = threadIdx.x / 32 + pass * kWarps;
    strip_ = strip & ((1 << log_strips_) - 1);
    column_ = (strip >> log_strips_) * kTile;
    row_ = (strip_ << log_tiles_) * kTile + lane_row();
#pragma unroll
    for (int s = 0; s < kWarpTiles; ++s) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sums_[s].products[i / 4][i % 4] = 0;
    }
  }
  __device__ static int passes(int rows, int columns) {
    const int strips = rows / kTile >> log_strip_tiles(rows, columns);
    return (strips * (columns / kTile) - 1) / kWarps + 1;
  }

  // `depth` is a multiple of 16; `left` is rounded, and `right` is not.
  __device__ void add(const float* left, int left_row, const float* right, int right_row,
                      int depth) {
    if (column_ >= columns_) return;
    left += row_ * left_row + lane_column();
    right += lane_column() * right_row + column_ + 2 * lane_row();
    if (log_tiles_ == 0) add_strip<1>(left, left_row, right, right_row, depth);
    if (log_tiles_ == 1) add_strip<2>(left, left_row, right, right_row, depth);
    if (log_tiles_ == 2) add_strip<4>(left, left_row, right, right_row, depth);
  }

  template <class F>
  __device__ void each(F f) const {
    if (column_ >= columns_) return;
#pragma unroll
    for (int i = 0; i < 2 * kWarpTiles; ++i) {
      if (i / 2 < 1 << log_tiles_)
        f(row_ + i * 8, column_ + 4 * lane_column(), sums_[i / 2].quad(i % 2));
    }
  }

  template <class F>
  __device__ void sum_each(float* groups, F f) const {
    if (column_ >= columns_) return;
    Vec4<float> sums[2] = {fill_vec4(0.0f), fill_vec4(0.0f)};
    each([&](int row, int column, const Vec4<float>& value) {
      const Vec4<float> kept = f(row, column, value);
      sums[0] += kept;
      add_product(sums[1], kept, kept);
    });
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sums[k].v[i] += __shfl_xor_sync(0xffffffffu, sums[k].v[i], lanes);
        }
      }
      if (lane_row() == 0) {
        store_vec4(groups + (strip_ * 2 + k) * columns_ + column_ + 4 * lane_column(), sums[k]);
      }
    }
  }
  __device__ int groups() const { return 1 << log_strips_; }

 private:
  __device__ static int log_strip_tiles(int rows, int columns) {
    const int down = rows / kTile, across = columns / kTile;
    int log = 0;
    while (1 << log < kWarpTiles && down >> log > 1 && (down >> log) * across > kWarps) ++log;
    return log;
  }

  template <int kTiles>
  __device__ __forceinline__ void add_strip(const float* left, int left_row, const float* right,
                                            int right_row, int depth) {
#pragma unroll 1
    for (int k = 0; k < depth; k += 2 * kTileDepth) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const TileRight b(right, right + 4 * right_row, false);
        right += kTileDepth * right_row;
#pragma unroll
        for (int s = 0; s < kTiles; ++s) {
          const float* at = left + s * kTile * left_row;
          add_tile(sums_[s], {at[0], at[8 * left_row], at[4], at[8 * left_row + 4]}, b);
        }
        left += kTileDepth;
      }
    }
  }

  TileSum sums_[kWarpTiles];
  int columns_, log_tiles_, log_strips_ = 0, strip_, column_, row_;
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
#pragma unroll 1
    for (int s = 0; s < kSlots; ++s) Blocks::clear(sums_[s]);
  }

  // Adds `pixels` pixels; rows and columns of a pixel lie `row` values apart from those of the
  // last. `memory` is (rows, memory_row), where this block alone writes; `first` says that nothing
  // was written there yet.
  __device__ void add(const T* left, int left_row, const T* right, int right_row, int pixels,
                      T* memory, int memory_row, bool first) {
    const int worker = Blocks::worker(), group = groups_ > 1 ? worker / count_ : 0;
    if (group == groups_) return;
    const auto add_block = [&](int block, Sum& sum) {
      const int down = block / across_, across = block - down * across_;
      Blocks::add(left + down * kSide, left_row, right + across * kSide, right_row, group, groups_,
                  pixels, sum);
    };
    // No unrolling, so that the sums of all blocks are in local memory, and those of one in
    // registers while it needs them: all of them would leave too few for what comes between calls.
#pragma unroll 1
    for (int s = 0, block = worker - group * count_; s < kSlots && block < count_; ++s) {
      Sum sum = sums_[s];
      add_block(block, sum);
      sums_[s] = sum;
      block += kWorkers;
    }
    for (int block = worker + kSlots * kWorkers; block < count_; block += kWorkers) {
      T* to = place(block, memory, memory_row);
      Sum sum;
      if (first) {
        Blocks::clear(sum);
      } else {
        Blocks::load(sum, to, memory_row);
      }
      add_block(block, sum);
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
#pragma unroll 1
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
  struct Sum {
    Vec4<T> rows[4];
  };
  static constexpr int kSide = 4, kSlots = 2, kWorkers = kThreads;

  static __device__ __forceinline__ int worker() { return threadIdx.x; }
  static __device__ __forceinline__ void clear(Sum& sum) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum.rows[i] = fill_vec4(T(0));
  }
  static __device__ __forceinline__ void load(Sum& sum, const T* from, int row) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum.rows[i] = load_vec4(from + i * row);
  }
  // To global memory, where `store` is for shared memory.
  static __device__ __forceinline__ void write(T* to, int row, const Sum& sum) {
#pragma unroll
    for (int i = 0; i < 4; ++i) write_vec4(to + i * row, sum.rows[i]);
  }
  static __device__ __forceinline__ void store(T* to, int row, const Sum& sum) {
#pragma unroll
    for (int i = 0; i < 4; ++i) store_vec4(to + i * row, sum.rows[i]);
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
        for (int j = 0; j < 4; ++j) sum.rows[i].v[j] += a.v[i] * b.v[j];
      }
    }
  }
};

// Tiles on the tensor cores, each a warp's; `pixels` is a multiple of 8, and both factors are
// rounded.
struct WarpTiles {
  using Value = float;
  using Sum = TileSum;
  static constexpr int kSide = kTile, kSlots = kWarpTiles, kWorkers = kWarps;

  static __device__ __forceinline__ int worker() { return threadIdx.x / 32; }
  static __device__ __forceinline__ void clear(Sum& sum) {
#pragma unroll
    for (int half = 0; half < 2; ++half) sum.set_quad(half, fill_vec4(0.0f));
  }
  static __device__ __forceinline__ void load(Sum& sum, const float* from, int row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum.set_quad(half, load_vec4(from + (lane_row() + 8 * half) * row + 4 * lane_column()));
    }
  }
  static __device__ __forceinline__ void write(float* to, int row, const Sum& sum) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      write_vec4(to + (lane_row() + 8 * half) * row + 4 * lane_column(), sum.quad(half));
    }
  }
  static __device__ __forceinline__ void store(float* to, int row, const Sum& sum) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      store_vec4(to + (lane_row() + 8 * half) * row + 4 * lane_column(), sum.quad(half));
    }
  }
  // The depth of the product is the pixels; lanes take two neighbors each, for the sake of banks.
  static __device__ __forceinline__ void add(const float* left, int left_row, const float* right,
                                             int right_row, int first, int step, int pixels,
                                             Sum& sum) {
    left += (first * kTileDepth + 2 * lane_column()) * left_row + lane_row();
    right += (first * kTileDepth + 2 * lane_column()) * right_row + 2 * lane_row();
#pragma unroll 2
    for (int p = first * kTileDepth; p < pixels; p += step * kTileDepth) {
      add_tile(sum, {left[0], left[8], left[left_row], left[left_row + 8]},
               TileRight(right, right + right_row, true));
      left += step * kTileDepth * left_row;
      right += step * kTileDepth * right_row;
    }
  }
};

// Sums over pixels on the tensor cores or not.
template <bool kTensorCores, class T>
using PixelOuterProduct =
    OuterProduct<std::conditional_t<kTensorCores, WarpTiles, ThreadBlocks<T>>>;

}  // namespace asng::cuda
