// What autoencoders need on CUDA devices beside convolutions, which are PyTorch's or those of
// convolution.h: see chain_steps.h and asng_ext/ops/autoencoder.py.
#pragma once

#include <cstdint>
#include <vector>

#include "platform/bfloat16.h"
#include "platform/cuda_stream.h"

namespace asng::cuda {

enum class Float { kFloat32, kFloat64, kBFloat16, kHalf };

// y ← y + added, unless that is null; then 0 where `mask`, unless that is null, is 0 or less; or
// else ReLU if `relu`. `count` numbers of a type. Half precision is computed in float32 and rounded
// once; float32 is rounded to TF32 if `rounds`. NaN passes, as in PyTorch.
struct LayerEnd {
  void* y;
  const void* added;
  const void* mask;
  bool relu;
  int64_t count;
  bool rounds = false;
};
void finish_layer(Float type, const LayerEnd& end, CudaStream stream);

// Other numbers of channels: to (pixels, to_channels) has the first ones of from (pixels,
// from_channels), and then zeros. Float32 is rounded to TF32 if `rounds`.
struct ChannelChange {
  const void* from;
  void* to;
};
void change_channels(Float type, const std::vector<ChannelChange>& changes, int64_t from_channels,
                     int64_t to_channels, int64_t pixels, bool rounds, CudaStream stream);

// A weight (rows, columns, taps), whose rows lie `pitch` values apart, and the same, padded with
// zeros, as (padded_rows, taps, padded_columns), or if `turned` as (padded_columns, taps,
// padded_rows).
struct PaddedWeight {
  void* weight;
  int64_t pitch;
  void* padded;
  int rows, columns, taps, padded_rows, padded_columns;
  bool turned = false, flipped = false;  // flipped: taps in reverse order, if turned
  int parts = 1;  // of a gradient, one behind the other, whose sum is to be cropped
};
// The most taps that kernels take.
constexpr int kMostTaps = 31 * 31;

// Writes the padded weights, of a chain or some in one launch or two, and as many for turned ones.
// Float32 is rounded to TF32 if `rounds`.
void pad_weights(Float type, Float padded_type, const std::vector<PaddedWeight>& weights,
                 bool rounds, CudaStream stream);
// The other way, which is for weights that are not turned: writes them.
void crop_weights(Float type, Float padded_type, const std::vector<PaddedWeight>& weights,
                  CudaStream stream);

}  // namespace asng::cuda
