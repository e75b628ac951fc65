// All nodes of a cell, backward, in one launch: see persistent.h. The gradient of a state is added
// up where it will lie, edge after edge, by the block that has the image; so nothing is gathered
// from other blocks but the sums of normalizations. In each phase come first the stages whose
// coefficients are there, from the last to the first of an edge:
//   the gradient of the stage's output before its normalization, gz = a·g + b·z + c, and the input
//   after ReLU, both of a whole image in shared memory;
//   the depthwise convolution of the input, in registers, and with it the 1×1 weight's gradient
//   Σ gz ⊗ depth on the tensor cores;
//   the gradient of the depthwise output, gz · weight, in the place of gz;
//   from that, in one pass, the gradients of the depthwise weight and of the input.
// Then come the states of which all readers are done, and what they pass on through identities and
// pools.
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/norm.h"

namespace asng::cuda {

namespace {

// An output pixel's coordinate for a window's position k, whose middle is `middle`; -1: none.
__device__ __forceinline__ int window_at(int position, int k, int middle, int stride, int size) {
  const int at = position + middle - k;
  if (at < 0 || (stride == 2 && (at & 1) != 0)) return -1;
  const int out = stride == 2 ? at / 2 : at;
  return out < size ? out : -1;
}

// The gradient of pixel (y, x) of a pool's input, from that of its output, `grad`, times `factor`.
// `maxima` is what the forward pass has kept of a max pool, null for an average pool.
template <class V>
__device__ Vec4<Compute<V>> pool_gradient(const DagShape& s, const V* grad, const uint32_t* maxima,
                                          int factor, int stride, int image, int y, int x, int c) {
  using T = Compute<V>;
  const bool max = maxima != nullptr;
  Vec4<T> sum = fill_vec4(T(0));
#pragma unroll 3
  for (int k = 0; k < kPoolPixels; ++k) {
    const int oy = window_at(y, k / 3, 1, stride, s.out_height);
    const int ox = window_at(x, k % 3, 1, stride, s.out_width);
    if (oy < 0 || ox < 0) continue;
    const int64_t pixel = (static_cast<int64_t>(image) * s.out_height + oy) * s.out_width + ox;
    const int64_t at = pixel * s.padded + c;
    const Vec4<T> g = load_vec4(grad + at);
    if (!max) {
      sum += g;
      continue;
    }
    const uint32_t places = maxima[at / 4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((places >> 8 * i & 0xff) == static_cast<uint32_t>(k)) sum.v[i] += g.v[i];
    }
  }
  const T scale = max ? static_cast<T>(factor) : static_cast<T>(factor) / T(kPoolPixels);
#pragma unroll
  for (int i = 0; i < 4; ++i) sum.v[i] *= scale;
  return sum;
}

// Places in dynamic shared memory behind the readers, counted in floats.
struct Layout {
  int coefficients;  // (edges, 3, C): see finish_gradient
  int totals;        // doubles, the sums of a phase
  int taps;          // (kernel elements, C)
  int weight;        // (C, C + 4)
  int matrix;        // (copies, C, C), of a weight's gradient
  int source, grads;
  int size;
};

template <class V>
struct Job {
  Dag<V> dag;
  Gradients<V> gradients;
  V* input_grads;  // (inputs, archs, in_size)
  float* input_coefficients;
  Layout layout;
  Meeting meeting;
};

// Edges of an architecture as bits of masks.
struct alignas(16) Readers {
  PlannedEdge edges[kMostEdges];
  unsigned of_state[kMostNodes + 2];
  unsigned normalized;
};

// Images of C channels in shared memory, and how they are divided up. Rows of an image as large as
// the nodes' are kPitch pixels apart, and around it are kBorder pixels of zeros; one that is read
// with stride 2 has rows of 2·kWidth pixels and no border. Channels lie in such an order that eight
// of four neighboring pixels, or four pairs of them, are in different banks. A warp works on 16
// channels, of which a lane has two, and on tiles of 4×4 pixels, of which a lane has a column;
// kTurns warps share the pixels.
template <int C>
struct Cut {
  static constexpr int kWidth = 512 / C, kBorder = 2, kPitch = kWidth + 2 * kBorder;
  static constexpr int kRow = C + 4;  // of a weight
  static constexpr int kGroups = C / 16, kTurns = kCellWarps / kGroups;
  static constexpr int kCopies = C == 16 ? 8 : C == 32 ? 2 : 1;
  static constexpr int kQuads = C / 4, kStep = kCellThreads / kQuads;

  static __device__ int lane() { return threadIdx.x % 32; }
  static __device__ int group() { return threadIdx.x / 32 % kGroups * 16; }
  static __device__ int turn() { return threadIdx.x / 32 / kGroups; }
  // The lane's first channel.
  static __device__ int channel() { return group() + lane() / 4 * 2; }

