// All nodes of a cell, forward, in one launch: see persistent.h. In each phase come first the nodes
// whose edges are all there, then the next stage of every edge whose input is.
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/persistent_tile.h"

namespace asng::cuda {

namespace {

// Dynamic shared memory: the schedule, and then values, counted in floats. Rows of output pixels
// that a strip has at most are even.
struct Layout {
  int norms;   // (edges, 2, 2, C): scale and shift of each stage
  int sums;    // doubles (edges, 2·C): of a phase
  int red;     // (kCellWarps, 2·C): of the warps
  int taps;    // (kernel elements, C)
  int images;  // what a strip needs, or the scratch of an exchange
  int size;
  int rows[kSeparableCount][2];  // of the separable convolutions on nodes, and on inputs
  int reduction_rows, pool_rows[2];
};

template <class V>
struct Job {
  Dag<V> dag;
  Layout layout;
  Meeting meeting;
  bool keeps_maxima;
};

// Source columns and rows that `count` outputs see.
ASNG_HD constexpr int reach(int count, int stride, int extent) {
  return (count - 1) * stride + extent;
}

template <int C, int K, int S, int D, bool kTensorCores, class V, class Emit>
__device__ void convolve(const Job<V>& job, const State<V>& from, const float* taps, int strip,
                         const float* pointwise, int image, float* shared, Emit emit) {
  constexpr int kExtent = (K - 1) * D + 1;
  const DagShape& s = job.dag.shape;
  const int columns = reach(s.out_width, S, kExtent);
  float* shared_taps = shared + job.layout.taps;
  float* depth = shared + job.layout.images;
  float* source = depth + (strip * s.out_width + 15) / 16 * 16 * kRow<C>;
  for (int top = 0; top < s.out_height; top += strip) {
    const int rows = min(strip, s.out_height - top), even = (rows + 1) / 2 * 2;
    fill_image<C, true>(from, image, top * S - kExtent / 2, -(kExtent / 2), reach(even, S, kExtent),
                        columns, source);
    for (int i = threadIdx.x; top == 0 && i < K * K * C; i += kCellThreads)
      shared_taps[i] = taps[i];
    __syncthreads();
    depthwise_strip<C, K, S, D, kTensorCores>(source, columns, shared_taps, even, s.out_width,
                                              depth);
    __syncthreads();
    PixelMatmul<C, kTensorCores>::template run<1>(
        depth, 0, pointwise, rows * s.out_width,
        [&](int pair, int pixel, const Vec4<float>& value) {
          emit(pair, (image * s.out_height + top) * s.out_width + pixel, value);
        });
  }
}

template <int C, bool kTensorCores, class V, class Emit>
__device__ void reduce(const Job<V>& job, const State<V>& from, const float* pointwise, int image,
                       float* shared, Emit emit) {
  const DagShape& s = job.dag.shape;
  const int strip = job.layout.reduction_rows;
  float* pixels = shared + job.layout.images;
  const int distance = (strip * s.out_width + 15) / 16 * 16 * kRow<C>;
  for (int top = 0; top < s.out_height; top += strip) {
    const int count = min(strip, s.out_height - top) * s.out_width;
    if (top > 0) __syncthreads();
    for (int i = 0; i < 2; ++i) {
      fill_every_second<C, kTensorCores>(from, image, top, i, count, s.out_width,
                                         pixels + i * distance);
    }
    __syncthreads();
    PixelMatmul<C, kTensorCores>::template run<2>(
        pixels, distance, pointwise, count, [&](int pair, int pixel, const Vec4<float>& value) {
          emit(pair, (image * s.out_height + top) * s.out_width + pixel, value);
        });
  }
}

// A stage of an edge for one image, up to the sums for its normalization, which are added to
// `sums` (2·C).
template <int C, bool kTensorCores, class V>
__device__ void compute_stage(const Job<V>& job, int node, int e, int stage,
                              const PlannedEdge& edge, int image, double* sums, float* shared) {
  using Matmul = PixelMatmul<C, kTensorCores>;
  const Dag<V>& dag = job.dag;
  const int arch = blockIdx.y;
  State<V> from = dag.stage_input(arch, node, e, stage, edge);
  if (stage == 1) from.norm = shared + job.layout.norms + (node * kCellEdges + e) * 4 * C;
  V* z = dag.stage(arch, node, e, stage);
  const float* pointwise = dag.pointwise(arch, node, e, stage);
  const float* taps = dag.depthwise(arch, node, e, stage);
  Vec4<float> sum[Matmul::kPairs] = {}, squares[Matmul::kPairs] = {};
  const auto emit = [&](int pair, int pixel, const Vec4<float>& value) {
    const Vec4<float> kept =
        store_rounded(z + static_cast<int64_t>(pixel) * C + Matmul::channel(pair), value);
    sum[pair] += kept;
    add_product(squares[pair], kept, kept);
  };
  const bool strided = stage == 0 && dag.stride(edge) == 2;
  __syncthreads();
  if (dag.factorized(edge)) {
    reduce<C, kTensorCores>(job, from, pointwise, image, shared, emit);
  } else {
    with_window(edge.separable, [&](auto w) {
      constexpr int K = w.kernel, D = w.dilation;
      const int strip = job.layout.rows[edge.separable][strided ? 1 : 0];
      strided ? convolve<C, K, 2, D, kTensorCores>(job, from, taps, strip, pointwise, image, shared,
                                                   emit)
              : convolve<C, K, 1, D, kTensorCores>(job, from, taps, strip, pointwise, image, shared,
                                                   emit);
    });
  }
  float* red = shared + job.layout.red;
#pragma unroll
  for (int pair = 0; pair < Matmul::kPairs; ++pair) {
    bool one = false;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Matmul::add_up(sum[pair].v[i]);
      one = Matmul::add_up(squares[pair].v[i]);
    }
    if (one) {
      float* row = red + Matmul::sums_row() * 2 * C + Matmul::channel(pair);
      store_vec4(row, sum[pair]);
      store_vec4(row + C, squares[pair]);
    }
  }
  __syncthreads();
  for (int j = threadIdx.x; j < 2 * C; j += kCellThreads) {
    float total = 0;
    for (int row = 0; row < Matmul::kSums; ++row) total += red[row * 2 * C + j];
    sums[j] += static_cast<double>(total);
  }
}

// A pool of four pixels in a row, from a strip in shared memory that begins at row `top` of the
// input and one pixel before its left edge; (y, x) is the first output pixel. See pool_forward.
template <int C, int S, class V>
__device__ void pool_run(const State<V>& from, const float* strip, int top, int columns, bool max,
                         int y, int x, int c, Vec4<float> (&values)[4], unsigned (&places)[4]) {
  constexpr int kSpan = 3 * S + kPoolKernel;
  bool found[4] = {};
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    values[p] = fill_vec4(0.0f);
    places[p] = 0;
  }
#pragma unroll
  for (int ky = 0; ky < kPoolKernel; ++ky) {
    const int sy = y * S - 1 + ky;
    if (sy < 0 || sy >= from.height) continue;
    Vec4<float> v[kSpan];
#pragma unroll
    for (int i = 0; i < kSpan; ++i) {
      v[i] = load_vec4(strip + ((sy - top) * columns + x * S + i) * kPixel<C> + c);
    }
#pragma unroll
    for (int p = 0; p < 4; ++p) {
#pragma unroll
      for (int kx = 0; kx < kPoolKernel; ++kx) {
        const int sx = (x + p) * S - 1 + kx;
        if (sx < 0 || sx >= from.width) continue;
        const Vec4<float>& value = v[p * S + kx];
        if (!max) {
          values[p] += value;
          continue;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (!found[p] || value.v[i] > values[p].v[i] || value.v[i] != value.v[i]) {
            values[p].v[i] = value.v[i];
            places[p] = (places[p] & ~(0xffu << 8 * i)) |
                        static_cast<unsigned>(ky * kPoolKernel + kx) << 8 * i;
          }
        }
        found[p] = true;
      }
    }
  }
#pragma unroll
  for (int p = 0; !max && p < 4; ++p) {
#pragma unroll
    for (int i = 0; i < 4; ++i) values[p].v[i] /= static_cast<float>(kPoolPixels);
  }
}

