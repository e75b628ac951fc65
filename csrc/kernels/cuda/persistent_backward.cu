// All nodes of a cell, backward, in one launch: see persistent.h. The gradient of a state is added
// up where it will lie, edge after edge, by the block that has the image; so nothing is gathered
// from other blocks but the sums of normalizations. In each round come first the stages whose
// coefficients are there, from the last to the first of an edge:
//   the gradient of the stage's output before its normalization, gz = a·g + b·z + c, and the input
//   after ReLU, both of a whole image in shared memory;
//   the depthwise convolution of the input, in registers, and with it the 1×1 weight's gradient
//   Σ gz ⊗ depth on the tensor cores;
//   the gradient of the depthwise output, gz · weight, in the place of gz;
//   from that, in one pass, the gradients of the depthwise weight and of the input.
// Then come the states of which all readers are done, and what they pass on through identities and
// pools. A stage whose gradients complete no state in its round is computed while blocks wait for
// each other. What a stage reads is on its way to shared memory while the one before it ends, and
// while states are completed and blocks meet.
#include <climits>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/persistent_plan.h"
#include "kernels/cuda/pool.h"

namespace asng::cuda {

namespace {

// Places in dynamic shared memory behind the plan, counted in floats.
struct Layout {
  int coefficients;  // (edges, 3, C): see finish_gradient
  int norms;         // (edges, 2, 2, C), and behind them (inputs, 2, C)
  int totals;        // doubles (items, 2, C), the sums of a round
  int taps;          // (kernel elements, C)
  int weight;        // (C, C + 4)
  int source, grads;
  int matrix, copies;  // (copies, C, C), of a weight's gradient, to which warps add in turns
  int scratch;  // for sums: in the place of the matrix or, where there is no room, of the images
  int size;
  bool ahead;  // whether images may come while sums are taken
  // Of images of nodes and of inputs: 2³² / their width, rounded up, and 1 / the pixels of all.
  unsigned per_row, per_input_row;
  double share, input_share;
};

// Some of what is to be done, in order; what belongs to round r begins at before[r].
inline constexpr int kMostListed = 2 * kMostEdges + 2;
struct List {
  int keys[kMostListed];  // round · kKeys + what decides within a round; INT_MAX: nothing to do
  int ranks[kMostListed];
  int before[kMostPhases + 1];
};
inline constexpr int kKeys = 64;
static_assert(kMostListed <= kKeys);

// A stage of an edge: where things lie, of all images.
template <class V>
struct Stage {
  const V *x, *g, *z;
  V* to;
  const float *pointwise, *taps;
  float* split;            // of the weights' gradients
  int norm, coefficients;  // places in shared memory; norm is -1 if there is none
  int height, width, stride, separable, elements;
  unsigned per_row, per_element;  // 2³² / width and elements, rounded up
  int item;                       // whose sums are those of what the stage writes, or -1
  bool writes;                    // rather than adds to what is there
  bool waits;                     // until the sums of its round are handed over
  bool reduces;                   // is a factorized reduction
};

// A state whose gradient is complete but for what identities and pools pass on.
template <class V>
struct Completion {
  V* to;
  const V* z[kCellEdges];  // what was normalized to give the state; the other one if it was not
  int norms[kCellEdges];   // their places in shared memory, or -1
  int items[kCellEdges];   // whose sums are taken, or -1
  int height, width, stride;
  int first_pass, passes;
  bool begun;  // there is something already
};

// An identity or a pool that reads a state.
template <class V>
struct Pass {
  const V* grads;
  const uint32_t* maxima;
  Form form;
  int multiplicity;
};

// A normalization whose gradient's coefficients come from the sums of a round.
struct Item {
  float* coefficients;
  double factor, share;
  int norm;
  bool once;  // in one block
};

template <class V>
struct alignas(16) Plan {
  Bases bases;
  DagShape shape;
  Layout layout;
  PlannedEdge edges[kMostEdges];
  int stage_count[kMostEdges];
  int complete[2 + kMostNodes];  // the round in which the gradient of a state is complete
  // The edges that read a state: those that are normalized, and those that pass on its gradient.
  unsigned normalized[2 + kMostNodes], passing[2 + kMostNodes];
  List stage_list, item_list, completion_list, pass_list;
  Stage<V> stages[2 * kMostEdges];
  Item items[kMostListed];
  Completion<V> completions[2 + kMostNodes];
  Pass<V> passes[kMostEdges];

  // To all addresses; for all threads of the block.
  __device__ void add_bases() {
    int turn = threadIdx.x;
    turn = bases.add_to<7>(stages, turn);
    turn = bases.add_to<1>(items, turn);
    turn = bases.add_to<3>(completions, turn);
    turn = bases.add_to<2>(passes, turn);
  }
};

template <class V>
struct Job {
  Dag<V> dag;
  Gradients<V> gradients;
  V* input_grads;  // (inputs, archs, in_size)
  float* input_coefficients;
  Layout layout;
  Handover handover;
  Plan<V>* plans;  // (archs)
  const void* scratch;
};

// Those of several cells.
template <class V>
struct Jobs {
  static constexpr int kMost = kMostParameters / sizeof(Job<V>);

  Job<V> jobs[kMost];
};
static_assert(Jobs<float>::kMost >= 8);

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
  static constexpr int kQuads = C / 4, kStep = kCellThreads / kQuads;

  // What follows from a thread's number is computed where it is needed: kept over all rounds it
  // would take more registers than there are.
  static __device__ __forceinline__ int thread() { return opaque(threadIdx.x); }
  static __device__ __forceinline__ int lane() { return thread() % 32; }
  static __device__ __forceinline__ int group() { return thread() / 32 % kGroups * 16; }
  static __device__ __forceinline__ int turn() { return thread() / 32 / kGroups; }
  // The lane's first channel.
  static __device__ __forceinline__ int channel() { return group() + lane() / 4 * 2; }

  // Where channel c of a row's pixel is. Pixels that are a multiple of 4 apart have the same order.
  static __device__ __forceinline__ int place(int column, int c) {
    const int order = C == 16 ? (column >> 1 & 1) * 8 : (column & 3) * 8;
    return column * C + (c ^ order);
  }

  // A thread's four channels where it has those of every kStep-th pixel, and the first of these.
  static __device__ __forceinline__ int own_channel() { return thread() % kQuads * 4; }
  static __device__ __forceinline__ int own_pixel() { return thread() / kQuads; }
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

// Where the pixels of an image of this width are in shared memory.
template <int C>
struct Rows {
  int width;
  unsigned per_row;
  int pitch = Cut<C>::kPitch, border = Cut<C>::kBorder;

