// A cell, forward, in one launch: see persistent.h. First come the projections of its inputs, then
// its nodes, in each phase first those whose edges are all there, then the next stage of every edge
// whose input is, and last the projection of its output. A node that nothing reads yet is computed
// while blocks wait for each other.
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/persistent_plan.h"
#include "kernels/cuda/persistent_projection.h"

namespace asng::cuda {

namespace {

// Dynamic shared memory: the schedule, and then values, counted in floats. Rows of output pixels
// that a strip has at most are even.
struct Layout {
  int norms;   // (3 + 2·edges, 2, C): scale and shift of each projection and stage
  int sums;    // doubles (edges, 2·C): of a phase
  int red;     // (kCellWarps, 2·C): of the warps
  int taps;    // (kernel elements, C)
  int weight;  // (2·C, kWeightRow), the half of it but for reductions
  int images;  // what a strip needs, or the scratch of an exchange; that of pools begins at `taps`
  int size;
  int rows[kSeparableCount][2];  // of the separable convolutions on nodes, and on inputs
  int reduction_rows, pool_rows[2];
};

// The two inputs and the output.
constexpr int kProjections = 3;

// What is normalized: scale and shift as this block needs them, and as they are kept.
struct Norm {
  float *here, *kept;
};

// A stage of an edge: where things lie, of all images.
template <class V>
struct Stage {
  const V* x;
  const float* norm;
  V* z;
  const float *pointwise, *taps;
  Norm norm_of_z;
  int height, width, stride, separable;
  bool reduces;
};

// An edge as a term of its node.
template <class V>
struct Term {
  const V* x;
  uint32_t* maxima;  // of a max pool, where they are kept
  int norm;          // its place in shared memory, or -1
  Form form;         // an identity also stands for what has been normalized
  int multiplicity, height, width, stride;
};

template <class V>
struct Plan {
  Bases bases;
  Schedule schedule;
  Stage<V> stages[2 * kMostEdges];  // in the order of the schedule
  Term<V> terms[kMostEdges];
  Norm projections[kProjections];
  bool needed[kProjections];
  bool read[kMostNodes];  // by another node, so that it is no part of the output

  // To all addresses; for all threads of the block.
  __device__ void add_bases() {
    int turn = threadIdx.x;
    turn = bases.add_to<7>(stages, turn);
    turn = bases.add_to<2>(terms, turn);
    turn = bases.add_to<2>(projections, turn);
  }
};

template <class V>
struct Job {
  CellJob<V> cell;
  unsigned shared;  // of the inputs: each architecture projects them for itself, so not in `cell`
  Layout layout;
  Handover handover;
  bool keeps_maxima;