__device__ inline bool is_pool(const PlannedEdge& edge) {
  return edge.multiplicity != 0 && (edge.form == Form::kAveragePool || edge.form == Form::kMaxPool);
}

// The sum of a node's edges, for one image.
template <int C, class V>
__device__ void combine(const Job<V>& job, const Schedule& schedule, int node, int image,
                        float* shared) {
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const Layout& l = job.layout;
  const int arch = blockIdx.y, c = threadIdx.x % kQuads<C> * 4, across = s.out_width / 4;
  const PlannedEdge* edges = schedule.edges + node * kCellEdges;
  V* out = dag.nodes + (static_cast<int64_t>(node) * s.archs + arch) * s.out_size();
  const int strip = min(l.pool_rows[0], l.pool_rows[1]);
  for (int top = 0; top < s.out_height; top += strip) {
    const int rows = min(strip, s.out_height - top);
    float* at = shared + l.images;
    float* strips[kCellEdges] = {nullptr, nullptr};
    __syncthreads();
    for (int e = 0; e < kCellEdges; ++e) {
      if (!is_pool(edges[e])) continue;
      const int stride = dag.stride(edges[e]), columns = reach(s.out_width, stride, kPoolKernel);
      const int source_rows = reach(rows, stride, kPoolKernel);
      fill_image<C, false>(dag.state(arch, edges[e].input), image, top * stride - 1, -1,
                           source_rows, columns, at);
      strips[e] = at;
      at += source_rows * columns * kPixel<C>;
    }
    __syncthreads();
    for (int run = threadIdx.x / kQuads<C>; run < rows * across; run += kStep<C>) {
      const int down = run / across, y = top + down, x = (run - down * across) * 4;
      const int64_t pixel = (static_cast<int64_t>(image) * s.out_height + y) * s.out_width + x;
      Vec4<float> sums[4] = {};
#pragma unroll
      for (int e = 0; e < kCellEdges; ++e) {
        const PlannedEdge& edge = edges[e];
        if (edge.multiplicity == 0) continue;
        Vec4<float> values[4];
        if (is_pool(edge)) {
          const State<V> from = dag.state(arch, edge.input);
          const bool max = edge.form == Form::kMaxPool;
          unsigned places[4];
          if (dag.stride(edge) == 2) {
            pool_run<C, 2>(from, strips[e], top * 2 - 1, reach(s.out_width, 2, kPoolKernel), max, y,
                           x, c, values, places);
          } else {
            pool_run<C, 1>(from, strips[e], top - 1, reach(s.out_width, 1, kPoolKernel), max, y, x,
                           c, values, places);
          }
          if (max && job.keeps_maxima) {
#pragma unroll
            for (int p = 0; p < 4; ++p) {
              dag.maxima(arch, node, e)[((pixel + p) * C + c) / 4] = places[p];
            }
          }
        } else if (edge.form == Form::kNone) {
#pragma unroll
          for (int p = 0; p < 4; ++p) {
#pragma unroll
            for (int i = 0; i < 4; ++i) values[p].v[i] = c + i < s.channels ? nanf("") : 0.0f;
          }
        } else {
          const bool normalized = dag.normalized(edge);
          const int last = dag.separable(edge) ? 1 : 0;
          const State<V> from = dag.state(arch, edge.input);
          const V* x_of = normalized ? dag.stage(arch, node, e, last) : from.x;
          const float* norm = normalized
                                  ? shared + l.norms + ((node * kCellEdges + e) * 2 + last) * 2 * C
                                  : from.norm;
#pragma unroll
          for (int p = 0; p < 4; ++p) values[p] = load_vec4(x_of + (pixel + p) * C + c);
#pragma unroll
          for (int p = 0; p < 4; ++p) values[p] = affine_vec4(values[p], norm, C, c);
        }
        const Vec4<float> times = fill_vec4(static_cast<float>(edge.multiplicity));
#pragma unroll
        for (int p = 0; p < 4; ++p) add_product(sums[p], values[p], times);
      }
#pragma unroll
      for (int p = 0; p < 4; ++p) write_vec4(out + (pixel + p) * C + c, sums[p]);
    }
  }
}