  // Of the source of a stage.
  template <class V>
  static __device__ __forceinline__ Rows source(const Stage<V>& stage) {
    return stage.stride == 1 ? Rows{stage.width, stage.per_row}
                             : Rows{stage.width, stage.per_row, 2 * Cut<C>::kWidth, 0};
  }
  __device__ __forceinline__ int row_of(int pixel) const {
    return static_cast<int>(multiply_high(pixel, per_row));
  }
  __device__ __forceinline__ int place(int pixel, int c) const {
    const int y = row_of(pixel), x = pixel - y * width;
    return (y + border) * pitch * C + Cut<C>::place(x + border, c);
  }
};

__device__ __forceinline__ void start_copy(const float* from, float* to) { copy_async16(to, from); }
__device__ __forceinline__ void start_copy(const BFloat16* from, float* to) {
  copy_async8(to, from);
}

// Starts to copy an image as it is; every thread those values that it will work on, each four of
// them to where as many floats will be.
template <int C, class V>
__device__ __forceinline__ void start_image(const V* from, int pixels, const Rows<C>& rows,
                                            float* to) {
  const int c = Cut<C>::own_channel();
#pragma unroll 2
  for (int pixel = Cut<C>::own_pixel(); pixel < pixels; pixel += Cut<C>::kStep) {
    start_copy(from + pixel * C + c, to + rows.place(pixel, c));
  }
}

// Starts to copy a weight, (C, row).
template <int C>
__device__ __forceinline__ void start_weight(const float* from, int row, float* to) {
#pragma unroll 1
  for (int i = threadIdx.x * 4; i < C * C; i += kCellThreads * 4) {
    copy_async16(to + i / C * Cut<C>::kRow + i % C, from + i / C * row + i % C);
  }
}

// Rounds what this thread has copied of a weight.
template <int C, bool kExact>
__device__ __forceinline__ void finish_weight(float* weight) {
#pragma unroll 1
  for (int i = threadIdx.x * 4; !kExact && i < C * C; i += kCellThreads * 4) {
    float* at = weight + i / C * Cut<C>::kRow + i % C;
    store_vec4(at, rounded<kExact>(load_vec4(at)));
  }
}

// What shared memory holds, for functions that are not inlined: those that are called from several
// places, because a kernel whose code is large waits for it, and those that would otherwise compute
// much of theirs in front of all rounds, and take registers for it all along.
template <class V>
__device__ Plan<V>& plan_of_block() {
  return *dynamic_shared<Plan<V>>();
}
template <class V>
__device__ float* values_of_block() {
  return reinterpret_cast<float*>(dynamic_shared<Plan<V>>() + 1);
}

// Starts to copy what a stage reads of an image, but for the gradient, and with the block's first
// image the weights.
template <int C, class V>
__device__ __noinline__ void start_stage(int number, int image) {
  const Plan<V>& plan = plan_of_block<V>();
  float* shared = values_of_block<V>();
  const Stage<V>& stage = plan.stages[number];
  const int width = plan.shape.out_width, pixels = plan.shape.out_height * width;
  if (stage.reduces) return;
  const int in_pixels = stage.height * stage.width;
  start_image<C>(stage.z + static_cast<int64_t>(image) * pixels * C, pixels,
                 {width, plan.layout.per_row}, shared + plan.layout.grads);
  start_image<C>(stage.x + static_cast<int64_t>(image) * in_pixels * C, in_pixels,
                 Rows<C>::source(stage), shared + plan.layout.source);
  if (image != static_cast<int>(blockIdx.x)) return;
  start_weight<C>(stage.pointwise, C, shared + plan.layout.weight);
  for (int i = threadIdx.x * 4; i < stage.elements * C; i += kCellThreads * 4) {
    copy_async16(shared + plan.layout.taps + i, stage.taps + i);
  }
}

// a·g + b·z + c of an image in the place of z, which this thread has started to copy; meanwhile(),
// while g is on its way, begins when all that has been started is there.
template <int C, bool kExact, class V, class Meanwhile>
__device__ __forceinline__ void finish_grads(const V* g, const float* coefficients, int pixels,
                                             const Rows<C>& rows, float* grads,
                                             Meanwhile meanwhile) {
  using Place = Cut<C>;
  constexpr int kFlight = C == 16 ? 8 : C == 32 ? 4 : 2;
  const int c = Place::own_channel();
  Vec4<float> values[kFlight];
  const auto load = [&](int first) {
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int pixel = first + i * Place::kStep;
      if (pixel < pixels) values[i] = load_vec4(g + pixel * C + c);
    }
  };
  load(Place::own_pixel());
  wait_for_copies();
  meanwhile();
  for (int first = Place::own_pixel(); first < pixels; first += kFlight * Place::kStep) {
    if (first >= Place::kStep) load(first);
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int pixel = first + i * Place::kStep;
      if (pixel >= pixels) break;
      float* at = grads + rows.place(pixel, c);
      const Vec4<float> z = load_vec4(reinterpret_cast<const V*>(at));
      store_vec4(at, rounded<kExact>(norm_gradient_vec4(values[i], z, coefficients, C, c)));
    }
  }
}

// Values after normalization and ReLU, in the place of those that this thread has copied.
template <int C, class V>
__device__ __forceinline__ void finish_source(const Stage<V>& stage, float* shared, float* source) {
  const int c = Cut<C>::own_channel(), pixels = stage.height * stage.width;
  const Rows<C> rows = Rows<C>::source(stage);
  const Affine<float> affine = load_affine(stage.norm < 0 ? nullptr : shared + stage.norm, C, c);
#pragma unroll 2
  for (int pixel = Cut<C>::own_pixel(); pixel < pixels; pixel += Cut<C>::kStep) {
    float* at = source + rows.place(pixel, c);
    store_vec4(at, relu_vec4(affine(load_vec4(reinterpret_cast<const V*>(at)))));
  }
}

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