  // Where channel c of a row's pixel is. Pixels that are a multiple of 4 apart have the same order.
  static __device__ __forceinline__ int place(int column, int c) {
    const int order = C == 16 ? (column >> 1 & 1) * 8 : (column & 3) * 8;
    return column * C + (c ^ order);
  }
};
static_assert(kMostExtent / 2 <= Cut<16>::kBorder);

__device__ __forceinline__ float2 load_pair(const float* from) {
  return *reinterpret_cast<const float2*>(from);
}
__device__ __forceinline__ float2 load_pair(const BFloat16* from) {
  const unsigned word = *reinterpret_cast<const unsigned*>(from);
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
__device__ __forceinline__ void store_pair(float* to, const float2& v) {
  *reinterpret_cast<float2*>(to) = v;
}
// To global memory; returns the values as they will be read.
__device__ __forceinline__ float2 write_pair(float* to, const float2& v) {
  write_at_once(to, make_uint2(__float_as_uint(v.x), __float_as_uint(v.y)));
  return v;
}
__device__ __forceinline__ float2 write_pair(BFloat16* to, const float2& v) {
  const unsigned word = to_halves(v.x, v.y);
  *reinterpret_cast<unsigned*>(to) = word;
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
__device__ __forceinline__ void add_product(float2& to, const float2& a, const float2& b) {
  to.x += a.x * b.x;
  to.y += a.y * b.y;
}

// A factor of a product on the tensor cores. Where products may not round their factors to TF32,
// it is the sum of two numbers of TF32, which leaves an error like that of float32.
template <bool kExact, int kCount>
struct Factor {
  unsigned upper[kCount], lower[kExact ? kCount : 1];

  __device__ __forceinline__ void set(int i, float x) {
    upper[i] = to_tf32(x);
    if constexpr (kExact) lower[i] = to_tf32(x - __uint_as_float(upper[i]));
  }
  // What `rounded` has made.
  __device__ __forceinline__ void set_rounded(int i, float x) {
    kExact ? set(i, x) : static_cast<void>(upper[i] = __float_as_uint(x));
  }
};

// As factors are kept.
template <bool kExact>
__device__ __forceinline__ float rounded(float x) {
  return kExact ? x : __uint_as_float(to_tf32(x));
}
template <bool kExact>
__device__ __forceinline__ Vec4<float> rounded(const Vec4<float>& x) {
  return {{rounded<kExact>(x.v[0]), rounded<kExact>(x.v[1]), rounded<kExact>(x.v[2]),
           rounded<kExact>(x.v[3])}};
}

template <bool kExact>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const Factor<kExact, 4>& a,
                                             const Factor<kExact, 2>& b) {
  if constexpr (kExact) {
    mma_tf32(sums, a.lower, b.upper);
    mma_tf32(sums, a.upper, b.lower);
  }
  mma_tf32(sums, a.upper, b.upper);
}

// Pixels of an image that a thread takes in turn, from number threadIdx.x / kQuads on: calls
// load(i, pixel, y, x) for up to kFlight of them and then use(i, pixel, y, x) for the same.
template <int C, int kFlight, class Load, class Use>
__device__ __forceinline__ void for_pixels(int height, int width, Load load, Use use) {
  const int pixels = height * width;
  const unsigned per_row = ~0u / width + 1;
  for (int first = threadIdx.x / Cut<C>::kQuads; first < pixels; first += kFlight * Cut<C>::kStep) {
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int pixel = first + i * Cut<C>::kStep;
      const int y = static_cast<int>(multiply_high(pixel, per_row));
      if (pixel < pixels) load(i, pixel, y, pixel - y * width);
    }
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int pixel = first + i * Cut<C>::kStep;
      const int y = static_cast<int>(multiply_high(pixel, per_row));
      if (pixel < pixels) use(i, pixel, y, pixel - y * width);
    }
  }
}

// Rows of tiles.
ASNG_HD inline int tiled(int height) { return (height + 3) / 4 * 4; }

// Zeros around an image, and in what tiles have more rows.
template <int C>
__device__ __forceinline__ void fill_border(int height, int width, float* to) {
  constexpr int kBorder = Cut<C>::kBorder, kRowValues = Cut<C>::kPitch * C;
  const int below = tiled(height) - height + kBorder;
  const Vec4<float> zeros = fill_vec4(0.0f);
  // Four pixels of each row: two on the left, two on the right.
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < (tiled(height) + 2u * kBorder) * C; i += kCellThreads) {
    const unsigned pixel = i % C / Cut<C>::kQuads, c = i % Cut<C>::kQuads * 4;
    const unsigned column = pixel < kBorder ? pixel : width + pixel;
    store_vec4(to + i / C * kRowValues + column * C + c, zeros);
  }
#pragma unroll 1
  for (int row = 0; row < kBorder + below; ++row) {
    float* at = to + (row < kBorder ? row : height + row) * kRowValues + kBorder * C;
#pragma unroll 1
    for (int i = threadIdx.x; i < width * Cut<C>::kQuads; i += kCellThreads) {
      store_vec4(at + i * 4, zeros);
    }
  }
}

// `height` by `width` pixels of an image after normalization and ReLU: all that are read with
// stride S, or with kEverySecond every second one in both directions from `offset` on, zeros beyond
// the edge.
template <int C, int S, bool kEverySecond, class V>
__device__ __forceinline__ void fill_source(const State<V>& from, int image, int offset, int height,
                                            int width, float* to) {
  constexpr int kFlight = 4, kBorder = S == 1 ? Cut<C>::kBorder : 0;
  constexpr int kPitch = S == 1 ? Cut<C>::kPitch : 2 * Cut<C>::kWidth;
  const int c = threadIdx.x % Cut<C>::kQuads * 4;
  const V* x = from.x + static_cast<int64_t>(image) * from.height * from.width * C + c;
  Vec4<float> scale = fill_vec4(1.0f), shift = fill_vec4(0.0f), v[kFlight];
  if (from.norm != nullptr) {
    scale = load_vec4(from.norm + c);
    shift = load_vec4(from.norm + C + c);
  }
  const auto exists = [&](int y, int column) {
    return !kEverySecond || (2 * y + offset < from.height && 2 * column + offset < from.width);
  };
  for_pixels<C, kFlight>(
      height, width,
      [&](int i, int pixel, int y, int column) {
        if (kEverySecond) pixel = (2 * y + offset) * from.width + 2 * column + offset;
        if (exists(y, column)) v[i] = load_vec4(x + pixel * C);
      },
      [&](int i, int, int y, int column) {
        Vec4<float> value = shift;
        add_product(value, v[i], scale);
        value = exists(y, column) ? relu_vec4(value) : fill_vec4(0.0f);
        store_vec4(to + (y + kBorder) * kPitch * C + Cut<C>::place(column + kBorder, c), value);
      });
}

// a·g + b·z + c of an image.
template <int C, bool kExact, class V>
__device__ __forceinline__ void fill_grads(const V* g, const V* z, const float* coefficients,
                                           int height, int width, float* to) {
  constexpr int kFlight = 4, kBorder = Cut<C>::kBorder;
  const int c = threadIdx.x % Cut<C>::kQuads * 4;
  Vec4<float> left[kFlight], right[kFlight];
  for_pixels<C, kFlight>(
      height, width,
      [&](int i, int pixel, int, int) {
        left[i] = load_vec4(g + pixel * C + c);
        right[i] = load_vec4(z + pixel * C + c);
      },
      [&](int i, int, int y, int x) {
        store_vec4(to + (y + kBorder) * Cut<C>::kPitch * C + Cut<C>::place(x + kBorder, c),
                   rounded<kExact>(norm_gradient_vec4(left[i], right[i], coefficients, C, c)));
      });
}

// A thread's values of an array of kQuads times four on their way to shared memory: other loads may
// follow before they are stored.
template <int kQuads>
struct Carried {
  static constexpr int kEach = (kQuads + kCellThreads - 1) / kCellThreads;
  Vec4<float> values[kEach] = {};

  // Calls visit(value, number of the first of the four).
  template <class Visit>
  __device__ __forceinline__ void for_each(Visit visit) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const unsigned quad = threadIdx.x + i * kCellThreads;
      if (kQuads % kCellThreads == 0 || quad < kQuads) visit(values[i], quad * 4);
    }
  }
};

// A weight, (C, row).
template <int C>
struct CarriedWeight : Carried<C * C / 4> {
  __device__ __forceinline__ void load(const float* from, int row) {
    this->for_each(
        [&](Vec4<float>& value, unsigned i) { value = load_vec4(from + i / C * row + i % C); });
  }
  template <bool kExact>
  __device__ __forceinline__ void store(float* to) {
    this->for_each([&](const Vec4<float>& value, unsigned i) {
      store_vec4(to + i / C * Cut<C>::kRow + i % C, rounded<kExact>(value));
    });
  }
};

