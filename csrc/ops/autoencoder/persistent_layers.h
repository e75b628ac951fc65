// A persistent kernel: several convolutions and gradients of weights in one launch, whose blocks
// wait for each other between one layer and the next. To launch a kernel takes a host several times
// as long as a small layer takes a device.
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
  bool of_warpgroups : 1;  // its tile
};

// Whether a persistent kernel may have this convolution.
bool fits_persistent(const ConvolutionShape& shape);

// What is computed when run() is called: phase by phase, and what is in the same phase beside each
// other. All have one type and batch, and tilings for Launches::kPersistent.
class PersistentLayers {
 public:
  PersistentLayers(Float type, int64_t batch) : type_(type), batch_(batch) {}

  // Begins in a phase, from 0 on, and returns the one that can read the result.
  int convolve(const ConvolutionShape& shape, const Convolution& convolution, Tiling tiling,
               int phase);
  int weight_gradient(const ConvolutionShape& shape, const void* small_map, const void* large_map,
                      float* parts, Tiling tiling, int phase);

  bool empty() const { return phases_.empty(); }
  // How many launches there will be, each of which needs a counter.
  int64_t launches() const;
  // Then nothing is left.
  void run(unsigned long long* counters, CudaStream stream);

 private:
  void add(const LayerJob& job, int phase);
  std::vector<LayerJob> in_order() const;

  Float type_;
  int64_t batch_;
  std::vector<std::vector<LayerJob>> phases_;
};

}  // namespace asng::cuda
