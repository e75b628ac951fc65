// Who computes the convolutions of an autoencoder.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "ops/autoencoder/convolution.h"

namespace asng::cuda {

enum class Convolutions {
  kCudnn,  // PyTorch, which calls cuDNN
  kOwn,    // those of convolution.h; an error where they cannot
  kAuto,   // the faster ones
};

// As the environment variable ASNG_CUDA_CONVOLUTIONS says: cudnn, own or auto, which is the
// default.
inline Convolutions convolutions_choice() {
  const char* variable = std::getenv("ASNG_CUDA_CONVOLUTIONS");
  const std::string name = variable == nullptr ? "" : variable;
  if (name.empty() || name == "auto") return Convolutions::kAuto;
  if (name == "cudnn") return Convolutions::kCudnn;
  if (name == "own") return Convolutions::kOwn;
  throw std::runtime_error("ASNG_CUDA_CONVOLUTIONS must be cudnn, own or auto, got " + name);
}

// A result of a layer or of its mirror image.
enum class ConvolutionPass { kConvolve, kTranspose, kWeightGradient };

// Whether the faster convolution is ours, where both can be.
inline bool own_is_faster(Float, const ConvolutionShape&, ConvolutionPass) { return true; }

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
