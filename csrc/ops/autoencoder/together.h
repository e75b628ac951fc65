// Several convolutions and gradients of weights in one launch, whose blocks wait for each other
// between one layer and the next: to launch a kernel takes a host several times as long as a small
// layer takes a device.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/autoencoder/convolution.h"
#include "platform/cuda_stream.h"

namespace asng::cuda {

// Some blocks of a launch do one of these: a convolution, or the sums of its parts or taps, or the
// gradient of a weight.
struct LayerJob {
  enum Kind : uint8_t { kConvolution, kProductsOfTaps, kAddParts, kAddTaps, kWeightGradient };

  // Of a gradient x is the smaller map, and `weight` the larger one.
  const void *x, *weight;
  void* y;
  const void *added, *mask;
  float* sums;
  int blocks, channels, small_channels;
  uint16_t height, width, parts;
  Kind kind;
  uint8_t tile, kernel, stride;
  bool waits : 1;  // for all jobs before it
  bool transposed : 1, relu : 1, rounds : 1;
};

// Whether one launch may have this convolution among others.
bool fits_together(const ConvolutionShape& shape);

// What is computed when run() is called, in the order in which it was added. A job begins when
// those before it are done, or beside the last one that waited for them, if `beside`. All have one
// type and batch, and tilings for Launches::kTogether.
class Together {
 public:
  Together(Float type, int64_t batch) : type_(type), batch_(batch) {}

  void convolve(const ConvolutionShape& shape, const Convolution& convolution, Tiling tiling,
                bool beside = false);
  void weight_gradient(const ConvolutionShape& shape, const void* small_map, const void* large_map,
                       float* parts, Tiling tiling, bool beside = false);

  bool empty() const { return jobs_.empty(); }
  // How many launches there will be, each of which needs a counter.
  int64_t launches() const;
  // Then there are no jobs left.
  void run(unsigned long long* counters, CudaStream stream);

 private:
  Float type_;
  int64_t batch_;
  std::vector<LayerJob> jobs_;
};

}  // namespace asng::cuda
