// Backward pass of one stage of the separable convolutions of a node, in two launches because a
// depthwise convolution's gradient needs its neighbors':
//   stage_backward: through normalization and 1×1, to the gradient of the depthwise output; all
//     gradients of weights. With the first stage come the factorized reductions.
//   intermediate_backward: through the second stage's depthwise convolution and ReLU, to the
//     gradient of the first stage's output and the sums for its normalization. The first stage's
//     depthwise convolution is left to gather.cu, with the gradient of the state.
#include "kernels/cuda/depthwise.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/pointwise.h"

namespace asng::cuda {

namespace {

template <class V>
struct Job {
  Dag<V> dag;
  Gradients<V> gradients;
  TileLayout layout;
  int node, stage, splits;
};

template <bool kTensorCores, class V>
__device__ __forceinline__ void convolve_backward(const Job<V>& job, int arch, int e,
                                                  const PlannedEdge& edge, const State<V>& from,
                                                  Compute<V>* shared) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const DagShape& shape = dag.shape;
  const TileLayout& l = job.layout;
  const Tile& tile = l.tile;
  const int padded = shape.padded, node = job.node, stage = job.stage;
  T* grads = shared + l.grad;
  T* elements_grad = shared + l.elements_grad;
  const V* g = stage == 1
                   ? job.gradients.node(shape, arch, node)
                   : job.gradients.intermediate + (arch * shape.edges + e) * shape.out_size();
  const V* z = dag.stage(arch, node, e, stage);
  const T* coefficients = job.gradients.coefficients_of(shape, arch, e, stage);
  const T* depthwise_weights = dag.depthwise(arch, node, e, stage);
  const T* pointwise_weight = dag.pointwise(arch, node, e, stage);
  V* to = stage == 1 ? job.gradients.second_depth + (arch * shape.edges + e) * shape.out_size()
                     : job.gradients.depth_of(shape, arch, node, e);
  T* weight_split =
      job.gradients.weight_split(shape, arch, node, e, blockIdx.x) + stage * shape.stage_weights();
  const bool strided = stage == 0 && dag.stride(edge) == 2;
#pragma unroll 1
  for (int i = threadIdx.x; i < kMostKernelElements * padded; i += kThreads) elements_grad[i] = 0;
  load_weight(l, pointwise_weight, shared);
  PixelOuterProduct<kTensorCores, T> matmul(padded, padded);
  const int tiles = tile_count(tile, shape);
#pragma unroll 1
  for (int index = blockIdx.x; index < tiles; index += job.splits) {
    const TilePlace at = tile_place(tile, shape, index);
    __syncthreads();
    load_gradients<kTensorCores>(g, z, coefficients, padded, tile.pixels(), l.row, grads,
                                 [&](int p) { return tile_pixel(tile, shape, at, p); });
    if (index + job.splits < tiles) {
      const TilePlace next = tile_place(tile, shape, index + job.splits);
      prefetch_tile(g, shape.out_height, shape.out_width, padded, 1, tile, next);
      prefetch_tile(z, shape.out_height, shape.out_width, padded, 1, tile, next);
      prefetch_tile(from.x, from.height, from.width, padded, strided ? 2 : 1, tile, next);
    }
    wait_for_copies();
    __syncthreads();
    const int passes = Matmul<kTensorCores, T>::passes(tile.pixels(), padded);
#pragma unroll 1
    for (int pass = 0; pass < passes; ++pass) {
      Matmul<kTensorCores, T> depth(tile.pixels(), padded, pass);
      multiply_weight(depth, l, grads, pointwise_weight, shared);
      depth.each([&](int row, int c, const Vec4<T>& value) {
        const int64_t pixel = tile_pixel(tile, shape, at, row);
        store_vec4(shared + row * l.row + c, value);
        if (pixel >= 0) write_vec4(to + pixel * padded + c, value);
      });
    }
    // Where the gradient of the depthwise output was there is then that output, as every chunk of
    // the input is there but once.
    depthwise_tile<kTensorCores>(edge.separable, strided, from, padded, l, at, depthwise_weights,
                                 shared, [&](auto w, int channel) {
                                   depthwise_weight<w.kernel, w.stride, w.dilation>(
                                       tile, shared + l.source, l.source_row(), shared + channel,
                                       l.row, padded, elements_grad + channel);
                                   __syncthreads();
                                 });
    matmul.add(grads, l.row, shared, l.row, tile.pixels(), weight_split, padded,
               index == static_cast<int>(blockIdx.x));
  }
  __syncthreads();
  matmul.finish(weight_split, padded, shared, true);
  // From (kernel elements, padded) to (padded, kernel elements).
  const int kernel = operation_info(edge.operation).kernel, elements = kernel * kernel;
#pragma unroll 1
  for (int i = threadIdx.x; i < elements * padded; i += kThreads) {
    const int channel = i / elements, from_element = (i - channel * elements) * padded + channel;
    T sum = elements_grad[from_element];
    if (2 * elements <= kMostKernelElements) sum += elements_grad[elements * padded + from_element];
    weight_split[padded * padded + i] = sum;
  }
}

template <bool kTensorCores, class V>
__device__ __forceinline__ void factorized_backward(const Job<V>& job, int arch, int e,
                                                    const State<V>& from, Compute<V>* shared) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const PointwiseShape shape = {s.images, s.out_height, s.out_width, s.padded};
  V* depth = job.gradients.depth_of(s, arch, job.node, e);
  for (int which = 0; which < 2; ++which) {
    const Source<V> source = factorized_source(from, s.padded, which);
    V* to = depth + which * s.out_size();
    for (int channel = 0; channel < s.padded; channel += kSourceChunk) {
      pointwise_backward<kTensorCores>(
          source, channel, min(s.padded - channel, kSourceChunk), shape,
          job.gradients.node(s, arch, job.node), dag.stage(arch, job.node, e, 0),
          job.gradients.coefficients_of(s, arch, e, 0), dag.pointwise(arch, job.node, e, 0),
          2 * s.padded, true, blockIdx.x, job.splits,
          job.gradients.weight_split(s, arch, job.node, e, blockIdx.x), shared,
          [&](int pixel, int c, const Vec4<T>& value) {
            write_vec4(to + static_cast<int64_t>(pixel) * s.padded + c, value);
          });
    }
  }
}

