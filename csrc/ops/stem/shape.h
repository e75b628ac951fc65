// Sizes of the stem, the same on every device and without torch.
#pragma once

#include <cstdint>

#include "core/operations.h"
#include "ops/saved.h"

namespace asng {

// The stem's convolution is 3×3.
inline constexpr int kStemKernel = 3, kStemKernelElements = kStemKernel * kStemKernel;

struct StemShape {
  int64_t images = 0, height = 0, width = 0;
  int64_t in_channels = 0, channels = 0, padded = 0;

  int64_t pixels() const { return images * height * width; }
  int64_t out_size() const { return pixels() * padded; }
  SavedSize saved() const { return {kStemSavedUnits, 1, padded, 0, out_size()}; }
};

}  // namespace asng
