// Gradients of states, gathered from the edges that read them. Nothing is scattered and nothing
// added to, so every value is written once and in one order. Identities and pools need no gradient
// of their own: what they pass on is read off the gradient of their node. On the way come the sums
// for the gradients of the normalizations that made the state.
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/pool.h"

namespace asng::cuda {

namespace {

template <class V>
struct Job {
  Dag<V> dag;
  Gradients<V> gradients;
  V* input_grads;
  Compute<V>* input_coefficients;
  int first, splits;
};

struct Consumer {
  int arch, node, e, multiplicity;
  Form form;
  int separable;
};

// What one edge sends to pixel (y, x) of a state, whose value there is `value`.
template <class V>
__device__ Vec4<Compute<V>> contribution(const Job<V>& job, const Consumer& from, int stride,
                                         int image, int y, int x, int c, int64_t pixel,
                                         const Vec4<Compute<V>>& value) {
  using T = Compute<V>;
  const DagShape& s = job.dag.shape;
  switch (from.form) {
    case Form::kIdentity: {
      if (stride == 1) {
        Vec4<T> g = load_vec4(job.gradients.node(s, from.arch, from.node) + pixel * s.padded + c);
#pragma unroll
        for (int i = 0; i < 4; ++i) g.v[i] *= static_cast<T>(from.multiplicity);
        return g;
      }
      // A factorized reduction reads the pixels of which both coordinates are even, or both odd.
      if (((y ^ x) & 1) != 0) return fill_vec4(T(0));
      const int64_t out =
          (static_cast<int64_t>(image) * s.out_height + y / 2) * s.out_width + x / 2;
      return load_vec4(job.gradients.depth_of(s, from.arch, from.node, from.e) +
                       (y & 1) * s.out_size() + out * s.padded + c);
    }
    case Form::kAveragePool:
    case Form::kMaxPool:
      return pool_backward(
          s, job.gradients.node(s, from.arch, from.node),
          from.form == Form::kMaxPool ? job.dag.maxima(from.arch, from.node, from.e) : nullptr,
          from.multiplicity, stride, image, y, x, c);
    default: {
      const V* depth = job.gradients.depth_of(s, from.arch, from.node, from.e);
      const T* weight = job.dag.depthwise(from.arch, from.node, from.e, 0);
      Vec4<T> sum = fill_vec4(T(0));
      with_window(from.separable, [&](auto w) {
        sum = depthwise_backward<w.kernel, w.dilation>(s, depth, weight, stride, image, y, x, c,
                                                       value);
      });
      return sum;
    }
  }
}

// The edges that read state `index` of architectures [arch, end), in their order, and how many;
// both in shared memory.
template <class V>
__device__ int list_consumers(const Dag<V>& dag, int arch, int end, int index, Consumer* list,
                              int& count) {
  const DagShape& s = dag.shape;
  if (threadIdx.x == 0) {
    count = 0;
    for (int a = arch; a < end; ++a) {
      for (int node = max(index - s.inputs + 1, 0); node < s.nodes; ++node) {
        for (int e = 0; e < s.edges; ++e) {
          const PlannedEdge edge = dag.edge(a, node, e);
          if (edge.multiplicity == 0 || edge.form == Form::kNone || edge.input != index) continue;
          list[count++] = {a, node, e, edge.multiplicity, edge.form, edge.separable};
        }
      }
    }
  }
  __syncthreads();
  return count;
}

template <class V>
__device__ void finish_node(const Job<V>& job, int arch, int node, const double* totals) {
  const Dag<V>& dag = job.dag;
  const int padded = dag.shape.padded;
  for (int e = 0; e < dag.shape.edges; ++e) {
    const PlannedEdge edge = dag.edge(arch, node, e);
    if (edge.multiplicity == 0 || !dag.normalized(edge)) continue;
    const int last = dag.separable(edge) ? 1 : 0;
    finish_gradient(totals, totals + (1 + e) * padded,
                    static_cast<double>(dag.shape.out_size() / padded), padded,
                    dag.norm(arch, node, e, last), true, edge.multiplicity,
                    job.gradients.coefficients_of(dag.shape, arch, e, last));
  }
}

template <class V>
__global__ __launch_bounds__(kThreads) void gather_kernel(const Job<V> job) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y, index = job.first + blockIdx.z, node = index - s.inputs;
  const bool is_input = node < 0, shared_input = is_input && s.is_shared(index);
  if (shared_input && arch > 0) return;
  double* totals = dynamic_shared<double>();
  T* shared = reinterpret_cast<T*>(totals + 3 * s.padded);
  int* counted = reinterpret_cast<int*>(shared + 12 * kThreads);
  Consumer* consumers = reinterpret_cast<Consumer*>(counted + 1);
  clear(totals, 3 * s.padded);
  const int count =
      list_consumers(dag, arch, shared_input ? s.archs : arch + 1, index, consumers, *counted);
  const bool normalized_input = is_input && job.input_coefficients != nullptr;
  if (normalized_input && count == 0) return;
  const State<V> state = dag.state(arch, index);
  const int64_t input = static_cast<int64_t>(index) * s.archs + arch;
  V* to = is_input ? job.input_grads + input * s.in_size() : job.gradients.node(s, arch, node);
  const int stride = is_input ? s.stride : 1;
  // Of the normalizations that end the edges of the node.
  const V* z[2] = {nullptr, nullptr};
  const T* norm[2] = {nullptr, nullptr};
  for (int e = 0; !is_input && e < 2; ++e) {
    const PlannedEdge edge = dag.edge(arch, node, e);
    if (edge.multiplicity == 0 || !dag.normalized(edge)) continue;
    const int last = dag.separable(edge) ? 1 : 0;
    z[e] = dag.stage(arch, node, e, last);
    norm[e] = dag.norm(arch, node, e, last);
  }
  const int pixels = s.images * state.height * state.width;
  sum_pixels(pixels, s.padded, blockIdx.x, job.splits, shared, totals,
             [&](int pixel, int c, Vec4<T>(&sums)[3]) {
               const int64_t at = static_cast<int64_t>(pixel) * s.padded + c;
               Vec4<T> grad = fill_vec4(T(0));
               const Vec4<T> value = affine_vec4(load_vec4(state.x + at), state.norm, s.padded, c);
               if (!is_input && count == 0) {
                 grad = load_vec4(to + at);
               } else {
                 const int line = pixel / state.width, x = pixel - line * state.width;
                 const int image = line / state.height, y = line - image * state.height;
                 for (int i = 0; i < count; ++i) {
                   grad += contribution(job, consumers[i], stride, image, y, x, c, pixel, value);
                 }
                 grad = store_rounded(to + at, grad);
               }
               sums[0] += grad;
               if (normalized_input) add_product(sums[1], grad, value);
#pragma unroll
               for (int e = 0; e < 2; ++e) {
                 if (z[e] == nullptr) continue;
                 add_product(sums[1 + e], grad,
                             affine_vec4(load_vec4(z[e] + at), norm[e], s.padded, c));
               }
             });
  if (is_input && !normalized_input) return;
  if (!sum_over_splits(dag, blockIdx.z * s.archs + arch, 3, job.splits, totals, shared)) return;
  if (is_input) {
    finish_gradient(totals, totals + s.padded, pixels, s.padded, state.norm, true, 1.0,
                    job.input_coefficients + input * 3 * s.padded);
  } else {
    finish_node(job, arch, node, totals);
  }
}

template <class V>
__global__ __launch_bounds__(kThreads) void reduce_edges_kernel(const Job<V> job) {
  using T = Compute<V>;
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
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

}  // namespace

template <class V>
void gather(const Dag<V>& dag, const Gradients<V>& gradients, int first, int count, V* input_grads,
            Compute<V>* coefficients, CudaStream stream) {
  using T = Compute<V>;
  const DagShape& s = dag.shape;
  const int64_t size = first < s.inputs ? s.in_size() : s.out_size();
  const int splits = pixel_splits(size / s.padded, s.padded);
  const int slots = (s.shared != 0 ? s.archs : 1) * s.nodes * s.edges;
  const size_t bytes = pixel_sums_bytes(s.padded, sizeof(T)) + sizeof(int) +
                       static_cast<size_t>(slots) * sizeof(Consumer);
  launch(gather_kernel<V>, dim3(splits, s.archs, count), kThreads, bytes, stream,
         Job<V>{dag, gradients, input_grads, coefficients, first, splits});
}

template <class V>
void reduce_edges(const Dag<V>& dag, const Gradients<V>& gradients, int node, CudaStream stream) {
  const DagShape& s = dag.shape;
  const int splits = pixel_splits(s.out_size() / s.padded, s.padded);
  launch(reduce_edges_kernel<V>, dim3(splits, s.archs * s.edges), kThreads,
         pixel_sums_bytes(s.padded, sizeof(Compute<V>)), stream,
         Job<V>{dag, gradients, nullptr, nullptr, node, splits});
}

#define ASNG_INSTANTIATE(V)                                                                        \
  template void gather(const Dag<V>&, const Gradients<V>&, int, int, V*, Compute<V>*, CudaStream); \
  template void reduce_edges(const Dag<V>&, const Gradients<V>&, int, CudaStream);
ASNG_EVERY_STORED_TYPE(ASNG_INSTANTIATE)

}  // namespace asng::cuda
