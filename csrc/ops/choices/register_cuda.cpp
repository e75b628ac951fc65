// The choices of architectures on CUDA devices.

#include <tuple>

#include "ops/choices/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

std::tuple<Tensor, Tensor> choices(Tensor architectures, Tensor numbers) {
  STD_TORCH_CHECK(
      architectures.dim() == 2 && architectures.numel() > 0 && architectures.size(1) % 8 == 0,
      "architectures must have two dimensions, the second a multiple of 8");
  const int64_t archs = architectures.size(0), nodes = architectures.size(1) / 8;
  STD_TORCH_CHECK(architectures.numel() < int64_t{1} << 30, "there must be fewer architectures");
  STD_TORCH_CHECK(numbers.dim() == 1 && numbers.numel() < int64_t{1} << 30,
                  "numbers must have one dimension");
  check_tensor(architectures, "architectures", ScalarType::Long, kDevice);
  check_like(numbers, "numbers", ScalarType::Long, {numbers.size(0)}, architectures);
  const DeviceStreamGuard current(architectures);
  const auto empty = [&] {
    const int64_t sizes[] = {2, archs, nodes, 2};
    return torch::stable::new_empty(architectures, {sizes, 4}, ScalarType::Int);
  };
  Tensor inputs = empty(), operations = empty();
  ChoicesJob job;
  job.archs = static_cast<int>(archs);
  job.nodes = static_cast<int>(nodes);
  job.values = data<int64_t>(architectures);
  job.operations = static_cast<int>(numbers.size(0));
  job.numbers = data<int64_t>(numbers);
  job.inputs = data<int32_t>(inputs);
  job.chosen = data<int32_t>(operations);
  make_choices(job, current.stream());
  return {inputs, operations};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) { m.impl("_choices", TORCH_BOX(&choices)); }

}  // namespace asng::cuda
