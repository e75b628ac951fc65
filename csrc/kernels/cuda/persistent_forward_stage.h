// Stages of edges, and projections, of one image.
#pragma once

#include "kernels/cuda/norm.h"
#include "kernels/cuda/persistent_forward_plan.h"
#include "kernels/cuda/persistent_projection.h"

namespace asng::cuda::nodes_of_cell {

// Of separable convolutions.
__device__ inline int window_extent(int separable) {
  int extent = 0;
  with_window(separable, [&](auto w) { extent = (w.kernel - 1) * w.dilation + 1; });
  return extent;
}
__device__ inline int window_elements(int separable) {
  int elements = 0;
  with_window(separable, [&](auto w) { elements = w.kernel * w.kernel; });
  return elements;
}

// A projection of an image, up to the sums for its normalization, which are added to `totals`
// (2·C).
template <int C, bool kTensorCores, class V>
__device__ void project(const Job<V>& job, const Plan<V>& plan, int which, int image,
                        double* totals, float* shared) {
  const CellJob<V>& cell = job.cell;
  const Dag<V>& dag = cell.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y;
  const bool of_input = which < s.inputs;
  const int height = of_input ? s.height : s.out_height, width = of_input ? s.width : s.out_width;
  const Input<V> input = cell.inputs[of_input ? which : 0];
  const int64_t image_of_arch =
      (job.shared >> which & 1u) != 0 ? image : static_cast<int64_t>(arch) * s.images + image;
  const auto source = [&](int i) {
    Source<V> from;
    if (of_input) {
      const int64_t size = static_cast<int64_t>(input.height) * input.width * input.padded;
      from = factorized_source(
          State<V>{input.x + image_of_arch * size, nullptr, input.height, input.width},
          input.padded, i);
      if (!input.factorized) from.stride = 1;
    } else if (!plan.read[i]) {
      from.x = dag.state(arch, s.inputs + i).x + static_cast<int64_t>(image) * height * width * C;
      from.channels = C;
      from.first = i * C;
    }
    return from;
  };
  V* z = of_input ? const_cast<V*>(dag.state(arch, which).x) : cell.y + arch * s.out_size();
  z += static_cast<int64_t>(image) * height * width * C;
  PixelSums<C, kTensorCores> sums;
  __syncthreads();
  ImageProjection<C, kTensorCores>::run(
      source, of_input ? (input.factorized ? 2 : 1) : s.nodes, height * width, width,
      cell.packed[which], [&](int pair, int pixel, const Vec4<float>& value) {
        const int c = PixelMatmul<C, kTensorCores>::channel(pair);
        const Vec4<float> kept = store_rounded(z + pixel * C + c, value);
        sums.add(pair, kept, kept);
      });
  sums.add_up(shared + job.layout.red, totals);
}

// Normalizes an image where it is.
template <int C, class V>
__device__ void normalize_image(V* image, const float* norm, int pixels) {
  constexpr int kPieceValues = 4 * kWide<V>, kFlight = 4;
  const int c = threadIdx.x % (C / kPieceValues) * kPieceValues, count = pixels * C / kPieceValues;
  // Shared memory, which WideAffine does not read.
  Affine<float> affine[kWide<V>];
#pragma unroll
  for (int k = 0; k < kWide<V>; ++k) affine[k] = load_affine(norm, C, c + 4 * k);
  for (int first = threadIdx.x; first < count; first += kFlight * kCellThreads) {
    Vec4<float> values[kFlight][kWide<V>];
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      load_wide(image + min(first + i * kCellThreads, count - 1) * kPieceValues, values[i]);
    }
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int piece = first + i * kCellThreads;
      if (piece >= count) break;
#pragma unroll
      for (int k = 0; k < kWide<V>; ++k) values[i][k] = affine[k](values[i][k]);
      write_wide(image + piece * kPieceValues, values[i]);
    }
  }
}

// A stage of an edge for one image, up to the sums for its normalization, which are added to
// `totals` (2·C).
template <int C, bool kTensorCores, class V>
__device__ void compute_stage(const Job<V>& job, const Stage<V>& stage, int image, double* totals,
                              float* shared) {
  using Matmul = PixelMatmul<C, kTensorCores>;
  const DagShape& s = job.cell.dag.shape;
  PixelSums<C, kTensorCores> sums;
  float* weight = shared + job.layout.weight;
  float* matrix = shared + job.layout.images;
  const bool reduces = stage.reduces;
  const int S = stage.stride, kind = stage.separable, extent = reduces ? 1 : window_extent(kind);
  const int strip = reduces ? job.layout.reduction_rows : job.layout.rows[kind][S - 1];
  const int columns = row_pixels(C, reach(s.out_width, S, extent));
  float* second = matrix + (strip * s.out_width + 15) / 16 * 16 * kRow<C>;
  const V* x = stage.x + static_cast<int64_t>(image) * stage.height * stage.width * C;
  V* z = stage.z + static_cast<int64_t>(image) * s.out_height * s.out_width * C;
  for (int top = 0; top < s.out_height; top += strip) {
    const int rows = min(strip, s.out_height - top);
    const auto emit = [&](int pair, int pixel, const Vec4<float>& value) {
      const int at = (top * s.out_width + pixel) * C + Matmul::channel(pair);
      const Vec4<float> kept = store_rounded(z + at, value);
      sums.add(pair, kept, kept);
    };
    __syncthreads();
    if (top == 0) {
      start_weight_copy<C>(stage.pointwise, reduces ? 2 * C : C, weight);
      if (!reduces) start_copy(stage.taps, window_elements(kind) * C, shared + job.layout.taps);
    }
    if (reduces) {
      for (int i = 0; i < 2; ++i) {
        fill_every_second<C, kTensorCores>(x, stage.norm, stage.height, stage.width, top, i,
                                           rows * s.out_width, s.out_width,
                                           i == 0 ? matrix : second);
      }
      wait_for_copies();
      __syncthreads();
      Matmul::template run<2>(matrix, static_cast<int>(second - matrix), weight, rows * s.out_width,
                              emit);
      continue;
    }
    fill_image<C>(x, stage.norm, stage.height, stage.width, top * S - extent / 2, extent / 2,
                  reach((rows + 1) / 2 * 2, S, extent), columns, second);
    wait_for_copies();
    __syncthreads();
    with_window(kind, [&](auto w) {
      constexpr int K = w.kernel, D = w.dilation;
      const float* of_shared = shared + job.layout.taps;
      S == 2 ? depthwise_strip<C, K, 2, D, kTensorCores>(second, columns, of_shared, rows,
                                                         s.out_width, matrix)
             : depthwise_strip<C, K, 1, D, kTensorCores>(second, columns, of_shared, rows,
                                                         s.out_width, matrix);
    });
    __syncthreads();
    Matmul::template run<1>(matrix, 0, weight, rows * s.out_width, emit);
  }
  sums.add_up(shared + job.layout.red, totals);
}

}  // namespace asng::cuda::nodes_of_cell
