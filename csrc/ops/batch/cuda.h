// A batch of images, augmented and normalized as asng_ext/data/augment.py does it, in one launch.
#pragma once

#include <cstdint>

#include "platform/cuda_stream.h"

namespace asng::cuda {

struct BatchJob {
  int images = 0;  // in the batch
  int height = 0, width = 0, channels = 0;
  int64_t available = 0;             // in the set
  const uint8_t* set = nullptr;      // (available, height, width, channels)
  const int64_t* labels = nullptr;   // (available,)
  const int64_t* indices = nullptr;  // (images,) which of the set
  // (images, 5) top and left edge of the crop, whether to mirror, row and column of the middle of
  // the cutout; null to leave images as they are.
  const int64_t* draws = nullptr;
  int padding = 0;  // of the image before the crop
  bool flip = false;
  int cutout = 0;                // side of the square, 0 for none
  const float* scale = nullptr;  // (channels,)
  const float* shift = nullptr;  // (channels,)
  bool bfloat16 = false;         // whether x is, else it is float32
  void* x = nullptr;             // (images, height, width, channels)
  int64_t* y = nullptr;          // (images,)
};

// x = byte·scale + shift, rounded if x is bfloat16, of the pixels that the draws choose. An index
// that is none of the set makes an image of NaNs.
void make_batch(const BatchJob& job, CudaStream stream);

}  // namespace asng::cuda
