// Sampling: one launch draws the populations of all problems.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/categorical.h"
#include "core/philox.h"
#include "optimizer/cuda.h"
#include "platform/cuda.h"

namespace asng::cuda {

namespace {

constexpr unsigned int kThreads = 128;

struct Draw {
  OptimizerShape shape;
  OptimizerState state;
  const std::int64_t* offsets;
  std::int64_t* categorical;
  double* gaussian;
};

// Four categorical variables of one sample, which share a block of random numbers.
__device__ void draw_categories(const Draw& draw, std::int64_t problem, std::uint64_t seed,
                                std::uint64_t asked, std::int64_t sample, std::int64_t block) {
  const std::int64_t n = draw.shape.categorical;
  const double* theta = draw.state.theta + problem * draw.shape.theta_size;
  std::int64_t* row = draw.categorical + (problem * draw.shape.population + sample) * n;
  const PhiloxBlock bits =
      philox(seed, draw_counter(Stream::kCategorical, asked, static_cast<std::uint32_t>(sample),
                                static_cast<std::uint32_t>(block)));
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const std::int64_t i = 4 * block + k;
    if (i < n) {
      const std::int64_t begin = draw.offsets[i];
      row[i] = sample_category(theta + begin, draw.offsets[i + 1] - begin, uniform32(bits.word[k]));
    }
  }
}

// Two Gaussian variables of an antithetic pair of samples.
__device__ void draw_normals(const Draw& draw, std::int64_t problem, std::uint64_t seed,
                             std::uint64_t asked, std::int64_t pair, std::int64_t block) {
  const std::int64_t n = draw.shape.gaussian;
  const double* mean = draw.state.mean + problem * n;
  const double* variance = draw.state.variance + problem * n;
  double* upper = draw.gaussian + (problem * draw.shape.population + 2 * pair) * n;
  const bool mirrored = 2 * pair + 1 < draw.shape.population;
  double z[2];
  standard_normal_pair(
      philox(seed, draw_counter(Stream::kGaussian, asked, static_cast<std::uint32_t>(pair),
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

__global__ void __launch_bounds__(kThreads) ask_kernel(Draw draw) {
  const std::int64_t problem = blockIdx.y;
  std::int64_t* counters = draw.state.counters + problem * kCounters;
  const auto seed = static_cast<std::uint64_t>(counters[kSeed]);
  const auto asked = static_cast<std::uint64_t>(counters[kAsked]);
  const std::int64_t lambda = draw.shape.population;
  const std::int64_t category_blocks = (draw.shape.categorical + 3) / 4;
  const std::int64_t normal_blocks = (draw.shape.gaussian + 1) / 2;
  const std::int64_t of_categories = lambda * category_blocks;
  const std::int64_t all = of_categories + (lambda + 1) / 2 * normal_blocks;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t w = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; w < all;
       w += stride) {
    if (w < of_categories) {
      draw_categories(draw, problem, seed, asked, w / category_blocks, w % category_blocks);
    } else {
      const std::int64_t rest = w - of_categories;
      draw_normals(draw, problem, seed, asked, rest / normal_blocks, rest % normal_blocks);
    }
  }
  // The block that comes last here counts the population: by then all have read the counter.
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    auto* ticket = reinterpret_cast<unsigned long long*>(counters + kTicket);
    if (atomicAdd(ticket, 1ull) == gridDim.x - 1) {
      counters[kTicket] = 0;
      counters[kAsked] = static_cast<std::int64_t>(asked + 1);
    }
  }
}

}  // namespace

void ask(const OptimizerShape& shape, const OptimizerState& state, const std::int64_t* offsets,
         std::int64_t* categorical, double* gaussian, CudaStream stream) {
  const std::int64_t work = shape.population * ((shape.categorical + 3) / 4) +
                            (shape.population + 1) / 2 * ((shape.gaussian + 1) / 2);
  const std::int64_t enough = 32 * static_cast<std::int64_t>(multiprocessor_count());
  const std::int64_t blocks = std::min((work + kThreads - 1) / kThreads, enough);
  const dim3 grid(static_cast<unsigned int>(std::max<std::int64_t>(blocks, 1)),
                  static_cast<unsigned int>(shape.problems));
  launch(ask_kernel, grid, kThreads, 0, stream, Draw{shape, state, offsets, categorical, gaussian});
}

}  // namespace asng::cuda
