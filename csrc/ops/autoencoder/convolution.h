// Convolutions of feature maps (B, H, W, C) as products of matrices on tensor cores, which are
// never built: what of a map a block multiplies, it gathers from there. One kernel for all sides of
// kernels, strides and numbers of channels, which are multiples of 8, in float32, whose factors
// must have been rounded to TF32, and in bfloat16.
#pragma once

#include <cstdint>
#include <utility>

#include "ops/autoencoder/cuda.h"

namespace asng::cuda {

// What a layer computes one way, and its mirror image the other: a larger map, the smaller one that
// a convolution makes of it, (⌈height/stride⌉, ⌈width/stride⌉), and the weight between them.
// Numbers of channels are padded ones.
struct ConvolutionShape {
  int64_t batch = 0, height = 0, width = 0;  // of the larger map
  int64_t channels = 0, small_channels = 0;
  int64_t kernel = 0, stride = 0;

  int64_t small_height() const { return (height + stride - 1) / stride; }
  int64_t small_width() const { return (width + stride - 1) / stride; }
};

// Whether kernels can count what there is.
bool convolution_fits(const ConvolutionShape& shape);

// Whether convolutions have launches of their own, or some of them a persistent kernel, see
// persistent_layers.h: then blocks are all alike, and there are fewer tiles to choose from. Sums
// are divided into the same parts, so that results are the same, to the last bit.
enum class Launches { kEach, kPersistent };
constexpr int kPersistentThreads = 128;  // of a block

// Which blocks compute a result: index of a tile's shape among those that there are, and into how
// many parts sums are divided, of which each is a block's.
struct Tiling {
  int tile = 0, parts = 1;
  // Of a transposed convolution to 8 channels: for each tap a product of its own, whose columns are
  // those of all taps, and sums over taps thereafter. So maps are read once.
  bool by_taps = false;
};
int convolution_tile_count();
int gradient_tile_count(Float type);
// (rows, columns) of a block.
std::pair<int, int> convolution_tile_size(int tile);
std::pair<int, int> gradient_tile_size(int tile);

// From a map to another, and what is done to the result: `added` is added, unless that is null; it
// is 0 where `mask`, unless that is null, is 0 or less, and where it is less than 0 itself if
// `relu`. Float32 is rounded to TF32 if `rounds`. If the tiling has several parts, or is by
// taps, there is a second launch, which adds them in their order; `parts` has room for
// convolution_parts() floats.
struct Convolution {
  const void* x;
  // From the larger to the smaller map (small_channels, k, k, channels), or transposed, from the
  // smaller to the larger one, (channels, k, k, small_channels).
  const void* weight;
  void* y;
  const void* added;
  const void* mask;
  bool transposed, relu, rounds;
  float* parts = nullptr;
};
Tiling convolution_tiling(Float type, bool transposed, const ConvolutionShape& shape,
                          Launches launches = Launches::kEach);
int64_t convolution_parts(bool transposed, const ConvolutionShape& shape, Tiling tiling);
void convolve(Float type, const ConvolutionShape& shape, const Convolution& convolution,
              Tiling tiling, CudaStream stream);

// The gradient of the weight, in float32 in as many parts as `tiling` says, whose sum it is, each
// (small_channels, k, k, channels): sums over pixels of products of both maps, of which one is an
// input and the other an output's gradient.
Tiling weight_gradient_tiling(Float type, const ConvolutionShape& shape,
                              Launches launches = Launches::kEach);
void weight_gradient(Float type, const ConvolutionShape& shape, const void* small_map,
                     const void* large_map, float* parts, Tiling tiling, CudaStream stream);

}  // namespace asng::cuda
