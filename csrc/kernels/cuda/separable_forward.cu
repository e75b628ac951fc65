// Forward pass of one stage of the separable convolutions of a node, ReLU → depthwise → 1×1, up to
// the statistics of the normalization; with the first stage come the factorized reductions.
#include "kernels/cuda/depthwise.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/pointwise.h"

namespace asng::cuda {

namespace {

template <class V>
struct Job {
  Dag<V> dag;
  TileLayout layout;
  int node, stage, splits;
};

template <int K, int S, int D, bool kTensorCores, class V>
__device__ void convolve(const Job<V>& job, int arch, int e, const State<V>& from, double* totals,
                         Compute<V>* shared) {
  using T = Compute<V>;
  const DagShape& shape = job.dag.shape;
  const TileLayout& l = job.layout;
  const Tile& tile = l.tile;
  const int padded = shape.padded, across = padded / 4;
  T* groups = shared + l.groups;
  const T* depthwise_weight = job.dag.depthwise(arch, job.node, e, job.stage);
  const T* pointwise_weight = job.dag.pointwise(arch, job.node, e, job.stage);
  V* z = job.dag.stage(arch, job.node, e, job.stage);
  const int tiles = tile_count(tile, shape);
  for (int index = blockIdx.x; index < tiles; index += job.splits) {
    const TilePlace at = tile_place(tile, shape, index);
    depthwise_tile<K, S, D>(from, padded, l, at, depthwise_weight, shared);
    if constexpr (kTensorCores) {
      TileMatmul matmul(tile.pixels(), padded);
      matmul.add(shared, l.row, pointwise_weight, padded, padded);
      __syncthreads();
      matmul.store(shared, l.row);
      __syncthreads();
    }
    for (int block = threadIdx.x; block < tile.pixels() / 4 * across; block += kThreads) {
      const int down = block / across, c = (block - down * across) * 4;
      Vec4<T> sums[4] = {fill_vec4(T(0)), fill_vec4(T(0)), fill_vec4(T(0)), fill_vec4(T(0))};
      if constexpr (kTensorCores) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] = load_vec4(shared + (down * 4 + i) * l.row + c);
      } else {
        multiply(shared + down * 4 * l.row, l.row, pointwise_weight + c, padded, padded, sums);
      }
      Vec4<T> sum = fill_vec4(T(0)), squares = fill_vec4(T(0));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t pixel = tile_pixel(tile, shape, at, down * 4 + i);
        if (pixel < 0) continue;
        const Vec4<T> kept = store_rounded(z + pixel * padded + c, sums[i]);
        sum += kept;
        add_product(squares, kept, kept);
      }
      store_vec4(groups + down * 2 * padded + c, sum);
      store_vec4(groups + (down * 2 + 1) * padded + c, squares);
    }
    __syncthreads();
    add_groups(groups, tile.pixels() / 4, padded, totals, padded);
  }
}

template <bool kTensorCores, class V>
__device__ void factorized(const Job<V>& job, int arch, int e, const State<V>& from, double* totals,
                           Compute<V>* shared) {
  const DagShape& s = job.dag.shape;
  const PointwiseShape shape = {s.images, s.out_height, s.out_width, s.padded};
  const auto sources = [&](int i) { return factorized_source(from, s.padded, i); };
  pointwise_forward<kTensorCores>(sources, 2, shape, job.dag.pointwise(arch, job.node, e, 0),
                                  blockIdx.x, job.splits, job.dag.stage(arch, job.node, e, 0),
                                  totals, shared + job.layout.source);
}

template <bool kTensorCores, class V>
__global__ __launch_bounds__(kThreads) void stage_forward_kernel(const Job<V> job) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const int arch = blockIdx.y / dag.shape.edges, e = blockIdx.y % dag.shape.edges;
  const PlannedEdge edge = dag.edge(arch, job.node, e);
  const bool reduces = job.stage == 0 && dag.factorized(edge);
  if (edge.multiplicity == 0 || !(reduces || dag.separable(edge))) return;
  const int padded = dag.shape.padded;
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * padded);
  clear(totals, 2 * padded);
  const State<V> from = dag.stage_input(arch, job.node, e, job.stage, edge);
  const bool strided = job.stage == 0 && dag.stride(edge) == 2;
  if (reduces) {
    factorized<kTensorCores>(job, arch, e, from, totals, shared);
  } else {
    with_window(edge.separable, [&](auto w) {
      constexpr int K = w.kernel, D = w.dilation;
      strided ? convolve<K, 2, D, kTensorCores>(job, arch, e, from, totals, shared)
              : convolve<K, 1, D, kTensorCores>(job, arch, e, from, totals, shared);
    });
  }
  if (sum_over_splits(dag, blockIdx.y, 2, job.splits, totals, shared)) {
    const double count = static_cast<double>(dag.shape.out_size() / padded);
    finish_norm(totals, count, padded, dag.norm(arch, job.node, e, job.stage));
  }
}

}  // namespace

template <class V>
void stage_forward(const Dag<V>& dag, int node, int stage, CudaStream stream) {
  using T = Compute<V>;
  const DagShape& s = dag.shape;
  // Nodes that read inputs and nodes have the larger tiles of stride 2.
  const int stride = stage == 0 ? s.stride : 1;
  const TileLayout layout = tile_layout(s, stride, sizeof(T), false);
  const int splits = std::min(tile_count(layout.tile, s), kMaxSplits);
  const size_t bytes = shared_bytes(layout, sizeof(T));
  check_shared(bytes, s.channels);
  const auto kernel = choose_tile_kernel<V>(
      layout, s.tf32, [](auto tensor_cores) { return &stage_forward_kernel<tensor_cores(), V>; });
  launch(kernel, dim3(splits, s.archs * s.edges), kThreads, bytes, stream,
         Job<V>{dag, layout, node, stage, splits});
}

template void stage_forward(const Dag<float>&, int, int, CudaStream);
template void stage_forward(const Dag<double>&, int, int, CudaStream);
template void stage_forward(const Dag<BFloat16>&, int, int, CudaStream);

}  // namespace asng::cuda