// The warp's terms of Σ gz ⊗ depth over the pixels of a tile, whose first one is at (y, x) of the
// image; depth[i] is the value of pixel i of the lane's column.
template <int C, bool kExact>
__device__ __forceinline__ void add_outer(const float* grads, int y, int x,
                                          const float2 (&depth)[4], float (&sums)[C / 16][2][4]) {
  constexpr int kBorder = Cut<C>::kBorder, kRowValues = Cut<C>::kPitch * C;
  const int g = Cut<C>::lane() / 4, t = Cut<C>::lane() % 4;
  const float* tile = grads + (y + kBorder) * kRowValues + x * C;
#pragma unroll
  for (int m = 0; m < C / 16; ++m) {
    const float* upper = tile + Cut<C>::place(kBorder + t, m * 16 + g);
    const float* lower = tile + Cut<C>::place(kBorder + t, m * 16 + 8 + g);
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      Factor<kExact, 2> right[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        right[0].set(i, depth[2 * s + i].x);
        right[1].set(i, depth[2 * s + i].y);
      }
      Factor<kExact, 4> left;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        left.set_rounded(2 * i, upper[(2 * s + i) * kRowValues]);
        left.set_rounded(2 * i + 1, lower[(2 * s + i) * kRowValues]);
      }
      multiply_add(sums[m][0], left, right[0]);
      multiply_add(sums[m][1], left, right[1]);
    }
  }
}

// Adds up the warps' terms of a weight's gradient in `matrix`, in turns, and writes the sum to
// `to`, (C, row), or adds it to what is there. Ends with a barrier behind the last read of
// what the terms were made of.
template <int C>
__device__ __forceinline__ void finish_outer(const float (&sums)[C / 16][2][4], float* matrix,
                                             float* to, int row, bool adds) {
  using Place = Cut<C>;
  const int lane = Place::lane(), g = lane / 4, t = lane % 4;
  float* copy = matrix + Place::turn() % Place::kCopies * C * C;
  for (int turn = 0; turn < Place::kTurns / Place::kCopies; ++turn) {
    if (Place::turn() / Place::kCopies == turn) {
#pragma unroll
      for (int m = 0; m < C / 16; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          // Columns of the two products take turns.
          Vec4<float> value = {{sums[m][0][2 * half], sums[m][1][2 * half],
                                sums[m][0][2 * half + 1], sums[m][1][2 * half + 1]}};
          float* at = copy + (m * 16 + half * 8 + g) * C + Place::group() + 4 * t;
          if (turn > 0) value += load_vec4(at);
          store_vec4(at, value);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < C * C / 4; i += kCellThreads) {
    const unsigned down = i / (C / 4), across = i % (C / 4) * 4;
    Vec4<float> sum = load_vec4(matrix + i * 4);
#pragma unroll
    for (int k = 1; k < Place::kCopies; ++k) sum += load_vec4(matrix + k * C * C + i * 4);
    float* at = to + down * row + across;
    if (adds) sum += load_vec4(at);
    write_vec4(at, sum);
  }
}

// Calls emit(place, value) for each pair of neighboring values of grads · weight and their place in
// an image. Between reading and writing a pixel's values, `emit` may take the place of grads.
template <int C, bool kExact, class Emit>
__device__ __forceinline__ void multiply_weight(const float* grads, const float* weight, int height,
                                                int width, Emit emit) {
  constexpr int kBorder = Cut<C>::kBorder, kRow = Cut<C>::kRow, kTurns = Cut<C>::kTurns;
  const int lane = Cut<C>::lane(), g = lane / 4, t = lane % 4, pixels = height * width;
  const unsigned per_row = ~0u / width + 1;
  for (int first = 0; first < pixels; first += kTurns * 16) {
    const int pixel = first + Cut<C>::turn() * 16 + g;
    int places[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int y = static_cast<int>(multiply_high(pixel + 8 * half, per_row));
      const int x = pixel + 8 * half - y * width;
      places[half] = ((y + kBorder) * Cut<C>::kPitch + x - g % 4) * C;
    }
    float sums[2][4] = {};
    if (pixel < pixels) {
      const float* columns = weight + 2 * t * kRow + Cut<C>::group() + g;
#pragma unroll
      for (int k = 0; k < C; k += 8) {
        const float* rows = grads + Cut<C>::place(kBorder + g % 4, k) + 2 * t;
        const float2 upper = load_pair(rows + places[0]), lower = load_pair(rows + places[1]);
        Factor<kExact, 4> left;
        left.set_rounded(0, upper.x);
        left.set_rounded(1, lower.x);
        left.set_rounded(2, upper.y);
        left.set_rounded(3, lower.y);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          Factor<kExact, 2> right;
          right.set_rounded(0, columns[k * kRow + 8 * j]);
          right.set_rounded(1, columns[(k + 1) * kRow + 8 * j]);
          multiply_add(sums[j], left, right);
        }
      }
    }
    Cut<C>::kGroups == 1 ? __syncwarp() : __syncthreads();
    if (pixel >= pixels) continue;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int at = Cut<C>::place(kBorder + g % 4, Cut<C>::group() + 8 * j) + 2 * t;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        emit(at + places[half], make_float2(sums[j][2 * half], sums[j][2 * half + 1]));
      }
    }
  }
}

// Σ gz ⊗ depth over the warp's tiles, `depth` being the depthwise convolution of the source.
template <int C, int K, int S, int D, bool kExact>
__device__ __forceinline__ void weight_outer(const DagShape& s, int height, int width,
                                             const float* source, const float* grads,
                                             const float* taps, float (&sums)[C / 16][2][4]) {
  constexpr int kReach = K / 2 * D, kBorder = S == 1 ? Cut<C>::kBorder : 0;
  constexpr int kRowValues = (S == 1 ? Cut<C>::kPitch : 2 * Cut<C>::kWidth) * C;
  const int t = Cut<C>::lane() % 4, c = Cut<C>::channel();
  const int across = s.out_width / 4, tiles = tiled(s.out_height) / 4 * across;
  for (int tile = Cut<C>::turn(); tile < tiles; tile += Cut<C>::kTurns) {
    const int down = tile / across, y = down * 4, x = (tile - down * across) * 4;
    const float* corner = source + (y * S + kBorder - kReach) * kRowValues + x * S * C;
    float2 depth[4] = {};
#pragma unroll
    for (int kx = 0; kx < K; ++kx) {
      const int column = t * S + kx * D - kReach;
      const float* at = corner + Cut<C>::place(column + kBorder, c);
      const bool inside =
          S == 1 || static_cast<unsigned>(x * S + column) < static_cast<unsigned>(width);
      float2 w[K];
#pragma unroll
      for (int ky = 0; ky < K; ++ky) w[ky] = load_pair(taps + (ky * K + kx) * C + c);
#pragma unroll
      for (int i = 0; i < 3 * S + (K - 1) * D + 1; ++i) {
        bool used = false;
#pragma unroll
        for (int ky = 0; ky < K; ++ky) {
#pragma unroll
          for (int r = 0; r < 4; ++r) used |= r * S + ky * D == i;
        }
        if (!used) continue;
        const bool exists = S == 1 || (inside && static_cast<unsigned>(y * S - kReach + i) <
                                                     static_cast<unsigned>(height));
        const float2 v = exists ? load_pair(at + i * kRowValues) : make_float2(0, 0);
#pragma unroll
        for (int ky = 0; ky < K; ++ky) {
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            if (r * S + ky * D == i) add_product(depth[r], w[ky], v);
          }
        }
      }
    }
    add_outer<C, kExact>(grads, y, x, depth, sums);
  }
}