template <bool kTensorCores, class V>
__global__ __launch_bounds__(kThreads, resident_blocks(kTensorCores)) void stage_backward_kernel(
    const Job<V> job) {
  const Dag<V>& dag = job.dag;
  wait_for_earlier_kernels();
  const int arch = blockIdx.y / dag.shape.edges, e = blockIdx.y % dag.shape.edges;
  const PlannedEdge edge = dag.edge(arch, job.node, e);
  const bool reduces = job.stage == 0 && dag.factorized(edge);
  if (edge.multiplicity == 0 || !(reduces || dag.separable(edge))) return;
  Compute<V>* shared = dynamic_shared<Compute<V>>();
  const State<V> from = dag.stage_input(arch, job.node, e, job.stage, edge);
  if (reduces) {
    factorized_backward<kTensorCores>(job, arch, e, from, shared);
  } else {
    convolve_backward<kTensorCores>(job, arch, e, edge, from, shared);
  }
}

template <int K, int D, class V>
__device__ __forceinline__ void transposed(const Job<V>& job, int arch, int e, double* totals,
                                           Compute<V>* shared) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const DagShape& shape = dag.shape;
  const TileLayout& l = job.layout;
  const Tile& tile = l.tile;
  const int padded = shape.padded;
  const int64_t edge_offset = (arch * shape.edges + e) * shape.out_size();
  const State<V> grad = {job.gradients.second_depth + edge_offset, nullptr, shape.out_height,
                         shape.out_width};
  V* intermediate = job.gradients.intermediate + edge_offset;
  const V* z = dag.stage(arch, job.node, e, 0);
  const T* norm = dag.norm(arch, job.node, e, 0);
  const T* weight = dag.depthwise(arch, job.node, e, 1);
  const int tiles = tile_count(tile, shape);
#pragma unroll 1
  for (int index = blockIdx.x; index < tiles; index += job.splits) {
    const TilePlace at = tile_place(tile, shape, index);
    if (index + job.splits < tiles) {
      const TilePlace next = tile_place(tile, shape, index + job.splits);
      prefetch_tile(grad.x, grad.height, grad.width, padded, 1, tile, next);
      prefetch_tile(z, grad.height, grad.width, padded, 1, tile, next);
    }
#pragma unroll 1
    for (int channel = 0; channel < padded; channel += tile.chunk()) {
      load_elements<K, true>(weight, padded, tile, channel, shared + l.elements);
      load_source<K, 1, D, false>(grad, padded, tile, at, channel, l.source_row(),
                                  shared + l.source);
      wait_for_copies();
      __syncthreads();
      depthwise<K, 1, D>(tile, shared + l.source, l.source_row(), shared + l.elements,
                         [&](int first, int quad, const Vec4<T>(&sums)[4]) {
                           const int c = channel + quad;
                           Vec4<T> values[4];
#pragma unroll
                           for (int p = 0; p < 4; ++p) {
                             const int64_t pixel = tile_pixel(tile, shape, at, first + p);
                             values[p] = load_vec4(z + (pixel < 0 ? 0 : pixel) * padded + c);
                           }
                           const Vec4<T> scale = load_vec4(norm + c),
                                         shift = load_vec4(norm + padded + c);
                           Vec4<T> sum = fill_vec4(T(0)), dot = fill_vec4(T(0));
#pragma unroll
                           for (int p = 0; p < 4; ++p) {
                             const int64_t pixel = tile_pixel(tile, shape, at, first + p);
                             if (pixel < 0) continue;
                             Vec4<T> x = shift, value;
                             add_product(x, values[p], scale);
#pragma unroll
                             for (int i = 0; i < 4; ++i) {
                               value.v[i] = x.v[i] > T(0) ? sums[p].v[i] : T(0);
                             }
                             value = store_rounded(intermediate + pixel * padded + c, value);
                             sum += value;
                             add_product(dot, value, x);
                           }
                           store_vec4(shared + first / 4 * 2 * padded + c, sum);
                           store_vec4(shared + (first / 4 * 2 + 1) * padded + c, dot);
                         });
      __syncthreads();
    }
    // The sums of groups of four pixels lie where a forward pass has its depthwise convolution.
    add_groups(shared, tile.pixels() / 4, padded, totals, padded);
    __syncthreads();
  }
}

