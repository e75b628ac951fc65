// Gradients of states, gathered from the edges that read them. Nothing is scattered and nothing
// added to, so every value is written once and in one order. Identities and pools need no gradient
// of their own: what they pass on is read off the gradient of their node. On the way come the sums
// for the gradients of the normalizations that made the state.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/block_sum.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/mixture.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/pool.h"

namespace asng::cuda {

namespace {

constexpr int kGatherThreads = 256;
// Blocks of a launch, about: what large devices run at the same time.
constexpr int kGatherBlocks = 256;

template <class V>
struct Job {
  using Value = V;

  Dag<V> dag;
  Gradients<V> gradients;
  V* input_grads;
  Compute<V>* input_coefficients;
  int first, splits;
  int consumers = 0;  // of a state, at most
};

template <class V>
struct MixtureJob {
  using Value = V;

  Dag<V> dag;
  Gradients<V> gradients;
  MixtureTerms<V> terms;
  int index = 0;                            // of the state, or of the node whose edges are reduced
  int count = 0;                            // of edges to look at for those that read the state
  const V* grad = nullptr;                  // what a node has beside that, or null
  V* to = nullptr;                          // where the sum goes
  Compute<V>* grad_coefficients = nullptr;  // by number
  int splits = 0;
};

// An edge that reads a state, and where its gradient is: in that of its node or, if it has one of
// its own, in `depth`; and where its depthwise weights or maxima are. As offsets, because a pointer
// that comes from shared memory may point anywhere, for all that the compiler knows.
template <class Factor>
struct Consumer {
  int64_t grad, other;
  Factor factor;  // how often it occurs in its node
  Form form;
  int32_t separable;
};

// How an edge of a node ends, if it does so in a normalization: that of a stage, or -1.
struct End {
  int stage, multiplicity;
};

// What the threads of a block look up for all.
struct alignas(8) LookedUp {
  int consumers;
  End ends[2];
};

// Adds the gradient of a patch of the input of a depthwise convolution with stride S, from that of
// its output, `depth`; `weight` is (kernel elements, padded).
template <int K, int D, int S, class V>
__device__ __forceinline__ void depthwise_backward(
    const DagShape& s, const V* depth, const Compute<V>* weight, const Pixel& first, int c,
    Vec4<Compute<V>> (&to)[InputPatches<S>::kPixels]) {
  using T = Compute<V>;
  depth = image_of(depth, first.image, s.out_height, s.out_width, s.padded, c);
  weight += c;
  visit_readers<K, D, S>(
      s, first,
      [&](int at, bool there) {
        Vec4<T> value = fill_vec4(T(0));
        if (there) value = load_vec4(depth + at);
        return value;
      },
      [&](int i, int ky, int kx, const Vec4<T>& value) {
        add_product(to[i], value, load_vec4(weight + (ky * K + kx) * s.padded));
      });
}

// The same for a separable convolution that reads the state, before the ReLU in front of it.
template <int S, class AnyJob, class AnyConsumer, class T>
__device__ __forceinline__ void add_separable(const AnyJob& job, const AnyConsumer& from,
                                              const Pixel& first, int c,
                                              Vec4<T> (&to)[InputPatches<S>::kPixels]) {
  with_window(from.separable, [&](auto w) {
    depthwise_backward<w.kernel, w.dilation, S>(job.dag.shape, job.gradients.depth + from.grad,
                                                job.dag.packed + from.other, first, c, to);
  });
}

template <class V>
__device__ const uint32_t* maxima_of(const Job<V>& job) {
  return reinterpret_cast<const uint32_t*>(job.dag.z);
}
template <class V>
__device__ const uint32_t* maxima_of(const MixtureJob<V>& job) {
  return job.terms.maxima;
}

// Adds what an edge with stride S that is no separable convolution sends to a patch.
template <int S, class AnyJob, class AnyConsumer, class T>
__device__ __forceinline__ void add_contribution(const AnyJob& job, const AnyConsumer& from,
                                                 const InputPatches<S>& patches, const Pixel& first,
                                                 int c, Vec4<T> (&to)[InputPatches<S>::kPixels]) {
  using V = typename AnyJob::Value;
  const DagShape& s = job.dag.shape;
  const V* node_grad = job.gradients.nodes + from.grad;
  if (from.form != Form::kIdentity) {
    const uint32_t* maxima = from.form == Form::kMaxPool ? maxima_of(job) + from.other : nullptr;
    pool_backward<S>(s, node_grad, maxima, static_cast<T>(from.factor), first, c, to);
  } else if constexpr (S == 1) {
    Vec4<T> grads[InputPatches<S>::kPixels];
    patches.load(node_grad, first, s.padded, c, grads);
    const Vec4<T> factor = fill_vec4(static_cast<T>(from.factor));
#pragma unroll
    for (int i = 0; i < InputPatches<S>::kPixels; ++i) add_product(to[i], grads[i], factor);
  } else {
    // A factorized reduction reads the pixels of which both coordinates are even, or both odd.
    const int line = first.image * s.out_height + first.y / 2;
    const V* even = job.gradients.depth + from.grad +
                    (static_cast<int64_t>(line) * s.out_width + first.x / 2) * s.padded + c;
    const Vec4<T> first_grad = load_vec4(even);
    if (patches.inside(first, 3)) to[3] += load_vec4(even + s.out_size());
    to[0] += first_grad;
  }
}

// The edges that read state `index` of architectures [arch, end), in their order, and how many;
// both in shared memory.
template <class V>
__device__ int list_consumers(const Job<V>& job, int arch, int end, int index, int stride,
                              Consumer<int32_t>* list, int& count) {
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  if (threadIdx.x < 32) {
    int found = 0;
    const int last = s.slot(end, 0, 0);
#pragma unroll 1
    for (int base = s.slot(arch, 0, 0); base < last; base += 32) {
      const int slot = base + static_cast<int>(threadIdx.x);
      PlannedEdge edge = {0, 0, 0, Form::kNone, 0};
      if (slot < last) edge = dag.plan[slot];
      const bool reads = edge.multiplicity != 0 && edge.form != Form::kNone && edge.input == index;
      const unsigned all = __ballot_sync(0xffffffffu, reads);
      if (reads) {
        const int line = slot / s.edges, e = slot - line * s.edges;
        const int a = line / s.nodes, node = line - a * s.nodes;
        const bool own = edge.form == Form::kSeparable || is_factorized(edge.form, stride);
        list[found + __popc(all & ((1u << threadIdx.x) - 1))] = {
            own ? job.gradients.depth_of(s, a, node, e) - job.gradients.depth
                : job.gradients.node(s, a, node) - job.gradients.nodes,
            edge.form == Form::kSeparable ? dag.depthwise(a, node, e, 0) - dag.packed
            : edge.form == Form::kMaxPool ? dag.maxima(a, node, e) - maxima_of(job)
                                          : 0,
            edge.multiplicity, edge.form, edge.separable};
      }
      found += __popc(all);
    }
    if (threadIdx.x == 0) count = found;
  }
  __syncthreads();
  return count;
}

// Half of the threads for each of the two edges.
template <class V>
__device__ void finish_node(const Job<V>& job, int arch, int node, const End* ends,
                            const double* totals) {
  const Dag<V>& dag = job.dag;
  const int padded = dag.shape.padded, half = kGatherThreads / 2, e = threadIdx.x / half;
  const End end = ends[e];
  if (end.stage < 0) return;
  finish_gradient(
      totals, totals + (1 + e) * padded, static_cast<double>(dag.shape.out_size() / padded), padded,
      dag.norm(arch, node, e, end.stage), true, end.multiplicity,
      job.gradients.coefficients_of(dag.shape, arch, e, end.stage), threadIdx.x - e * half, half);
}

// Of inputs, which operations with stride S read, or of nodes.
template <int S, bool kInput, class V>
__global__ __launch_bounds__(kGatherThreads,
                             sizeof(V) == 8 ? 1 : 2) void gather_kernel(const Job<V> job) {
  using T = Compute<V>;
  constexpr int kPixels = InputPatches<S>::kPixels;
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  wait_for_earlier_kernels();
  const int index = job.first + blockIdx.z, node = index - s.inputs;
  if (kInput != (index < s.inputs)) return;
  const bool shared_input = kInput && s.is_shared(index);
  const int arch = shared_input ? 0 : blockIdx.y;
  // At an input that architectures share, their blocks share the work.
  const int split = shared_input ? blockIdx.y * job.splits + blockIdx.x : blockIdx.x;
  const int splits = shared_input ? job.splits * s.archs : job.splits;
  if (split >= splits) return;
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * s.padded);
  LookedUp& found = *reinterpret_cast<LookedUp*>(shared + 12 * kGatherThreads);
  Consumer<int32_t>* consumers = reinterpret_cast<Consumer<int32_t>*>(&found + 1);
  clear(totals, 3 * s.padded);
  if (!kInput && threadIdx.x / 32 == 1 && threadIdx.x % 32 < 2) {
    // By another warp than the one that lists the consumers.
    const int e = threadIdx.x % 32;
    const PlannedEdge edge = dag.edge(arch, node, e);
    const bool normalized = edge.multiplicity != 0 && dag.normalized(edge);
    found.ends[e] = {normalized ? (dag.separable(edge) ? 1 : 0) : -1, edge.multiplicity};
  }
  const int count = list_consumers(job, arch, shared_input ? s.archs : arch + 1, index, S,
                                   consumers, found.consumers);
  const bool normalized_input = kInput && job.input_coefficients != nullptr;
  if (normalized_input && count == 0) return;
  const State<V> state = dag.state(arch, index);
  const int64_t input = static_cast<int64_t>(index) * s.archs + arch;
  V* to = kInput ? job.input_grads + input * s.in_size() : job.gradients.node(s, arch, node);
  const InputPatches<S> patches = {state.height, state.width};
  sum_items(patches.count(s.images), s.padded, split, splits, shared, totals,
            [&](int patch, int c, Vec4<T>(&sums)[3]) {
              const Pixel first = patches.at(patch);
              Vec4<T> grads[kPixels] = {}, values[kPixels] = {};
              // Separable convolutions first: a ReLU in front of them stops all of what they send.
              bool relu = false;
              for (int i = 0; i < count; ++i) {
                const Consumer<int32_t> from = consumers[i];
                if (from.form != Form::kSeparable) continue;
                relu = true;
                add_separable<S>(job, from, first, c, grads);
              }
              if (relu || normalized_input) {
                patches.load(state.x, first, s.padded, c, values);
                const Affine<T> affine = load_affine(state.norm, s.padded, c);
#pragma unroll
                for (int i = 0; i < kPixels; ++i) {
                  values[i] = affine(values[i]);
#pragma unroll
                  for (int j = 0; j < 4; ++j) {
                    grads[i].v[j] = values[i].v[j] > T(0) ? grads[i].v[j] : T(0);
                  }
                }
              }
              for (int i = 0; i < count; ++i) {
                const Consumer<int32_t> from = consumers[i];
                if (from.form != Form::kSeparable)
                  add_contribution<S>(job, from, patches, first, c, grads);
              }
              const bool is_leaf = !kInput && count == 0;
              if (is_leaf) patches.load(to, first, s.padded, c, grads);
#pragma unroll
              for (int i = 0; i < kPixels; ++i) {
                if (!patches.inside(first, i)) {
                  grads[i] = fill_vec4(T(0));
                } else if (!is_leaf) {
                  grads[i] = store_rounded(to + patches.offset(first, i, s.padded, c), grads[i]);
                }
              }
#pragma unroll
              for (int i = 0; i < kPixels; ++i) sums[0] += grads[i];
              if (normalized_input) {
#pragma unroll
                for (int i = 0; i < kPixels; ++i) add_product(sums[1], grads[i], values[i]);
              }
#pragma unroll
              for (int e = 0; e < (kInput ? 0 : 2); ++e) {
                const int stage = found.ends[e].stage;
                if (stage < 0) continue;
                patches.load(dag.stage(arch, node, e, stage), first, s.padded, c, values);
                const Affine<T> affine =
                    load_affine<T>(dag.norm(arch, node, e, stage), s.padded, c);
#pragma unroll
                for (int i = 0; i < kPixels; ++i) {
                  add_product(sums[1 + e], grads[i], affine(values[i]));
                }
              }
            });
  if (kInput && !normalized_input) return;
  if (!sum_over_splits(dag, blockIdx.z * s.archs + arch, 3, split, splits, totals, shared)) return;
  if (kInput) {
    finish_gradient(totals, totals + s.padded, s.images * state.height * state.width, s.padded,
                    state.norm, true, 1.0, job.input_coefficients + input * 3 * s.padded);
  } else {
    finish_node(job, arch, node, found.ends, totals);
  }
}

template <class V>
__global__ __launch_bounds__(kThreads) void reduce_edges_kernel(const Job<V> job) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  wait_for_earlier_kernels();
  const int arch = blockIdx.y / s.edges, e = blockIdx.y % s.edges, node = job.first;
  const PlannedEdge edge = dag.edge(arch, node, e);
  if (edge.multiplicity == 0 || !dag.normalized(edge)) return;
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * s.padded);
  clear(totals, 3 * s.padded);
  __syncthreads();
  const int last = dag.separable(edge) ? 1 : 0;
  const T* norm = dag.norm(arch, node, e, last);
  const int pixels = static_cast<int>(s.out_size() / s.padded);
  sum_gradient(job.gradients.node(s, arch, node), dag.stage(arch, node, e, last), norm, pixels,
               s.padded, blockIdx.x, job.splits, shared, totals);
  if (sum_over_splits(dag, blockIdx.y, 2, job.splits, totals, shared)) {
    finish_gradient(totals, totals + s.padded, pixels, s.padded, norm, true, edge.multiplicity,
                    job.gradients.coefficients_of(s, arch, e, last));
  }
}