// Through the depthwise convolution and ReLU, whose output is `source`: for each pixel of the
// warp's tiles calls begin(y, x), for what is there before, and emit(y, x, that, value, source);
// and adds the gradients of the kernel elements.
template <int C, int K, int S, int D, class Begin, class Emit>
__device__ __forceinline__ void transposed(const DagShape& s, int height, int width,
                                           const float* source, const float* depth,
                                           const float* taps, float2 (&elements)[K * K],
                                           Begin begin, Emit emit) {
  constexpr int kReach = K / 2 * D, kBorder = Cut<C>::kBorder, kRowValues = Cut<C>::kPitch * C;
  constexpr int kSourceBorder = S == 1 ? kBorder : 0;
  constexpr int kSourceRow = S == 1 ? kRowValues : 2 * Cut<C>::kWidth * C;
  const int t = Cut<C>::lane() % 4, c = Cut<C>::channel();
  const int across = s.out_width / 4, tiles = tiled(height) / 4 * across;
  for (int tile = Cut<C>::turn(); tile < tiles; tile += Cut<C>::kTurns) {
    const int down = tile / across, y = down * 4, left = (tile - down * across) * 4;
    const float* corner = depth + (y / S + kBorder) * kRowValues + left * C;
#pragma unroll
    for (int odd = 0; odd < S; ++odd) {
      const int x = (left + t) * S + odd;
      const float* own = source + (y + kSourceBorder) * kSourceRow + left * S * C +
                         Cut<C>::place(t * S + odd + kSourceBorder, c);
      float2 value[4], sums[4] = {}, before[4];
      bool exists[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        exists[r] = y + r < height && (S == 1 || x < width);
        value[r] = S == 1 || exists[r] ? load_pair(own + r * kSourceRow) : make_float2(0, 0);
        before[r] = exists[r] ? begin(y + r, x) : make_float2(0, 0);
      }
#pragma unroll
      for (int kx = 0; kx < K; ++kx) {
        // Of the output pixels that this tap connects with the column, in steps of the stride.
        const int from = odd + kReach - kx * D;
        if (from % S != 0) continue;
        const float* at = corner + Cut<C>::place(t + from / S + kBorder, c);
        float2 w[K];
#pragma unroll
        for (int ky = 0; ky < K; ++ky) w[ky] = load_pair(taps + (ky * K + kx) * C + c);
#pragma unroll
        for (int i = -kReach; i <= 3 + kReach; ++i) {
          bool used = false;
#pragma unroll
          for (int ky = 0; ky < K; ++ky) {
#pragma unroll
            for (int r = 0; r < 4; ++r) used |= r + kReach - ky * D == i * S;
          }
          if (!used) continue;
          const float2 v = load_pair(at + i * kRowValues);
#pragma unroll
          for (int ky = 0; ky < K; ++ky) {
#pragma unroll
            for (int r = 0; r < 4; ++r) {
              if (r + kReach - ky * D != i * S) continue;
              add_product(sums[r], w[ky], v);
              add_product(elements[ky * K + kx], value[r], v);
            }
          }
        }
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float2 passed =
            make_float2(value[r].x > 0 ? sums[r].x : 0.0f, value[r].y > 0 ? sums[r].y : 0.0f);
        if (exists[r]) emit(y + r, x, before[r], passed, value[r]);
      }
    }
  }
}

// Adds up pairs over two lanes, of which each keeps half of the sums: the upper lane those behind
// the first kHalf ones.
template <int kHalf, int kCount>
__device__ __forceinline__ void add_lanes(const float2 (&values)[kCount], int other, bool upper,
                                          float2 (&sums)[kHalf]) {
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float2 first = values[i];
    const float2 second = i + kHalf < kCount ? values[i + kHalf] : make_float2(0, 0);
    const float2 kept = upper ? second : first, sent = upper ? first : second;
    sums[i].x = kept.x + __shfl_xor_sync(~0u, sent.x, other);
    sums[i].y = kept.y + __shfl_xor_sync(~0u, sent.y, other);
  }
}

// Adds up `count` pairs of each lane, in `red` (kCellWarps, count, 16): visit(which, channel, sum).
template <int C, int kCount, class Visit>
__device__ __forceinline__ void add_warps(const float2 (&values)[kCount], float* red, Visit visit) {
  using Place = Cut<C>;
  constexpr int kHalf = (kCount + 1) / 2, kQuarter = (kHalf + 1) / 2;
  const int lane = Place::lane(), warp = threadIdx.x / 32;
  const bool upper = (lane & 2) != 0, odd = (lane & 1) != 0;
  float2 halves[kHalf], quarters[kQuarter];
  add_lanes(values, 2, upper, halves);
  add_lanes(halves, 1, odd, quarters);
  const int first = odd ? kQuarter : 0, begin = first + (upper ? kHalf : 0);
#pragma unroll
  for (int i = 0; i < kQuarter; ++i) {
    if (first + i >= kHalf || begin + i >= kCount) continue;
    store_pair(red + (warp * kCount + begin + i) * 16 + lane / 4 * 2, quarters[i]);
  }
  __syncthreads();
#pragma unroll 1
  for (unsigned j = threadIdx.x; j < kCount * C; j += kCellThreads) {
    const int which = j / C, c = j % C;
    const float* from = red + (c / 16 * kCount + which) * 16 + c % 16;
    float sum = 0;
#pragma unroll
    for (int turn = 0; turn < Place::kTurns; ++turn) {
      sum += from[turn * Place::kGroups * kCount * 16];
    }
    visit(which, c, sum);
  }
}

__device__ inline int node_of(int edge) { return edge / kCellEdges; }

template <class V>
__device__ V* state_grad(const Job<V>& job, int index) {
  const DagShape& s = job.dag.shape;
  const int arch = blockIdx.y;
  if (index >= s.inputs) return job.gradients.node(s, arch, index - s.inputs);
  return job.input_grads + (static_cast<int64_t>(index) * s.archs + arch) * s.in_size();
}

// Starts to bring a block's first image of a state, or of what a stage has stored, nearer.
template <class V>
__device__ void prefetch_image(const V* images, int64_t values) {
  const char* bytes = reinterpret_cast<const char*>(images + blockIdx.x * values);
  for (int i = threadIdx.x * 128; i < values * static_cast<int>(sizeof(V));
       i += kCellThreads * 128) {
    prefetch(bytes + i);
  }
}

// What will be read of a state when an edge passes its gradient on to it, and then of the edges
// that end there.
template <class V>
__device__ void prefetch_state(const Dag<V>& dag, const Readers& readers, int index) {
  const DagShape& s = dag.shape;
  const State<V> state = dag.state(blockIdx.y, index);
  prefetch_image(state.x, static_cast<int64_t>(state.height) * state.width * s.padded);
  const int node = index - s.inputs;
  for (int e = 0; node >= 0 && e < kCellEdges; ++e) {
    const int stages = stage_count(dag, readers.edges[node * kCellEdges + e]);
    if (stages == 0) continue;
    prefetch_image(dag.stage(blockIdx.y, node, e, stages - 1), s.out_size() / s.images);
  }
}

