// A whole autoencoder as it is computed on CUDA devices: feature maps and convolutions, without
// torch.
//
// Channels are padded, to few widths that tensor cores take: a feature map of C channels is
// (B, H, W, P) with zeros beyond C, and a weight (rows, columns, k, k) becomes (rows', k, k,
// columns') with zeros beyond. All that is computed from these zeros is zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace asng {

struct ChainMap {
  int64_t height = 0, width = 0, channels = 0, padded = 0;
};

struct ChainWeight {
  int64_t rows = 0, columns = 0, kernel = 0;
};

// A convolution, or a transposed one, from one feature map to another, to which a third may be
// added; its weight is the one of the same number.
struct ChainStep {
  bool transposed = false, relu = true;
  int64_t stride = 1;
  int64_t from = 0, to = 0, added = -1;
  int64_t padded_rows = 0, padded_columns = 0;
  int64_t offset = 0;  // of the padded weight among all of them
};

struct Chain {
  // Of images alone 8 channels are enough: their convolutions take little time.
  static constexpr int64_t kBlock = 32, kImageBlock = 8;

  int64_t batch = 0;
  std::vector<ChainWeight> weights;
  // The image, what the encoder's layers give, what the decoder's give, and the result.
  std::vector<ChainMap> maps;
  std::vector<ChainStep> steps;
  int64_t padded_values = 0;  // of all weights

  // Layers with a stride of 1 have a skip. Weights are in the order in which they are used.
  Chain(int64_t batch, int64_t height, int64_t width, int64_t channels,
        const std::vector<int64_t>& strides, std::vector<ChainWeight> given)
      : batch(batch), weights(std::move(given)) {
    const auto layers = static_cast<int64_t>(strides.size());
    add_map(height, width, channels, kImageBlock);
    for (int64_t i = 0; i < layers; ++i) {
      const ChainMap& before = maps.back();
      const int64_t high = (before.height + strides[i] - 1) / strides[i];
      const int64_t wide = (before.width + strides[i] - 1) / strides[i];
      add_map(high, wide, weights[i].rows, kBlock);
      steps.push_back({.stride = strides[i], .from = i, .to = i + 1});
    }
    for (int64_t i = layers - 1; i >= 0; --i) {
      const int64_t from = static_cast<int64_t>(maps.size()) - 1;
      add_map(maps[i].height, maps[i].width, weights[steps.size()].columns, kBlock);
      steps.push_back({.transposed = true,
                       .stride = strides[i],
                       .from = from,
                       .to = from + 1,
                       .added = strides[i] == 1 ? i + 1 : -1});
    }
    const int64_t from = static_cast<int64_t>(maps.size()) - 1;
    add_map(height, width, channels, kImageBlock);
    steps.push_back({.transposed = true, .relu = false, .from = from, .to = from + 1});
    for (std::size_t i = 0; i < steps.size(); ++i) {
      ChainStep& step = steps[i];
      const int64_t before = maps[step.from].padded, after = maps[step.to].padded;
      step.padded_rows = step.transposed ? before : after;
      step.padded_columns = step.transposed ? after : before;
      step.offset = padded_values;
      padded_values +=
          step.padded_rows * step.padded_columns * weights[i].kernel * weights[i].kernel;
    }
  }

  int64_t pixels(const ChainMap& map) const { return batch * map.height * map.width; }
  int64_t values(const ChainMap& map) const { return pixels(map) * map.padded; }
  std::vector<int64_t> sizes(const ChainMap& map) const {
    return {batch, map.height, map.width, map.padded};
  }

 private:
  void add_map(int64_t height, int64_t width, int64_t channels, int64_t block) {
    maps.push_back({height, width, channels, (channels + block - 1) / block * block});
  }
};

}  // namespace asng
