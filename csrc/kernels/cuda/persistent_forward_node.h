// The sum of a node's edges, with their pools.
#pragma once

#include "kernels/cuda/norm.h"
#include "kernels/cuda/persistent_forward_plan.h"
#include "kernels/cuda/persistent_strips.h"

namespace asng::cuda::nodes_of_cell {

// Starts to copy four values to shared memory, or stores as many equal ones.
__device__ __forceinline__ void start_four(const float* from, float* to) { copy_async16(to, from); }
__device__ __forceinline__ void start_four(const BFloat16* from, BFloat16* to) {
  copy_async8(to, from);
}
__device__ __forceinline__ void fill_four(float value, float* to) {
  store_vec4(to, fill_vec4(value));
}
__device__ __forceinline__ void fill_four(float value, BFloat16* to) {
  *reinterpret_cast<uint2*>(to) = to_halves(fill_vec4(value));
}

// Starts to copy rows [top, top + rows) of an image as they are, with `margin` pixels around it
// that are `beyond`.
template <int C, class V>
__device__ __forceinline__ void start_image(const V* x, float beyond, int height, int width,
                                            int top, int rows, int columns, int margin, V* to) {
  const int c = threadIdx.x % kQuads<C> * 4, slot = threadIdx.x / kQuads<C>;
  const int begin = max(top, 0), end = min(top + rows, height), count = (end - begin) * width;
  const unsigned per_row = ~0u / width + 1;
  x += begin * width * C + c;
  V* inside = to + ((begin - top) * columns + margin) * kPixel<C> + c;
#pragma unroll 4
  for (int pixel = slot; pixel < count; pixel += kStep<C>) {
    const int row = static_cast<int>(multiply_high(pixel, per_row));
    start_four(x + pixel * C, inside + (row * columns + pixel - row * width) * kPixel<C>);
  }
  // Whole rows above and below, and what is left of a row.
  const int above = (begin - top) * columns, below = (top + rows - end) * columns;
#pragma unroll 1
  for (int i = slot; i < above + below; i += kStep<C>) {
    fill_four(beyond, to + (i < above ? i : i + (end - begin) * columns) * kPixel<C> + c);
  }
  const int sides = columns - width;
#pragma unroll 1
  for (int i = slot; i < (end - begin) * sides; i += kStep<C>) {
    const int row = i / sides, place = i - row * sides;
    const int at = above + row * columns + (place < margin ? place : place + width);
    fill_four(beyond, to + at * kPixel<C> + c);
  }
}

// A pool of four pixels in a row, from a strip in shared memory, where `from` is the first pixel of
// the first window: the sums of windows, or their maxima. Beyond the edge are zeros or −∞; of equal
// maxima the first counts, and NaN wins; where their places are not asked for, they are zeros.
template <int C, int S, bool kMax, bool kPlaces, class V>
__device__ void pool_run(const V* from, int columns, Vec4<float> (&values)[4],
                         unsigned (&places)[4]) {
  constexpr int kSpan = 3 * S + kPoolKernel;
  int place[4][4] = {};
#pragma unroll
  for (int p = 0; p < 4; ++p) values[p] = fill_vec4(kMax ? -INFINITY : 0.0f);
#pragma unroll 1
  for (int ky = 0; ky < kPoolKernel; ++ky) {
    Vec4<float> v[kSpan];
#pragma unroll
    for (int i = 0; i < kSpan; ++i) v[i] = load_vec4(from + (ky * columns + i) * kPixel<C>);
#pragma unroll
    for (int p = 0; p < 4; ++p) {
#pragma unroll
      for (int kx = 0; kx < kPoolKernel; ++kx) {
        const Vec4<float>& value = v[p * S + kx];
        if constexpr (!kMax) values[p] += value;
#pragma unroll
        for (int i = 0; kMax && i < 4; ++i) {
          if constexpr (kPlaces) {
            const bool larger = value.v[i] > values[p].v[i] || value.v[i] != value.v[i];
            values[p].v[i] = larger ? value.v[i] : values[p].v[i];
            place[p][i] = larger ? ky * kPoolKernel + kx : place[p][i];
          } else {
            values[p].v[i] = max_or_nan(value.v[i], values[p].v[i]);
          }
        }
      }
    }
  }
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    places[p] = place[p][0] | place[p][1] << 8 | place[p][2] << 16 | place[p][3] << 24;
  }
}

