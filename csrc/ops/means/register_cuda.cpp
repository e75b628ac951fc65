// Means of metrics on CUDA devices.

#include <vector>

#include "ops/means/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

void add_means_operator(Tensor totals, std::vector<Tensor> metrics, int64_t watched) {
  const int64_t count = static_cast<int64_t>(metrics.size());
  STD_TORCH_CHECK(count > 0, "there must be metrics");
  STD_TORCH_CHECK(watched >= -1 && watched < count, "watched must be from -1 to ", count - 1,
                  ", got ", watched);
  check(totals, "totals", ScalarType::Float, {count + (watched < 0 ? 1 : 2)}, kDevice);
  std::vector<Metric> numbers;
  for (const Tensor& metric : metrics) {
    const ScalarType dtype = metric.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "metrics must be float32 or float64, got ", torch::headeronly::toString(dtype));
    STD_TORCH_CHECK(metric.numel() > 0, "metrics must not be empty");
    check_tensor(metric, "metrics", dtype, kDevice);
    check_device(metric, "metrics", totals);
    numbers.push_back({metric.data_ptr(), metric.numel(), dtype == ScalarType::Double});
  }
  const DeviceStreamGuard current(totals);
  add_means(numbers, static_cast<int>(watched), data<float>(totals), current.stream());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) {
  m.impl("_add_means", TORCH_BOX(&add_means_operator));
}

}  // namespace asng::cuda