// Adds up the warps' terms of a weight's gradient in the copies of `matrix`, in turns, and writes
// the sum to `to`, (C, row), or adds it to what is there. Ends with a barrier behind the last read
// of what the terms were made of.
template <int C>
__device__ __forceinline__ void finish_outer(const float (&sums)[C / 16][2][4], float* matrix,
                                             int copies, float* to, int row, bool adds) {
  using Place = Cut<C>;
  const int lane = Place::lane(), g = lane / 4, t = lane % 4, own = Place::turn();
  // Halves of a row change places in every second one, so that neighboring rows are in different
  // banks.
  const auto swapped = [](int row, int column) { return C == 16 ? column : column ^ row % 2 * 16; };
  float* copy = matrix + own % copies * C * C + g * C + swapped(g, Place::group() + 4 * t);
#pragma unroll 1
  for (int first = 0; first < Place::kTurns; first += copies) {
    if (own >= first && own < first + copies) {
#pragma unroll
      for (int m = 0; m < C / 16; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          // Columns of the two products take turns.
          Vec4<float> value = {{sums[m][0][2 * half], sums[m][1][2 * half],
                                sums[m][0][2 * half + 1], sums[m][1][2 * half + 1]}};
          float* at = copy + (m * 16 + half * 8) * C;
          if (first > 0) value += load_vec4(at);
          store_vec4(at, value);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < C * C / 4; i += kCellThreads) {
    const int down = i / (C / 4), across = i % (C / 4) * 4;
    const float* from = matrix + down * C + swapped(down, across);
    Vec4<float> sum = load_vec4(from);
#pragma unroll 4
    for (int k = 1; k < copies; ++k) sum += load_vec4(from + k * C * C);
    float* at = to + down * row + across;
    if (adds) sum += load_vec4(at);
    write_vec4(at, sum);
  }
}

// Calls emit(place, value) for each pair of neighboring values of grads · weight and their place in
// an image. Between reading and writing a pixel's values, `emit` may take the place of grads.
template <int C, bool kExact, class Emit>
__device__ __forceinline__ void multiply_weight(const float* grads, const float* weight, int height,
                                                const Rows<C>& image, Emit emit) {
  constexpr int kBorder = Cut<C>::kBorder, kRow = Cut<C>::kRow, kTurns = Cut<C>::kTurns;
  const int lane = Cut<C>::lane(), g = lane / 4, t = lane % 4, pixels = height * image.width;
  const int turn = Cut<C>::turn(), group = Cut<C>::group();
  for (int first = 0; first < pixels; first += kTurns * 16) {
    const int pixel = first + turn * 16 + g;
    int places[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int y = image.row_of(pixel + 8 * half), x = pixel + 8 * half - y * image.width;
      places[half] = ((y + kBorder) * Cut<C>::kPitch + x - g % 4) * C;
    }
    float sums[2][4] = {};
    if (pixel < pixels) {
      const float* columns = weight + 2 * t * kRow + group + g;
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
      const int at = Cut<C>::place(kBorder + g % 4, group + 8 * j) + 2 * t;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        emit(at + places[half], make_float2(sums[j][2 * half], sums[j][2 * half + 1]));
      }
    }
  }
}

// Σ gz ⊗ depth over the warp's tiles, `depth` being the depthwise convolution of the source.
template <int C, int K, int S, int D, bool kExact>
__device__ __forceinline__ void weight_outer(const Rows<C>& rows, int out_height, int height,
                                             int width, const float* source, const float* grads,
                                             const float* taps, float (&sums)[C / 16][2][4]) {
  constexpr int kReach = K / 2 * D, kBorder = S == 1 ? Cut<C>::kBorder : 0;
  constexpr int kRowValues = (S == 1 ? Cut<C>::kPitch : 2 * Cut<C>::kWidth) * C;
  const int t = Cut<C>::lane() % 4, c = Cut<C>::channel();
  const int tiles = tiled(out_height) * rows.width / 16;
  // Read once for all tiles: what is read of shared memory takes the time.
  float2 w[K][K];
#pragma unroll
  for (int i = 0; i < K * K; ++i) w[i / K][i % K] = load_pair(taps + i * C + c);
#pragma unroll 1
  for (int tile = Cut<C>::turn(); tile < tiles; tile += Cut<C>::kTurns) {
    const int down = rows.row_of(tile * 4), y = down * 4, x = tile * 4 - down * rows.width;
    const float* corner = source + (y * S + kBorder - kReach) * kRowValues + x * S * C;
    float2 depth[4] = {};
#pragma unroll
    for (int kx = 0; kx < K; ++kx) {
      const int column = t * S + kx * D - kReach;
      const float* at = corner + Cut<C>::place(column + kBorder, c);
      const bool inside =
          S == 1 || static_cast<unsigned>(x * S + column) < static_cast<unsigned>(width);
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
            if (r * S + ky * D == i) add_product(depth[r], w[ky][kx], v);
          }
        }
      }
    }
    add_outer<C, kExact>(grads, y, x, depth, sums);
  }
}