  ASNG_HD Plan<V>* plans() const { return static_cast<Plan<V>*>(cell.plan); }  // (archs)
};

static_assert(Jobs<Job<float>>::kMost >= 8);

// Source columns and rows that `count` outputs see.
ASNG_HD constexpr int reach(int count, int stride, int extent) {
  return (count - 1) * stride + extent;
}

// Of separable convolutions.
__device__ inline int window_extent(int separable) {
  int extent = 0;
  with_window(separable, [&](auto w) { extent = (w.kernel - 1) * w.dilation + 1; });
  return extent;
}
__device__ inline int window_elements(int separable) {
  int elements = 0;
  with_window(separable, [&](auto w) { elements = w.kernel * w.kernel; });
  return elements;
}

// Looks up what the projections need.
template <class V>
__device__ void plan_projections(const Job<V>& job, int arch, float* norms, Plan<V>& plan) {
  const Dag<V>& dag = job.cell.dag;
  const DagShape& s = dag.shape;
  const int t = threadIdx.x, C = s.padded;
  if (t < kProjections) {
    float* kept = t < s.inputs ? const_cast<float*>(dag.state(arch, t).norm)
                               : job.cell.y_norms + arch * 2 * C;
    plan.projections[t] = {norms + t * 2 * C, kept};
    // What architectures share is kept as that of the first.
    bool needed = t == s.inputs;
    for (int a = 0; t < s.inputs && a < s.archs; ++a) {
      const bool counts = a == arch || (arch == 0 && (job.shared >> t & 1u) != 0);
      needed |= counts && dag.used[a * s.states() + t] != 0;
    }
    plan.needed[t] = needed;
  }
  const int node = t - 32;
  if (node >= 0 && node < s.nodes) {
    plan.read[node] = dag.used[arch * s.states() + s.inputs + node] != 0;
  }
}

// Looks up what the stages and terms need.
template <class V>
__device__ void plan_nodes(const Job<V>& job, int arch, float* norms, Plan<V>& plan) {
  const Dag<V>& dag = job.cell.dag;
  const DagShape& s = dag.shape;
  const int t = threadIdx.x, C = s.padded;
  const Schedule& schedule = plan.schedule;
  float* of_stages = norms + kProjections * 2 * C;
  const auto state = [&](int index) {
    State<V> state = dag.state(arch, index);
    if (index < s.inputs) state.norm = norms + index * 2 * C;
    return state;
  };
  make_schedule(dag, arch, plan.schedule);
  if (t < schedule.stages_before[schedule.phases]) {
    const int which = schedule.stages[t] / 2, node = which / kCellEdges, e = which % kCellEdges;
    const int stage = schedule.stages[t] % 2;
    const PlannedEdge edge = schedule.edges[which];
    float* norm = of_stages + which * 4 * C;
    const State<V> from =
        stage == 0 ? state(edge.input)
                   : State<V>{dag.stage(arch, node, e, 0), norm, s.out_height, s.out_width};
    plan.stages[t] = {from.x,
                      from.norm,
                      dag.stage(arch, node, e, stage),
                      dag.pointwise(arch, node, e, stage),
                      dag.depthwise(arch, node, e, stage),
                      {norm + stage * 2 * C, dag.norm(arch, node, e, stage)},
                      from.height,
                      from.width,
                      stage == 0 ? dag.stride(edge) : 1,
                      edge.separable,
                      dag.factorized(edge)};
  }
  const int which = t - 128;
  if (which >= 0 && which < s.nodes * kCellEdges) {
    const int node = which / kCellEdges, e = which % kCellEdges;
    const PlannedEdge edge = schedule.edges[which];
    const State<V> from = state(edge.input);
    const int last = schedule.stage_count[which] - 1;
    const int place = last >= 0               ? kProjections + which * 2 + last
                      : edge.input < s.inputs ? edge.input
                                              : -1;
    plan.terms[which] = {last < 0 ? from.x : dag.stage(arch, node, e, last),
                         edge.form == Form::kMaxPool ? dag.maxima(arch, node, e) : nullptr,
                         place < 0 ? -1 : job.layout.norms + place * 2 * C,
                         last < 0 ? edge.form : Form::kIdentity,
                         edge.multiplicity,
                         last < 0 ? from.height : s.out_height,
                         last < 0 ? from.width : s.out_width,
                         dag.stride(edge)};
  }
}

template <class V>
__global__ __launch_bounds__(kCellThreads) void cell_plan_kernel(const Jobs<Job<V>> all) {
  const Job<V>& job = all.jobs[blockIdx.x];
  const int arch = blockIdx.y;
  if (arch >= job.cell.dag.shape.archs) return;
  Plan<V>& plan = *dynamic_shared<Plan<V>>();
  float* const norms = counted_from<float>(Base::kShared) + job.layout.norms;
  plan_projections(job, arch, norms, plan);
  plan_nodes(job, arch, norms, plan);
  keep_plan(plan, job.plans() + arch);
}

// A projection of an image, up to the sums for its normalization, which are added to `totals`
// (2·C).
template <int C, bool kTensorCores, class V>
__device__ void project(const Job<V>& job, const Plan<V>& plan, int which, int image,
                        double* totals, float* shared) {
  const CellJob<V>& cell = job.cell;
  const Dag<V>& dag = cell.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y;
  const bool of_input = which < s.inputs;
  const int height = of_input ? s.height : s.out_height, width = of_input ? s.width : s.out_width;
  const Input<V> input = cell.inputs[of_input ? which : 0];
  const int64_t image_of_arch =
      (job.shared >> which & 1u) != 0 ? image : static_cast<int64_t>(arch) * s.images + image;
  const auto source = [&](int i) {
    Source<V> from;
    if (of_input) {
      const int64_t size = static_cast<int64_t>(input.height) * input.width * input.padded;
      from = factorized_source(
          State<V>{input.x + image_of_arch * size, nullptr, input.height, input.width},
          input.padded, i);
      if (!input.factorized) from.stride = 1;
    } else if (!plan.read[i]) {
      from.x = dag.state(arch, s.inputs + i).x + static_cast<int64_t>(image) * height * width * C;
      from.channels = C;
      from.first = i * C;
    }
    return from;
  };
  V* z = of_input ? const_cast<V*>(dag.state(arch, which).x) : cell.y + arch * s.out_size();
  z += static_cast<int64_t>(image) * height * width * C;
  PixelSums<C, kTensorCores> sums;
  __syncthreads();
  ImageProjection<C, kTensorCores>::run(
      source, of_input ? (input.factorized ? 2 : 1) : s.nodes, height * width, width,
      cell.packed[which], [&](int pair, int pixel, const Vec4<float>& value) {
        const int c = PixelMatmul<C, kTensorCores>::channel(pair);
        const Vec4<float> kept = store_rounded(z + pixel * C + c, value);
        sums.add(pair, kept, kept);
      });
  sums.add_up(shared + job.layout.red, totals);
}

// Normalizes an image where it is.
template <int C, class V>
__device__ void normalize_image(V* image, const float* norm, int pixels) {
  constexpr int kPieceValues = 4 * kWide<V>, kFlight = 4;
  const int c = threadIdx.x % (C / kPieceValues) * kPieceValues, count = pixels * C / kPieceValues;
  // Shared memory, which WideAffine does not read.
  Affine<float> affine[kWide<V>];
#pragma unroll
  for (int k = 0; k < kWide<V>; ++k) affine[k] = load_affine(norm, C, c + 4 * k);
  for (int first = threadIdx.x; first < count; first += kFlight * kCellThreads) {
    Vec4<float> values[kFlight][kWide<V>];
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      load_wide(image + min(first + i * kCellThreads, count - 1) * kPieceValues, values[i]);
    }
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int piece = first + i * kCellThreads;
      if (piece >= count) break;
#pragma unroll
      for (int k = 0; k < kWide<V>; ++k) values[i][k] = affine[k](values[i][k]);
      write_wide(image + piece * kPieceValues, values[i]);
    }
  }
}

