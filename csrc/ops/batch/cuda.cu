// A thread makes a pixel. Compiled without contraction to fused multiply-add: the numbers are those
// of the same preparation on the CPU.
#include "ops/batch/cuda.h"
#include "platform/cuda.h"

namespace asng::cuda {

namespace {

constexpr int kThreads = 256;

__global__ __launch_bounds__(kThreads) void batch_kernel(const BatchJob job) {
  const int image = blockIdx.y;
  const int64_t index = job.indices[image];
  const bool exists = index >= 0 && index < job.available;
  const int pixel = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (pixel == 0) job.y[image] = exists ? job.labels[index] : 0;
  if (pixel >= job.height * job.width) return;
  const int y = pixel / job.width, x = pixel - y * job.width;
  int64_t row = y, column = x;  // of the image that is read
  bool cut = false;
  if (job.draws != nullptr) {
    const int64_t* draw = job.draws + 5 * static_cast<int64_t>(image);
    if (job.flip && draw[2] != 0) column = job.width - 1 - x;
    row += draw[0] - job.padding;
    column += draw[1] - job.padding;
    const int64_t down = y - draw[3] + job.cutout / 2, right = x - draw[4] + job.cutout / 2;
    cut = down >= 0 && down < job.cutout && right >= 0 && right < job.cutout;
  }
  const bool inside = row >= 0 && row < job.height && column >= 0 && column < job.width;
  const uint8_t* from =
      exists && inside ? job.set + ((index * job.height + row) * job.width + column) * job.channels
                       : nullptr;
  const int64_t to = (static_cast<int64_t>(image) * job.height * job.width + pixel) * job.channels;
  for (int c = 0; c < job.channels; ++c) {
    const float byte = from == nullptr ? 0.0f : static_cast<float>(from[c]);
    const float value = byte * job.scale[c] + job.shift[c];
    const float made = !exists ? NAN : cut ? value * 0.0f : value;
    if (job.bfloat16) {
      static_cast<__nv_bfloat16*>(job.x)[to + c] = __float2bfloat16(made);
    } else {
      static_cast<float*>(job.x)[to + c] = made;
    }
  }
}

}  // namespace

void make_batch(const BatchJob& job, CudaStream stream) {
  const unsigned blocks = (static_cast<unsigned>(job.height * job.width) + kThreads - 1) / kThreads;
  launch(batch_kernel, dim3(blocks, static_cast<unsigned>(job.images)), kThreads, 0, stream, job);
}

}  // namespace asng::cuda