// The edges of a mixture that read a state, in their order, and how many; both in shared memory.
template <class V>
__device__ int list_consumers(const MixtureJob<V>& job, int stride, Consumer<Compute<V>>* list,
                              int& count) {
  const DagShape& s = job.dag.shape;
  if (threadIdx.x < 32) {
    int found = 0;
#pragma unroll 1
    for (int base = 0; base < job.count; base += 32) {
      const int e = base + static_cast<int>(threadIdx.x);
      bool reads = false;
      PlannedEdge edge = {0, 0, 0, Form::kNone, 0};
      if (e < job.count) {
        edge = job.dag.plan[e];
        reads = edge.input == job.index;
      }
      const unsigned all = __ballot_sync(0xffffffffu, reads);
      if (reads) {
        const MixtureEdge known = job.terms.edges[e];
        const int64_t place = known.place;
        const bool own = edge.form == Form::kSeparable || is_factorized(edge.form, stride);
        list[found + __popc(all & ((1u << threadIdx.x) - 1))] = {
            own ? place * s.depth_size() : known.node * s.out_size(),
            edge.form == Form::kSeparable ? place * s.slot_weights() + s.padded * s.padded
            : edge.form == Form::kMaxPool ? place * (s.out_size() / 4)
                                          : 0,
            job.terms.coefficients[known.number], edge.form, edge.separable};
      }
      found += __popc(all);
    }
    if (threadIdx.x == 0) count = found;
  }
  __syncthreads();
  return count;
}