// A stage of an edge for one image, up to the sums for its normalization, which are added to
// `totals` (2·C).
template <int C, bool kTensorCores, class V>
__device__ void compute_stage(const Job<V>& job, const Stage<V>& stage, int image, double* totals,
                              float* shared) {
  using Matmul = PixelMatmul<C, kTensorCores>;
  const DagShape& s = job.cell.dag.shape;
  PixelSums<C, kTensorCores> sums;
  float* weight = shared + job.layout.weight;
  float* matrix = shared + job.layout.images;
  const bool reduces = stage.reduces;
  const int S = stage.stride, kind = stage.separable, extent = reduces ? 1 : window_extent(kind);
  const int strip = reduces ? job.layout.reduction_rows : job.layout.rows[kind][S - 1];
  const int columns = row_pixels(C, reach(s.out_width, S, extent));
  float* second = matrix + (strip * s.out_width + 15) / 16 * 16 * kRow<C>;
  const V* x = stage.x + static_cast<int64_t>(image) * stage.height * stage.width * C;
  V* z = stage.z + static_cast<int64_t>(image) * s.out_height * s.out_width * C;
  for (int top = 0; top < s.out_height; top += strip) {
    const int rows = min(strip, s.out_height - top);
    const auto emit = [&](int pair, int pixel, const Vec4<float>& value) {
      const int at = (top * s.out_width + pixel) * C + Matmul::channel(pair);
      const Vec4<float> kept = store_rounded(z + at, value);
      sums.add(pair, kept, kept);
    };
    __syncthreads();
    if (top == 0) {
      start_weight_copy<C>(stage.pointwise, reduces ? 2 * C : C, weight);
      if (!reduces) start_copy(stage.taps, window_elements(kind) * C, shared + job.layout.taps);
    }
    if (reduces) {
      for (int i = 0; i < 2; ++i) {
        fill_every_second<C, kTensorCores>(x, stage.norm, stage.height, stage.width, top, i,
                                           rows * s.out_width, s.out_width,
                                           i == 0 ? matrix : second);
      }
      wait_for_copies();
      __syncthreads();
      Matmul::template run<2>(matrix, static_cast<int>(second - matrix), weight, rows * s.out_width,
                              emit);
      continue;
    }
    fill_image<C>(x, stage.norm, stage.height, stage.width, top * S - extent / 2, extent / 2,
                  reach((rows + 1) / 2 * 2, S, extent), columns, second);
    wait_for_copies();
    __syncthreads();
    with_window(kind, [&](auto w) {
      constexpr int K = w.kernel, D = w.dilation;
      const float* of_shared = shared + job.layout.taps;
      S == 2 ? depthwise_strip<C, K, 2, D, kTensorCores>(second, columns, of_shared, rows,
                                                         s.out_width, matrix)
             : depthwise_strip<C, K, 1, D, kTensorCores>(second, columns, of_shared, rows,
                                                         s.out_width, matrix);
    });
    __syncthreads();
    Matmul::template run<1>(matrix, 0, weight, rows * s.out_width, emit);
  }
  sums.add_up(shared + job.layout.red, totals);
}

