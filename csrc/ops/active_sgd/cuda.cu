// A launch covers as many weights as fit into a kernel's parameters. A block takes rows of slices,
// so that nothing has to be divided to find an element. The norm is the sum of parts, one a block,
// which every block of the update adds in the same order.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/active_sgd/cuda.h"
#include "ops/sgd/clip.h"
#include "platform/cuda.h"

namespace asng::cuda {

namespace {

constexpr int kThreads = 256;
// Blocks of the update read all parts, so there are not too many; blocks that write them take
// several rows.
constexpr int64_t kMostParts = 1024;

// Parameters of a kernel are 4 KiB at most.
constexpr int kMostWeights = 48;
template <class T>
struct ActiveTable {
  ActiveWeight<T> weights[kMostWeights];
  unsigned first_row[kMostWeights + 1];  // of each weight; behind the last, the number of all
  int count = 0;

  int64_t rows() const { return first_row[count]; }
  int64_t parts() const { return std::min(rows(), kMostParts); }
};
static_assert(sizeof(ActiveTable<double>) < 4000);

// In tables, with rows of velocities, or of gradients alone.
template <class T>
std::vector<ActiveTable<T>> tables_of(const std::vector<ActiveWeight<T>>& weights,
                                      bool of_gradients) {
  std::vector<ActiveTable<T>> tables;
  for (const ActiveWeight<T>& weight : weights) {
    if (tables.empty() || tables.back().count == kMostWeights) {
      tables.emplace_back();
      tables.back().first_row[0] = 0;
    }
    ActiveTable<T>& table = tables.back();
    const int rows = of_gradients ? weight.gradient_rows : weight.rows;
    table.first_row[table.count + 1] = table.first_row[table.count] + static_cast<unsigned>(rows);
    table.weights[table.count++] = weight;
  }
  return tables;
}

// The weight to which a row belongs, and which of its rows it is.
template <class T>
__device__ __forceinline__ const ActiveWeight<T>& find_row(const ActiveTable<T>& table,
                                                           unsigned& row) {
  int i = 0;
  while (row >= table.first_row[i + 1]) ++i;
  row -= table.first_row[i];
  return table.weights[i];
}

template <class T>
__global__ __launch_bounds__(kThreads) void active_squares_kernel(const ActiveTable<T> table,
                                                                  double* parts) {
  double sum = 0;
  for (unsigned i = blockIdx.x; i < table.first_row[table.count]; i += gridDim.x) {
    unsigned row = i;
    const ActiveWeight<T>& weight = find_row(table, row);
    const T* gradient = weight.gradient + static_cast<int64_t>(row) * weight.gradient_run;
    T squares = 0;
    for (int k = threadIdx.x; k < weight.gradient_run; k += kThreads) {
      squares += gradient[k] * gradient[k];
    }
    sum += static_cast<double>(squares);
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

template <class T>
__global__ __launch_bounds__(kThreads) void active_step_kernel(const ActiveTable<T> table,
                                                               const ActiveSgdSettings settings,
                                                               const double* parts, int count) {
  const T clip = static_cast<T>(clip_factor<kThreads>(parts, count, settings.max_norm));
  const T momentum = static_cast<T>(settings.momentum);
  const T rate = static_cast<T>(settings.learning_rate);
  unsigned row = blockIdx.x;
  const ActiveWeight<T>& at = find_row(table, row);
  T* weight = at.weight + row * at.pitch;
  T* velocity = at.velocity + static_cast<int64_t>(row) * at.run;
  const T* gradient = at.gradient + static_cast<int64_t>(row) * at.gradient_run;
  const int given = row < static_cast<unsigned>(at.gradient_rows) ? at.gradient_run : 0;
  for (int k = threadIdx.x; k < at.run; k += kThreads) {
    const T moved = momentum * velocity[k] + (k < given ? clip * gradient[k] : T(0));
    velocity[k] = moved;
    weight[k] -= rate * moved;
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void catch_up_kernel(const ActiveTable<T> table) {
  unsigned row = blockIdx.x;
  const ActiveWeight<T>& at = find_row(table, row);
  T* weight = at.weight + row * at.pitch;
  T* velocity = at.velocity + static_cast<int64_t>(row) * at.run;
  const T distance = at.distance, factor = at.factor;
  for (int k = threadIdx.x; k < at.run; k += kThreads) {
    const T before = velocity[k];
    weight[k] -= distance * before;
    velocity[k] = factor * before;
  }
}

}  // namespace

template <class T>
int64_t active_sgd_scratch(const std::vector<ActiveWeight<T>>& weights) {
  int64_t parts = 0;
  for (const ActiveTable<T>& table : tables_of(weights, true)) parts += table.parts();
  return parts;
}

template <class T>
void active_sgd_step(const std::vector<ActiveWeight<T>>& weights, const ActiveSgdSettings& settings,
                     double* scratch, CudaStream stream) {
  int parts = 0;
  if (settings.max_norm < std::numeric_limits<double>::infinity()) {
    for (const ActiveTable<T>& table : tables_of(weights, true)) {
      launch(active_squares_kernel<T>, static_cast<unsigned>(table.parts()), kThreads, 0, stream,
             table, scratch + parts);
      parts += static_cast<int>(table.parts());
    }
  }
  for (const ActiveTable<T>& table : tables_of(weights, false)) {
    launch(active_step_kernel<T>, static_cast<unsigned>(table.rows()), kThreads, 0, stream, table,
           settings, static_cast<const double*>(scratch), parts);
  }
}

template <class T>
void active_sgd_catch_up(const std::vector<ActiveWeight<T>>& weights, CudaStream stream) {
  for (const ActiveTable<T>& table : tables_of(weights, false)) {
    launch(catch_up_kernel<T>, static_cast<unsigned>(table.rows()), kThreads, 0, stream, table);
  }
}

#define ASNG_INSTANTIATE(T)                                                                       \
  template int64_t active_sgd_scratch<T>(const std::vector<ActiveWeight<T>>&);                    \
  template void active_sgd_step<T>(const std::vector<ActiveWeight<T>>&, const ActiveSgdSettings&, \
                                   double*, CudaStream);                                          \
  template void active_sgd_catch_up<T>(const std::vector<ActiveWeight<T>>&, CudaStream);
ASNG_INSTANTIATE(float)
ASNG_INSTANTIATE(double)

}  // namespace asng::cuda
