// Making batches on CUDA devices.

#include <tuple>

#include "ops/batch/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {
namespace {

std::tuple<Tensor, Tensor> batch(Tensor images, Tensor labels, Tensor indices, OptionalTensor draws,
                                 Tensor scale, Tensor shift, int64_t crop_padding, bool flip,
                                 int64_t cutout, bool bfloat16) {
  check_tensor(images, "images", ScalarType::Byte, kDevice);
  STD_TORCH_CHECK(images.dim() == 4 && images.numel() > 0,
                  "images must have 4 dimensions and not be empty");
  for (int i = 1; i < 4; ++i) {
    STD_TORCH_CHECK(images.size(i) <= 16384, "images must have at most 16384 in dimension ", i,
                    ", got ", images.size(i));
  }
  const int64_t available = images.size(0), channels = images.size(3);
  STD_TORCH_CHECK(indices.dim() == 1 && indices.numel() > 0 && indices.numel() <= 65535,
                  "indices must be from 1 to 65535, in one dimension");
  const int64_t count = indices.size(0);
  check_like(labels, "labels", ScalarType::Long, {available}, images);
  check_like(indices, "indices", ScalarType::Long, {count}, images);
  if (draws.has_value()) check_like(*draws, "draws", ScalarType::Long, {count, 5}, images);
  check_like(scale, "scale", ScalarType::Float, {channels}, images);
  check_like(shift, "shift", ScalarType::Float, {channels}, images);
  for (const int64_t pixels : {crop_padding, cutout}) {
    STD_TORCH_CHECK(pixels >= 0 && pixels <= 65535,
                    "crop_padding and cutout must be from 0 to 65535, got ", crop_padding, " and ",
                    cutout);
  }
  const DeviceStreamGuard current(images);
  BatchJob job;
  job.images = static_cast<int>(count);
  job.height = static_cast<int>(images.size(1));
  job.width = static_cast<int>(images.size(2));
  job.channels = static_cast<int>(channels);
  const int64_t sizes[] = {count, images.size(1), images.size(2), channels};
  Tensor x = torch::stable::new_empty(scale, {sizes, 4},
                                      bfloat16 ? ScalarType::BFloat16 : ScalarType::Float);
  Tensor y = new_tensor(labels, {count});
  job.available = available;
  job.set = data<uint8_t>(images);
  job.labels = data<int64_t>(labels);
  job.indices = data<int64_t>(indices);
  job.draws = draws.has_value() ? data<int64_t>(*draws) : nullptr;
  job.padding = static_cast<int>(crop_padding);
  job.flip = flip;
  job.cutout = static_cast<int>(cutout);
  job.scale = data<float>(scale);
  job.shift = data<float>(shift);
  job.bfloat16 = bfloat16;
  job.x = x.data_ptr();
  job.y = data<int64_t>(y);
  make_batch(job, current.stream());
  return {x, y};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asng, ASNG_CUDA_KEY, m) { m.impl("_batch", TORCH_BOX(&batch)); }

}  // namespace asng::cuda