// Starts to copy four values to shared memory, or stores as many equal ones.
__device__ __forceinline__ void start_copy(const float* from, float* to) { copy_async16(to, from); }
__device__ __forceinline__ void start_copy(const BFloat16* from, BFloat16* to) {
  copy_async8(to, from);
}
__device__ __forceinline__ void fill_four(float value, float* to) {
  store_vec4(to, fill_vec4(value));
}
__device__ __forceinline__ void fill_four(float value, BFloat16* to) {
  *reinterpret_cast<uint2*>(to) = to_halves(fill_vec4(value));
}

// Starts to copy rows [top, top + rows) of an image as they are, with `margin` pixels around it
// that are `beyond`.
template <int C, class V>
__device__ __forceinline__ void start_image(const V* x, float beyond, int height, int width,
                                            int top, int rows, int columns, int margin, V* to) {
  const int c = threadIdx.x % kQuads<C> * 4, slot = threadIdx.x / kQuads<C>;
  const int begin = max(top, 0), end = min(top + rows, height), count = (end - begin) * width;
  const unsigned per_row = ~0u / width + 1;
  x += begin * width * C + c;
  V* inside = to + ((begin - top) * columns + margin) * kPixel<C> + c;
#pragma unroll 4
  for (int pixel = slot; pixel < count; pixel += kStep<C>) {
    const int row = static_cast<int>(multiply_high(pixel, per_row));
    start_copy(x + pixel * C, inside + (row * columns + pixel - row * width) * kPixel<C>);
  }
  // Whole rows above and below, and what is left of a row.
  const int above = (begin - top) * columns, below = (top + rows - end) * columns;
#pragma unroll 1
  for (int i = slot; i < above + below; i += kStep<C>) {
    fill_four(beyond, to + (i < above ? i : i + (end - begin) * columns) * kPixel<C> + c);
  }
  const int sides = columns - width;
#pragma unroll 1
  for (int i = slot; i < (end - begin) * sides; i += kStep<C>) {
    const int row = i / sides, place = i - row * sides;
    const int at = above + row * columns + (place < margin ? place : place + width);
    fill_four(beyond, to + at * kPixel<C> + c);
  }
}

