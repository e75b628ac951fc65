// Backward passes of a cell's projections on the tensor cores, where a block keeps its images: of
// the output in one launch, and of both inputs in another.
#include "kernels/cuda/input_gradient.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/persistent_projection.h"

namespace asng::cuda {

namespace {

// Dynamic shared memory, counted in floats. What an exchange and sums of a block take lies where
// the parts of the weight's gradients do.
struct Layout {
  int coefficients;  // (3, C); in front of it doubles (2, C), the sums
  int partials;      // see SourceGradients
  int grads;         // (strip, kRow)
  int strip;         // pixels
  int size;
};

template <class V>
struct Job {
  CellJob<V> cell;
  Gradients<V> gradients;
  Layout layout;
  Handover handover;
};

// The gradients of a projection of some images of this block: calls add(…) as SourceGradients has
// it for each source and 16 channels of a team, after fill(image, first pixel, pixels) has written
// the gradients in front of the normalization to shared memory. `count` sources, images (images, …)
// of source(i), of which those with a null `x` are left out.
template <int C, class V, class Sources, class Emit>
__device__ void project_backward(const Job<V>& job, const Sources& source, int count, int height,
                                 int width, const V* g, const V* z, const float* coefficients,
                                 const float* weight, int depth, float* split, bool needs_grad,
                                 float* shared, Emit emit) {
  using Sums = SourceGradients<C>;
  const int images = job.cell.dag.shape.images, pixels = height * width;
  float* grads = shared + job.layout.grads;
  const int strip = min(job.layout.strip, pixels);
  // What all sources need is computed once if it stays where it is.
  const bool stays = strip == pixels && images <= static_cast<int>(gridDim.x);
  bool there = false;
  for (int i = 0; i < count; ++i) {
    const Source<V> from = source(i);
    if (from.x == nullptr) continue;
    const int64_t image_size = static_cast<int64_t>(from.height) * from.width * from.channels;
    for (int first = 0; first < from.channels; first += Sums::kTeams * 16) {
      const int channel = first + Sums::team() * 16;
      const bool mine = channel < from.channels;
      Sums sums(weight, depth, from.first + (mine ? channel : 0));
      for (int image = blockIdx.x; image < images; image += gridDim.x) {
        for (int begin = 0; begin < pixels; begin += strip) {
          const int of_strip = min(strip, pixels - begin);
          if (!there) {
            const int64_t offset = (static_cast<int64_t>(image) * pixels + begin) * C;
            __syncthreads();
            fill_gradients<C>(g + offset, z + offset, coefficients, of_strip, grads);
            __syncthreads();
            there = stays;
          }
          if (!mine) continue;
          sums.add(from, from.x + image * image_size + channel, grads, begin, of_strip, pixels,
                   width, needs_grad, [&](int pixel, int c, const Vec4<float>& value) {
                     emit(i, image * pixels + pixel, channel + c, value);
                   });
        }
      }
      sums.finish(shared + job.layout.partials, split, depth, from.first + first,
                  from.channels - first);
    }
  }
}

template <class V, int C>
__global__ __launch_bounds__(kCellThreads, 1) void output_backward_kernel(const Job<V> job) {
  const CellJob<V>& cell = job.cell;
  const Dag<V>& dag = cell.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y, image_size = s.out_height * s.out_width * C;
  double* totals = dynamic_shared<double>();
  float* shared = reinterpret_cast<float*>(totals);
  float* coefficients = shared + job.layout.coefficients;
  float* partials = shared + job.layout.partials;
  clear(totals, 2 * C);
  begin(job.handover);
  // The output is stored as normalized.
  const V* g = cell.grad_y + arch * s.out_size();
  const V* y = cell.y + arch * s.out_size();
  PixelSums<C, false> sums;
  for (int image = blockIdx.x; image < s.images; image += gridDim.x) {
    constexpr int kFlight = 4;
    const int64_t offset = static_cast<int64_t>(image) * image_size;
    for (int first = threadIdx.x * 4; first < image_size; first += kFlight * kCellThreads * 4) {
      Vec4<float> grads[kFlight], values[kFlight];
#pragma unroll
      for (int i = 0; i < kFlight; ++i) {
        // Behind the last ones, others of the same channels.
        const int at = first + i * kCellThreads * 4;
        grads[i] = read_vec4(g + offset + (at < image_size ? at : first));
        values[i] = read_vec4(y + offset + (at < image_size ? at : first));
      }
#pragma unroll
      for (int i = 0; i < kFlight; ++i) {
        if (first + i * kCellThreads * 4 < image_size) sums.add(0, grads[i], values[i]);
      }
    }
  }
  sums.add_up(partials, totals);
  const double share = 1 / (static_cast<double>(s.images) * s.out_height * s.out_width);
  const float* norm = cell.y_norms + arch * 2 * C;
  meet<C>(job.handover, 0, 1, totals, reinterpret_cast<double*>(partials),
          [&](int, int c, double sum, double dot) {
            // As in finish_gradient.
            const double scale = static_cast<double>(norm[c]);
            coefficients[c] = norm[c];
            coefficients[C + c] = static_cast<float>(-scale * dot * share);
            coefficients[2 * C + c] = static_cast<float>(-scale * sum * share);
          });
  const auto source = [&](int node) {
    Source<V> from;
    if (dag.used[arch * s.states() + s.inputs + node] != 0) return from;
    from.x = dag.state(arch, s.inputs + node).x;
    from.channels = C;
    from.height = s.out_height;
    from.width = s.out_width;
    from.first = node * C;
    return from;
  };
  const int depth = cell.depth(2);
  float* split =
      cell.weight_splits[2] +
      (static_cast<int64_t>(arch) * cell.splits[2] + static_cast<int>(blockIdx.x)) * C * depth;
  project_backward<C>(
      job, source, s.nodes, s.out_height, s.out_width, g, y, coefficients, cell.packed[2], depth,
      split, true, shared, [&](int node, int pixel, int c, const Vec4<float>& value) {
        write_vec4(job.gradients.node(s, arch, node) + static_cast<int64_t>(pixel) * C + c, value);
      });
}

template <class V, int C>
__global__ __launch_bounds__(kCellThreads, 1) void inputs_backward_kernel(const Job<V> job) {
  const CellJob<V>& cell = job.cell;
  const Dag<V>& dag = cell.dag;
  const DagShape& s = dag.shape;
  const int arch = blockIdx.y, which = blockIdx.z;
  const bool shared_input = cell.is_shared(which);
  if (shared_input && arch > 0) return;
  const Input<V>& input = cell.inputs[which];
  const int64_t size = static_cast<int64_t>(s.images) * input.height * input.width * input.padded;
  V* grad = input.grad == nullptr ? nullptr : input.grad + arch * size;
  bool used = false;
  for (int a = arch; a < (shared_input ? s.archs : arch + 1); ++a) {
    used |= dag.used[a * s.states() + which] != 0;
  }
  if (!used) {
    if (grad != nullptr && !input.adds) clear_gradient(grad, size, blockIdx.x, gridDim.x);
    return;
  }
  const State<V> from = {input.x + arch * size, nullptr, input.height, input.width};
  const auto source = [&](int i) {
    Source<V> part = factorized_source(from, input.padded, i);
    if (!input.factorized) part.stride = 1;
    return part;
  };
  const int depth = cell.depth(which);
  const int64_t group = static_cast<int64_t>(which) * s.archs + arch;
  float* split =
      cell.weight_splits[which] +
      (static_cast<int64_t>(arch) * cell.splits[which] + static_cast<int>(blockIdx.x)) * C * depth;
  project_backward<C>(job, source, input.factorized ? 2 : 1, s.height, s.width,
                      cell.input_grads + group * s.in_size(), dag.state(arch, which).x,
                      cell.input_coefficients + group * 3 * C, cell.packed[which], depth, split,
                      grad != nullptr, dynamic_shared<float>(),
                      [&](int part, int pixel, int c, const Vec4<float>& value) {
                        write_gradient(input, PointwiseShape{s.images, s.height, s.width, C}, part,
                                       grad, pixel, c, value);
                      });
}

template <class V>
Job<V> make_job(const CellJob<V>& cell, const Gradients<V>& gradients, const Handover& handover,
                int pixels) {
  const int c = cell.dag.shape.padded;
  Job<V> job = {cell, gradients, {}, handover};
  Layout& l = job.layout;
  l.coefficients = 2 * c * 2;
  l.partials = l.coefficients + 4 * c;
  l.grads = l.partials + kCellWarps * 16 * c;
  const int row = c + 4;
  const int most = (static_cast<int>(largest_shared_bytes() / sizeof(float)) - l.grads) / row;
  const int strips = (pixels + most / 8 * 8 - 1) / (most / 8 * 8);
  l.strip = ((pixels + strips - 1) / strips + 7) / 8 * 8;
  l.size = l.grads + l.strip * row;
  return job;
}

}  // namespace

template <class V>
void whole_output_backward(const CellJob<V>& cell, const Gradients<V>& gradients,
                           const Handover& handover, CudaStream stream) {
  const DagShape& s = cell.dag.shape;
  const Job<V> job = make_job(cell, gradients, handover, s.out_height * s.out_width);
  const auto kernel = s.padded == 16   ? &output_backward_kernel<V, 16>
                      : s.padded == 32 ? &output_backward_kernel<V, 32>
                                       : &output_backward_kernel<V, 64>;
  launch_cooperative(kernel, dim3(handover.blocks, s.archs), kCellThreads,
                     job.layout.size * sizeof(float), stream, job);
}

template <class V>
void whole_inputs_backward(const CellJob<V>& cell, const Handover& handover, CudaStream stream) {
  const DagShape& s = cell.dag.shape;
  const Job<V> job = make_job(cell, {}, handover, s.height * s.width);
  const auto kernel = s.padded == 16   ? &inputs_backward_kernel<V, 16>
                      : s.padded == 32 ? &inputs_backward_kernel<V, 32>
                                       : &inputs_backward_kernel<V, 64>;
  launch(kernel, dim3(handover.blocks, s.archs, 2), kCellThreads, job.layout.size * sizeof(float),
         stream, job);
}

#define ASNG_INSTANTIATE(V)                                                                    \
  template void whole_output_backward(const CellJob<V>&, const Gradients<V>&, const Handover&, \
                                      CudaStream);                                             \
  template void whole_inputs_backward(const CellJob<V>&, const Handover&, CudaStream);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(BFloat16)
#undef ASNG_INSTANTIATE

}  // namespace asng::cuda