template <class V, int C, bool kTensorCores>
__global__ __launch_bounds__(kCellThreads, 1) void nodes_forward_kernel(const Job<V> job) {
  const Dag<V>& dag = job.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y, t = threadIdx.x;
  Schedule& schedule = *dynamic_shared<Schedule>();
  float* shared = reinterpret_cast<float*>(&schedule + 1);
  double* sums = reinterpret_cast<double*>(shared + job.layout.sums);
  float* norms = shared + job.layout.norms;
  make_schedule(dag, arch, schedule);
  const double count = static_cast<double>(s.images) * s.out_height * s.out_width;
  const int edges = s.nodes * kCellEdges;
  for (int phase = 0; phase < schedule.phases; ++phase) {
    // Calls visit(node, e, stage, number) for the stages that this phase has, in order.
    const auto for_stages = [&](auto visit) {
      int number = 0;
      for (int i = 0; i < edges; ++i) {
        const int stage = phase - schedule.start[i];
        if (stage < 0 || stage >= stage_count(dag, schedule.edges[i])) continue;
        visit(i / kCellEdges, i % kCellEdges, stage, number++);
      }
      return number;
    };
    for (int i = t; i < edges * 2 * C; i += kCellThreads) sums[i] = 0;
    for (int image = blockIdx.x; image < s.images; image += gridDim.x) {
      for (int node = 0; node < s.nodes; ++node) {
        if (schedule.ready[s.inputs + node] == phase) {
          combine<C>(job, schedule, node, image, shared);
        }
      }
      for_stages([&](int node, int e, int stage, int number) {
        compute_stage<C, kTensorCores>(job, node, e, stage, schedule.edges[node * kCellEdges + e],
                                       image, sums + number * 2 * C, shared);
      });
    }
    const int stages = for_stages([](int, int, int, int) {});
    if (stages == 0) break;
    meet(job.meeting, phase, stages * 2 * C, sums,
         reinterpret_cast<double*>(shared + job.layout.images));
    for_stages([&](int node, int e, int stage, int number) {
      // Threads for each stage, so that divisions and roots do not wait for each other.
      if (t / C != number % (kCellThreads / C)) return;
      const int c = t % C;
      const double mean = sums[number * 2 * C + c] / count;
      const double difference = sums[(number * 2 + 1) * C + c] / count - mean * mean;
      const double rstd = 1 / sqrt((difference < 0 ? 0 : difference) + kEpsilon);
      float* norm = norms + ((node * kCellEdges + e) * 2 + stage) * 2 * C;
      norm[c] = static_cast<float>(rstd);
      norm[C + c] = static_cast<float>(-mean * rstd);
      if (blockIdx.x != 0) return;
      float* kept = dag.norm(arch, node, e, stage);
      kept[c] = norm[c];
      kept[C + c] = norm[C + c];
    });
    __syncthreads();
  }
}

