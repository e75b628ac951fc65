// A warp adds a metric.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/block_sum.h"
#include "ops/means/cuda.h"

namespace asng::cuda {

namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;

// What a launch adds, and where.
struct Job {
  static constexpr int kMost = 64;
  Metric metrics[kMost];
  float* totals;  // of these metrics
  int count = 0;
  int watched = -1;        // which of these
  float* none = nullptr;   // steps without a finite number of that
  float* steps = nullptr;  // null: another launch counts the step
};

__global__ __launch_bounds__(kThreads) void means_kernel(const Job job) {
  const int lane = threadIdx.x % 32;
  for (int i = threadIdx.x / 32; i < job.count; i += kWarps) {
    const Metric metric = job.metrics[i];
    double sum = 0;
    bool any = false;
    for (int64_t k = lane; k < metric.size; k += 32) {
      const double value = metric.is_double
                               ? static_cast<const double*>(metric.values)[k]
                               : static_cast<double>(static_cast<const float*>(metric.values)[k]);
      sum += value;
      any = any || isfinite(value);
    }
    sum = warp_sum(sum);
    any = __ballot_sync(0xffffffffu, any) != 0;
    if (lane > 0) continue;
    job.totals[i] += static_cast<float>(sum / static_cast<double>(metric.size));
    if (i == job.watched && !any) *job.none += 1;
  }
  if (threadIdx.x == 0 && job.steps != nullptr) *job.steps += 1;
}

}  // namespace

void add_means(const std::vector<Metric>& metrics, int watched, float* totals, CudaStream stream) {
  const int count = static_cast<int>(metrics.size());
  for (int first = 0; first < count; first += Job::kMost) {
    Job job;
    job.count = std::min(count - first, Job::kMost);
    std::copy_n(metrics.begin() + first, job.count, job.metrics);
    job.totals = totals + first;
    if (watched >= first && watched < first + job.count) {
      job.watched = watched - first;
      job.none = totals + count;
    }
    if (first + job.count == count) job.steps = totals + count + (watched < 0 ? 0 : 1);
    launch(means_kernel, 1, kThreads, 0, stream, job);
  }
}

}  // namespace asng::cuda