// Through the depthwise convolution and ReLU, whose output is `source`: for each pixel of the
// warp's tiles calls begin(y, x), for what is there before, and emit(y, x, that, value, source);
// and adds the gradients of the kernel elements to the first K·K of `elements`.
template <int C, int K, int S, int D, class Begin, class Emit>
__device__ __forceinline__ void transposed(const Rows<C>& rows, int height, int width,
                                           const float* source, const float* depth,
                                           const float* taps, float2 (&elements)[K * K + 2],
                                           Begin begin, Emit emit) {
  constexpr int kReach = K / 2 * D, kBorder = Cut<C>::kBorder, kRowValues = Cut<C>::kPitch * C;
  constexpr int kSourceBorder = S == 1 ? kBorder : 0;
  constexpr int kSourceRow = S == 1 ? kRowValues : 2 * Cut<C>::kWidth * C;
  const int t = Cut<C>::lane() % 4, c = Cut<C>::channel();
  const int tiles = tiled(height) * rows.width / 16;
  for (int tile = Cut<C>::turn(); tile < tiles; tile += Cut<C>::kTurns) {
    const int down = rows.row_of(tile * 4), y = down * 4, left = tile * 4 - down * rows.width;
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

// Adds up pairs over the lanes with the same channels, and hands on this warp's sums in `red`
// (kCellWarps, kCount, kSumRow).
inline constexpr int kSumRow = 17;
template <int C, int kCount>
__device__ __forceinline__ void add_up(const float2 (&values)[kCount], float* red) {
  constexpr int kHalf = (kCount + 1) / 2, kQuarter = (kHalf + 1) / 2;
  const int lane = Cut<C>::lane(), warp = threadIdx.x / 32;
  const bool upper = (lane & 2) != 0, odd = (lane & 1) != 0;
  float2 halves[kHalf], quarters[kQuarter];
  add_lanes(values, 2, upper, halves);
  add_lanes(halves, 1, odd, quarters);
  const int first = odd ? kQuarter : 0, begin = first + (upper ? kHalf : 0);
  float* to = red + (warp * kCount + begin) * kSumRow + lane / 4 * 2;
#pragma unroll
  for (int i = 0; i < kQuarter; ++i) {
    if (first + i >= kHalf || begin + i >= kCount) continue;
    to[i * kSumRow] = quarters[i].x;
    to[i * kSumRow + 1] = quarters[i].y;
  }
}

// The sum of the warps for channel c of pair `which` of `count`.
template <int C>
__device__ __forceinline__ float sum_of_warps(const float* red, int count, int which, int c) {
  using Place = Cut<C>;
  const float* from = red + (c / 16 * count + which) * kSumRow + c % 16;
  float sum = 0;
#pragma unroll
  for (int turn = 0; turn < Place::kTurns; ++turn) {
    sum += from[turn * Place::kGroups * count * kSumRow];
  }
  return sum;
}

// Calls visit(Window, its stride) for a stage.
template <bool kStrided, class V, class Visit>
__device__ __forceinline__ void with_stage(const Stage<V>& stage, Visit visit) {
  with_window(stage.separable, [&](auto window) {
    if constexpr (kStrided) {
      if (stage.stride == 2) return visit(window, std::integral_constant<int, 2>());
    }
    visit(window, std::integral_constant<int, 1>());
  });
}

// Zeros around both images of a stage, or around the gradients alone.
template <int C>
__device__ __forceinline__ void fill_borders(const Layout& l, int height, int width, bool of_source,
                                             float* shared) {
  if (of_source) fill_border<C>(height, width, shared + l.source);
  fill_border<C>(height, width, shared + l.grads);
}

// A stage of an edge for one image, the first of the block or a further one. A second stage writes
// the gradient of the first one's normalized output; a first one adds to that of the state, or is
// the first to write it. Calls next() when the images and weights in shared memory are not needed
// any more.
template <int C, bool kStrided, bool kExact, class V, class Next>
__device__ __forceinline__ void compute_stage(const Job<V>& job, const Stage<V>& stage, int image,
                                              double* totals, float* shared, Next next) {
  using Place = Cut<C>;
  const DagShape& s = job.dag.shape;
  const Layout& l = job.layout;
  const bool adds = image != static_cast<int>(blockIdx.x);
  const int pixels = s.out_height * s.out_width, height = stage.height, width = stage.width;
  const Rows<C> rows = {s.out_width, l.per_row};
  float *source = shared + l.source, *grads = shared + l.grads;
  float* weight = shared + l.weight;
  const float* taps = shared + l.taps;
  finish_grads<C, kExact>(in_global(stage.g) + static_cast<int64_t>(image) * pixels * C,
                          shared + stage.coefficients, pixels, rows, grads, [&] {
                            if (!adds) finish_weight<C, kExact>(weight);
                            finish_source<C>(stage, shared, source);
                          });
  if (kStrided || !l.ahead) {
    fill_borders<C>(l, s.out_height, s.out_width, stage.stride == 1, shared);
  }
  __syncthreads();
  {
    float sums[C / 16][2][4] = {};
    with_stage<kStrided>(stage, [&](auto window, auto stride) {
      weight_outer<C, window.kernel, stride.value, window.dilation, kExact>(
          rows, s.out_height, height, width, source, grads, taps, sums);
    });
    finish_outer<C>(sums, shared + l.matrix, l.copies, in_global(stage.split), C, adds);
  }
  multiply_weight<C, kExact>(
      grads, weight, tiled(s.out_height), rows,
      [&](int place, const float2& value) { store_pair(grads + place, value); });
  __syncthreads();
  V* at = in_global(stage.to) + static_cast<int64_t>(image) * height * width * C + Place::channel();
  float* red = shared + l.scratch;
  with_stage<kStrided>(stage, [&](auto window, auto stride) {
    constexpr int kElements = window.kernel * window.kernel;
    float2 sums[kElements + 2] = {};  // of the elements, and for the normalization
    transposed<C, window.kernel, stride.value, window.dilation>(
        rows, height, width, source, grads, taps, sums,
        [&](int y, int x) {
          return stage.writes ? make_float2(0, 0) : load_pair(at + (y * width + x) * C);
        },
        [&](int y, int x, const float2& before, const float2& passed, const float2& value) {
          const float2 sum = make_float2(before.x + passed.x, before.y + passed.y);
          const float2 kept = write_pair(at + (y * width + x) * C, sum);
          sums[kElements].x += kept.x;
          sums[kElements].y += kept.y;
          add_product(sums[kElements + 1], kept, value);
        });
    if (!l.ahead) __syncthreads();
    add_up<C>(sums, red);
  });
  __syncthreads();
  next();
  const int elements = stage.elements, count = elements + 2;
  float* of_taps = in_global(stage.split) + C * C;
#pragma unroll 1
  for (int j = Place::thread(); j < elements * C; j += kCellThreads) {
    const int c = static_cast<int>(multiply_high(j, stage.per_element));
    const float sum = sum_of_warps<C>(red, count, j - c * elements, c);
    of_taps[j] = adds ? of_taps[j] + sum : sum;
  }
  const int j = kCellThreads - 1 - Place::thread();
  if (stage.item >= 0 && j < 2 * C) {
    totals[stage.item * 2 * C + j] +=
        static_cast<double>(sum_of_warps<C>(red, count, elements + j / C, j % C));
  }
}

// The same for a factorized reduction of an input: the even pixels, then the odd ones.
template <int C, bool kExact, class V, class Next>
__device__ __forceinline__ void compute_reduction(const Job<V>& job, const Stage<V>& stage,
                                                  int image, float* shared, Next next) {
  using Place = Cut<C>;
  constexpr int kBorder = Place::kBorder, kRowValues = Place::kPitch * C;
  const DagShape& s = job.dag.shape;
  const Layout& l = job.layout;
  const bool adds = image != static_cast<int>(blockIdx.x);
  const int pixels = s.out_height * s.out_width, height = stage.height, width = stage.width;
  const int tiles = tiled(s.out_height) * s.out_width / 16;
  const int c = Place::own_channel();
  const Rows<C> rows = {s.out_width, l.per_row};
  const int64_t in_image = static_cast<int64_t>(image) * height * width * C;
  const V *x = in_global(stage.x) + in_image + c,
          *z = stage.z + static_cast<int64_t>(image) * pixels * C;
  V* to = in_global(stage.to) + in_image + c;
  float *source = shared + l.source, *grads = shared + l.grads, *weight = shared + l.weight;
  const Affine<float> affine = load_affine(stage.norm < 0 ? nullptr : shared + stage.norm, C, c);
  for (int which = 0; which < 2; ++which) {
    // Where the input's pixel is that an output's reads; -1: there is none.
    const auto read_by = [&](int pixel) {
      const int down = rows.row_of(pixel);
      const int y = 2 * down + which, column = 2 * (pixel - down * s.out_width) + which;
      return y < height && column < width ? (y * width + column) * C : -1;
    };
    __syncthreads();
    start_weight<C>(stage.pointwise + which * C, 2 * C, weight);
    if (which == 0) start_image<C>(z, pixels, rows, grads);
    fill_borders<C>(l, s.out_height, s.out_width, true, shared);
#pragma unroll 4
    for (int pixel = Place::own_pixel(); pixel < pixels; pixel += Place::kStep) {
      const int from = read_by(pixel);
      Vec4<float> value = fill_vec4(0.0f);
      if (from >= 0) value = relu_vec4(affine(load_vec4(x + from)));
      store_vec4(source + rows.place(pixel, c), value);
    }
    if (which == 0) {
      finish_grads<C, kExact>(in_global(stage.g) + static_cast<int64_t>(image) * pixels * C,
                              shared + stage.coefficients, pixels, rows, grads, [] {});
    }
    wait_for_copies();
    finish_weight<C, kExact>(weight);
    __syncthreads();
    float sums[C / 16][2][4] = {};
    for (int tile = Place::turn(); tile < tiles; tile += Place::kTurns) {
      const int down = rows.row_of(tile * 4), y = down * 4, left = tile * 4 - down * rows.width;
      const float* column = source + (y + kBorder) * kRowValues + left * C +
                            Place::place(kBorder + Place::lane() % 4, Place::channel());
      float2 depth[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) depth[r] = load_pair(column + r * kRowValues);
      add_outer<C, kExact>(grads, y, left, depth, sums);
    }
    finish_outer<C>(sums, shared + l.matrix, l.copies, in_global(stage.split) + which * C, 2 * C,
                    adds);
    multiply_weight<C, kExact>(
        grads, weight, tiled(s.out_height), rows, [&](int place, const float2& value) {
          const float2 kept = load_pair(source + place);
          store_pair(source + place,
                     make_float2(kept.x > 0 ? value.x : 0.0f, kept.y > 0 ? value.y : 0.0f));
        });
    __syncthreads();
#pragma unroll 4
    for (int pixel = Place::own_pixel(); pixel < pixels; pixel += Place::kStep) {
      const int from = read_by(pixel);
      Vec4<float> value = load_vec4(source + rows.place(pixel, c));
      if (from >= 0 && !stage.writes) value += load_vec4(to + from);
      if (from >= 0) write_vec4(to + from, value);
      // The other pixel of the same row, which no output reads.
      const int down = rows.row_of(pixel);
      const int y = 2 * down + which, column = 2 * (pixel - down * s.out_width) + 1 - which;
      if (stage.writes && y < height && column < width) {
        write_vec4(to + (y * width + column) * C, fill_vec4(0.0f));
      }
    }
  }
  __syncthreads();
  next();
}

// Completes the gradient of a state for one image with what identities and pools pass on, and adds
// the sums for the normalizations that gave the state to the totals.
template <int C, int S, class V>
__device__ __noinline__ void complete_state(int number, int image) {
  using Place = Cut<C>;
  const Plan<V>& plan = plan_of_block<V>();
  const Completion<V>& state = plan.completions[number];
  float *shared = values_of_block<V>(), *red = shared + plan.layout.scratch;
  double* totals = reinterpret_cast<double*>(shared + plan.layout.totals);
  constexpr int kPixels = InputPatches<S>::kPixels;
  const InputPatches<S> patches = {state.height, state.width};
  const int count = patches.count(1), c = Place::own_channel();
  const bool adds_up = state.items[0] >= 0 || state.items[1] >= 0;
  V* to = in_global(state.to);
  Vec4<float> sums[1 + kCellEdges] = {};
#pragma unroll 1
  for (int patch = Place::own_pixel(); patch < count; patch += Place::kStep) {
    // As many patches lie side by side as there are pixels of a node.
    const int down = static_cast<int>(multiply_high(patch, plan.layout.per_row));
    const Pixel first = {image, down * patches.kRows,
                         (patch - down * plan.shape.out_width) * patches.kColumns};
    Vec4<float> grads[kPixels] = {};
    if (state.begun) patches.load(to, first, C, c, grads);
#pragma unroll 1
    for (int i = 0; i < state.passes; ++i) {
      const Pass<V>& pass = plan.passes[state.first_pass + i];
      const V* passed = in_global(pass.grads);
      if (pass.form == Form::kIdentity) {
        Vec4<float> values[kPixels];
        patches.load(passed, first, C, c, values);
#pragma unroll
        for (int p = 0; p < kPixels; ++p) {
          add_product(grads[p], values[p], fill_vec4(static_cast<float>(pass.multiplicity)));
        }
      } else if (pass.maxima == nullptr) {
        pool_backward<S>(plan.shape, passed, nullptr, pass.multiplicity, first, c, grads);
      } else {
        pool_backward<S>(plan.shape, passed, in_global(pass.maxima), pass.multiplicity, first, c,
                         grads);
      }
    }
    if (state.passes > 0) {
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        if (!patches.inside(first, p)) continue;
        grads[p] = store_rounded(to + patches.offset(first, p, C, c), grads[p]);
      }
    }
    if (!adds_up) continue;
    // What is not there has no item, and its sums are not asked for.
    Vec4<float> values[kCellEdges][kPixels];
#pragma unroll
    for (int e = 0; e < kCellEdges; ++e) {
      patches.load(in_global(state.z[e]), first, C, c, values[e]);
    }
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      if (!patches.inside(first, p)) grads[p] = fill_vec4(0.0f);
      sums[0] += grads[p];
    }
#pragma unroll
    for (int e = 0; e < kCellEdges; ++e) {
      const Affine<float> affine =
          load_affine(state.norms[e] < 0 ? nullptr : shared + state.norms[e], C, c);
#pragma unroll
      for (int p = 0; p < kPixels; ++p) add_product(sums[1 + e], grads[p], affine(values[e][p]));
    }
  }
  if (!adds_up) return;
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = Place::lane();
#pragma unroll
  for (int k = 0; k < 1 + kCellEdges; ++k) {
#pragma unroll
    for (int other = Place::kQuads; other < 32; other *= 2) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[k].v[j] += __shfl_xor_sync(~0u, sums[k].v[j], other);
    }
    if (lane < Place::kQuads) store_vec4(red + (warp * (1 + kCellEdges) + k) * C + c, sums[k]);
  }
  __syncthreads();
  const int e = threadIdx.x / (2 * C), kind = threadIdx.x / C % 2, column = threadIdx.x % C;
  if (e < kCellEdges && state.items[e] >= 0) {
    double sum = 0;
#pragma unroll
    for (int w = 0; w < kCellWarps; ++w) {
      sum += static_cast<double>(red[(w * (1 + kCellEdges) + kind * (1 + e)) * C + column]);
    }
    totals[(state.items[e] * 2 + kind) * C + column] += sum;
  }
}