template <class V>
__global__ __launch_bounds__(
    kThreads,
    resident_blocks(sizeof(Compute<V>) == 4)) void intermediate_backward_kernel(const Job<V> job) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  wait_for_earlier_kernels();
  const int arch = blockIdx.y / dag.shape.edges, e = blockIdx.y % dag.shape.edges;
  const PlannedEdge edge = dag.edge(arch, job.node, e);
  if (edge.multiplicity == 0 || !dag.separable(edge)) return;
  const int padded = dag.shape.padded;
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * padded);
  clear(totals, 2 * padded);
  with_window(edge.separable,
              [&](auto w) { transposed<w.kernel, w.dilation>(job, arch, e, totals, shared); });
  if (sum_over_splits(dag, blockIdx.y, 2, job.splits, totals, shared)) {
    finish_gradient(totals, totals + padded, static_cast<double>(dag.shape.out_size() / padded),
                    padded, dag.norm(arch, job.node, e, 0), true, 1.0,
                    job.gradients.coefficients_of(dag.shape, arch, e, 0));
  }
}

}  // namespace

template <class V>
void stage_backward(const Dag<V>& dag, const Gradients<V>& gradients, int node, int stage,
                    CudaStream stream) {
  using T = Compute<V>;
  const DagShape& s = dag.shape;
  const TileLayout layout = tile_layout(s, stage == 0 ? s.stride : 1, sizeof(T), true);
  const size_t values = std::max(layout.values, pointwise_backward_values(s.padded, sizeof(T)));
  check_shared(values * sizeof(T), s.channels);
  const auto kernel = choose_tile_kernel<V>(
      layout, s.tf32, [](auto tensor_cores) { return &stage_backward_kernel<tensor_cores(), V>; });
  launch_early(kernel, dim3(gradients.splits, s.archs * s.edges), kThreads, values * sizeof(T),
               stream, Job<V>{dag, gradients, layout, node, stage, gradients.splits});
}

template <class V>
void intermediate_backward(const Dag<V>& dag, const Gradients<V>& gradients, int node,
                           CudaStream stream) {
  using T = Compute<V>;
  const DagShape& s = dag.shape;
  const TileLayout layout = tile_layout(s, 1, sizeof(T), false);
  const int splits = std::min(tile_count(layout.tile, s), most_splits(s.archs * s.edges));
  launch_early(intermediate_backward_kernel<V>, dim3(splits, s.archs * s.edges), kThreads,
               shared_bytes(layout, sizeof(T)), stream,
               Job<V>{dag, gradients, layout, node, 0, splits});
}

template <class V>
int weight_split_count(const DagShape& s, int edges) {
  const auto tile_count_of = [&](int stride) {
    return tile_count(tile_layout(s, stride, sizeof(Compute<V>), true).tile, s);
  };
  // In both stages every split has a tile.
  const int tiles = std::min(tile_count_of(1), tile_count_of(s.stride));
  // Every split writes matrices that are summed in the end: all together should not be much more
  // than a feature map, or not much at all.
  const int64_t few = std::clamp((1 << 19) / (s.padded * s.padded), 16, kManySplits);
  const int64_t most =
      std::clamp<int64_t>(s.out_size() * 3 / 2 / s.slot_weights(), few, most_splits(edges));
  const int tiles_each = static_cast<int>((tiles + most - 1) / most);
  return (tiles + tiles_each - 1) / tiles_each;
}

#define ASNG_INSTANTIATE(V)                                                                 \
  template void stage_backward(const Dag<V>&, const Gradients<V>&, int, int, CudaStream);   \
  template void intermediate_backward(const Dag<V>&, const Gradients<V>&, int, CudaStream); \
  template int weight_split_count<V>(const DagShape&, int);
ASNG_EVERY_STORED_TYPE(ASNG_INSTANTIATE)

}  // namespace asng::cuda
