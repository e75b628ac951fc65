// 1×1 convolutions of whole images, straight from global memory: the projections of a cell's inputs
// and of its output, forward and backward. A fragment of a factor is what a thread loads at once,
// so that sources never pass through shared memory.
#pragma once

#include "kernels/cuda/persistent_strips.h"
#include "kernels/cuda/pointwise.h"

namespace asng::cuda {

// The pixel of a source that an output's pixel reads; -1 for zeros.
template <class V>
__device__ __forceinline__ int pixel_of(const Source<V>& source, int pixel, int pixels,
                                        int out_width) {
  if (pixel >= pixels) return -1;
  if (source.stride == 1) return pixel;
  const int row = pixel / out_width, y = row * source.stride + source.offset;
  const int x = (pixel - row * out_width) * source.stride + source.offset;
  return y < source.height && x < source.width ? y * source.width + x : -1;
}

// Concatenation of `count` sources, images of source(i) → ReLU → 1×1, with `weight` (depth, C), on
// the tensor cores or not. Threads have the pixels and channels that they have in PixelMatmul;
// emit as there.
template <int C, bool kTensorCores>
struct ImageProjection;

template <int C>
struct ImageProjection<C, true> {
  using Matmul = PixelMatmul<C, true>;
  // Tiles of 16 pixels of a warp, and runs of 16 channels, that are loaded at once.
  static constexpr int kTiles = C == 16 ? 4 : 1, kChunks = C / 16;

  template <class Sources, class Emit>
  static __device__ void run(const Sources& source, int count, int pixels, int out_width,
                             const float* weight, Emit emit) {
    constexpr int kPairs = Matmul::kPairs;
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
    const int column = warp % Matmul::kGroups * kPairs * 16 + 2 * g;
    for (int m = warp / Matmul::kGroups * kTiles * 16; m < pixels;
         m += Matmul::kSums * kTiles * 16) {
      float sums[kTiles][kPairs][2][4] = {};
#pragma unroll 1
      for (int i = 0; i < count; ++i) {
        const auto from = source(i);
        if (from.x == nullptr) continue;
        int at[kTiles][2];
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          at[tile][0] = pixel_of(from, m + tile * 16 + g, pixels, out_width);
          at[tile][1] = pixel_of(from, m + tile * 16 + 8 + g, pixels, out_width);
        }
        // Channels are in such an order that a thread's are neighbors.
        const float* rows = weight + (from.first + 4 * t) * C + column;
#pragma unroll 1
        for (int first = 0; first < from.channels; first += kChunks * 16) {
          Vec4<float> left[kChunks][kTiles][2];
          float2 right[kChunks][kPairs][4];
#pragma unroll
          for (int k = 0; k < kChunks; ++k) {
            // Behind the last ones they are loaded again, so that no load waits for a branch.
            const int c = min(first + k * 16, from.channels - 16);
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                const int pixel = max(at[tile][half], 0);
                left[k][tile][half] = load_vec4(from.x + pixel * from.channels + c + 4 * t);
              }
            }
#pragma unroll
            for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
              for (int row = 0; row < 4; ++row) {
                right[k][pair][row] =
                    *reinterpret_cast<const float2*>(rows + (c + row) * C + pair * 16);
              }
            }
          }
#pragma unroll
          for (int k = 0; k < kChunks; ++k) {
            if (first + k * 16 >= from.channels) break;
            unsigned b[2][kPairs][2][2];
#pragma unroll
            for (int step = 0; step < 2; ++step) {
#pragma unroll
              for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                  const float2 value = right[k][pair][2 * step + row];
                  b[step][pair][0][row] = to_tf32(value.x);
                  b[step][pair][1][row] = to_tf32(value.y);
                }
              }
            }
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                Vec4<float>& value = left[k][tile][half];
                value = as_factor<true>(relu_vec4(value));
#pragma unroll
                for (int c = 0; c < 4; ++c) value.v[c] = at[tile][half] < 0 ? 0 : value.v[c];
              }
#pragma unroll
              for (int step = 0; step < 2; ++step) {
                const Vec4<float>(&rows_of)[2] = left[k][tile];
                const unsigned a[4] = {__float_as_uint(rows_of[0].v[2 * step]),
                                       __float_as_uint(rows_of[1].v[2 * step]),
                                       __float_as_uint(rows_of[0].v[2 * step + 1]),
                                       __float_as_uint(rows_of[1].v[2 * step + 1])};
#pragma unroll
                for (int pair = 0; pair < kPairs; ++pair) {
                  mma_tf32(sums[tile][pair][0], a, b[step][pair][0]);
                  mma_tf32(sums[tile][pair][1], a, b[step][pair][1]);
                }
              }
            }
          }
        }
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int pixel = m + tile * 16 + half * 8 + g;
            const float (&of)[2][4] = sums[tile][pair];
            if (pixel < pixels) {
              emit(pair, pixel,
                   Vec4<float>{{of[0][2 * half], of[1][2 * half], of[0][2 * half + 1],
                                of[1][2 * half + 1]}});
            }
          }
        }
      }
    }
  }
};