// A stage of an edge. The second writes the gradient of the first one's normalized output, and adds
// its sums to `totals`; the first adds to the gradient of the state, or is the first to write it.
template <int C, int K, int S, int D, bool kExact, class V>
__device__ __forceinline__ void stage(const Job<V>& job, const Readers& readers, int i,
                                      int stage_index, bool writes, double* totals, float* shared) {
  const PlannedEdge& edge = readers.edges[i];
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y, node = node_of(i), e = i % kCellEdges;
  const bool second = stage_index == 1;
  writes |= second;
  const State<V> from = dag.stage_input(arch, node, e, stage_index, edge);
  const int pixels = s.out_height * s.out_width;
  const int64_t out_image = static_cast<int64_t>(pixels) * C;
  V* intermediate = job.gradients.intermediate + (arch * s.edges * s.nodes + i) * s.out_size();
  const V* g = second ? job.gradients.node(s, arch, node) : intermediate;
  const V* z = dag.stage(arch, node, e, stage_index);
  V* to = second ? intermediate : state_grad(job, edge.input);
  float* split =
      job.gradients.weight_split(s, arch, node, e, blockIdx.x) + stage_index * s.stage_weights();
  float* source = shared + job.layout.source;
  float* grads = shared + job.layout.grads;
  float* taps = shared + job.layout.taps;
  float* weight = shared + job.layout.weight;
  for (int image = blockIdx.x; image < s.images; image += gridDim.x) {
    const bool adds = image != static_cast<int>(blockIdx.x);
    __syncthreads();
    CarriedWeight<C> weight_quads;
    Carried<K * K * C / 4> tap_quads;
    if (!adds) {
      weight_quads.load(dag.pointwise(arch, node, e, stage_index), C);
      const float* elements = dag.depthwise(arch, node, e, stage_index);
      tap_quads.for_each([&](Vec4<float>& value, unsigned j) { value = load_vec4(elements + j); });
    }
    fill_source<C, S, false>(from, image, 0, from.height, from.width, source);
    fill_grads<C, kExact>(g + image * out_image, z + image * out_image,
                          shared + job.layout.coefficients + i * 3 * C, s.out_height, s.out_width,
                          grads);
    if (S == 1) fill_border<C>(s.out_height, s.out_width, source);
    fill_border<C>(s.out_height, s.out_width, grads);
    if (!adds) {
      weight_quads.template store<kExact>(weight);
      tap_quads.for_each(
          [&](const Vec4<float>& value, unsigned j) { store_vec4(taps + j, value); });
    }
    __syncthreads();
    if (second && !adds) prefetch_state(dag, readers, edge.input);
    {
      float sums[C / 16][2][4] = {};
      weight_outer<C, K, S, D, kExact>(s, from.height, from.width, source, grads, taps, sums);
      finish_outer<C>(sums, shared + job.layout.matrix, split, C, adds);
    }
    multiply_weight<C, kExact>(
        grads, weight, tiled(s.out_height), s.out_width,
        [&](int place, const float2& value) { store_pair(grads + place, value); });
    __syncthreads();
    float2 elements[K * K] = {}, norm_sums[2] = {};
    V* at = to + static_cast<int64_t>(image) * from.height * from.width * C + Cut<C>::channel();
    transposed<C, K, S, D>(
        s, from.height, from.width, source, grads, taps, elements,
        [&](int y, int x) {
          return writes ? make_float2(0, 0) : load_pair(at + (y * from.width + x) * C);
        },
        [&](int y, int x, const float2& before, const float2& passed, const float2& value) {
          const float2 sum = make_float2(before.x + passed.x, before.y + passed.y);
          const float2 kept = write_pair(at + (y * from.width + x) * C, sum);
          norm_sums[0].x += kept.x;
          norm_sums[0].y += kept.y;
          add_product(norm_sums[1], kept, value);
        });
    __syncthreads();
    add_warps<C>(elements, source, [&](int element, int c, float sum) {
      float* kept = split + C * C + c * K * K + element;
      *kept = adds ? *kept + sum : sum;
    });
    if (second) {
      add_warps<C>(norm_sums, source + kCellWarps * K * K * 16, [&](int kind, int c, float sum) {
        totals[kind * C + c] += static_cast<double>(sum);
      });
    }
  }
}

// A factorized reduction of an input.
template <int C, bool kExact, class V>
__device__ __forceinline__ void reduction(const Job<V>& job, int i, const PlannedEdge& edge,
                                          bool writes, float* shared) {
  using Place = Cut<C>;
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y, node = node_of(i), e = i % kCellEdges;
  const State<V> from = dag.state(arch, edge.input);
  const int pixels = s.out_height * s.out_width;
  const int64_t out_image = static_cast<int64_t>(pixels) * C;
  const V* g = job.gradients.node(s, arch, node);
  const V* z = dag.stage(arch, node, e, 0);
  float* split = job.gradients.weight_split(s, arch, node, e, blockIdx.x);
  float* source = shared + job.layout.source;
  float* grads = shared + job.layout.grads;
  float* weight = shared + job.layout.weight;
  constexpr int kBorder = Place::kBorder, kRowValues = Place::kPitch * C;
  const int across = s.out_width / 4, tiles = tiled(s.out_height) / 4 * across;
  for (int image = blockIdx.x; image < s.images; image += gridDim.x) {
    const bool adds = image != static_cast<int>(blockIdx.x);
    V* to =
        state_grad(job, edge.input) + static_cast<int64_t>(image) * from.height * from.width * C;
    for (int which = 0; which < 2; ++which) {
      __syncthreads();
      if (which == 0) {
        fill_border<C>(s.out_height, s.out_width, grads);
        fill_grads<C, kExact>(g + image * out_image, z + image * out_image,
                              shared + job.layout.coefficients + i * 3 * C, s.out_height,
                              s.out_width, grads);
      }
      CarriedWeight<C> weight_quads;
      weight_quads.load(dag.pointwise(arch, node, e, 0) + which * C, 2 * C);
      fill_source<C, 1, true>(from, image, which, s.out_height, s.out_width, source);
      fill_border<C>(s.out_height, s.out_width, source);
      weight_quads.template store<kExact>(weight);
      __syncthreads();
      float sums[C / 16][2][4] = {};
      for (int tile = Place::turn(); tile < tiles; tile += Place::kTurns) {
        const int down = tile / across, y = down * 4, x = (tile - down * across) * 4;
        const float* column = source + (y + kBorder) * kRowValues + x * C +
                              Place::place(kBorder + Place::lane() % 4, Place::channel());
        float2 depth[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) depth[r] = load_pair(column + r * kRowValues);
        add_outer<C, kExact>(grads, y, x, depth, sums);
      }
      finish_outer<C>(sums, shared + job.layout.matrix, split + which * C, 2 * C, adds);
      multiply_weight<C, kExact>(
          grads, weight, tiled(s.out_height), s.out_width, [&](int place, const float2& value) {
            const float2 x = load_pair(source + place);
            store_pair(source + place,
                       make_float2(x.x > 0 ? value.x : 0.0f, x.y > 0 ? value.y : 0.0f));
          });
      __syncthreads();
      const int c = threadIdx.x % Place::kQuads * 4;
      Vec4<float> before[4];
      const auto inside = [&](int y, int x) { return y < from.height && x < from.width; };
      for_pixels<C, 4>(
          s.out_height, s.out_width,
          [&](int i, int, int y, int x) {
            y = 2 * y + which;
            x = 2 * x + which;
            before[i] = writes || !inside(y, x) ? fill_vec4(0.0f)
                                                : load_vec4(to + (y * from.width + x) * C + c);
          },
          [&](int i, int, int y, int x) {
            V* row = to + (2 * y + which) * from.width * C + c;
            Vec4<float> value =
                load_vec4(source + (y + kBorder) * kRowValues + Place::place(x + kBorder, c));
            value += before[i];
            y = 2 * y + which;
            if (inside(y, 2 * x + which)) write_vec4(row + (2 * x + which) * C, value);
            if (!writes || !inside(y, 2 * x + 1 - which)) return;
            write_vec4(row + (2 * x + 1 - which) * C, fill_vec4(0.0f));
          });
    }
  }
}

