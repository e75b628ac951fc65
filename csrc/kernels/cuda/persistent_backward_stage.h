// A stage of an edge, backward, for one image or a strip of it.
#pragma once

#include "kernels/cuda/norm.h"
#include "kernels/cuda/persistent_backward_depthwise.h"

namespace asng::cuda::gradients_of_nodes {

// Starts to copy what a stage reads of a piece, but for the gradient, and with the block's first
// one the weights.
template <int C, class V, bool kStrips>
__device__ __noinline__ void start_stage(int number, const Piece<kStrips> piece) {
  const Plan<V>& plan = plan_of_block<V>();
  float* shared = values_of_block<V>();
  const Stage<V>& stage = plan.stages[number];
  const int width = plan.shape.out_width, height = plan.shape.out_height;
  if (stage.reduces) return;
  const int pixels = height * width, in_pixels = stage.height * stage.width;
  start_image(stage.z + static_cast<int64_t>(piece.image) * pixels * C,
              rows_of<C>(piece, plan.layout, height, 1),
              Rows<C, kStrips>{width, plan.layout.per_row}, shared + plan.layout.grads);
  start_image(stage.x + static_cast<int64_t>(piece.image) * in_pixels * C,
              rows_of<C>(piece, plan.layout, stage.height, stage.stride),
              Rows<C, kStrips>::source(stage, width), shared + plan.layout.source);
  if (!piece.first()) return;
  start_weight<C>(stage.pointwise, C, shared + plan.layout.weight);
  for (int i = threadIdx.x * 4; i < stage.elements * C; i += kCellThreads * 4) {
    copy_async16(shared + plan.layout.taps + i, stage.taps + i);
  }
}

// a·g + b·z + c of a span of an image in the place of z, which this thread has started to copy;
// meanwhile(), while g is on its way, begins when all that has been started is there.
template <bool kExact, int C, bool kStrips, class V, class Meanwhile>
__device__ __forceinline__ void finish_grads(const V* image, const float* coefficients,
                                             const Span& span, const Rows<C, kStrips>& rows,
                                             float* grads, Meanwhile meanwhile) {
  using Place = Cut<C>;
  constexpr int kFlight = C == 16 ? 8 : C == 32 ? 4 : 2;
  const int c = Place::own_channel(), pixels = rows.pixels(span);
  const V* g = image + span.begin * rows.width * C;
  grads += rows.offset(span);
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

// Values of a span after normalization and ReLU, in the place of those that this thread has copied.
template <int C, bool kStrips, class V>
__device__ __forceinline__ void finish_source(const Stage<V>& stage, const Span& span,
                                              const Rows<C, kStrips>& rows, float* shared,
                                              float* source) {
  const int c = Cut<C>::own_channel(), pixels = rows.pixels(span);
  source += rows.offset(span);
  const Affine<float> affine = load_affine(stage.norm < 0 ? nullptr : shared + stage.norm, C, c);
#pragma unroll 2
  for (int pixel = Cut<C>::own_pixel(); pixel < pixels; pixel += Cut<C>::kStep) {
    float* at = source + rows.place(pixel, c);
    store_vec4(at, relu_vec4(affine(load_vec4(reinterpret_cast<const V*>(at)))));
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

// Zeros around both images of a stage, or around the gradients alone.
template <int C, bool kStrips>
__device__ __forceinline__ void fill_borders(const Layout& l, const Rows<C, kStrips>& rows,
                                             const Span& span, int tile_rows, bool of_source,
                                             float* shared) {
  if (of_source) fill_border(rows, span, tile_rows, shared + l.source);
  fill_border(rows, span, tile_rows, shared + l.grads);
}

// A stage of an edge for one piece, the first of the block or a further one. A second stage writes
// the gradient of the first one's normalized output; a first one adds to that of the state, or is
// the first to write it. Calls next() when the images and weights in shared memory are not needed
// any more.
template <int C, bool kStrided, bool kExact, bool kStrips, class V, class Next>
__device__ __forceinline__ void compute_stage(const Job<V>& job, const Stage<V>& stage,
                                              const Piece<kStrips>& piece, double* totals,
                                              float* shared, Next next) {
  using Place = Cut<C>;
  const DagShape& s = job.dag.shape;
  const Layout& l = job.layout;
  const bool adds = !piece.first();
  const int pixels = s.out_height * s.out_width, height = stage.height, width = stage.width;
  const int own = piece.rows(l, s.out_height);
  const Rows<C, kStrips> rows = {s.out_width, l.per_row};
  const Span span = rows_of<C>(piece, l, s.out_height, 1);
  float *source = shared + l.source, *grads = shared + l.grads;
  float* weight = shared + l.weight;
  const float* taps = shared + l.taps;
  finish_grads<kExact>(in_global(stage.g) + static_cast<int64_t>(piece.image) * pixels * C,
                       shared + stage.coefficients, span, rows, grads, [&] {
                         if (!adds) finish_weight<C, kExact>(weight);
                         finish_source(stage, rows_of<C>(piece, l, stage.height, stage.stride),
                                       Rows<C, kStrips>::source(stage, s.out_width), shared,
                                       source);
                       });
  if (kStrided || !l.ahead) {
    fill_borders(l, rows, span, tiled(own), stage.stride == 1, shared);
  }
  __syncthreads();
  {
    float sums[C / 16][2][4] = {};
    with_stage<kStrided>(stage, [&](auto window, auto stride) {
      weight_outer<window.kernel, stride.value, window.dilation, kExact>(
          rows, own, piece.top * stride.value, height, width, source, grads, taps, sums);
    });
    finish_outer<C>(sums, shared + l.matrix, l.copies, in_global(stage.split), C, adds);
  }
  // In a strip also those of the rows above and below.
  float* every = kStrips ? grads - Place::kBorder * rows.values() : grads;
  multiply_weight<kExact>(
      every, weight, kStrips ? tiled(own) + 2 * Place::kBorder : tiled(own), rows,
      [&](int place, const float2& value) { store_pair(every + place, value); });
  __syncthreads();
  V* at = in_global(stage.to) + static_cast<int64_t>(piece.image) * height * width * C +
          piece.top * stage.stride * width * C + Place::channel();
  float* red = shared + l.scratch;
  with_stage<kStrided>(stage, [&](auto window, auto stride) {
    const int first = piece.top * stride.value;
    const int height_of_piece = kStrips ? min(own * stride.value, height - first) : height;
    constexpr int kElements = window.kernel * window.kernel;
    float2 sums[kElements + 2] = {};  // of the elements, and for the normalization
    transposed<window.kernel, stride.value, window.dilation>(
        rows, height_of_piece, width, source, grads, taps, sums,
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
template <int C, bool kExact, bool kStrips, class V, class Next>
__device__ __forceinline__ void compute_reduction(const Job<V>& job, const Stage<V>& stage,
                                                  const Piece<kStrips>& piece, float* shared,
                                                  Next next) {
  using Place = Cut<C>;
  constexpr int kBorder = Place::kBorder;
  const DagShape& s = job.dag.shape;
  const Layout& l = job.layout;
  const bool adds = !piece.first();
  const int image_pixels = s.out_height * s.out_width, width = stage.width;
  const int own = piece.rows(l, s.out_height);
  const int pixels = own * s.out_width, tiles = tiled(own) * s.out_width / 16;
  // Of the input from the first row of the piece on. No window reaches beyond the piece.
  const int height = stage.height - 2 * piece.top;
  const Span span = {piece.top, piece.top + own, piece.top};
  const int c = Place::own_channel();
  const Rows<C, kStrips> rows = {s.out_width, l.per_row};
  const int row_values = rows.values();
  const int64_t in_image =
      static_cast<int64_t>(piece.image) * stage.height * width * C + 2 * piece.top * width * C;
  const V *x = in_global(stage.x) + in_image + c,
          *z = stage.z + static_cast<int64_t>(piece.image) * image_pixels * C;
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
    if (which == 0) start_image(z, span, rows, grads);
    fill_borders(l, rows, span, tiled(own), true, shared);
#pragma unroll 4
    for (int pixel = Place::own_pixel(); pixel < pixels; pixel += Place::kStep) {
      const int from = read_by(pixel);
      Vec4<float> value = fill_vec4(0.0f);
      if (from >= 0) value = relu_vec4(affine(load_vec4(x + from)));
      store_vec4(source + rows.place(pixel, c), value);
    }
    if (which == 0) {
      finish_grads<kExact>(
          in_global(stage.g) + static_cast<int64_t>(piece.image) * image_pixels * C,
          shared + stage.coefficients, span, rows, grads, [] {});
    }
    wait_for_copies();
    finish_weight<C, kExact>(weight);
    __syncthreads();
    float sums[C / 16][2][4] = {};
    for (int tile = Place::turn(); tile < tiles; tile += Place::kTurns) {
      const int down = rows.row_of(tile * 4), y = down * 4, left = tile * 4 - down * rows.width;
      const float* column = source + (y + kBorder) * row_values + left * C +
                            Place::place(kBorder + Place::lane() % 4, Place::channel());
      float2 depth[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) depth[r] = load_pair(column + r * row_values);
      add_outer<kExact>(rows, grads, y, left, depth, sums);
    }
    finish_outer<C>(sums, shared + l.matrix, l.copies, in_global(stage.split) + which * C, 2 * C,
                    adds);
    multiply_weight<kExact>(grads, weight, tiled(own), rows, [&](int place, const float2& value) {
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

}  // namespace asng::cuda::gradients_of_nodes