// A pool of four pixels in a row, from a strip in shared memory, where `from` is the first pixel of
// the first window: the sums of windows, or their maxima. Beyond the edge are zeros or −∞; of equal
// maxima the first counts, and NaN wins; where their places are not asked for, they are zeros.
template <int C, int S, bool kMax, bool kPlaces, class V>
__device__ void pool_run(const V* from, int columns, Vec4<float> (&values)[4],
                         unsigned (&places)[4]) {
  constexpr int kSpan = 3 * S + kPoolKernel;
  int place[4][4] = {};
#pragma unroll
  for (int p = 0; p < 4; ++p) values[p] = fill_vec4(kMax ? -INFINITY : 0.0f);
#pragma unroll 1
  for (int ky = 0; ky < kPoolKernel; ++ky) {
    Vec4<float> v[kSpan];
#pragma unroll
    for (int i = 0; i < kSpan; ++i) v[i] = load_vec4(from + (ky * columns + i) * kPixel<C>);
#pragma unroll
    for (int p = 0; p < 4; ++p) {
#pragma unroll
      for (int kx = 0; kx < kPoolKernel; ++kx) {
        const Vec4<float>& value = v[p * S + kx];
        if constexpr (!kMax) values[p] += value;
#pragma unroll
        for (int i = 0; kMax && i < 4; ++i) {
          if constexpr (kPlaces) {
            const bool larger = value.v[i] > values[p].v[i] || value.v[i] != value.v[i];
            values[p].v[i] = larger ? value.v[i] : values[p].v[i];
            place[p][i] = larger ? ky * kPoolKernel + kx : place[p][i];
          } else {
            values[p].v[i] = max_or_nan(value.v[i], values[p].v[i]);
          }
        }
      }
    }
  }
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    places[p] = place[p][0] | place[p][1] << 8 | place[p][2] << 16 | place[p][3] << 24;
  }
}

