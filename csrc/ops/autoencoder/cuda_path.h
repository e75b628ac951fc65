// Who computes the convolutions of an autoencoder.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "ops/autoencoder/convolution.h"
#include "platform/environment.h"

namespace asng::cuda {

enum class Convolutions {
  kCudnn,  // PyTorch, which calls cuDNN
  kOwn,    // those of convolution.h; an error where they cannot
  kAuto,   // the faster ones
};

// As the environment variable ASNG_CUDA_CONVOLUTIONS says: cudnn, own or auto, which is the
// default.
inline Convolutions convolutions_choice() {
  return chosen("ASNG_CUDA_CONVOLUTIONS", {"cudnn", "own", "auto"}, Convolutions::kAuto);
}

// How convolutions of our own are launched, as the environment variable ASNG_CUDA_LAYERS says:
// each, which is the default, or persistent, so many in one kernel as there are in a row.
inline Launches launches_choice() {
  return chosen("ASNG_CUDA_LAYERS", {"each", "persistent"}, Launches::kEach);
}

// By which instructions tensor cores multiply in convolutions of our own.
enum class TensorCores {
  kMma,    // of a warp
  kWgmma,  // of a warpgroup, where it is faster; see platform/warpgroup.h
};

// As the environment variable ASNG_CUDA_TENSOR_CORES says: mma, which is the default, or wgmma.
inline TensorCores tensor_cores_choice() {
  return chosen("ASNG_CUDA_TENSOR_CORES", {"mma", "wgmma"}, TensorCores::kMma);
}

// A result of a layer or of its mirror image.
enum class ConvolutionPass { kConvolve, kTranspose, kWeightGradient };

// Whether the faster convolution is ours, where both can be: as an H200 said, with what the host
// takes for a call and what a pass for skip and ReLU takes behind cuDNN's. That has kernels for its
// newest instructions in bfloat16, and in TF32 for transposed convolutions alone, as which those
// with a stride of 1 are computed, too; they pay where there is much to do in many channels.
inline bool own_is_faster(Float type, const ConvolutionShape& shape, ConvolutionPass pass) {
  const int64_t pixels = shape.batch * shape.small_height() * shape.small_width();
  const double products = static_cast<double>(pixels * shape.kernel * shape.kernel) *
                          static_cast<double>(shape.channels * shape.small_channels);
  const bool wide = std::min(shape.channels, shape.small_channels) >= 128 && shape.kernel > 1;
  if (type == Float::kBFloat16) return !wide || products < 2.5e10;
  const bool transposed = pass == ConvolutionPass::kTranspose ||
                          (pass == ConvolutionPass::kConvolve && shape.stride == 1);
  return !transposed || !wide || products < 7.5e9;
}

// Whether a convolution is ours, with TF32 allowed or not.
inline bool is_own(Convolutions choice, Float type, bool tf32, const ConvolutionShape& shape,
                   ConvolutionPass pass) {
  if (choice == Convolutions::kCudnn) return false;
  const bool can = type == Float::kBFloat16 || (type == Float::kFloat32 && tf32);
  const bool fits = can && convolution_fits(shape);
  if (choice == Convolutions::kAuto) return fits && own_is_faster(type, shape, pass);
  if (!fits) {
    throw std::runtime_error(
        std::string("ASNG_CUDA_CONVOLUTIONS is own, which is not for ") +
        (can ? "maps as large as these" : "other precisions than TF32 and bfloat16"));
  }
  return true;
}

}  // namespace asng::cuda
