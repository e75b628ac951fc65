// What the operators of nodes, cells and the stem ask of their tensors on every backend. Where a
// device may store feature maps as bfloat16, all else of the call is float32.
#pragma once

#include <vector>

#include "core/operations.h"
#include "ops/saved.h"
#include "platform/tensors.h"

namespace asng {

// In values of compute_type(dtype).
inline int64_t saved_values(const SavedSize& size, ScalarType dtype) {
  return size.statistics + size.feature_maps / (dtype == ScalarType::BFloat16 ? 2 : 1);
}

// Returns the dtype of images with `dim` dimensions, none of which is empty.
inline ScalarType check_images(const Tensor& t, const char* name, int64_t dim, Backend backend) {
  STD_TORCH_CHECK(t.dim() == dim, name, " must have ", dim, " dimensions, got ", t.dim());
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double ||
                      (backend.stores_bfloat16 && dtype == ScalarType::BFloat16),
                  name, " must be float32",
                  backend.stores_bfloat16 ? ", float64 or bfloat16" : " or float64", ", got ",
                  torch::headeronly::toString(dtype));
  check_tensor(t, name, dtype, backend.type);
  for (int64_t i = 0; i < dim; ++i) {
    STD_TORCH_CHECK(t.size(i) > 0, name, " must not be empty: dimension ", i, " is 0");
  }
  return dtype;
}

// The same of feature maps (…, B, H, W, P).
inline ScalarType check_feature_maps(const Tensor& t, const char* name, int64_t dim,
                                     Backend backend) {
  const ScalarType dtype = check_images(t, name, dim, backend);
  STD_TORCH_CHECK(t.size(dim - 1) % kChannelBlock == 0, "the last dimension of ", name,
                  " must be a multiple of ", kChannelBlock, ", got ", t.size(dim - 1));
  return dtype;
}

}  // namespace asng
