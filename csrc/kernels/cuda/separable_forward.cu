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

template <bool kTensorCores, class V>
__device__ __forceinline__ void convolve(const Job<V>& job, int arch, int e,
                                         const PlannedEdge& edge, const State<V>& from,
                                         double* totals, Compute<V>* shared) {
  using T = Compute<V>;
  const DagShape& shape = job.dag.shape;
  const TileLayout& l = job.layout;
  const Tile& tile = l.tile;
  const int padded = shape.padded;
  T* groups = shared + l.source;
  const T* depthwise_weight = job.dag.depthwise(arch, job.node, e, job.stage);
  const T* pointwise_weight = job.dag.pointwise(arch, job.node, e, job.stage);
  V* z = job.dag.stage(arch, job.node, e, job.stage);
  const bool strided = job.stage == 0 && job.dag.stride(edge) == 2;
  const int tiles = tile_count(tile, shape);
  load_weight(l, pointwise_weight, shared);
#pragma unroll 1
  for (int index = blockIdx.x; index < tiles; index += job.splits) {
    const TilePlace at = tile_place(tile, shape, index);
    if (index + job.splits < tiles) {
      prefetch_tile(from.x, from.height, from.width, padded, strided ? 2 : 1, tile,
                    tile_place(tile, shape, index + job.splits));
    }
    depthwise_tile<kTensorCores>(edge.separable, strided, from, padded, l, at, depthwise_weight,
                                 shared, [](auto, int) {});
    const int passes = Matmul<kTensorCores, T>::passes(tile.pixels(), padded);
    int count = 0;
#pragma unroll 1
    for (int pass = 0; pass < passes; ++pass) {
      Matmul<kTensorCores, T> matmul(tile.pixels(), padded, pass);
      multiply_weight(matmul, l, shared, pointwise_weight, shared);
      matmul.sum_each(groups, [&](int row, int c, const Vec4<T>& value) {
        const int64_t pixel = tile_pixel(tile, shape, at, row);
        return pixel < 0 ? fill_vec4(T(0)) : store_rounded(z + pixel * padded + c, value);
      });
      count = matmul.groups();
    }
    __syncthreads();
    add_groups(groups, count, padded, totals, padded);
    __syncthreads();
  }
}

template <bool kTensorCores, class V>
__device__ __forceinline__ void factorized(const Job<V>& job, int arch, int e, const State<V>& from,
                                           double* totals, Compute<V>* shared) {
  const DagShape& s = job.dag.shape;
  const PointwiseShape shape = {s.images, s.out_height, s.out_width, s.padded};
  const auto sources = [&](int i) { return factorized_source(from, s.padded, i); };
  pointwise_forward<kTensorCores>(sources, 2, shape, job.dag.pointwise(arch, job.node, e, 0),
                                  blockIdx.x, job.splits, job.dag.stage(arch, job.node, e, 0),
                                  totals, shared + job.layout.source);
}

template <bool kTensorCores, class V>
__global__ __launch_bounds__(kThreads,
                             resident_blocks(sizeof(Compute<V>) ==
                                             4)) void stage_forward_kernel(const Job<V> job) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  wait_for_earlier_kernels();
  const int arch = blockIdx.y / dag.shape.edges, e = blockIdx.y % dag.shape.edges;
  const PlannedEdge edge = dag.edge(arch, job.node, e);
  const bool reduces = job.stage == 0 && dag.factorized(edge);
  if (edge.multiplicity == 0 || !(reduces || dag.separable(edge))) return;
  const int padded = dag.shape.padded;
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * padded);
  clear(totals, 2 * padded);
  const State<V> from = dag.stage_input(arch, job.node, e, job.stage, edge);
  if (reduces) {
    factorized<kTensorCores>(job, arch, e, from, totals, shared);
  } else {
    convolve<kTensorCores>(job, arch, e, edge, from, totals, shared);
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
  const int splits = std::min(tile_count(layout.tile, s), most_splits(s.archs * s.edges));
  const size_t bytes = shared_bytes(layout, sizeof(T));
  check_shared(bytes, s.channels);
  const auto kernel = choose_tile_kernel<V>(
      layout, s.tf32, [](auto tensor_cores) { return &stage_forward_kernel<tensor_cores(), V>; });
  launch_early(kernel, dim3(splits, s.archs * s.edges), kThreads, bytes, stream,
               Job<V>{dag, layout, node, stage, splits});
}

template void stage_forward(const Dag<float>&, int, int, CudaStream);
template void stage_forward(const Dag<double>&, int, int, CudaStream);
template void stage_forward(const Dag<BFloat16>&, int, int, CudaStream);

}  // namespace asng::cuda