// Numbers what is listed in the order of the keys, which differ, and counts what comes before each
// round, up to `rounds`. `t` counts the threads that do this; others have numbers out of range.
__device__ __noinline__ void rank(List& list, int t, int rounds) {
  const int before = t - kKeys;
  if (t >= 0 && t < kMostListed && list.keys[t] != INT_MAX) {
    int earlier = 0;
#pragma unroll 2
    for (int i = 0; i < kMostListed; ++i) earlier += list.keys[i] < list.keys[t];
    list.ranks[t] = earlier;
  } else if (before >= 0 && before <= rounds) {
    int earlier = 0;
#pragma unroll 2
    for (int i = 0; i < kMostListed; ++i) earlier += list.keys[i] < before * kKeys;
    list.before[before] = earlier;
  }
}

__device__ inline int node_of(int edge) { return edge / kCellEdges; }

// Looks up what is to be done, and when; for all threads of the block.
template <class V>
__device__ void make_plan(const Job<V>& job, int arch, Plan<V>& plan) {
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const Layout& l = job.layout;
  const int t = threadIdx.x, edges = s.nodes * kCellEdges, C = s.padded;
  float* const shared = counted_from<float>(Base::kShared);
  if (t == 0) {
    plan.shape = s;
    plan.layout = l;
  }
  if (t < edges) {
    const PlannedEdge edge = dag.plan[s.slot(arch, 0, 0) + t];
    plan.edges[t] = edge;
    plan.stage_count[t] = stage_count(dag, edge);
  }
  for (int i = t; i < kMostListed; i += kCellThreads) {
    for (List* list : {&plan.stage_list, &plan.item_list, &plan.completion_list, &plan.pass_list}) {
      list->keys[i] = INT_MAX;
    }
  }
  __syncthreads();
  const auto reads = [&](int i) {
    return plan.edges[i].multiplicity != 0 && plan.edges[i].form != Form::kNone;
  };
  const auto round_of = [&](int i) { return plan.complete[s.inputs + node_of(i)]; };
  const auto waits = [&](int i, int which) {
    return which == 0 && plan.complete[plan.edges[i].input] > round_of(i) + plan.stage_count[i];
  };
  if (t < 32) {
    // Lanes are edges and, at the same time, states.
    const int own_input = t < edges && reads(t) ? plan.edges[t].input : -1;
    const int own_count = t < edges ? plan.stage_count[t] : 0;
    int complete = 0;
    unsigned normalized = 0, passing = 0;
#pragma unroll 1
    for (int i = edges - 1; i >= 0; --i) {
      const int input = __shfl_sync(~0u, own_input, i), count = __shfl_sync(~0u, own_count, i);
      const int round = __shfl_sync(~0u, complete, s.inputs + node_of(i)) + count;
      if (t != input) continue;
      complete = max(complete, round);
      (count > 0 ? normalized : passing) |= 1u << i;
    }
    if (t < s.states()) {
      plan.complete[t] = complete;
      plan.normalized[t] = normalized;
      plan.passing[t] = passing;
    }
  }
  __syncthreads();
  const int last_round = kMostPhases - 1;
  // Stages and items, of which a stage of an edge is one each; an input's own normalization is an
  // item as well.
  const int i = t / 2, which = t % 2, input = t - 2 * edges;
  const bool is_stage = t < 2 * edges && which < plan.stage_count[i];
  const bool is_input_item = input >= 0 && input < s.inputs && !s.is_shared(input) &&
                             (plan.normalized[input] | plan.passing[input]) != 0;
  if (is_stage) {
    const int round = round_of(i) + plan.stage_count[i] - which;
    plan.stage_list.keys[t] = round * kKeys + (waits(i, which) ? 2 : which) * kMostEdges + i;
    plan.item_list.keys[t] = (round - 1) * kKeys + t;
  }
  if (is_input_item) plan.item_list.keys[t] = plan.complete[input] * kKeys + t;
  const int state = t - 64, passing = t - 96;
  if (state >= 0 && state < s.states()) {
    const int first = (state - s.inputs) * kCellEdges;
    const bool sums = state < s.inputs ? !s.is_shared(state) &&
                                             (plan.normalized[state] | plan.passing[state]) != 0
                                       : plan.stage_count[first] + plan.stage_count[first + 1] > 0;
    if (sums || plan.passing[state] != 0) {
      plan.completion_list.keys[state] = plan.complete[state] * kKeys + s.states() - state;
    }
  }
  if (passing >= 0 && passing < edges && reads(passing) && plan.stage_count[passing] == 0) {
    plan.pass_list.keys[passing] = plan.edges[passing].input * kKeys + passing;
  }
  __syncthreads();
  rank(plan.stage_list, t, last_round + 1);
  rank(plan.item_list, t - 128, last_round + 1);
  rank(plan.completion_list, t - 256, last_round + 1);
  rank(plan.pass_list, t - 384, s.states());
  __syncthreads();
  const auto norm_place = [&](int edge, int stage) { return l.norms + (edge * 2 + stage) * 2 * C; };
  const auto input_norm_place = [&](int input) {
    return dag.input_norms == nullptr ? -1 : l.norms + (edges * 2 + input) * 2 * C;
  };
  const auto coefficients_place = [&](int edge) { return l.coefficients + edge * 3 * C; };
  const auto grad_of = [&](int state) {
    return state >= s.inputs
               ? job.gradients.node(s, arch, state - s.inputs)
               : job.input_grads + (static_cast<int64_t>(state) * s.archs + arch) * s.in_size();
  };
  const auto item_of = [&](int candidate, int round) {
    return plan.item_list.ranks[candidate] - plan.item_list.before[round];
  };
  if (is_stage) {
    const PlannedEdge edge = plan.edges[i];
    const int node = node_of(i), e = i % kCellEdges;
    const bool first = which == 0, last = which == plan.stage_count[i] - 1;
    const State<V> from = dag.stage_input(arch, node, e, which, edge);
    V* intermediate = job.gradients.intermediate + (arch * s.edges * s.nodes + i) * s.out_size();
    bool writes = true;
    for (unsigned rest = plan.normalized[edge.input]; first && rest != 0; rest &= rest - 1) {
      writes &= plan.stage_list.keys[2 * (__ffs(rest) - 1)] >= plan.stage_list.keys[t];
    }
    int elements = 0;
    if (edge.form == Form::kSeparable) {
      with_window(edge.separable, [&](auto w) { elements = w.kernel * w.kernel; });
    }
    plan.stages[plan.stage_list.ranks[t]] = {
        from.x,
        last ? job.gradients.node(s, arch, node) : intermediate,
        dag.stage(arch, node, e, which),
        first ? grad_of(edge.input) : intermediate,
        dag.pointwise(arch, node, e, which),
        dag.depthwise(arch, node, e, which),
        counted_from(Base::kOfBlock, job.gradients.weight_split(s, arch, node, e, 0)) +
            which * s.stage_weights(),
        !first                   ? norm_place(i, 0)
        : edge.input >= s.inputs ? -1
                                 : input_norm_place(edge.input),
        coefficients_place(i),
        from.height,
        from.width,
        first ? dag.stride(edge) : 1,
        edge.separable,
        elements,
        from.width == s.out_width ? l.per_row : l.per_input_row,
        elements == 0 ? 0 : ~0u / elements + 1,
        first ? -1 : item_of(2 * i, round_of(i) + 1),
        writes,
        waits(i, which),
        dag.factorized(edge)};
    plan.items[plan.item_list.ranks[t]] = {shared + coefficients_place(i),
                                           last ? static_cast<double>(edge.multiplicity) : 1.0,
                                           l.share, norm_place(i, which), false};
  }
  if (is_input_item) {
    plan.items[plan.item_list.ranks[t]] = {
        job.input_coefficients + (static_cast<int64_t>(input) * s.archs + arch) * 3 * C, 1.0,
        l.input_share, input_norm_place(input), true};
  }
  if (state >= 0 && state < s.states() && plan.completion_list.keys[state] != INT_MAX) {
    const bool is_input = state < s.inputs;
    const State<V> of = dag.state(arch, state);
    Completion<V> completion = {grad_of(state),
                                {nullptr, nullptr},
                                {-1, -1},
                                {-1, -1},
                                of.height,
                                of.width,
                                is_input ? s.stride : 1,
                                plan.pass_list.before[state],
                                plan.pass_list.before[state + 1] - plan.pass_list.before[state],
                                plan.normalized[state] != 0 || plan.passing[state] == 0};
    if (is_input && !s.is_shared(state)) {
      completion.z[0] = completion.z[1] = of.x;
      completion.norms[0] = input_norm_place(state);
      completion.items[0] = item_of(2 * edges + state, plan.complete[state]);
    }
    for (int e = 0; !is_input && e < kCellEdges; ++e) {
      const int node = state - s.inputs, edge = node * kCellEdges + e;
      const int last = plan.stage_count[edge] - 1;
      if (last < 0) continue;
      completion.z[e] = dag.stage(arch, node, e, last);
      if (completion.z[1 - e] == nullptr) completion.z[1 - e] = completion.z[e];
      completion.norms[e] = norm_place(edge, last);
      completion.items[e] = item_of(2 * edge + last, plan.complete[state]);
    }
    plan.completions[plan.completion_list.ranks[state]] = completion;
  }
  if (passing >= 0 && passing < edges && plan.pass_list.keys[passing] != INT_MAX) {
    const PlannedEdge edge = plan.edges[passing];
    const int node = node_of(passing);
    const bool max_pool = edge.form == Form::kMaxPool;
    plan.passes[plan.pass_list.ranks[passing]] = {
        job.gradients.node(s, arch, node),
        max_pool ? dag.maxima(arch, node, passing % kCellEdges) : nullptr, edge.form,
        edge.multiplicity};
  }
}