// Of an input, which operations with stride S read, or of a node.
template <int S, class V>
__global__ __launch_bounds__(kGatherThreads, sizeof(V) == 8 ? 1 : 2) void gather_mixture_kernel(
    const MixtureJob<V> job) {
  using T = Compute<V>;
  constexpr int kPixels = InputPatches<S>::kPixels;
  const DagShape& s = job.dag.shape;
  LookedUp& found = *dynamic_shared<LookedUp>();
  Consumer<T>* consumers = reinterpret_cast<Consumer<T>*>(&found + 1);
  const int count = list_consumers(job, S, consumers, found.consumers);
  const State<V> state = job.dag.state(0, job.index);
  const InputPatches<S> patches = {state.height, state.width};
  visit_patches(patches.count(s.images), s.padded, [&](int patch, int c) {
    const Pixel first = patches.at(patch);
    Vec4<T> grads[kPixels] = {}, values[kPixels];
    // Separable convolutions first: a ReLU in front of them stops all of what they send.
    bool relu = false;
    for (int i = 0; i < count; ++i) {
      const Consumer<T> from = consumers[i];
      if (from.form != Form::kSeparable) continue;
      relu = true;
      add_separable<S>(job, from, first, c, grads);
    }
    if (relu) {
      patches.load(state.x, first, s.padded, c, values);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          grads[i].v[j] = values[i].v[j] > T(0) ? grads[i].v[j] : T(0);
        }
      }
    }
    for (int i = 0; i < count; ++i) {
      const Consumer<T> from = consumers[i];
      if (from.form != Form::kSeparable) {
        add_contribution<S>(job, from, patches, first, c, grads);
      }
    }
    // What reads nodes has stride 1.
    if (S == 1 && job.grad != nullptr) {
      patches.load(job.grad, first, s.padded, c, values);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) grads[i] += values[i];
    }
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      if (patches.inside(first, i)) {
        write_vec4(job.to + patches.offset(first, i, s.padded, c), grads[i]);
      }
    }
  });
}

