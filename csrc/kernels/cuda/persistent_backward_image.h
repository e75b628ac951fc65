// Images of nodes and inputs in shared memory, as stages of a backward pass need them: whole, or in
// strips of rows, with those above and below that windows reach.
#pragma once

#include "kernels/cuda/persistent_backward_plan.h"

namespace asng::cuda::gradients_of_nodes {

// Images of C channels in shared memory, and how they are divided up. A whole image has at most
// kWidth pixels in a row. Channels lie in such an order that eight of four neighboring pixels, or
// four pairs of them, are in different banks. A warp works on 16 channels, of which a lane has two,
// and on tiles of 4×4 pixels, of which a lane has a column; kTurns warps share the pixels.
template <int C>
struct Cut {
  static constexpr int kWidth = kWholeRow / C, kBorder = 2;
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

// Rows of tiles.
ASNG_HD inline int tiled(int height) { return (height + 3) / 4 * 4; }

// What a stage works on at once: an image, or a strip of it, whose first row of nodes is `top`.
template <bool kStrips>
struct Piece {
  int image;
  static constexpr int top = 0;

  // Of the nodes in the piece.
  __device__ __forceinline__ int rows(const Layout&, int height) const { return height; }
  // Whether it is the block's first one.
  __device__ __forceinline__ bool first() const { return image == static_cast<int>(blockIdx.x); }
  // Goes on in the same image; whether there is something left of it.
  __device__ __forceinline__ bool descend(const Layout&, int) { return false; }
};
template <>
struct Piece<true> {
  int image, top = 0;

  __device__ __forceinline__ int rows(const Layout& l, int height) const {
    return min(l.rows, height - top);
  }
  __device__ __forceinline__ bool first() const {
    return top == 0 && image == static_cast<int>(blockIdx.x);
  }
  __device__ __forceinline__ bool descend(const Layout& l, int height) {
    top += l.rows;
    return top < height;
  }
};

// The rows [begin, end) of an image, of which row `first` is the first one of the piece.
struct Span {
  int begin, end, first;
};

// All that a piece reads of an image of this height, by windows with this stride.
template <int C, bool kStrips>
__device__ __forceinline__ Span rows_of(const Piece<kStrips>& piece, const Layout& l, int height,
                                        int stride) {
  if constexpr (!kStrips) return {0, height, 0};
  constexpr int kBorder = Cut<C>::kBorder;
  const int first = piece.top * stride;
  return {max(first - kBorder, 0), min(first + (l.rows - 1) * stride + 1 + kBorder, height), first};
}

// Where the pixels of a piece of an image of this width are in shared memory. Around one that is as
// large as the nodes' are kBorder pixels, of zeros outside of the image; one that is read with
// stride 2 has none but, in a strip, the rows above and below.
template <int C, bool kStrips>
struct Rows {
  // Pixels from a row to the next, of images as wide as the nodes' and where they are read with
  // stride S. Of what is whole they are the same for all widths.
  template <int S>
  static __device__ __forceinline__ int apart(int out_width) {
    const int columns = kStrips ? out_width : Cut<C>::kWidth;
    return S == 1 ? columns + 2 * Cut<C>::kBorder : 2 * columns;
  }

  int width;
  unsigned per_row;
  int pitch = apart<1>(width), border = Cut<C>::kBorder;

  // Of the source of a stage.
  template <class V>
  static __device__ __forceinline__ Rows source(const Stage<V>& stage, int out_width) {
    return stage.stride == 1 ? Rows{stage.width, stage.per_row}
                             : Rows{stage.width, stage.per_row, apart<2>(out_width), 0};
  }
  // Values from a row to the next where these are the nodes': of the gradients, and of sources that
  // are read with stride S.
  template <int S = 1>
  __device__ __forceinline__ int values() const {
    return apart<S>(width) * C;
  }
  // The rows and columns around a source that is read with stride S.
  template <int S>
  static constexpr int kRowsAround = S == 1 || kStrips ? Cut<C>::kBorder : 0;
  template <int S>
  static constexpr int kColumnsAround = S == 1 ? Cut<C>::kBorder : 0;

  __device__ __forceinline__ int row_of(int pixel) const {
    return static_cast<int>(multiply_high(pixel, per_row));
  }
  // Of a pixel counted from the first one of a span.
  __device__ __forceinline__ int place(int pixel, int c) const {
    const int y = row_of(pixel), x = pixel - y * width;
    return (y + (kStrips ? Cut<C>::kBorder : border)) * pitch * C + Cut<C>::place(x + border, c);
  }
  // The pixels of a span, and where its first row lies behind that of the piece.
  __device__ __forceinline__ int pixels(const Span& span) const {
    return (span.end - span.begin) * width;
  }
  __device__ __forceinline__ int offset(const Span& span) const {
    return (span.begin - span.first) * pitch * C;
  }
};

// Zeros around `span`, where a piece is whose tiles have `tile_rows` rows: what is outside of the
// image, and what tiles have more rows.
template <int C, bool kStrips>
__device__ __forceinline__ void fill_border(const Rows<C, kStrips>& rows, const Span& span,
                                            int tile_rows, float* to) {
  constexpr int kBorder = Cut<C>::kBorder;
  const int row_values = rows.values(), width = rows.width;
  const int end = span.end - span.first;  // counted from the first row of the piece
  const int above = kBorder - (span.first - span.begin), below = tile_rows - end + kBorder;
  const Vec4<float> zeros = fill_vec4(0.0f);
  // Four pixels of each row: two on the left, two on the right.
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < (tile_rows + 2u * kBorder) * C; i += kCellThreads) {
    const unsigned pixel = i % C / Cut<C>::kQuads, c = i % Cut<C>::kQuads * 4;
    const unsigned column = pixel < kBorder ? pixel : width + pixel;
    store_vec4(to + i / C * row_values + column * C + c, zeros);
  }
#pragma unroll 1
  for (int row = 0; row < above + below; ++row) {
    float* at = to + (row < above ? row : end + kBorder + row - above) * row_values + kBorder * C;
#pragma unroll 1
    for (int i = threadIdx.x; i < width * Cut<C>::kQuads; i += kCellThreads) {
      store_vec4(at + i * 4, zeros);
    }
  }
}

__device__ __forceinline__ void start_copy(const float* from, float* to) { copy_async16(to, from); }
__device__ __forceinline__ void start_copy(const BFloat16* from, float* to) {
  copy_async8(to, from);
}

// Starts to copy a span of an image as it is; every thread those values that it will work on, each
// four of them to where as many floats will be.
template <int C, bool kStrips, class V>
__device__ __forceinline__ void start_image(const V* image, const Span& span,
                                            const Rows<C, kStrips>& rows, float* to) {
  const int c = Cut<C>::own_channel(), pixels = rows.pixels(span);
  const V* from = image + span.begin * rows.width * C;
  to += rows.offset(span);
#pragma unroll 2
  for (int pixel = Cut<C>::own_pixel(); pixel < pixels; pixel += Cut<C>::kStep) {
    start_copy(from + pixel * C + c, to + rows.place(pixel, c));
  }
}

}  // namespace asng::cuda::gradients_of_nodes