template <class V>
__global__ __launch_bounds__(kCellThreads) void nodes_plan_kernel(const Jobs<V> all) {
  const Job<V>& job = all.jobs[blockIdx.x];
  const int arch = blockIdx.y;
  if (arch >= job.dag.shape.archs) return;
  Plan<V>& plan = *dynamic_shared<Plan<V>>();
  make_plan(job, arch, plan);
  keep_plan(plan, job.plans + arch);
}

// Starts to copy the scales and shifts of all normalizations.
template <int C, class V>
__device__ void start_norms(const Job<V>& job, float* to) {
  const DagShape& s = job.dag.shape;
  constexpr int kOfNode = kCellEdges * 2 * 2 * C;
  const int nodes = s.nodes * kOfNode;
#pragma unroll 1
  for (int i = threadIdx.x * 4; i < nodes + s.inputs * 2 * C; i += kCellThreads * 4) {
    const int input = (i - nodes) / (2 * C), rest = i < nodes ? i % kOfNode : i % (2 * C);
    const float* from = i < nodes ? job.dag.norm(blockIdx.y, i / kOfNode, 0, 0)
                                  : job.dag.state(blockIdx.y, input).norm;
    if (from != nullptr) copy_async16(to + i, from + rest);
  }
}

// Starts to bring a block's first image nearer. As in Cut, what follows from numbers of threads and
// blocks is computed where it is needed.
template <class V>
__device__ void prefetch_image(const V* images, int values) {
  const char* bytes =
      reinterpret_cast<const char*>(images + static_cast<int64_t>(opaque(blockIdx.x)) * values);
#pragma unroll 1
  for (int i = opaque(threadIdx.x) * 128; i < values * static_cast<int>(sizeof(V));
       i += kCellThreads * 128) {
    prefetch(bytes + i);
  }
}