// Adds Σ g·y to the second of the totals, where y is what an edge without a normalization makes of
// a state with stride S.
template <int S, class V, class T>
__device__ __forceinline__ void sum_products(const MixtureJob<V>& job, Form form,
                                             const State<V>& from, T* shared, double* totals) {
  using NodePatches = Patches<2, 1>;
  const DagShape& s = job.dag.shape;
  const NodePatches patches = {s.out_height, s.out_width};
  const V* g = job.gradients.node(s, 0, job.index);
  const auto keep = [](int, uint32_t) {};
  sum_items(patches.count(s.images), s.padded, blockIdx.x, job.splits, shared, totals,
            [&](int patch, int c, Vec4<T>(&sums)[3]) {
              const Pixel first = patches.at(patch);
              Vec4<T> grads[NodePatches::kPixels], values[NodePatches::kPixels] = {};
              patches.load(g, first, s.padded, c, grads);
              if (form == Form::kMaxPool) {
                pool_forward<S, true>(from, s.padded, first, c, T(1), values, keep);
              } else if (form == Form::kAveragePool) {
                pool_forward<S, false>(from, s.padded, first, c, T(1), values, keep);
              } else {
                patches.load(from.x, first, s.padded, c, values);
              }
#pragma unroll
              for (int i = 0; i < NodePatches::kPixels; ++i) {
                if (patches.inside(first, i)) add_product(sums[1], grads[i], values[i]);
              }
            });
}

