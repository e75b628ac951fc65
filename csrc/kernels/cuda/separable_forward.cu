// Forward pass of one half of the separable convolutions of a node, ReLU → depthwise → 1×1, up to
// the statistics of the normalisation; with the first half come the factorized reductions.
#include "kernels/cuda/depthwise.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/pointwise.h"

namespace asng::cuda {

namespace {

template <class V>
struct Job {
  Graph<V> graph;
  TileLayout layout;
  int node, half, parts;
};

// What the half of an edge reads.
template <class V>
__device__ State<V> source_state(const Graph<V>& g, int arch, int node, int e, int half,
                                 const PlannedEdge& edge) {
  if (half == 0) return g.state(arch, edge.input);
  return {g.half(arch, node, e, 0), g.norm(arch, node, e, 0), g.shape.out_height,
          g.shape.out_width};
}

template <int K, int S, bool kTensorCores, class V>
__device__ void convolve(const Job<V>& job, int arch, int e, const State<V>& from, double* totals,
                         Compute<V>* shared) {
  using T = Compute<V>;
  const GraphShape& shape = job.graph.shape;
  const TileLayout& l = job.layout;
  const Tile& tile = l.tile;
  const int padded = shape.padded, across = padded / 4;
  T* source = shared + l.source;
  T* taps = shared + l.taps;
  T* groups = shared + l.groups;
  const T* depthwise_weight = job.graph.depthwise(arch, job.node, e, job.half);
  const T* pointwise_weight = job.graph.pointwise(arch, job.node, e, job.half);
  V* z = job.graph.half(arch, job.node, e, job.half);
  const int tiles = tile_count(tile, shape);
  for (int index = blockIdx.x; index < tiles; index += job.parts) {
    const TilePlace at = tile_place(tile, shape, index);
    for (int channel = 0; channel < padded; channel += tile.chunk) {
      load_source<K, S, true>(from, padded, tile, at, channel, l.source_row(), source);
      load_taps<K, false>(depthwise_weight, padded, tile.chunk, channel, taps);
      __syncthreads();
      depthwise<K, S>(tile, source, l.source_row(), taps,
                      [&](int pixel, int c, const Quad<T>(&sums)[4]) {
                        T* to = shared + pixel * l.row + channel + c;
#pragma unroll
                        for (int p = 0; p < 4; ++p) store4(to + p * l.row, sums[p]);
                      });
      __syncthreads();
    }
    if constexpr (kTensorCores) {
      TileProduct product(tile.pixels(), padded);
      product.add(shared, l.row, pointwise_weight, padded, padded);
      __syncthreads();
      product.store(shared, l.row);
      __syncthreads();
    }
    for (int block = threadIdx.x; block < tile.pixels() / 4 * across; block += kThreads) {
      const int down = block / across, c = (block - down * across) * 4;
      Quad<T> sums[4] = {fill4(T(0)), fill4(T(0)), fill4(T(0)), fill4(T(0))};
      if constexpr (kTensorCores) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] = load4(shared + (down * 4 + i) * l.row + c);
      } else {
        multiply(shared + down * 4 * l.row, l.row, pointwise_weight + c, padded, padded, sums);
      }
      Quad<T> sum = fill4(T(0)), squares = fill4(T(0));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t pixel = tile_pixel(tile, shape, at, down * 4 + i);
        if (pixel < 0) continue;
        const Quad<T> kept = keep4(z + pixel * padded + c, sums[i]);
        sum += kept;
        add_product(squares, kept, kept);
      }
      store4(groups + down * 2 * padded + c, sum);
      store4(groups + (down * 2 + 1) * padded + c, squares);
    }
    __syncthreads();
    add_groups(groups, tile.pixels() / 4, padded, totals, padded);
  }
}

template <bool kTensorCores, class V>
__device__ void factorized(const Job<V>& job, int arch, int e, const State<V>& from, double* totals,
                           Compute<V>* shared) {
  const GraphShape& s = job.graph.shape;
  const ProjectShape shape = {s.images, s.out_height, s.out_width, s.padded};
  const auto sources = [&](int i) { return factorized_source(from, s.padded, i); };
  project_forward<kTensorCores>(sources, 2, shape, job.graph.pointwise(arch, job.node, e, 0),
                                blockIdx.x, job.parts, job.graph.half(arch, job.node, e, 0), totals,
                                shared + job.layout.source);
}

template <bool kTensorCores, class V>
__global__ __launch_bounds__(kThreads) void half_forward_kernel(const Job<V> job) {
  using T = Compute<V>;
  const Graph<V>& graph = job.graph;
  const int arch = blockIdx.y / graph.shape.edges, e = blockIdx.y % graph.shape.edges;
  const PlannedEdge edge = graph.edge(arch, job.node, e);
  const bool reduces = job.half == 0 && graph.factorized(edge);
  if (edge.factor == 0 || !(reduces || graph.separable(edge))) return;
  const int padded = graph.shape.padded;
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * padded);
  clear(totals, 2 * padded);
  const State<V> from = source_state(graph, arch, job.node, e, job.half, edge);
  const bool strided = job.half == 0 && graph.stride(edge) == 2;
  if (reduces) {
    factorized<kTensorCores>(job, arch, e, from, totals, shared);
  } else if (edge.operation == kSeparable3) {
    strided ? convolve<3, 2, kTensorCores>(job, arch, e, from, totals, shared)
            : convolve<3, 1, kTensorCores>(job, arch, e, from, totals, shared);
  } else {
    strided ? convolve<5, 2, kTensorCores>(job, arch, e, from, totals, shared)
            : convolve<5, 1, kTensorCores>(job, arch, e, from, totals, shared);
  }
  double* partials = graph.partials + static_cast<int64_t>(blockIdx.y) * kMaxParts * 3 * padded;
  if (sum_over_blocks(totals, 2 * padded, partials, graph.counters + blockIdx.y, blockIdx.x,
                      job.parts, shared)) {
    const double count = static_cast<double>(graph.shape.out_size() / padded);
    finish_norm(totals, count, padded, graph.norm(arch, job.node, e, job.half));
  }
}

}  // namespace

template <class V>
void half_forward(const Graph<V>& graph, int node, int half, CudaStream stream) {
  using T = Compute<V>;
  const GraphShape& s = graph.shape;
  // Nodes that read inputs and nodes alike have the larger tiles of stride 2.
  const int stride = half == 0 ? s.stride : 1;
  const TileLayout layout = tile_layout(s, stride, sizeof(T), false);
  const int parts = std::min(tile_count(layout.tile, s), kMaxParts);
  const size_t bytes = shared_bytes(layout, sizeof(T));
  check_shared(bytes, s.channels);
  const auto kernel = choose_tile_kernel<V>(
      layout, s.tf32, [](auto tensor_cores) { return &half_forward_kernel<tensor_cores(), V>; });
  launch(kernel, dim3(parts, s.archs * s.edges), kThreads, bytes, stream,
         Job<V>{graph, layout, node, half, parts});
}

template void half_forward(const Graph<float>&, int, int, CudaStream);
template void half_forward(const Graph<double>&, int, int, CudaStream);
template void half_forward(const Graph<BFloat16>&, int, int, CudaStream);

}  // namespace asng::cuda