template <class V, int C, bool kStrided, bool kExact>
__global__ __launch_bounds__(kCellThreads, 1) void nodes_backward_kernel(const Job<V> job) {
  const DagShape& s = job.dag.shape;
  const Layout& l = job.layout;
  const int first_image = opaque(blockIdx.x);
  Plan<V>& plan = *dynamic_shared<Plan<V>>();
  float* shared = reinterpret_cast<float*>(&plan + 1);
  double* totals = reinterpret_cast<double*>(shared + l.totals);
  start_plan(job.plans, plan);
  plan.bases.set(job.dag.plan, job.dag.input_norms, job.scratch,
                 s.slot_weights() * static_cast<int64_t>(sizeof(float)), shared);
  begin(job.handover);
  start_norms<C>(job, shared + l.norms);
  for (int i = threadIdx.x; i < (s.nodes * kCellEdges + s.inputs) * 2 * C; i += kCellThreads) {
    totals[i] = 0;
  }
  if (!kStrided && l.ahead) fill_borders<C>(l, s.out_height, s.out_width, true, shared);
  wait_for_copies();
  __syncthreads();
  plan.add_bases();
  __syncthreads();
  const int stages = plan.stage_list.before[kMostPhases];
  const auto start = [&](int number, int image) {
    if (number < stages) start_stage<C, V>(number, image);
  };
  if (l.ahead) start(0, first_image);
  for (int round = 0;; ++round) {
    const int first_completion = plan.completion_list.before[round];
    const int completions = plan.completion_list.before[round + 1];
#pragma unroll 1
    for (int i = first_completion; i < completions; ++i) {
      const Completion<V>& state = plan.completions[i];
      for (int e = 0; e < kCellEdges; ++e) {
        if (state.items[e] >= 0) prefetch_image(state.z[e], state.height * state.width * C);
      }
    }
    const int first_item = plan.item_list.before[round];
    const int items = plan.item_list.before[round + 1] - first_item;
    const int end = plan.stage_list.before[round + 1];
    bool handed_over = false;
    for (int i = plan.stage_list.before[round];; ++i) {
      if (!handed_over && (i == end || plan.stages[i].waits)) {
        handed_over = true;
#pragma unroll 1
        for (int j = first_completion; j < completions; ++j) {
          for (int image = first_image; image < s.images; image += gridDim.x) {
            __syncthreads();
            if (kStrided && plan.completions[j].stride == 2) {
              complete_state<C, 2, V>(j, image);
            } else {
              complete_state<C, 1, V>(j, image);
            }
          }
        }
        if (items > 0) hand_over_sums<C>(job.handover, first_item, items, totals);
      }
      if (i == end) break;
      const Stage<V>& stage = plan.stages[i];
      for (int image = first_image; image < s.images; image += gridDim.x) {
        if (!l.ahead) {
          __syncthreads();
          start(i, image);
        }
        const auto next = [&] {
          const int further = image + gridDim.x;
          if (l.ahead) further < s.images ? start(i, further) : start(i + 1, first_image);
        };
        if (kStrided && stage.reduces) {
          compute_reduction<C, kExact>(job, stage, image, shared, next);
        } else {
          compute_stage<C, kStrided, kExact>(job, stage, image, totals, shared, next);
        }
      }
    }
    if (items == 0) break;
    add_up_sums<C>(job.handover, first_item, items, reinterpret_cast<double*>(shared + l.scratch),
                   [&](int number, int c, double sum, double dots) {
                     // rstd · (g − mean(g) − x̂ · mean(g·x̂)) with x̂ = z·scale + shift.
                     const Item& item = plan.items[first_item + number];
                     const float* norm = shared + item.norm;
                     const double scale = static_cast<double>(norm[c]), outer = scale * item.factor;
                     const double mean = sum * item.share, dot = dots * item.share;
                     if (item.once && blockIdx.x != 0) return;
                     item.coefficients[c] = static_cast<float>(outer);
                     item.coefficients[C + c] = static_cast<float>(-outer * dot * scale);
                     item.coefficients[2 * C + c] = static_cast<float>(
                         -outer * (mean + dot * static_cast<double>(norm[C + c])));
                   });
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

// What the sums of warps and blocks take.
template <int C>
constexpr int sum_values() {
  return std::max({kCellWarps * (kMostKernelElements + 2) * kSumRow,
                   kCellWarps * (1 + kCellEdges) * C, 2 * kMeetingDoubles<C>});
}

template <class V>
size_t layout_bytes(const Layout& l) {
  return sizeof(Plan<V>) + l.size * sizeof(float);
}

template <class V>
Layout make_layout(const DagShape& s) {
  const int c = s.padded, width = 512 / c, edges = s.nodes * kCellEdges;
  const int out = (tiled(s.out_height) + 4) * (width + 4) * c;
  const int in = s.stride == 2 ? std::max(out, s.height * 2 * width * c) : out;
  const int sums = c == 16 ? sum_values<16>() : c == 32 ? sum_values<32>() : sum_values<64>();
  Layout l;
  l.per_row = ~0u / s.out_width + 1;
  l.per_input_row = ~0u / s.width + 1;
  l.share = 1 / (static_cast<double>(s.images) * s.out_height * s.out_width);
  l.input_share = 1 / (static_cast<double>(s.images) * s.height * s.width);
  l.coefficients = 0;
  l.norms = l.coefficients + edges * 3 * c;
  l.totals = l.norms + (edges * 2 + s.inputs) * 2 * c;
  l.taps = l.totals + 2 * (edges + s.inputs) * 2 * c;
  l.weight = l.taps + kMostKernelElements * c;
  l.source = l.weight + c * (c + 4);
  l.grads = l.source + in;
  l.matrix = l.grads + out;
  // As many copies as there are warps that share a part of the weight, if there is room.
  for (l.copies = 256 / c;; l.copies /= 2) {
    l.size = l.matrix + std::max(l.copies * c * c, sums);
    l.ahead = layout_bytes<V>(l) <= largest_shared_bytes();
    if (l.ahead || l.copies == 2) break;
  }
  l.scratch = l.ahead ? l.matrix : l.source;
  if (!l.ahead) l.size = std::max(l.matrix + l.copies * c * c, l.source + sums);
  return l;
}

template <class V>
Job<V> make_job(const NodesJob<V>& nodes, const Handover& handover) {
  return {nodes.dag,
          nodes.gradients,
          nodes.input_grads,
          nodes.input_coefficients,
          make_layout<V>(nodes.dag.shape),
          handover,
          static_cast<Plan<V>*>(nodes.plan),
          nodes.scratch};
}

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
  if (s.out_width * s.padded > 512 ||
      layout_bytes<float>(make_layout<float>(s)) > largest_shared_bytes()) {
    return "the size of its images, which exceed shared memory";
  }
  if (blocks_per_arch(s.images, s.archs) == 0) return "the number of its architectures";
  return nullptr;
}

int nodes_backward_columns(const DagShape& s) {
  return (2 * s.nodes * kCellEdges + s.inputs) * 2 * s.padded;
}

size_t nodes_plan_size() { return sizeof(Plan<float>); }

template <class V>
void plan_nodes(const std::vector<NodesJob<V>>& all, CudaStream stream) {
  static_assert(sizeof(Plan<V>) == sizeof(Plan<float>));
  for (size_t first = 0; first < all.size(); first += Jobs<V>::kMost) {
    Jobs<V> some;
    const int count = static_cast<int>(std::min<size_t>(all.size() - first, Jobs<V>::kMost));
    int archs = 0;
    for (int i = 0; i < count; ++i) {
      some.jobs[i] = make_job(all[first + i], {});
      archs = std::max(archs, some.jobs[i].dag.shape.archs);
    }
    launch(nodes_plan_kernel<V>, dim3(count, archs), kCellThreads, sizeof(Plan<V>), stream, some);
  }
}

template <class V>
void nodes_backward(const NodesJob<V>& nodes, const Handover& handover, CudaStream stream) {
  const DagShape& s = nodes.dag.shape;
  const Job<V> job = make_job(nodes, handover);
  const auto kernel = s.padded == 16   ? choose_channels<V, 16>(s)
                      : s.padded == 32 ? choose_channels<V, 32>(s)
                                       : choose_channels<V, 64>(s);
  launch_cooperative(kernel, dim3(handover.blocks, s.archs), kCellThreads,
                     layout_bytes<V>(job.layout), stream, job);
  if (s.shared == 0) return;
  const int splits = pixel_splits(s.in_size() / s.padded, s.padded);
  launch(shared_inputs_kernel<V>, dim3(splits, s.inputs), kThreads,
         pixel_sums_bytes(s.padded, sizeof(float)), stream, job, splits);
}

#define ASNG_INSTANTIATE(V)                                              \
  template void plan_nodes(const std::vector<NodesJob<V>>&, CudaStream); \
  template void nodes_backward(const NodesJob<V>&, const Handover&, CudaStream);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(BFloat16)
#undef ASNG_INSTANTIATE

}  // namespace asng::cuda