template <int S, class V>
__global__ __launch_bounds__(kThreads) void reduce_mixture_kernel(const MixtureJob<V> job) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const int e = blockIdx.y, node = job.index;
  const PlannedEdge edge = dag.edge(0, node, e);
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * s.padded);
  clear(totals, 3 * s.padded);
  __syncthreads();
  const bool normalized = dag.normalized(edge);
  const int last = dag.separable(edge) ? 1 : 0;
  const int pixels = static_cast<int>(s.out_size() / s.padded);
  if (normalized) {
    sum_gradient(job.gradients.node(s, 0, node), dag.stage(0, node, e, last),
                 dag.norm(0, node, e, last), pixels, s.padded, blockIdx.x, job.splits, shared,
                 totals);
  } else if (S == 1 || edge.input >= s.inputs) {
    sum_products<1>(job, edge.form, dag.state(0, edge.input), shared, totals);
  } else {
    sum_products<S>(job, edge.form, dag.state(0, edge.input), shared, totals);
  }
  if (!sum_over_splits(dag, e, 2, job.splits, totals, shared)) return;
  if (normalized) {
    finish_gradient(totals, totals + s.padded, pixels, s.padded, dag.norm(0, node, e, last), true,
                    job.terms.coefficient(e), job.gradients.coefficients_of(s, 0, e, last));
  }
  if (threadIdx.x >= 32) return;
  double sum = 0;
  for (int c = threadIdx.x; c < s.channels; c += 32) sum += totals[s.padded + c];
  sum = warp_sum(sum);
  if (threadIdx.x == 0) {
    job.grad_coefficients[job.terms.edges[e].number] = static_cast<T>(sum);
  }
}

}  // namespace

