// Kernels whose results are known: products on the tensor cores.
#include "kernels/cuda/gemm.h"
#include "tests/kernels/cuda/gemm_samples.h"

namespace asng::cuda {

namespace {

// Rows of shared memory, 4 values apart from each other's banks.
__device__ const float* copied(const float* from, int rows, int columns, float* to) {
  for (int i = threadIdx.x; i < rows * columns; i += kThreads) {
    to[i / columns * (columns + 4) + i % columns] = from[i];
  }
  return to;
}

__global__ __launch_bounds__(kThreads) void product_kernel(const SampleProduct p, float* values) {
  float* shared = dynamic_shared<float>();
  const float* left = copied(p.left, p.rows, p.depth, shared);
  TileMatmul product(p.rows, p.columns);
  __syncthreads();
  const int first = p.depth / 16 * 8;
  product.add(left, p.depth + 4, p.right, p.columns, first);
  product.add(left + first, p.depth + 4, p.right + first * p.columns, p.columns, p.depth - first);
  if (values == nullptr) {
    product.store(p.out, p.out_row);
  } else {
    product.store_where_positive(values, p.columns);
  }
}

__global__ __launch_bounds__(kThreads) void outer_product_kernel(const SampleProduct p, bool any) {
  float* shared = dynamic_shared<float>();
  const float* left = copied(p.left, p.depth, p.rows, shared);
  float* behind = shared + p.depth * (p.rows + 4);
  const float* right = copied(p.right, p.depth, p.columns, behind);
  OuterProduct<WarpTiles> product(p.rows, p.columns);
  __syncthreads();
  const int stage = p.depth / 2, left_row = p.rows + 4, right_row = p.columns + 4;
  if (any) {
    product.add(left, left_row, right, right_row, stage, p.out, p.out_row, true);
    product.add(left + stage * left_row, left_row, right + stage * right_row, right_row, stage,
                p.out, p.out_row, false);
  }
  __syncthreads();
  product.finish(p.out, p.out_row, shared, any);
}

__global__ void misuse_kernel(Misuse how, const float* memory, float* out) {
  if (how == Misuse::kAbsent && threadIdx.x == 7) return;
  const float* from = memory;
  if (how == Misuse::kMisaligned) from += 4;
  if (how == Misuse::kDifferent && threadIdx.x == 9) from += 8;
  TileLeft<false> a;
  TileRight b;
  TileSum sum;
  wmma::fill_fragment(sum, 0.0f);
  wmma::load_matrix_sync(a, from, 16);
  if (how != Misuse::kUnrounded) {
    for (int i = 0; i < a.num_elements; ++i) a.x[i] = wmma::__float_to_tf32(a.x[i]);
  }
  load_rounded(b, memory, 16);
  wmma::mma_sync(sum, a, b, sum);
  wmma::store_matrix_sync(out, sum, 16, wmma::mem_row_major);
}

size_t product_bytes(const SampleProduct& p) {
  return static_cast<size_t>(p.rows * (p.depth + 4)) * sizeof(float);
}
size_t outer_product_bytes(const SampleProduct& p) {
  const size_t values = static_cast<size_t>(p.depth * (p.rows + p.columns + 8));
  return (values > 16 * kThreads ? values : 16 * kThreads) * sizeof(float);
}

}  // namespace

void sample_tile_product(const SampleProduct& product, CudaStream stream) {
  launch(product_kernel, 1, kThreads, product_bytes(product), stream, product, nullptr);
}
void sample_tile_product_where_positive(const SampleProduct& product, float* values,
                                        CudaStream stream) {
  launch(product_kernel, 1, kThreads, product_bytes(product), stream, product, values);
}
void sample_tile_outer_product(const SampleProduct& product, CudaStream stream) {
  launch(outer_product_kernel, 1, kThreads, outer_product_bytes(product), stream, product, true);
}
void sample_no_outer_product(const SampleProduct& product, CudaStream stream) {
  launch(outer_product_kernel, 1, kThreads, outer_product_bytes(product), stream, product, false);
}
void sample_misuse(Misuse how, const float* memory, float* out, CudaStream stream) {
  launch(misuse_kernel, 1, 32, 0, stream, how, memory, out);
}

}  // namespace asng::cuda
