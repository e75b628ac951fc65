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

__global__ __launch_bounds__(kThreads) void product_kernel(const SampleProduct p, bool sums) {
  float* shared = dynamic_shared<float>();
  const float* left = copied(p.left, p.rows, p.depth, shared);
  float* groups = shared + p.rows * (p.depth + 4);
  __syncthreads();
  const int first = p.depth / 32 * 16;
  int count = 0;
  for (int pass = 0; pass < Matmul<true, float>::passes(p.rows, p.columns); ++pass) {
    Matmul<true, float> product(p.rows, p.columns, pass);
    product.add(left, p.depth + 4, p.right, p.columns, first);
    product.add(left + first, p.depth + 4, p.right + first * p.columns, p.columns, p.depth - first);
    if (sums) {
      product.sum_each(groups, [](int, int, const Vec4<float>& value) { return value; });
    } else {
      product.each([&](int row, int column, const Vec4<float>& value) {
        write_vec4(p.out + row * p.out_row + column, value);
      });
    }
    count = product.groups();
  }
  __syncthreads();
  for (int i = threadIdx.x; sums && i < 2 * p.columns; i += kThreads) {
    float sum = 0;
    for (int group = 0; group < count; ++group) sum += groups[group * 2 * p.columns + i];
    p.out[i] = sum;
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

__global__ void misuse_kernel(Misuse how, float* out) {
  if (how == Misuse::kAbsent && threadIdx.x == 7) return;
  const unsigned factor = how == Misuse::kUnrounded ? __float_as_uint(0.1f) : to_tf32(0.1f);
  const unsigned a[4] = {factor, factor, factor, factor}, b[2] = {0, 0};
  float c[4] = {};
  mma_tf32(c, a, b);
  out[threadIdx.x] = c[0];
}

size_t product_bytes(const SampleProduct& p) {
  return static_cast<size_t>(p.rows * (p.depth + 4) + p.rows / 8 * p.columns) * sizeof(float);
}
size_t outer_product_bytes(const SampleProduct& p) {
  const size_t values = static_cast<size_t>(p.depth * (p.rows + p.columns + 8));
  return (values > 16 * kThreads ? values : 16 * kThreads) * sizeof(float);
}

}  // namespace

void sample_tile_product(const SampleProduct& product, CudaStream stream) {
  launch(product_kernel, 1, kThreads, product_bytes(product), stream, product, false);
}
void sample_tile_sums(const SampleProduct& product, CudaStream stream) {
  launch(product_kernel, 1, kThreads, product_bytes(product), stream, product, true);
}
void sample_tile_outer_product(const SampleProduct& product, CudaStream stream) {
  launch(outer_product_kernel, 1, kThreads, outer_product_bytes(product), stream, product, true);
}
void sample_no_outer_product(const SampleProduct& product, CudaStream stream) {
  launch(outer_product_kernel, 1, kThreads, outer_product_bytes(product), stream, product, false);
}
void sample_misuse(Misuse how, float* out, CudaStream stream) {
  launch(misuse_kernel, 1, 32, 0, stream, how, out);
}

}  // namespace asng::cuda