// The sum of a node's edges, for one image. Images come to shared memory as they are, all at the
// same time: a normalization has a positive scale, so the sum or the maximum of a window can be
// taken before it.
template <int C, class V>
__device__ void combine(const Job<V>& job, const Term<V>* terms, V* out, int image, float* shared) {
  const DagShape& s = job.cell.dag.shape;
  const Layout& l = job.layout;
  const int c = threadIdx.x % kQuads<C> * 4, across = s.out_width / 4;
  const int strip = min(l.pool_rows[0], l.pool_rows[1]);
  const int64_t image_size = s.out_height * s.out_width * C;
  out += image * image_size;
  for (int top = 0; top < s.out_height; top += strip) {
    const int rows = min(strip, s.out_height - top);
    int at = l.taps, second = at;
    __syncthreads();
#pragma unroll 1
    for (int e = 0; e < kCellEdges; ++e) {
      const Term<V>& term = terms[e];
      second = e == 0 ? second : at;
      if (term.multiplicity == 0 || term.form == Form::kNone) continue;
      // A normalized edge and an identity are pools of one pixel.
      const bool pools = term.form != Form::kIdentity;
      const int extent = pools ? kPoolKernel : 1, stride = pools ? term.stride : 1;
      const int columns = reach(s.out_width, stride, extent);
      const int source_rows = reach(rows, stride, extent);
      start_image<C>(in_global(term.x) + static_cast<int64_t>(image) * term.height * term.width * C,
                     term.form == Form::kMaxPool ? -INFINITY : 0.0f, term.height, term.width,
                     top * stride - extent / 2, source_rows, columns, extent / 2,
                     reinterpret_cast<V*>(shared + at));
      at += source_rows * columns * kPixel<C> * static_cast<int>(sizeof(V) / 2) / 2;
    }
    wait_for_copies();
    __syncthreads();
    for (int run = threadIdx.x / kQuads<C>; run < rows * across; run += kStep<C>) {
      const int down = run / across, x = (run - down * across) * 4;
      const int first = ((top + down) * s.out_width + x) * C + c;
      Vec4<float> sums[4] = {};
#pragma unroll 1
      for (int e = 0; e < kCellEdges; ++e) {
        const Term<V>& term = terms[e];
        if (term.multiplicity == 0) continue;
        if (term.form == Form::kNone) {
#pragma unroll
          for (int p = 0; p < 4; ++p) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[p].v[i] = c + i < s.channels ? nanf("") : 0.0f;
          }
          continue;
        }
        const V* strip_of_edge = reinterpret_cast<const V*>(shared + (e == 0 ? l.taps : second));
        const float times = static_cast<float>(term.multiplicity);
        Vec4<float> scale = fill_vec4(times), shift = fill_vec4(0.0f);
        if (term.norm >= 0) {
          scale = load_vec4(shared + term.norm + c);
          shift = load_vec4(shared + term.norm + C + c);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            scale.v[i] *= times;
            shift.v[i] *= times;
          }
        }
        if (term.form == Form::kIdentity) {
          const V* from = strip_of_edge + (down * s.out_width + x) * kPixel<C> + c;
#pragma unroll
          for (int p = 0; p < 4; ++p) {
            sums[p] += shift;
            add_product(sums[p], load_vec4(from + p * kPixel<C>), scale);
          }
          continue;
        }
        const int S = term.stride, columns = reach(s.out_width, S, kPoolKernel);
        const V* window = strip_of_edge + (down * columns + x) * S * kPixel<C> + c;
        Vec4<float> values[4];
        unsigned places[4];
        const auto pool = [&](auto is_max, auto with_places) {
          constexpr bool kMax = decltype(is_max)::value, kPlaces = decltype(with_places)::value;
          S == 2 ? pool_run<C, 2, kMax, kPlaces>(window, columns, values, places)
                 : pool_run<C, 1, kMax, kPlaces>(window, columns, values, places);
        };
        if (term.form == Form::kAveragePool) {
          pool(std::false_type(), std::false_type());
          // Of the pixels beyond the edge there is no shift.
          const int y = (top + down) * S;
          const float of_rows =
              static_cast<float>(3 - (y == 0) - (y + 1 >= term.height)) * (1.0f / kPoolPixels);
#pragma unroll
          for (int i = 0; i < 4; ++i) scale.v[i] *= 1.0f / kPoolPixels;
#pragma unroll
          for (int p = 0; p < 4; ++p) {
            const int column = (x + p) * S;
            const float share =
                of_rows * static_cast<float>(3 - (column == 0) - (column + 1 >= term.width));
            add_product(sums[p], values[p], scale);
            add_product(sums[p], shift, fill_vec4(share));
          }
          continue;
        }
        uint32_t* maxima = job.keeps_maxima ? in_global(term.maxima) : nullptr;
        if (maxima != nullptr) {
          maxima += image * image_size / 4;
          pool(std::true_type(), std::true_type());
        } else {
          pool(std::true_type(), std::false_type());
        }
#pragma unroll
        for (int p = 0; p < 4; ++p) {
          if (maxima != nullptr) maxima[(first + p * C) / 4] = places[p];
          sums[p] += shift;
          add_product(sums[p], values[p], scale);
        }
      }
#pragma unroll
      for (int p = 0; p < 4; ++p) write_vec4(out + first + p * C, sums[p]);
    }
  }
}

