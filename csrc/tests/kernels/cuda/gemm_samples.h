#pragma once

#include "platform/cuda_stream.h"

namespace asng::cuda {

// A product on the tensor cores: `left` is (rows, depth), or (depth, rows) for sums over pixels;
// `right` (depth, columns), `out` (rows, columns) in rows `out_row` apart.
struct SampleProduct {
  int rows, columns, depth, out_row;
  const float* left;
  const float* right;
  float* out;
};

void sample_tile_product(const SampleProduct& product, CudaStream stream);
// Writes Σ and Σ² over the rows of that product to `out` (2, columns) instead.
void sample_tile_sums(const SampleProduct& product, CudaStream stream);
// In two goes.
void sample_tile_outer_product(const SampleProduct& product, CudaStream stream);
// Without any pixels.
void sample_no_outer_product(const SampleProduct& product, CudaStream stream);

enum class Misuse { kNone, kUnrounded, kAbsent };
void sample_misuse(Misuse how, float* out, CudaStream stream);

}  // namespace asng::cuda
