// Sampling: the populations of all instances, in one launch. A thread draws one categorical
// variable of a sample, or two Gaussian variables of an antithetic pair of samples. What is drawn
// is that of csrc/optimizer/cpu.cpp.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/categorical.h"
#include "core/gaussian.h"
#include "core/philox.h"
#include "optimizer/cuda.h"
#include "optimizer/cuda_categories.h"

namespace asng::cuda {

namespace {

constexpr unsigned int kAskThreads = 256;
constexpr unsigned int kAskColumns = 128;  // of a sample in a block

struct Draw {
  OptimizerShape shape;
  OptimizerState state;
  const std::int64_t* offsets;
  std::int64_t* categorical;
  double* gaussian;
  std::int64_t alike;  // see OptimizerShape
};

struct Drawing {
  std::int64_t instance;
  std::uint64_t seed, asked;
};

// sample_category with the random bits of a variable.
__device__ void draw_category(const Draw& draw, const Drawing& of, std::int64_t sample,
                              std::int64_t i) {
  constexpr int kAhead = 8;
  const Categories at(draw.alike, draw.offsets, i);
  const double* theta = draw.state.theta[of.instance] + at.begin;
  // The first are loaded while the counter is, and the random bits are made of it.
  double ahead[kAhead];
#pragma unroll
  for (int j = 0; j < kAhead; ++j) ahead[j] = j + 1 < at.size ? theta[j] : 0.0;
  const PhiloxBlock bits = philox(
      of.seed, draw_counter(Stream::kCategorical, of.asked, static_cast<std::uint32_t>(sample),
                            static_cast<std::uint32_t>(i / 4)));
  // Variable i has word i % 4; an index would put the words into memory.
  const std::uint32_t even = i & 2 ? bits.word[2] : bits.word[0];
  const std::uint32_t odd = i & 2 ? bits.word[3] : bits.word[1];
  const double uniform = uniform32(i & 1 ? odd : even);
  double cumulative = 0.0;
  std::int64_t category = 0;
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    cumulative += ahead[j];
    category += j + 1 < at.size && uniform >= cumulative;
  }
#pragma unroll 4
  for (std::int64_t j = kAhead; j + 1 < at.size; ++j) {
    cumulative += theta[j];
    category += uniform >= cumulative;
  }
  draw.categorical[(of.instance * draw.shape.population + sample) * draw.shape.categorical + i] =
      category;
}

__device__ void draw_normals(const Draw& draw, const Drawing& of, std::int64_t pair,
                             std::int64_t block) {
  const std::int64_t n = draw.shape.gaussian;
  const double* mean = draw.state.mean[of.instance];
  const double* variance = draw.state.variance[of.instance];
  double* upper = draw.gaussian + (of.instance * draw.shape.population + 2 * pair) * n;
  const bool mirrored = 2 * pair + 1 < draw.shape.population;
  double z[2];
  standard_normal_pair(
      philox(of.seed, draw_counter(Stream::kGaussian, of.asked, static_cast<std::uint32_t>(pair),
                                   static_cast<std::uint32_t>(block))),
      z[0], z[1]);
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const std::int64_t j = 2 * block + k;
    if (j < n) {
      const double offset = std::sqrt(variance[j]) * z[k];
      upper[j] = mean[j] + offset;
      if (mirrored) upper[n + j] = mean[j] - offset;
    }
  }
}

// Rows of threads are samples, or pairs of these; columns are categorical variables and then pairs
// of Gaussian ones.
__global__ void __launch_bounds__(kAskThreads) ask_kernel(Draw draw) {
  std::int64_t* counters = draw.state.counters[blockIdx.y];
  const Drawing of{blockIdx.y, static_cast<std::uint64_t>(counters[kSeed]),
                   static_cast<std::uint64_t>(counters[kAsked])};
  // The last block to say that it has read the counter counts the population. It says so before it
  // has anything of its own in flight, and draws while the answer is on its way.
  __syncthreads();
  const unsigned int blocks = gridDim.x * gridDim.z;
  const bool speaks = threadIdx.x == 0 && threadIdx.y == 0;
  unsigned int before = 0;
  if (speaks && blocks > 1) {
    __threadfence();
    before = atomicInc(reinterpret_cast<unsigned int*>(counters + kTicket), blocks - 1);
  }
  const std::int64_t lambda = draw.shape.population;
  const std::int64_t n = draw.shape.categorical;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.z) * blockDim.y + threadIdx.y;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column < n) {
    if (row < lambda) draw_category(draw, of, row, column);
  } else if (2 * (column - n) < draw.shape.gaussian) {
    if (2 * row < lambda) draw_normals(draw, of, row, column - n);
  }
  if (speaks && before == blocks - 1) {
    counters[kAsked] = static_cast<std::int64_t>(of.asked + 1);
  }
}

}  // namespace

void ask(const OptimizerShape& shape, const OptimizerState& state, const std::int64_t* offsets,
         std::int64_t* categorical, double* gaussian, CudaStream stream) {
  const std::int64_t columns = shape.categorical + (shape.gaussian + 1) / 2;
  const std::int64_t width = std::min((columns + 31) / 32 * 32, std::int64_t{kAskColumns});
  const std::int64_t height = std::min(shape.population, kAskThreads / width);
  const auto parts = [](std::int64_t all, std::int64_t of) {
    return static_cast<unsigned int>((all + of - 1) / of);
  };
  const dim3 grid(parts(columns, width), static_cast<unsigned int>(shape.instances),
                  parts(shape.population, height));
  const dim3 block(static_cast<unsigned int>(width), static_cast<unsigned int>(height));
  launch(ask_kernel, grid, block, 0, stream,
         Draw{shape, state, offsets, categorical, gaussian, shape.alike()});
}

}  // namespace asng::cuda
