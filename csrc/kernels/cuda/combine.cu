// The sum of a node's edges: identities, pools and normalizations in one pass.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/launchers.h"
#include "kernels/cuda/mixture.h"
#include "kernels/cuda/pool.h"

namespace asng::cuda {

namespace {

// The edges of a node: how often each occurs in it, and where maxima are kept, or null.
template <class V>
struct Job {
  using Value = V;

  Dag<V> dag;
  int node;
  bool keeps_maxima;

  __device__ Compute<V> factor(const PlannedEdge& edge, int) const {
    return static_cast<Compute<V>>(edge.multiplicity);
  }
  __device__ uint32_t* maxima(int arch, int e) const {
    return keeps_maxima ? dag.maxima(arch, node, e) : nullptr;
  }
};

// The same of a mixture, whose edges have coefficients.
template <class V>
struct MixtureJob {
  using Value = V;

  Dag<V> dag;
  int node;
  MixtureTerms<V> terms;

  __device__ Compute<V> factor(const PlannedEdge&, int e) const { return terms.coefficient(e); }
  __device__ uint32_t* maxima(int, int e) const {
    if (terms.maxima == nullptr) return nullptr;
    return terms.maxima + terms.edges[e].place * (dag.shape.out_size() / 4);
  }
};

// Some pixels of a node, one above the other; S is the stride of operations on inputs.
template <int S>
using NodePatches = Patches<S == 1 ? 4 : 2, 1>;

// Adds a pool of an edge, of which the positions of maxima are kept if `maxima` is not null.
template <int S, class Patches, class V>
__device__ __forceinline__ void add_pool(const DagShape& s, const State<V>& from, bool is_max,
                                         uint32_t* maxima, Compute<V> factor,
                                         const Patches& patches, const Pixel& first, int c,
                                         Vec4<Compute<V>> (&sums)[Patches::kPixels]) {
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

template <int S, class Job>
__global__ __launch_bounds__(kThreads, sizeof(typename Job::Value) == 8
                                           ? 1
                                           : 4) void combine_kernel(const Job job) {
  using V = typename Job::Value;
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  wait_for_earlier_kernels();
  const int arch = blockIdx.y;
  V* out = dag.nodes + (static_cast<int64_t>(job.node) * s.archs + arch) * s.out_size();
  const NodePatches<S> patches = {s.out_height, s.out_width};
  visit_patches(patches.count(s.images), s.padded, [&](int patch, int c) {
    const Pixel first = patches.at(patch);
    Vec4<T> sums[NodePatches<S>::kPixels] = {};
    for (int e = 0; e < s.edges; ++e) {
      const PlannedEdge edge = dag.edge(arch, job.node, e);
      if (edge.multiplicity == 0) continue;
      const T factor = job.factor(edge, e);
      const bool pools = edge.form == Form::kAveragePool || edge.form == Form::kMaxPool;
      if (edge.form == Form::kNone) {
        const T not_a_number = static_cast<T>(nan(""));
#pragma unroll
        for (int i = 0; i < NodePatches<S>::kPixels; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (c + j < s.channels) sums[i].v[j] = not_a_number;
          }
        }
      } else if (pools) {
        const State<V> from = dag.state(arch, edge.input);
        const bool is_max = edge.form == Form::kMaxPool;
        uint32_t* maxima = job.maxima(arch, e);
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
        Vec4<T> values[NodePatches<S>::kPixels];
        patches.load(from.x, first, s.padded, c, values);
        const Affine<T> affine = load_affine(from.norm, s.padded, c);
#pragma unroll
        for (int i = 0; i < NodePatches<S>::kPixels; ++i) {
          add_product(sums[i], affine(values[i]), fill_vec4(factor));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < NodePatches<S>::kPixels; ++i) {
      if (patches.inside(first, i)) {
        write_vec4(out + patches.offset(first, i, s.padded, c), sums[i]);
      }
    }
  });
}

template <class Job>
void combine(const Job& job, CudaStream stream) {
  const DagShape& s = job.dag.shape;
  const int count = s.stride == 1 ? NodePatches<1>{s.out_height, s.out_width}.count(s.images)
                                  : NodePatches<2>{s.out_height, s.out_width}.count(s.images);
  const int slots = std::max(kThreads / (s.padded / 4), 1);
  const auto kernel = s.stride == 1 ? &combine_kernel<1, Job> : &combine_kernel<2, Job>;
  launch_early(kernel, dim3(std::min((count + slots - 1) / slots, 4096), s.archs), kThreads, 0,
               stream, job);
}

}  // namespace

template <class V>
void combine_forward(const Dag<V>& dag, int node, bool keeps_maxima, CudaStream stream) {
  combine(Job<V>{dag, node, keeps_maxima}, stream);
}

template <class V>
void combine_mixture(const Dag<V>& dag, const MixtureTerms<V>& terms, int node, CudaStream stream) {
  combine(MixtureJob<V>{dag, node, terms}, stream);
}

#define ASNG_INSTANTIATE(V)                                            \
  template void combine_forward(const Dag<V>&, int, bool, CudaStream); \
  template void combine_mixture(const Dag<V>&, const MixtureTerms<V>&, int, CudaStream);
ASNG_EVERY_STORED_TYPE(ASNG_INSTANTIATE)

}  // namespace asng::cuda