// What a pool with stride 1 passes on to four pixels below each other, from (y, x) on: from the
// gradient of its node's image in shared memory and, of a max pool, from where its maxima are.
template <int C, bool kMax>
__device__ __forceinline__ void add_pool(const float* image, const uint32_t* maxima, int height,
                                         int width, int y, int x, int c, float scale,
                                         Vec4<float> (&grads)[4]) {
  Vec4<float> sums[4] = {};
#pragma unroll
  for (int i = -1; i <= 4; ++i) {
    Vec4<float> row = fill_vec4(0.0f);
#pragma unroll
    for (int j = -1; j <= 1; ++j) {
      if (static_cast<unsigned>(y + i) >= static_cast<unsigned>(height) ||
          static_cast<unsigned>(x + j) >= static_cast<unsigned>(width)) {
        continue;
      }
      const int at = ((y + i) * width + x + j) * C + c;
      const Vec4<float> g = load_vec4(image + at);
      if constexpr (!kMax) {
        row += g;
      } else {
        const uint32_t places = maxima[at / 4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const uint32_t place = places >> 8 * k & 0xff;
#pragma unroll
          for (int r = max(i - 1, 0); r <= min(i + 1, 3); ++r) {
            const uint32_t own = (r - i + 1) * kPoolKernel + 1 - j;
            if (place == own) sums[r].v[k] += g.v[k];
          }
        }
      }
    }
#pragma unroll
    for (int r = max(i - 1, 0); !kMax && r <= min(i + 1, 3); ++r) sums[r] += row;
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) add_product(grads[r], sums[r], fill_vec4(scale));
}

// Completes the gradient of a state with what identities and pools pass on, where it is read at
// all, and adds the sums for the normalizations that made it to `totals`, if that is not null: of
// an input, or of the edges of a node.
template <int C, class V>
__device__ void finish_state(const Job<V>& job, const Readers& readers, int index, bool written,
                             double* totals, float* shared) {
  using Place = Cut<C>;
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y, node = index - s.inputs;
  const bool is_input = node < 0;
  const unsigned read_by = readers.of_state[index];
  const unsigned passing = read_by & ~readers.normalized;
  const State<V> state = dag.state(arch, index);
  const int height = state.height, width = state.width, stride = is_input ? s.stride : 1;
  const int64_t size = static_cast<int64_t>(height) * width * C;
  const int out_size = s.out_height * s.out_width * C;
  const int c = threadIdx.x % Place::kQuads * 4;
  V* to = state_grad(job, index);
  const V* z[2] = {nullptr, nullptr};
  const float* norm[2] = {nullptr, nullptr};
  if (totals != nullptr && is_input) {
    z[0] = state.x;
    norm[0] = state.norm;
  } else if (totals != nullptr) {
    for (int e = 0; e < kCellEdges; ++e) {
      const int stages = stage_count(dag, readers.edges[node * kCellEdges + e]);
      if (stages == 0) continue;
      z[e] = dag.stage(arch, node, e, stages - 1);
      norm[e] = dag.norm(arch, node, e, stages - 1);
      if (stages == 2) prefetch_image(dag.stage(arch, node, e, 0), out_size);
    }
  }
  if (read_by == 0 && totals == nullptr) return;
  float* images = shared + job.layout.source;
  const int room = (job.layout.size - job.layout.source) / out_size;
  const int columns = tiled(height) / 4 * width;
  const unsigned per_row = ~0u / width + 1;
  Vec4<float> sums[3] = {};
  for (int image = blockIdx.x; image < s.images; image += gridDim.x) {
    __syncthreads();
    // The gradients that pools read, one behind the other, as far as there is room.
    int staged = 0;
    for (int i = 0; stride == 1 && passing >> i != 0; ++i) {
      if ((passing >> i & 1) == 0 || readers.edges[i].form == Form::kIdentity) continue;
      if (staged == room) break;
      const V* from = job.gradients.node(s, arch, node_of(i)) + image * size;
      float* place = images + staged++ * out_size;
#pragma unroll 4
      for (int j = threadIdx.x * 4; j < out_size; j += kCellThreads * 4) {
        store_vec4(place + j, load_vec4(from + j));
      }
    }
    __syncthreads();
    for (int column = threadIdx.x / Place::kQuads; column < columns; column += Place::kStep) {
      const int down = static_cast<int>(multiply_high(column, per_row));
      const int x = column - down * width, y = down * 4;
      const int64_t at = image * size + (y * width + x) * C + c;
      const int row = width * C, rows = min(4, height - y);
      Vec4<float> grads[4] = {};
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if (r < rows && (written || read_by == 0)) grads[r] = load_vec4(to + at + r * row);
      }
      int next = 0;
#pragma unroll 1
      for (int i = 0; passing >> i != 0; ++i) {
        if ((passing >> i & 1) == 0) continue;
        const PlannedEdge& edge = readers.edges[i];
        const V* from = job.gradients.node(s, arch, node_of(i));
        const float times = static_cast<float>(edge.multiplicity);
        if (edge.form == Form::kIdentity) {
          Vec4<float> values[4] = {};
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            if (r < rows) values[r] = load_vec4(from + at + r * row);
          }
#pragma unroll
          for (int r = 0; r < 4; ++r) add_product(grads[r], values[r], fill_vec4(times));
          continue;
        }
        const bool max_pool = edge.form == Form::kMaxPool;
        const uint32_t* maxima = max_pool ? dag.maxima(arch, node_of(i), i % kCellEdges) : nullptr;
        if (next < staged) {
          const float* place = images + next++ * out_size;
          if (max_pool) {
            add_pool<C, true>(place, maxima + image * (out_size / 4), height, width, y, x, c, times,
                              grads);
          } else {
            add_pool<C, false>(place, nullptr, height, width, y, x, c, times / kPoolPixels, grads);
          }
          continue;
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          if (r >= rows) continue;
          grads[r] += pool_gradient(s, from, maxima, edge.multiplicity, stride, image, y + r, x, c);
        }
      }
      Vec4<float> left[4] = {}, right[4] = {};
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if (r < rows && z[0] != nullptr) left[r] = load_vec4(z[0] + at + r * row);
        if (r < rows && z[1] != nullptr) right[r] = load_vec4(z[1] + at + r * row);
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if (r >= rows) continue;
        if (read_by != 0) grads[r] = store_rounded(to + at + r * row, grads[r]);
        sums[0] += grads[r];
        if (z[0] != nullptr) add_product(sums[1], grads[r], affine_vec4(left[r], norm[0], C, c));
        if (z[1] != nullptr) add_product(sums[2], grads[r], affine_vec4(right[r], norm[1], C, c));
      }
    }
  }
  if (totals == nullptr) return;
  __syncthreads();
  float* red = images;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < 3; ++k) {
#pragma unroll
    for (int other = Place::kQuads; other < 32; other *= 2) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[k].v[j] += __shfl_xor_sync(~0u, sums[k].v[j], other);
    }
    if (lane < Place::kQuads) store_vec4(red + (warp * 3 + k) * C + c, sums[k]);
  }
  __syncthreads();
  for (int j = threadIdx.x; j < 3 * C; j += kCellThreads) {
    double sum = 0;
    for (int w = 0; w < kCellWarps; ++w) sum += static_cast<double>(red[w * 3 * C + j]);
    totals[j] += sum;
  }
}

