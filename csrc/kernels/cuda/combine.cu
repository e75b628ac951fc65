// The sum of a node's edges: identities, pools and normalisations in one pass.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/launchers.h"

namespace asng::cuda {

namespace {

constexpr int kWindow = 9;

template <class V>
struct Job {
  Graph<V> graph;
  int node;
  bool keeps_maxima;
};

// A 3×3 pool at an output pixel; zeros beyond the edge count for the average. Of equal maxima the
// first counts, and NaN wins, as in PyTorch. Where maxima are kept, `maxima` is not null.
template <class V>
__device__ Quad<Compute<V>> pool(const State<V>& from, int padded, int stride, bool max, int image,
                                 int y, int x, int c, uint32_t* maxima) {
  using T = Compute<V>;
  Quad<T> sum = fill4(T(0));
  uint32_t place[4] = {0, 0, 0, 0};
  bool found = false;
#pragma unroll
  for (int k = 0; k < kWindow; ++k) {
    const int sy = y * stride - 1 + k / 3, sx = x * stride - 1 + k % 3;
    if (sy < 0 || sy >= from.height || sx < 0 || sx >= from.width) continue;
    const int64_t pixel = (static_cast<int64_t>(image) * from.height + sy) * from.width + sx;
    const Quad<T> v = affine4(load4(from.x + pixel * padded + c), from.norm, padded, c);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!max) {
        sum.v[i] += v.v[i];
      } else if (!found || v.v[i] > sum.v[i] || v.v[i] != v.v[i]) {
        sum.v[i] = v.v[i];
        place[i] = k;
      }
    }
    found = true;
  }
  if (max && maxima != nullptr) {
    *maxima = place[0] | place[1] << 8 | place[2] << 16 | place[3] << 24;
  }
#pragma unroll
  for (int i = 0; !max && i < 4; ++i) sum.v[i] /= T(kWindow);
  return sum;
}

template <class V>
__device__ Quad<Compute<V>> summand(const Job<V>& job, int arch, int e, const PlannedEdge& edge,
                                    int64_t pixel, int image, int y, int x, int c) {
  using T = Compute<V>;
  const Graph<V>& graph = job.graph;
  const int padded = graph.shape.padded;
  if (edge.operation == kInvalid) {
    const T not_a_number = static_cast<T>(nan(""));
    Quad<T> nans;
#pragma unroll
    for (int i = 0; i < 4; ++i) nans.v[i] = c + i < graph.shape.channels ? not_a_number : T(0);
    return nans;
  }
  if (graph.normalised(edge)) {
    const int last = graph.separable(edge) ? 1 : 0;
    return affine4(load4(graph.half(arch, job.node, e, last) + pixel * padded + c),
                   graph.norm(arch, job.node, e, last), padded, c);
  }
  const State<V> from = graph.state(arch, edge.input);
  if (edge.operation == kIdentity) {
    return affine4(load4(from.x + pixel * padded + c), from.norm, padded, c);
  }
  uint32_t* maxima = job.keeps_maxima && edge.operation == kMaxPool
                         ? graph.maxima(arch, job.node, e) + (pixel * padded + c) / 4
                         : nullptr;
  return pool(from, padded, graph.stride(edge), edge.operation == kMaxPool, image, y, x, c, maxima);
}

template <class V>
__global__ __launch_bounds__(kThreads) void combine_kernel(const Job<V> job) {
  using T = Compute<V>;
  const GraphShape& s = job.graph.shape;
  const int arch = blockIdx.y, quads = s.padded / 4;
  const int64_t count = s.out_size() / 4;
  V* out = job.graph.nodes + (static_cast<int64_t>(job.node) * s.archs + arch) * s.out_size();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int pixel = static_cast<int>(i / quads),
              c = static_cast<int>(i - static_cast<int64_t>(pixel) * quads) * 4;
    const int line = pixel / s.out_width, x = pixel - line * s.out_width;
    const int image = line / s.out_height, y = line - image * s.out_height;
    Quad<T> sum = fill4(T(0));
    for (int e = 0; e < s.edges; ++e) {
      const PlannedEdge edge = job.graph.edge(arch, job.node, e);
      if (edge.factor == 0) continue;
      add_product(sum, summand(job, arch, e, edge, pixel, image, y, x, c),
                  fill4(static_cast<T>(edge.factor)));
    }
    write4(out + i * 4, sum);
  }
}

}  // namespace

template <class V>
void combine_forward(const Graph<V>& graph, int node, bool keeps_maxima, CudaStream stream) {
  const int64_t count = graph.shape.out_size() / 4;
  const int blocks = static_cast<int>(std::min<int64_t>((count + kThreads - 1) / kThreads, 4096));
  launch(combine_kernel<V>, dim3(blocks, graph.shape.archs), kThreads, 0, stream,
         Job<V>{graph, node, keeps_maxima});
}

template void combine_forward(const Graph<float>&, int, bool, CudaStream);
template void combine_forward(const Graph<double>&, int, bool, CudaStream);
template void combine_forward(const Graph<BFloat16>&, int, bool, CudaStream);

}  // namespace asng::cuda