template <class V, int C, bool kTensorCores>
__global__ __launch_bounds__(kCellThreads, 1) void cell_forward_kernel(const Job<V> job) {
  const CellJob<V>& cell = job.cell;
  const Dag<V>& dag = cell.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y;
  Plan<V>& plan = *dynamic_shared<Plan<V>>();
  const Schedule& schedule = plan.schedule;
  float* shared = reinterpret_cast<float*>(&plan + 1);
  double* totals = reinterpret_cast<double*>(shared + job.layout.sums);
  start_plan(job.plans(), plan);
  plan.bases.set(dag.plan, dag.input_norms, nullptr, 0, shared);
  for (int i = threadIdx.x; i < s.nodes * kCellEdges * 2 * C; i += kCellThreads) totals[i] = 0;
  begin(job.handover);
  wait_for_copies();
  __syncthreads();
  plan.add_bases();
  __syncthreads();
  // Phase −1 is that of the inputs, and the one behind the last that of the output.
  int earlier = 0;
  for (int phase = -1; phase < 0 || phase <= schedule.phases; ++phase) {
    const bool of_inputs = phase < 0, of_output = !of_inputs && phase == schedule.phases;
    const bool of_nodes = !of_inputs && !of_output;
    int begin = 0, end = 0;
    if (of_inputs) {
      begin = plan.needed[0] ? 0 : 1;
      end = plan.needed[1] ? 2 : 1;
    } else if (of_output) {
      begin = kProjections - 1;
      end = kProjections;
    } else {
      begin = schedule.stages_before[phase];
      end = schedule.stages_before[phase + 1];
    }
#pragma unroll 1
    for (int part = 0; part < 2; ++part) {
      for (int image = blockIdx.x; image < s.images; image += gridDim.x) {
        for (int i = of_nodes ? schedule.nodes_before[phase] : 0;
             i < (of_nodes ? schedule.nodes_before[phase + 1] : 0); ++i) {
          const int node = schedule.nodes[i];
          if (schedule.waits[node] != (part == 1)) continue;
          combine<C>(job, plan.terms + node * kCellEdges,
                     dag.nodes + (static_cast<int64_t>(node) * s.archs + arch) * s.out_size(),
                     image, shared);
        }
        for (int i = begin; i < (part == 0 ? end : begin); ++i) {
          double* to = totals + (i - begin) * 2 * C;
          if (of_nodes) {
            compute_stage<C, kTensorCores>(job, plan.stages[i], image, to, shared);
          } else {
            project<C, kTensorCores>(job, plan, i, image, to, shared);
          }
        }
      }
      if (part == 0 && begin < end) {
        hand_over_sums<C>(job.handover, earlier, end - begin, totals);
      }
    }
    if (begin == end) continue;
    const double share = 1 / (static_cast<double>(s.images) *
                              (of_inputs ? s.height * s.width : s.out_height * s.out_width));
    add_up_sums<C>(
        job.handover, earlier, end - begin, reinterpret_cast<double*>(shared + job.layout.images),
        [&](int item, int c, double sum, double squares) {
          const int i = begin + item;
          const Norm norm = of_nodes ? plan.stages[i].norm_of_z : plan.projections[i];
          const double mean = sum * share, difference = squares * share - mean * mean;
          // Rounding may make it negative; a NaN must stay one.
          const float rstd =
              1.0f / sqrtf(static_cast<float>((difference < 0 ? 0 : difference) + kEpsilon));
          const float shift = static_cast<float>(-mean * static_cast<double>(rstd));
          norm.here[c] = rstd;
          norm.here[C + c] = shift;
          if (blockIdx.x == 0) {
            norm.kept[c] = rstd;
            norm.kept[C + c] = shift;
          }
        });
    earlier += end - begin;
  }
  const int pixels = s.out_height * s.out_width;
  V* y = cell.y + arch * s.out_size();
  for (int image = blockIdx.x; image < s.images; image += gridDim.x) {
    normalize_image<C>(y + static_cast<int64_t>(image) * pixels * C,
                       plan.projections[kProjections - 1].here, pixels);
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
  l.sums = l.norms + (kProjections + 2 * edges) * 2 * c;
  l.red = l.sums + edges * 2 * c * 2;
  l.taps = l.red + kCellWarps * 2 * c;
  l.weight = l.taps + kMostKernelElements * c;
  l.images = l.weight + (s.stride == 2 ? 2 : 1) * c * (c + 8);
  const int available =
      static_cast<int>((largest_shared_bytes() - sizeof(Plan<float>)) / sizeof(float)) - l.images;
  const int pixel = c % 32 == 0 ? c : c + 4, row = c + 4;
  int most = 2 * (c > 32   ? kMeetingDoubles<64>
                  : c > 16 ? kMeetingDoubles<32>
                           : kMeetingDoubles<16>);
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
        const int columns = row_pixels(c, reach(s.out_width, stride, o.extent()));
        return matrix(rows) + (reach(rows, stride, o.extent()) * columns + kBehindStrip) * pixel;
      });
    }
  }
  // A node may have pools of two inputs, of which one has stride 1.
  for (int stride = 1; stride <= 2; ++stride) {
    const int used = std::min(stride, s.stride);
    l.pool_rows[stride - 1] = choose([&](int rows) {
      return kCellEdges * reach(rows, used, kPoolKernel) * reach(s.out_width, used, kPoolKernel) *
                 pixel -
             (l.images - l.taps);
    });
  }
  l.reduction_rows = choose([&](int rows) { return 2 * matrix(rows); });
  l.size = l.images + most;
  return fits;
}