// The sum of a node's edges, for one image. Images come to shared memory as they are, all at the
// same time: a normalization has a positive scale, so the sum or the maximum of a window can be
// taken before it.
template <int C, class V>
__device__ void combine(const Job<V>& job, const Term<V>* terms, V* out, int image, float* shared) {
  const DagShape& s = job.cell.dag.shape;
  const Layout& l = job.layout;
  const int c = threadIdx.x % kQuads<C> * 4, across = s.out_width / 4;
  const int strip = min(l.pool_rows[0], l.pool_rows[1]);
  const int64_t image_size = s.out_height * s.out_width * C;
  out += image * image_size;
  for (int top = 0; top < s.out_height; top += strip) {
    const int rows = min(strip, s.out_height - top);
    int at = l.taps, second = at;
    __syncthreads();
#pragma unroll 1
    for (int e = 0; e < kCellEdges; ++e) {
      const Term<V>& term = terms[e];
      second = e == 0 ? second : at;
      if (term.multiplicity == 0 || term.form == Form::kNone) continue;
      // A normalized edge and an identity are pools of one pixel.
      const bool pools = term.form != Form::kIdentity;
      const int extent = pools ? kPoolKernel : 1, stride = pools ? term.stride : 1;
      const int columns = reach(s.out_width, stride, extent);
      const int source_rows = reach(rows, stride, extent);
      start_image<C>(in_global(term.x) + static_cast<int64_t>(image) * term.height * term.width * C,
                     term.form == Form::kMaxPool ? -INFINITY : 0.0f, term.height, term.width,
                     top * stride - extent / 2, source_rows, columns, extent / 2,
                     reinterpret_cast<V*>(shared + at));
      at += source_rows * columns * kPixel<C> * static_cast<int>(sizeof(V) / 2) / 2;
    }
    wait_for_copies();
    __syncthreads();
    for (int run = threadIdx.x / kQuads<C>; run < rows * across; run += kStep<C>) {
      const int down = run / across, x = (run - down * across) * 4;
      const int first = ((top + down) * s.out_width + x) * C + c;
      Vec4<float> sums[4] = {};
#pragma unroll 1
      for (int e = 0; e < kCellEdges; ++e) {
        const Term<V>& term = terms[e];
        if (term.multiplicity == 0) continue;
        if (term.form == Form::kNone) {
#pragma unroll
          for (int p = 0; p < 4; ++p) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[p].v[i] = c + i < s.channels ? nanf("") : 0.0f;
          }
          continue;
        }
        const V* strip_of_edge = reinterpret_cast<const V*>(shared + (e == 0 ? l.taps : second));
        const float times = static_cast<float>(term.multiplicity);
        Vec4<float> scale = fill_vec4(times), shift = fill_vec4(0.0f);
        if (term.norm >= 0) {
          scale = load_vec4(shared + term.norm + c);
          shift = load_vec4(shared + term.norm + C + c);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            scale.v[i] *= times;
            shift.v[i] *= times;
          }
        }
        if (term.form == Form::kIdentity) {
          const V* from = strip_of_edge + (down * s.out_width + x) * kPixel<C> + c;
#pragma unroll
          for (int p = 0; p < 4; ++p) {
            sums[p] += shift;
            add_product(sums[p], load_vec4(from + p * kPixel<C>), scale);
          }
          continue;
        }
        const int S = term.stride, columns = reach(s.out_width, S, kPoolKernel);
        const V* window = strip_of_edge + (down * columns + x) * S * kPixel<C> + c;
        Vec4<float> values[4];
        unsigned places[4];
        const auto pool = [&](auto is_max, auto with_places) {
          constexpr bool kMax = decltype(is_max)::value, kPlaces = decltype(with_places)::value;
          S == 2 ? pool_run<C, 2, kMax, kPlaces>(window, columns, values, places)
                 : pool_run<C, 1, kMax, kPlaces>(window, columns, values, places);
        };
        if (term.form == Form::kAveragePool) {
          pool(std::false_type(), std::false_type());
          // Of the pixels beyond the edge there is no shift.
          const int y = (top + down) * S;
          const float of_rows =
              static_cast<float>(3 - (y == 0) - (y + 1 >= term.height)) * (1.0f / kPoolPixels);
#pragma unroll
          for (int i = 0; i < 4; ++i) scale.v[i] *= 1.0f / kPoolPixels;
#pragma unroll
          for (int p = 0; p < 4; ++p) {
            const int column = (x + p) * S;
            const float share =
                of_rows * static_cast<float>(3 - (column == 0) - (column + 1 >= term.width));
            add_product(sums[p], values[p], scale);
            add_product(sums[p], shift, fill_vec4(share));
          }
          continue;
        }
        uint32_t* maxima = job.keeps_maxima ? in_global(term.maxima) : nullptr;
        if (maxima != nullptr) {
          maxima += image * image_size / 4;
          pool(std::true_type(), std::true_type());
        } else {
          pool(std::true_type(), std::false_type());
        }
#pragma unroll
        for (int p = 0; p < 4; ++p) {
          if (maxima != nullptr) maxima[(first + p * C) / 4] = places[p];
          sums[p] += shift;
          add_product(sums[p], values[p], scale);
        }
      }
#pragma unroll
      for (int p = 0; p < 4; ++p) write_vec4(out + first + p * C, sums[p]);
    }
  }
}

}  // namespace asng::cuda::nodes_of_cell
