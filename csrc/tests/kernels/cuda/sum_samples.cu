// A kernel whose results are known: sums over the blocks of a launch.
#include "kernels/cuda/norm.h"
#include "tests/kernels/cuda/sum_samples.h"

namespace asng::cuda {

namespace {

__global__ __launch_bounds__(kThreads) void sums_kernel(const SampleSums sums,
                                                        const Dag<double> dag) {
  const int columns = 3 * sums.padded, sum = blockIdx.y;
  double* totals = dynamic_shared<double>();
  for (int j = threadIdx.x; j < columns; j += kThreads) {
    totals[j] = sums.values[(sum * sums.splits + blockIdx.x) * columns + j];
  }
  if (!sum_over_splits(dag, sum, 3, sums.splits, totals, totals + columns)) return;
  for (int j = threadIdx.x; j < columns; j += kThreads) sums.out[sum * columns + j] = totals[j];
}

}  // namespace

void sample_sums(const SampleSums& sums, CudaStream stream) {
  Dag<double> dag;
  dag.shape.padded = sums.padded;
  dag.partials = sums.partials;
  dag.counters = sums.counters;
  launch(sums_kernel, dim3(sums.splits, sums.sums), kThreads,
         (3 * sums.padded + 2 * kThreads) * sizeof(double), stream, sums, dag);
}

}  // namespace asng::cuda