template <int C>
struct ImageProjection<C, false> {
  template <class Sources, class Emit>
  static __device__ void run(const Sources& source, int count, int pixels, int out_width,
                             const float* weight, Emit emit) {
    const int c = PixelMatmul<C, false>::channel(0);
    for (int m = threadIdx.x / kQuads<C> * 4; m < pixels; m += kStep<C> * 4) {
      Vec4<float> sums[4] = {};
#pragma unroll 1
      for (int i = 0; i < count; ++i) {
        const auto from = source(i);
        if (from.x == nullptr) continue;
        int at[4];
#pragma unroll
        for (int p = 0; p < 4; ++p) at[p] = pixel_of(from, m + p, pixels, out_width);
#pragma unroll 2
        for (int k = 0; k < from.channels; k += 4) {
          Vec4<float> left[4], right[4];
#pragma unroll
          for (int p = 0; p < 4; ++p) {
            left[p] = relu_vec4(load_vec4(from.x + max(at[p], 0) * from.channels + k));
            right[p] = load_vec4(weight + (from.first + k + p) * C + c);
          }
#pragma unroll
          for (int p = 0; p < 4; ++p) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const float value = at[p] < 0 ? 0 : left[p].v[j];
              add_product(sums[p], fill_vec4(value), right[j]);
            }
          }
        }
      }
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        if (m + p < pixels) emit(0, m + p, sums[p]);
      }
    }
  }
};

// Gradients in front of a normalization, of `count` pixels, as a factor of the tensor cores in rows
// of shared memory, with zeros up to a multiple of 8 pixels: from those behind it and from the
// values as they are kept. `coefficients` (3, C), see finish_gradient.
template <int C, class V>
__device__ void fill_gradients(const V* g, const V* z, const float* coefficients, int count,
                               float* to) {
  constexpr int kFlight = 4;
  const int c = threadIdx.x % kQuads<C> * 4;
  const Vec4<float> of_grad = load_vec4(coefficients + c),
                    of_value = load_vec4(coefficients + C + c),
                    constant = load_vec4(coefficients + 2 * C + c);
  for (int first = threadIdx.x / kQuads<C>; first < (count + 7) / 8 * 8;
       first += kFlight * kStep<C>) {
    Vec4<float> grads[kFlight], values[kFlight];
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int pixel = min(first + i * kStep<C>, count - 1);
      grads[i] = read_vec4(g + pixel * C + c);
      values[i] = read_vec4(z + pixel * C + c);
    }
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int pixel = first + i * kStep<C>;
      Vec4<float> sum = constant;
      add_product(sum, of_grad, grads[i]);
      add_product(sum, of_value, values[i]);
      if (pixel >= count) sum = fill_vec4(0.0f);
      if (pixel < (count + 7) / 8 * 8) store_vec4(to + pixel * kRow<C> + c, as_factor<true>(sum));
    }
  }
}

// The gradients of one source in the backward pass, on the tensor cores: of the source itself, and
// of the weight, of which each team of warps has 16 of the source's channels.
template <int C>
class SourceGradients {
 public:
  static constexpr int kTeams = C / 16, kTeamWarps = kCellWarps / kTeams;
  static constexpr int kPartials = kCellWarps * C * 16;  // values that the warps' parts take

  static __device__ int team() { return threadIdx.x / 32 / kTeamWarps; }