template <class V>
Job<V> make_job(const CellJob<V>& cell, const Handover& handover, bool keeps_maxima) {
  Job<V> job = {cell, cell.dag.shape.shared, {}, handover, keeps_maxima};
  job.cell.dag.shape.shared = 0;
  make_layout(cell.dag.shape, job.layout);
  return job;
}

template <class V, int C>
auto choose_channels(bool tf32) {
  return choose_kernel<V>(
      tf32, [](auto tensor_cores) { return &cell_forward_kernel<V, C, tensor_cores()>; });
}

}  // namespace

const char* whole_cell_forward_obstacle(const DagShape& s) {
  Layout layout;
  if (s.edges != kCellEdges || s.inputs != 2 || s.nodes < 1 || s.nodes > kMostNodes) {
    return "the number of its nodes or edges";
  }
  if (s.padded != 16 && s.padded != 32 && s.padded != 64) return "its number of channels";
  if (s.out_width % 4 != 0) return "the width of its images, which is not a multiple of 4";
  if (s.width > 64 || s.height > 64 || !make_layout(s, layout)) return "the size of its images";
  if (blocks_per_arch(s.images, s.archs) == 0) return "the number of its architectures";
  return nullptr;
}

int whole_cell_forward_columns(const DagShape& s) {
  return (kProjections + 2 * s.nodes * kCellEdges) * 2 * s.padded;
}

size_t whole_cell_plan_size() { return sizeof(Plan<float>); }

template <class V>
void plan_whole_cells(const std::vector<CellJob<V>>& all, CudaStream stream) {
  static_assert(sizeof(Plan<V>) == sizeof(Plan<float>));
  launch_plans<Plan<V>>(
      cell_plan_kernel<V>, all, [](const CellJob<V>& cell) { return make_job(cell, {}, true); },
      stream);
}

template <class V>
void whole_cell_forward(const CellJob<V>& cell, const Handover& handover, bool keeps_maxima,
                        CudaStream stream) {
  const DagShape& s = cell.dag.shape;
  const Job<V> job = make_job(cell, handover, keeps_maxima);
  const auto kernel = s.padded == 16   ? choose_channels<V, 16>(s.tf32)
                      : s.padded == 32 ? choose_channels<V, 32>(s.tf32)
                                       : choose_channels<V, 64>(s.tf32);
  launch_cooperative(kernel, dim3(handover.blocks, s.archs), kCellThreads,
                     sizeof(Plan<V>) + job.layout.size * sizeof(float), stream, job);
}

#define ASNG_INSTANTIATE(V)                                                   \
  template void plan_whole_cells(const std::vector<CellJob<V>>&, CudaStream); \
  template void whole_cell_forward(const CellJob<V>&, const Handover&, bool, CudaStream);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(BFloat16)
#undef ASNG_INSTANTIATE

}  // namespace asng::cuda
