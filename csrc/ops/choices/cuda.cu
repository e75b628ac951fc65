#include "ops/choices/cuda.h"
#include "platform/cuda.h"

namespace asng::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int64_t kMostInputs = 1 << 30;

__global__ __launch_bounds__(kThreads) void choices_kernel(const ChoicesJob job) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= 8 * job.archs * job.nodes) return;
  const int64_t value = job.values[i];
  const int which = i % 4, node = i / 4 % job.nodes, kind = i / 4 / job.nodes % 2;
  const int arch = i / 8 / job.nodes;
  const int to = 2 * ((kind * job.archs + arch) * job.nodes + node) + which % 2;
  if (which < 2) {
    job.inputs[to] = value >= 0 && value < kMostInputs ? static_cast<int32_t>(value) : -1;
  } else {
    const bool known = value >= 0 && value < job.operations;
    job.chosen[to] = known ? static_cast<int32_t>(job.numbers[value]) : -1;
  }
}

}  // namespace

void make_choices(const ChoicesJob& job, CudaStream stream) {
  const int blocks = (8 * job.archs * job.nodes + kThreads - 1) / kThreads;
  launch(choices_kernel, static_cast<unsigned>(blocks), kThreads, 0, stream, job);
}

}  // namespace asng::cuda