// Stages of all windows are inlined: pointers to shared memory would else become generic, and the
// sums of a lane memory.
template <int C, bool kStrided, bool kExact, int kOperation = 0, class V>
__device__ __forceinline__ void any_stage(const Job<V>& job, const Readers& readers, int i,
                                          int stage_index, bool writes, double* totals,
                                          float* shared) {
  if constexpr (kOperation < kOperationCount) {
    constexpr Operation o = kOperations[kOperation];
    const PlannedEdge& edge = readers.edges[i];
    if (edge.operation != kOperation) {
      any_stage<C, kStrided, kExact, kOperation + 1>(job, readers, i, stage_index, writes, totals,
                                                     shared);
    } else if constexpr (o.form == Form::kSeparable) {
      if constexpr (kStrided) {
        if (stage_index == 0 && job.dag.stride(edge) == 2) {
          stage<C, o.kernel, 2, o.dilation, kExact>(job, readers, i, stage_index, writes, totals,
                                                    shared);
          return;
        }
      }
      stage<C, o.kernel, 1, o.dilation, kExact>(job, readers, i, stage_index, writes, totals,
                                                shared);
    } else if constexpr (kStrided && is_factorized(o.form, 2)) {
      reduction<C, kExact>(job, i, edge, writes, shared);
    }
  }
}

template <class V>
__device__ void list_readers(const Dag<V>& dag, Readers& readers) {
  const DagShape& s = dag.shape;
  const int count = s.nodes * kCellEdges;
  if (threadIdx.x == 0) {
    readers.normalized = 0;
    for (int state = 0; state < s.states(); ++state) readers.of_state[state] = 0;
    for (int i = 0; i < count; ++i) {
      const PlannedEdge edge = dag.plan[s.slot(blockIdx.y, 0, 0) + i];
      readers.edges[i] = edge;
      if (edge.multiplicity == 0 || edge.form == Form::kNone) continue;
      readers.of_state[edge.input] |= 1u << i;
      if (dag.normalized(edge)) readers.normalized |= 1u << i;
    }
  }
  __syncthreads();
}

template <class V, int C, bool kStrided, bool kExact>
__global__ __launch_bounds__(kCellThreads, 1) void nodes_backward_kernel(const Job<V> job) {
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y, t = threadIdx.x, edges = s.nodes * kCellEdges;
  Readers& readers = *dynamic_shared<Readers>();
  float* shared = reinterpret_cast<float*>(&readers + 1);
  double* totals = reinterpret_cast<double*>(shared + job.layout.totals);
  list_readers(dag, readers);
  // Of edges: what has been passed on to the state that they read, and which stages are to come. Of
  // states: whether the gradient is complete, and whether something has been written to it.
  unsigned passed = 0, stages[2] = {0, 0}, complete = 0, written = 0;
  for (int round = 0;; ++round) {
    unsigned next[2] = {0, 0}, completed = 0;
    int columns = 0;
    __syncthreads();
    for (int j = t; j < job.meeting.columns; j += kCellThreads) totals[j] = 0;
    for (int stage_index = 0; stage_index < 2; ++stage_index) {
      for (int i = 0; i < edges; ++i) {
        if ((stages[stage_index] >> i & 1) == 0) continue;
        const int input = readers.edges[i].input;
        any_stage<C, kStrided, kExact>(job, readers, i, stage_index, (written >> input & 1) == 0,
                                       totals + columns, shared);
        if (stage_index == 0) {
          passed |= 1u << i;
          written |= 1u << input;
        } else {
          next[0] |= 1u << i;
          columns += 2 * C;
        }
      }
    }
    for (int state = s.states() - 1; state >= 0; --state) {
      const unsigned read_by = readers.of_state[state];
      if ((complete >> state & 1) != 0 || (read_by & ~passed) != 0) continue;
      complete |= 1u << state;
      const bool is_input = state < s.inputs;
      if (is_input && read_by == 0) continue;
      // Of an input that architectures share, sums are taken when they have all added theirs.
      const int first = (state - s.inputs) * kCellEdges;
      const bool sums = is_input ? !s.is_shared(state)
                                 : stage_count(dag, readers.edges[first]) +
                                           stage_count(dag, readers.edges[first + 1]) >
                                       0;
      finish_state<C>(job, readers, state, (written >> state & 1) != 0,
                      sums ? totals + columns : nullptr, shared);
      if (sums) {
        completed |= 1u << state;
        columns += 3 * C;
      }
      if (is_input) continue;
      for (int i = first; i < first + kCellEdges; ++i) {
        const int count = stage_count(dag, readers.edges[i]);
        if (count > 0)
          next[count - 1] |= 1u << i;
        else
          passed |= 1u << i;
      }
    }
    if (columns == 0) break;
    meet(job.meeting, round, columns, totals,
         reinterpret_cast<double*>(shared + job.layout.source));
    // Threads for each normalization, so that divisions do not wait for each other.
    int number = 0;
    const auto finish = [&](const double* sums, const double* dots, double count, const float* norm,
                            int factor, float* coefficients) {
      const int c = t - number++ % (kCellThreads / C) * C;
      if (c < 0 || c >= C) return;
      const double scale = static_cast<double>(norm[c]), outer = scale * factor;
      const double mean = sums[c] / count, dot = dots[c] / count;
      coefficients[c] = static_cast<float>(outer);
      coefficients[C + c] = static_cast<float>(-outer * dot * scale);
      coefficients[2 * C + c] =
          static_cast<float>(-outer * (mean + dot * static_cast<double>(norm[C + c])));
    };
    const double count = static_cast<double>(s.images) * s.out_height * s.out_width;
    float* coefficients = shared + job.layout.coefficients;
    columns = 0;
    for (int i = 0; i < edges; ++i) {
      if ((stages[1] >> i & 1) == 0) continue;
      finish(totals + columns, totals + columns + C, count,
             dag.norm(arch, node_of(i), i % kCellEdges, 0), 1, coefficients + i * 3 * C);
      columns += 2 * C;
    }
    for (int state = s.states() - 1; state >= 0; --state) {
      if ((completed >> state & 1) == 0) continue;
      if (state >= s.inputs) {
        const int node = state - s.inputs;
        for (int e = 0; e < kCellEdges; ++e) {
          const int i = node * kCellEdges + e;
          const PlannedEdge& edge = readers.edges[i];
          const int last = stage_count(dag, edge) - 1;
          if (last < 0) continue;
          finish(totals + columns, totals + columns + (1 + e) * C, count,
                 dag.norm(arch, node, e, last), edge.multiplicity, coefficients + i * 3 * C);
        }
      } else if (blockIdx.x == 0) {
        finish(totals + columns, totals + columns + C,
               static_cast<double>(s.images) * s.height * s.width, dag.state(arch, state).norm, 1,
               job.input_coefficients + (static_cast<int64_t>(state) * s.archs + arch) * 3 * C);
      }
      columns += 3 * C;
    }
    stages[0] = next[0];
    stages[1] = next[1];
    __syncthreads();
  }
}