// Rows of a strip, the same for all strips but for the last: as many as fit, even; 0: not even two.
template <class Need>
int strip_rows(int height, int available, Need need) {
  for (int strips = 1; strips <= height; ++strips) {
    const int rows = ((height + strips - 1) / strips + 1) / 2 * 2;
    if (need(rows) <= available) return rows;
  }
  return 0;
}

// Whether the kernel can be used for such a cell, and with which layout.
bool make_layout(const DagShape& s, Layout& l) {
  const int c = s.padded, edges = s.nodes * kCellEdges;
  l.norms = 0;
  l.sums = l.norms + edges * 4 * c;
  l.red = l.sums + edges * 2 * c * 2;
  l.taps = l.red + kCellWarps * 2 * c;
  l.images = l.taps + kMostKernelElements * c;
  const int available =
      static_cast<int>((largest_shared_bytes() - sizeof(Schedule)) / sizeof(float)) - l.images;
  const int pixel = c % 32 == 0 ? c : c + 4, row = c + 4;
  int most = 2 * 4 * kCellThreads;  // doubles of an exchange
  bool fits = true;
  const auto choose = [&](auto need) {
    const int rows = strip_rows(s.out_height, available, need);
    fits = fits && rows > 0;
    most = rows > 0 ? std::max(most, need(rows)) : most;
    return rows;
  };
  const auto matrix = [&](int rows) { return (rows * s.out_width + 15) / 16 * 16 * row; };
  for (int stride = 1; stride <= s.stride; ++stride) {
    for (const Operation& o : kOperations) {
      if (o.form != Form::kSeparable) continue;
      const int separable = operation_info(static_cast<int>(&o - kOperations)).separable;
      l.rows[separable][stride - 1] = choose([&](int rows) {
        return matrix(rows) +
               reach(rows, stride, o.extent()) * reach(s.out_width, stride, o.extent()) * pixel;
      });
    }
  }
  // A node may have pools of two inputs, of which one has stride 1.
  for (int stride = 1; stride <= 2; ++stride) {
    const int used = std::min(stride, s.stride);
    l.pool_rows[stride - 1] = choose([&](int rows) {
      return kCellEdges * reach(rows, used, kPoolKernel) * reach(s.out_width, used, kPoolKernel) *
             pixel;
    });
  }
  l.reduction_rows = choose([&](int rows) { return 2 * matrix(rows); });
  l.size = l.images + most;
  return fits;
}