  // Columns from `column` on of the weight, (C, depth).
  __device__ SourceGradients(const float* weight, int depth, int column) {
    const float* from = weight + (4 * threadIdx.x % 16) * depth + column + 2 * group();
#pragma unroll
    for (int k = 0; k < C / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = *reinterpret_cast<const float2*>(from + (k * 16 + i) * depth);
        weight_[k][i / 2][i % 2 * 2] = to_tf32(pair.x);
        weight_[k][i / 2][i % 2 * 2 + 1] = to_tf32(pair.y);
      }
    }
  }

  // Adds pixels [begin, begin + count) of an image, where `grads` has the gradients in front of the
  // normalization, in rows of shared memory, zeros up to a multiple of 8 pixels, and `x` is the
  // source's image from the team's channels on. Calls emit(pixel, channel of the team, value) with
  // four neighbors of what ReLU passes, if the source needs its gradient.
  template <class V, class Emit>
  __device__ void add(const Source<V>& source, const V* x, const float* grads, int begin, int count,
                      int pixels, int out_width, bool needs_grad, Emit emit) {
    constexpr int kAtOnce = C == 64 ? 2 : 4, kAcross = kTeamWarps * 8;
    const int g = group(), t = threadIdx.x % 4, c = g / 2 * 4;
    const bool odd = g % 2 == 1;
    // Memory is read and written four channels of a pixel at a time; what products take are two
    // channels of two pixels, which are exchanged with a neighbor.
    for (int first = threadIdx.x / 32 % kTeamWarps * 8; first < count; first += kAtOnce * kAcross) {
      Vec4<float> loaded[kAtOnce];
      int at[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int pixel = first + i * kAcross + 2 * t + g % 2;
        at[i] = pixel < count ? pixel_of(source, begin + pixel, pixels, out_width) : -1;
        loaded[i] = load_vec4(x + max(at[i], 0) * source.channels + c);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int eight = first + i * kAcross;
        if (eight >= count) break;
        Vec4<float> value = relu_vec4(loaded[i]);
#pragma unroll
        for (int k = 0; k < 4; ++k) value.v[k] = at[i] < 0 ? 0 : value.v[k];
        // Channels 2·g and 2·g + 1 of pixels 2·t and 2·t + 1.
        float own[2][2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float got = __shfl_xor_sync(~0u, odd ? value.v[k] : value.v[2 + k], 4);
          own[0][k] = odd ? got : value.v[k];
          own[1][k] = odd ? value.v[2 + k] : got;
        }
        const float* columns = grads + (eight + 2 * t) * kRow<C> + g;
#pragma unroll
        for (int k = 0; k < C / 16; ++k) {
          const unsigned a[4] = {__float_as_uint(columns[k * 16]),
                                 __float_as_uint(columns[k * 16 + 8]),
                                 __float_as_uint(columns[kRow<C> + k * 16]),
                                 __float_as_uint(columns[kRow<C> + k * 16 + 8])};
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const unsigned b[2] = {to_tf32(own[0][j]), to_tf32(own[1][j])};
            mma_tf32(sums_[k][j], a, b);
          }
        }
        if (!needs_grad) continue;
        float sums[4] = {};
#pragma unroll
        for (int k = 0; k < C / 16; ++k) {
          const Vec4<float> row = load_vec4(grads + (eight + g) * kRow<C> + k * 16 + 4 * t);
#pragma unroll
          for (int step = 0; step < 2; ++step) {
            const unsigned b[2] = {__float_as_uint(row.v[2 * step]),
                                   __float_as_uint(row.v[2 * step + 1])};
            mma_tf32(sums, weight_[k][step], b);
          }
        }
        float passed[2][2];
#pragma unroll
        for (int pixel = 0; pixel < 2; ++pixel) {
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            passed[pixel][k] = own[pixel][k] > 0 ? sums[2 * k + pixel] : 0;
          }
        }
        Vec4<float> result;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float got = __shfl_xor_sync(~0u, odd ? passed[0][k] : passed[1][k], 4);
          result.v[k] = odd ? got : passed[0][k];
          result.v[2 + k] = odd ? passed[1][k] : got;
        }
        const int pixel = eight + 2 * t + g % 2;
        if (pixel < count) emit(begin + pixel, c, result);
      }
    }
  }

  // Writes the gradient of the weight, of those of `channels` channels from `column` on that the
  // teams have, to `to` (C, depth). `partials` is shared memory.
  __device__ void finish(float* partials, float* to, int depth, int column, int channels) const {
    const int g = group(), t = threadIdx.x % 4;
    float* mine = partials + threadIdx.x / 32 * C * 16 + g * 16 + 4 * t;
#pragma unroll
    for (int k = 0; k < C / 16; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        store_vec4(mine + (k * 16 + half * 8) * 16,
                   Vec4<float>{{sums_[k][0][2 * half], sums_[k][1][2 * half],
                                sums_[k][0][2 * half + 1], sums_[k][1][2 * half + 1]}});
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kTeams * C * 4; i += kCellThreads) {
      const int team = i / (C * 4), quad = i % (C * 4);
      if (team * 16 >= channels) break;
      Vec4<float> sum = fill_vec4(0.0f);
#pragma unroll
      for (int warp = 0; warp < kTeamWarps; ++warp) {
        sum += load_vec4(partials + ((team * kTeamWarps + warp) * C * 4 + quad) * 4);
      }
      write_vec4(to + quad / 4 * depth + column + team * 16 + quad % 4 * 4, sum);
    }
    __syncthreads();
  }

 private:
  static __device__ int group() { return threadIdx.x % 32 / 4; }

  float sums_[C / 16][2][4] = {};
  unsigned weight_[C / 16][2][4];
};

}  // namespace asng::cuda