// The gradient of an input that all architectures share, from those that each of them has for it:
// their sum, and the sums for its normalization.
template <class V>
__global__ __launch_bounds__(kThreads) void shared_inputs_kernel(const Job<V> job, int splits) {
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const int index = blockIdx.y;
  if (!s.is_shared(index)) return;
  double* totals = dynamic_shared<double>();
  float* shared = reinterpret_cast<float*>(totals + 3 * s.padded);
  clear(totals, 3 * s.padded);
  const State<V> state = dag.state(0, index);
  V* grads = job.input_grads + static_cast<int64_t>(index) * s.archs * s.in_size();
  bool used = false;
  for (int a = 0; a < s.archs; ++a) used |= dag.used[a * s.states() + index] != 0;
  if (!used) return;
  __syncthreads();
  const int pixels = static_cast<int>(s.in_size() / s.padded);
  sum_items(pixels, s.padded, blockIdx.x, splits, shared, totals,
            [&](int pixel, int c, Vec4<float>(&sums)[3]) {
              const int64_t at = static_cast<int64_t>(pixel) * s.padded + c;
              Vec4<float> grad = fill_vec4(0.0f);
#pragma unroll 4
              for (int a = 0; a < s.archs; ++a) {
                if (dag.used[a * s.states() + index] == 0) continue;
                grad += load_vec4(grads + a * s.in_size() + at);
              }
              grad = store_rounded(grads + at, grad);
              sums[0] += grad;
              add_product(sums[1], grad,
                          affine_vec4(load_vec4(state.x + at), state.norm, s.padded, c));
            });
  if (!sum_over_splits(dag, index, 2, splits, totals, shared)) return;
  finish_gradient(totals, totals + s.padded, pixels, s.padded, state.norm, true, 1.0,
                  job.input_coefficients + static_cast<int64_t>(index) * s.archs * 3 * s.padded);
}

// The sums of a phase at most: a node has those of its edges' last normalizations or, later, those
// of their first ones.
int most_columns(const DagShape& s) { return (s.nodes * 4 + s.inputs * 3) * s.padded; }

Layout make_layout(const DagShape& s) {
  const int c = s.padded, width = 512 / c;
  const int out = (tiled(s.out_height) + 4) * (width + 4) * c;
  const int in = s.stride == 2 ? std::max(out, s.height * 2 * width * c) : out;
  Layout l;
  l.coefficients = 0;
  l.totals = l.coefficients + s.nodes * kCellEdges * 3 * c;
  l.taps = l.totals + 2 * most_columns(s);
  l.weight = l.taps + kMostKernelElements * c;
  l.matrix = l.weight + c * (c + 4);
  l.source = l.matrix + std::max(2048, c * c);
  l.grads = l.source + in;
  // The sums of warps, or those of blocks, come when the images are not needed any more.
  const int sums = std::max(kCellWarps * (kMostKernelElements + 2) * 16, 2 * 4 * kCellThreads);
  l.size = std::max(l.grads + out, l.source + sums);
  return l;
}

size_t layout_bytes(const Layout& l) { return sizeof(Readers) + l.size * sizeof(float); }

template <class V, int C>
auto choose_channels(const DagShape& s) {
  return choose_kernel<V>(s.tf32, [&](auto rounds) {
    return s.stride == 2 ? &nodes_backward_kernel<V, C, true, !rounds()>
                         : &nodes_backward_kernel<V, C, false, !rounds()>;
  });
}

}  // namespace

const char* nodes_backward_obstacle(const DagShape& s) {
  if (s.edges != kCellEdges || s.inputs != 2 || s.nodes < 1 || s.nodes > kMostNodes) {
    return "the number of its nodes or edges";
  }
  if (s.padded != 16 && s.padded != 32 && s.padded != 64) return "its number of channels";
  if (s.out_width % 4 != 0) return "the width of its images, which is not a multiple of 4";
  if (s.out_width * s.padded > 512 || layout_bytes(make_layout(s)) > largest_shared_bytes()) {
    return "the size of its images, which exceed shared memory";
  }
  if (blocks_per_arch(s.images, s.archs) == 0) return "the number of its architectures";
  return nullptr;
}

int nodes_backward_columns(const DagShape& s) { return most_columns(s); }

template <class V>
void nodes_backward(const Dag<V>& dag, const Gradients<V>& gradients, V* input_grads,
                    float* input_coefficients, const Meeting& meeting, CudaStream stream) {
  const DagShape& s = dag.shape;
  const Job<V> job = {dag, gradients, input_grads, input_coefficients, make_layout(s), meeting};
  const auto kernel = s.padded == 16   ? choose_channels<V, 16>(s)
                      : s.padded == 32 ? choose_channels<V, 32>(s)
                                       : choose_channels<V, 64>(s);
  launch_cooperative(kernel, dim3(meeting.blocks, s.archs), kCellThreads, layout_bytes(job.layout),
                     stream, job);
  if (s.shared == 0) return;
  const int splits = pixel_splits(s.in_size() / s.padded, s.padded);
  launch(shared_inputs_kernel<V>, dim3(splits, s.inputs), kThreads,
         pixel_sums_bytes(s.padded, sizeof(float)), stream, job, splits);
}

template void nodes_backward(const Dag<float>&, const Gradients<float>&, float*, float*,
                             const Meeting&, CudaStream);
template void nodes_backward(const Dag<BFloat16>&, const Gradients<BFloat16>&, BFloat16*, float*,
                             const Meeting&, CudaStream);

}  // namespace asng::cuda
