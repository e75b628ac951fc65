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

// Two pixels of a node, one above the other.
using NodePatches = Patches<2, 1>;

// Adds a pool of an edge, of which the positions of maxima are kept if `maxima` is not null.
template <int S, class V>
__device__ __forceinline__ void add_pool(const DagShape& s, const State<V>& from, bool is_max,
                                         uint32_t* maxima, Compute<V> factor,
                                         const NodePatches& patches, const Pixel& first, int c,
                                         Vec4<Compute<V>> (&sums)[NodePatches::kPixels]) {
  const auto keep = [&](int pixel, uint32_t places) {
    if (maxima != nullptr && patches.inside(first, pixel)) {
      maxima[patches.offset(first, pixel, s.padded, c) / 4] = places;
    }
  };
  if (is_max) {
    pool_forward<S, true>(from, s.padded, first, c, factor, sums, keep);
  } else {
    pool_forward<S, false>(from, s.padded, first, c, factor, sums, keep);
  }
}

template <int S, class V>
__global__ __launch_bounds__(kThreads, sizeof(V) == 8 ? 1
                                       : S == 1       ? 5
                                                      : 4) void combine_kernel(const Job<V> job) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y;
  V* out = dag.nodes + (static_cast<int64_t>(job.node) * s.archs + arch) * s.out_size();
  const NodePatches patches = {s.out_height, s.out_width};
  visit_patches(patches.count(s.images), s.padded, [&](int patch, int c) {
    const Pixel first = patches.at(patch);
    Vec4<T> sums[NodePatches::kPixels] = {};
    for (int e = 0; e < s.edges; ++e) {
      const PlannedEdge edge = dag.edge(arch, job.node, e);
      if (edge.multiplicity == 0) continue;
      const T factor = static_cast<T>(edge.multiplicity);
      const bool pools = edge.form == Form::kAveragePool || edge.form == Form::kMaxPool;
      if (edge.form == Form::kNone) {
        const T not_a_number = static_cast<T>(nan(""));
#pragma unroll
        for (int i = 0; i < NodePatches::kPixels; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (c + j < s.channels) sums[i].v[j] = not_a_number;
          }
        }
      } else if (pools) {
        const State<V> from = dag.state(arch, edge.input);
        const bool is_max = edge.form == Form::kMaxPool;
        uint32_t* maxima = job.keeps_maxima ? dag.maxima(arch, job.node, e) : nullptr;
        if (S == 1 || edge.input >= s.inputs) {
          add_pool<1>(s, from, is_max, maxima, factor, patches, first, c, sums);
        } else {
          add_pool<S>(s, from, is_max, maxima, factor, patches, first, c, sums);
        }
      } else {
        // The input itself, or what a normalization makes of the last stage.
        State<V> from;
        if (dag.normalized(edge)) {
          const int last = dag.separable(edge) ? 1 : 0;
          from = {dag.stage(arch, job.node, e, last), dag.norm(arch, job.node, e, last), 0, 0};
        } else {
          from = dag.state(arch, edge.input);
        }
        Vec4<T> values[NodePatches::kPixels];
        patches.load(from.x, first, s.padded, c, values);
        const Affine<T> affine = load_affine(from.norm, s.padded, c);
#pragma unroll
        for (int i = 0; i < NodePatches::kPixels; ++i) {
          add_product(sums[i], affine(values[i]), fill_vec4(factor));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < NodePatches::kPixels; ++i) {
      if (patches.inside(first, i)) {
        write_vec4(out + patches.offset(first, i, s.padded, c), sums[i]);
      }
    }
  });
}

}  // namespace

template <class V>
void combine_forward(const Dag<V>& dag, int node, bool keeps_maxima, CudaStream stream) {
  const DagShape& s = dag.shape;
  const int count = NodePatches{s.out_height, s.out_width}.count(s.images);
  const int slots = std::max(kThreads / (s.padded / 4), 1);
  const auto kernel = s.stride == 1 ? &combine_kernel<1, V> : &combine_kernel<2, V>;
  launch(kernel, dim3(std::min((count + slots - 1) / slots, 4096), s.archs), kThreads, 0, stream,
         Job<V>{dag, node, keeps_maxima});
}

template void combine_forward(const Dag<float>&, int, bool, CudaStream);
template void combine_forward(const Dag<double>&, int, bool, CudaStream);
template void combine_forward(const Dag<BFloat16>&, int, bool, CudaStream);

}  // namespace asng::cuda