template <class V, int C>
auto choose_channels(bool tf32) {
  return choose_kernel<V>(
      tf32, [](auto tensor_cores) { return &nodes_forward_kernel<V, C, tensor_cores()>; });
}

}  // namespace

bool can_stay(const DagShape& s) {
  Layout layout;
  return s.edges == kCellEdges && s.nodes >= 1 && s.nodes <= kMostNodes && s.inputs == 2 &&
         (s.padded == 16 || s.padded == 32 || s.padded == 64) && s.out_width % 4 == 0 &&
         s.width <= 64 && s.height <= 64 && blocks_per_arch(s.images, s.archs) > 0 &&
         make_layout(s, layout);
}

template <class V>
void nodes_forward(const Dag<V>& dag, const Meeting& meeting, bool keeps_maxima,
                   CudaStream stream) {
  const DagShape& s = dag.shape;
  Job<V> job = {dag, {}, meeting, keeps_maxima};
  make_layout(s, job.layout);
  const auto kernel = s.padded == 16   ? choose_channels<V, 16>(s.tf32)
                      : s.padded == 32 ? choose_channels<V, 32>(s.tf32)
                                       : choose_channels<V, 64>(s.tf32);
  launch_cooperative(kernel, dim3(meeting.blocks, s.archs), kCellThreads,
                     sizeof(Schedule) + job.layout.size * sizeof(float), stream, job);
}

template void nodes_forward(const Dag<float>&, const Meeting&, bool, CudaStream);
template void nodes_forward(const Dag<BFloat16>&, const Meeting&, bool, CudaStream);

}  // namespace asng::cuda
