// The sum of a node's edges: identities, pools and normalizations in one pass.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/launchers.h"
#include "kernels/cuda/pool.h"

namespace asng::cuda {

namespace {

template <class V>
struct Job {
  Dag<V> dag;
  int node;
  bool keeps_maxima;
};

template <class V>
__device__ Vec4<Compute<V>> term(const Job<V>& job, int arch, int e, const PlannedEdge& edge,
                                 int64_t pixel, int image, int y, int x, int c) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const int padded = dag.shape.padded;
  if (edge.form == Form::kNone) {
    const T not_a_number = static_cast<T>(nan(""));
    Vec4<T> nans;
#pragma unroll
    for (int i = 0; i < 4; ++i) nans.v[i] = c + i < dag.shape.channels ? not_a_number : T(0);
    return nans;
  }
  if (dag.normalized(edge)) {
    const int last = dag.separable(edge) ? 1 : 0;
    return affine_vec4(load_vec4(dag.stage(arch, job.node, e, last) + pixel * padded + c),
                       dag.norm(arch, job.node, e, last), padded, c);
  }
  const State<V> from = dag.state(arch, edge.input);
  if (edge.form == Form::kIdentity) {
    return affine_vec4(load_vec4(from.x + pixel * padded + c), from.norm, padded, c);
  }
  uint32_t* maxima = job.keeps_maxima && edge.form == Form::kMaxPool
                         ? dag.maxima(arch, job.node, e) + (pixel * padded + c) / 4
                         : nullptr;
  return pool_forward(from, padded, dag.stride(edge), edge.form == Form::kMaxPool, image, y, x, c,
                      maxima);
}

template <class V>
__global__ __launch_bounds__(kThreads) void combine_kernel(const Job<V> job) {
  using T = Compute<V>;
  const DagShape& s = job.dag.shape;
  const int arch = blockIdx.y, quads = s.padded / 4;
  const int64_t count = s.out_size() / 4;
  V* out = job.dag.nodes + (static_cast<int64_t>(job.node) * s.archs + arch) * s.out_size();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int pixel = static_cast<int>(i / quads),
              c = static_cast<int>(i - static_cast<int64_t>(pixel) * quads) * 4;
    const int line = pixel / s.out_width, x = pixel - line * s.out_width;
    const int image = line / s.out_height, y = line - image * s.out_height;
    Vec4<T> sum = fill_vec4(T(0));
    for (int e = 0; e < s.edges; ++e) {
      const PlannedEdge edge = job.dag.edge(arch, job.node, e);
      if (edge.multiplicity == 0) continue;
      add_product(sum, term(job, arch, e, edge, pixel, image, y, x, c),
                  fill_vec4(static_cast<T>(edge.multiplicity)));
    }
    write_vec4(out + i * 4, sum);
  }
}

}  // namespace

template <class V>
void combine_forward(const Dag<V>& dag, int node, bool keeps_maxima, CudaStream stream) {
  const int64_t count = dag.shape.out_size() / 4;
  const int blocks = static_cast<int>(std::min<int64_t>((count + kThreads - 1) / kThreads, 4096));
  launch(combine_kernel<V>, dim3(blocks, dag.shape.archs), kThreads, 0, stream,
         Job<V>{dag, node, keeps_maxima});
}

template void combine_forward(const Dag<float>&, int, bool, CudaStream);
template void combine_forward(const Dag<double>&, int, bool, CudaStream);
template void combine_forward(const Dag<BFloat16>&, int, bool, CudaStream);

}  // namespace asng::cuda