template <class V>
void reduce_mixture(const Dag<V>& dag, const Gradients<V>& gradients, const MixtureTerms<V>& terms,
                    int node, Compute<V>* grad_coefficients, CudaStream stream) {
  const DagShape& s = dag.shape;
  MixtureJob<V> job = {dag, gradients, terms, node};
  job.grad_coefficients = grad_coefficients;
  job.splits = pixel_splits(s.out_size() / s.padded, s.padded, s.edges);
  const auto kernel = s.stride == 1 ? &reduce_mixture_kernel<1, V> : &reduce_mixture_kernel<2, V>;
  launch(kernel, dim3(job.splits, s.edges), kThreads,
         pixel_sums_bytes(s.padded, sizeof(Compute<V>)), stream, job);
}

template <class V>
void gather_mixture(const Dag<V>& dag, const Gradients<V>& gradients, const MixtureTerms<V>& terms,
                    int edges, int state, int readers, const V* grad, V* to, CudaStream stream) {
  const DagShape& s = dag.shape;
  const bool is_input = state < s.inputs;
  const auto start = [&](auto stride) {
    constexpr int S = stride();
    const InputPatches<S> patches = {is_input ? s.height : s.out_height,
                                     is_input ? s.width : s.out_width};
    const int slots = std::max(kGatherThreads / (s.padded / 4), 1);
    launch(gather_mixture_kernel<S, V>,
           std::min((patches.count(s.images) + slots - 1) / slots, 4 * kGatherBlocks),
           kGatherThreads, sizeof(LookedUp) + readers * sizeof(Consumer<Compute<V>>), stream,
           MixtureJob<V>{dag, gradients, terms, state, edges, grad, to});
  };
  if (is_input && s.stride == 2) {
    start(std::integral_constant<int, 2>());
  } else {
    start(std::integral_constant<int, 1>());
  }
}

template <class V>
void gather(const Dag<V>& dag, const Gradients<V>& gradients, int first, int count, V* input_grads,
            Compute<V>* coefficients, CudaStream stream) {
  const DagShape& s = dag.shape;
  const int consumers = (s.shared != 0 ? s.archs : 1) * s.nodes * s.edges;
  const auto start = [&](auto stride, auto input, int height, int width) {
    constexpr int S = stride();
    const int splits = item_splits(InputPatches<S>{height, width}.count(s.images), s.padded,
                                   kGatherThreads, std::max(kGatherBlocks / (s.archs * count), 1));
    const size_t bytes = item_sums_bytes(s.padded, kGatherThreads, sizeof(Compute<V>)) +
                         sizeof(LookedUp) + consumers * sizeof(Consumer<int32_t>);
    launch_early(gather_kernel<S, input(), V>, dim3(splits, s.archs, count), kGatherThreads, bytes,
                 stream,
                 Job<V>{dag, gradients, input_grads, coefficients, first, splits, consumers});
  };
  const std::integral_constant<int, 1> one;
  const std::integral_constant<int, 2> two;
  if (first >= s.inputs) {
    start(one, std::false_type(), s.out_height, s.out_width);
  } else if (s.stride == 1) {
    start(one, std::true_type(), s.height, s.width);
  } else {
    start(two, std::true_type(), s.height, s.width);
  }
}

template <class V>
void reduce_edges(const Dag<V>& dag, const Gradients<V>& gradients, int node, CudaStream stream) {
  const DagShape& s = dag.shape;
  const int splits = pixel_splits(s.out_size() / s.padded, s.padded, s.archs * s.edges);
  launch_early(reduce_edges_kernel<V>, dim3(splits, s.archs * s.edges), kThreads,
               pixel_sums_bytes(s.padded, sizeof(Compute<V>)), stream,
               Job<V>{dag, gradients, nullptr, nullptr, node, splits});
}

#define ASNG_INSTANTIATE(V)                                                                        \
  template void gather(const Dag<V>&, const Gradients<V>&, int, int, V*, Compute<V>*, CudaStream); \
  template void reduce_edges(const Dag<V>&, const Gradients<V>&, int, CudaStream);                 \
  template void reduce_mixture(const Dag<V>&, const Gradients<V>&, const MixtureTerms<V>&, int,    \
                               Compute<V>*, CudaStream);                                           \
  template void gather_mixture(const Dag<V>&, const Gradients<V>&, const MixtureTerms<V>&, int,    \
                               int, int, const V*, V*, CudaStream);
ASNG_EVERY_STORED_TYPE(ASNG_INSTANTIATE)

}  // namespace asng::cuda
