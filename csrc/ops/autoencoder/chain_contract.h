// What the operators of whole autoencoders take on CUDA devices; see library.cpp.
#pragma once

#include <vector>

#include "ops/autoencoder/chain.h"
#include "ops/autoencoder/cuda.h"
#include "platform/cuda_tensors.h"

namespace asng::cuda {

inline Float float_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Float::kFloat32;
    case ScalarType::Double:
      return Float::kFloat64;
    case ScalarType::BFloat16:
      return Float::kBFloat16;
    case ScalarType::Half:
      return Float::kHalf;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16, got ",
                      torch::headeronly::toString(t.scalar_type()));
  }
}

// Autoencoders that are given the same images, or whose results are.
struct ChainsCall {
  Float type, weight_type;
  std::vector<Chain> chains;

  // `images` are those given, or what has their shape and dtype.
  ChainsCall(const Tensor& images, const char* name, const std::vector<Tensor>& weights,
             const std::vector<int64_t>& strides, const std::vector<int64_t>& layers) {
    STD_TORCH_CHECK(images.dim() == 4 && images.numel() > 0, name,
                    " must have 4 dimensions and not be empty");
    check_tensor(images, name, images.scalar_type(), kDevice);
    size_t count = 0;
    for (const int64_t n : layers) {
      STD_TORCH_CHECK(n >= 0 && n <= static_cast<int64_t>(strides.size()),
                      "layers must be from 0 to the number of strides, got ", n);
      count += n;
    }
    STD_TORCH_CHECK(!layers.empty(), "there must be an autoencoder");
    STD_TORCH_CHECK(strides.size() == count, "there must be ", count,
                    " strides for so many layers, got ", strides.size());
    STD_TORCH_CHECK(weights.size() == 2 * count + layers.size(), "there must be ",
                    2 * count + layers.size(), " weights for ", count, " layers of ", layers.size(),
                    " autoencoders, got ", weights.size());
    type = float_of(images, name);
    weight_type = float_of(weights[0], "weights");
    size_t first_weight = 0;
    auto stride = strides.begin();
    for (const int64_t n : layers) {
      chains.push_back(checked_chain(images, name, weights, first_weight, {stride, stride + n}));
      first_weight += chains.back().weights.size();
      stride += n;
    }
  }

 private:
  static Chain checked_chain(const Tensor& images, const char* name,
                             const std::vector<Tensor>& weights, size_t first_weight,
                             const std::vector<int64_t>& strides) {
    for (const int64_t stride : strides) {
      STD_TORCH_CHECK(stride == 1 || stride == 2, "strides must be 1 or 2, got ", stride);
    }
    std::vector<ChainWeight> shapes;
    // Channels of the feature map that a weight is applied to, and of those that layers gave.
    int64_t channels = images.size(3);
    std::vector<int64_t> encoded = {channels};
    for (size_t i = 0; i < 2 * strides.size() + 1; ++i) {
      const size_t number = first_weight + i;
      const Tensor& weight = weights[number];
      STD_TORCH_CHECK(weight.device().type() == kDevice &&
                          weight.scalar_type() == weights[0].scalar_type() && weight.dim() == 4,
                      "weights must be on the device of ", name,
                      ", of one dtype and have 4 dimensions");
      check_device(weight, "weights", images);
      const bool half =
          images.scalar_type() == ScalarType::BFloat16 || images.scalar_type() == ScalarType::Half;
      STD_TORCH_CHECK(weight.scalar_type() == images.scalar_type() ||
                          (half && weight.scalar_type() == ScalarType::Float),
                      "weights must have the dtype of ", name,
                      ", or float32 where that is half precision, got ",
                      torch::headeronly::toString(weight.scalar_type()));
      const int64_t rows = weight.size(0), columns = weight.size(1), kernel = weight.size(2);
      STD_TORCH_CHECK(kernel % 2 == 1 && kernel * kernel <= kMostTaps && weight.size(3) == kernel,
                      "weights must have square kernels of an odd side of at most 31, got ", kernel,
                      "×", weight.size(3));
      STD_TORCH_CHECK((kernel == 1 || (weight.stride(3) == 1 && weight.stride(2) == kernel)) &&
                          (columns == 1 || weight.stride(1) == kernel * kernel),
                      "each row of a weight must be contiguous");
      STD_TORCH_CHECK(rows > 0 && rows <= 65535 && columns > 0 && columns <= 65535,
                      "weights must have from 1 to 65535 rows and columns");
      const bool encodes = i < strides.size();
      const size_t layer = encodes ? i : 2 * strides.size() - i;  // the last one: 0
      STD_TORCH_CHECK((encodes ? columns : rows) == channels, "weight ", number, " must have ",
                      channels, encodes ? " columns" : " rows", ", got ", encodes ? columns : rows);
      if (encodes) {
        encoded.push_back(rows);
      } else {
        STD_TORCH_CHECK(columns == encoded[layer], "weight ", number, " must have ", encoded[layer],
                        " columns, got ", columns);
      }
      channels = encodes ? rows : columns;
      shapes.push_back({rows, columns, kernel});
    }
    Chain chain(images.size(0), images.size(1), images.size(2), images.size(3), strides, shapes);
    for (const ChainMap& map : chain.maps) checked_product(chain.sizes(map));
    return chain;
  }
};

}  // namespace asng::cuda
