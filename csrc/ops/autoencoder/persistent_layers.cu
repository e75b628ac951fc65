// A launch has as many blocks as run at the same time. Each of them takes its share of the tiles of
// a phase, and then waits until all have done theirs.
#include <algorithm>
#include <stdexcept>

#include "ops/autoencoder/convolution_body.h"
#include "ops/autoencoder/persistent_layers.h"
#include "ops/autoencoder/weight_gradient_body.h"
#include "platform/cuda.h"

namespace asng::cuda {

namespace {

// Parameters of a kernel are 4 KiB at most.
constexpr int kMostJobs = 55;
struct JobTable {
  LayerJob jobs[kMostJobs];
  int count = 0, batch = 0;
  unsigned long long* counter = nullptr;
};
static_assert(sizeof(JobTable) < 4000);

// What a block knows of the job that it works on.
struct Calls {
  ConvolutionCall convolution;
  WeightGradientCall gradient;
};

// Of all tiles, the most.
template <class... Tiles>
constexpr int most_bytes(TileList<Tiles...>, auto bytes) {
  return std::max({(Tiles::kThreads == kPersistentThreads ? bytes(Tiles()) : 0)...});
}
constexpr int kRingBytes = std::max(
    most_bytes(ConvolutionTiles(), [](auto tile) { return shared_bytes<decltype(tile)>(); }),
    most_bytes(GradientTiles(), [](auto tile) {
      using S = decltype(tile);
      return S::kStages * std::max(stage_bytes<float, S>(), stage_bytes<__nv_bfloat16, S>());
    }));
constexpr std::size_t kSharedBytes = kRingBytes + sizeof(Calls);

ASNG_HD inline Sizes sizes_of(const LayerJob& job, int batch) {
  return {batch, job.height, job.width, job.channels, job.small_channels, job.kernel, job.stride};
}

ASNG_HD inline void set_up(const LayerJob& job, int batch, ConvolutionCall& call) {
  const Sizes sizes = sizes_of(job, batch);
  const bool of_taps = job.kind == LayerJob::kProductsOfTaps;
  call = of_taps ? call_of_taps(sizes) : call_of(sizes, job.transposed);
  call.x = job.x;
  call.weight = job.weight;
  call.y = job.y;
  call.added = job.added;
  call.mask = job.mask;
  call.relu = job.relu;
  call.rounds = job.rounds;
  call.sums = job.sums;
  call.parts = job.parts;
  if (job.kind != LayerJob::kConvolution && !of_taps) return;
  with_persistent_tile(ConvolutionTiles(), job.tile, [&](auto tile) {
    using S = decltype(tile);
    call.column_tiles = up(call.out_channels, S::kColumns);
    call.row_tiles = add_classes(S::kRows, call);
  });
}

template <class T>
ASNG_HD void set_up(const LayerJob& job, int batch, WeightGradientCall& call) {
  call = gradient_call_of(batch, job.height, job.width, job.channels, job.small_channels,
                          job.kernel, job.stride);
  call.small_map = job.x;
  call.large_map = job.weight;
  call.parts = job.sums;
  divide<T>(call, job.parts);
  with_persistent_tile(GradientTiles(), job.tile, [&](auto tile) {
    using S = decltype(tile);
    if constexpr (!kMultipliesGradients<T, S>) return;
    call.row_tiles = up(call.small_channels, S::kRows);
    call.column_tiles = up(call.kernel * call.kernel * call.channels, S::kColumns);
  });
}

template <class T>
ASNG_HD void set_up(const LayerJob& job, int batch, Calls& calls) {
  if (job.kind == LayerJob::kWeightGradient) {
    set_up<T>(job, batch, calls.gradient);
  } else {
    set_up(job, batch, calls.convolution);
  }
}

__device__ __forceinline__ Calls& shared_calls() {
  return *reinterpret_cast<Calls*>(dynamic_shared<char>() + kRingBytes);
}

template <class T, class S>
__device__ __forceinline__ void convolve_inline(int block) {
  convolve_tile<T, S>(shared_calls().convolution, block, dynamic_shared<char>(), [] {});
}
template <class T, class S>
__device__ __forceinline__ void add_products_inline(int block) {
  add_products<T, S>(shared_calls().gradient, block, dynamic_shared<char>(), [] {});
}
// Functions of their own: what the loop over jobs keeps takes them no registers. But calls of one
// with products of warpgroups would have each product waited for.
template <class T, class S>
__device__ __noinline__ void convolve_apart(int block) {
  convolve_inline<T, S>(block);
}
template <class T, class S>
__device__ __noinline__ void add_products_apart(int block) {
  add_products_inline<T, S>(block);
}

template <class T, bool kWarpgroups>
__device__ __forceinline__ void work(const LayerJob& job, int block) {
  switch (job.kind) {
    case LayerJob::kConvolution:
    case LayerJob::kProductsOfTaps:
      return with_persistent_tile(ConvolutionTiles(), job.tile, [&](auto tile) {
        using S = decltype(tile);
        if constexpr (!S::kOfWarpgroups) {
          convolve_apart<T, S>(block);
        } else if constexpr (kWarpgroups) {
          convolve_inline<T, S>(block);
        }
      });
    case LayerJob::kAddParts:
      return add_parts<T, kPersistentThreads>(shared_calls().convolution, block);
    case LayerJob::kAddTaps:
      return add_taps<T, kPersistentThreads>(shared_calls().convolution, block);
    case LayerJob::kWeightGradient:
      return with_persistent_tile(GradientTiles(), job.tile, [&](auto tile) {
        using S = decltype(tile);
        if constexpr (!S::kOfWarpgroups) {
          add_products_apart<T, S>(block);
        } else if constexpr (kWarpgroups && kMultipliesGradients<T, S>) {
          add_products_inline<T, S>(block);
        }
      });
  }
}

// With tiles of warpgroups, too, or without.
template <class T, bool kWarpgroups>
__global__ __launch_bounds__(kPersistentThreads,
                             2) void persistent_layers_kernel(const JobTable table) {
  Calls& calls = shared_calls();
  int known = -1;  // the job that the calls are of
  int meetings = 0;
  for (int i = 0; i < table.count;) {
    // Tiles of the jobs of this phase, in a row.
    int tile = static_cast<int>(blockIdx.x), before = 0;
    do {
      const LayerJob& job = table.jobs[i];
      const int end = before + job.blocks;
      if (tile < end && known != i) {
        if (threadIdx.x == 0) set_up<T>(job, table.batch, calls);
        known = i;
        __syncthreads();
      }
      for (; tile < end; tile += static_cast<int>(gridDim.x)) {
        work<T, kWarpgroups && kMayMultiplyByWarpgroups>(job, tile - before);
        __syncthreads();
      }
      before = end;
    } while (++i < table.count && !table.jobs[i].waits);
    if (i == table.count) return;
    // What the threads have written is there for all that wait for this block.
    __syncthreads();
    ++meetings;
    const LayerJob& next = table.jobs[i];
    const bool takes_part = static_cast<int>(blockIdx.x) < next.blocks;
    if (threadIdx.x == 0) {
      arrive(table.counter);
      if (takes_part) set_up<T>(next, table.batch, calls);
      wait_for(table.counter, static_cast<unsigned long long>(meetings) * gridDim.x);
    }
    if (takes_part) known = i;
    __syncthreads();
  }
}

LayerJob job_of(const ConvolutionShape& shape) {
  LayerJob job = {};
  job.channels = static_cast<int>(shape.channels);
  job.small_channels = static_cast<int>(shape.small_channels);
  job.height = static_cast<uint16_t>(shape.height);
  job.width = static_cast<uint16_t>(shape.width);
  job.kernel = static_cast<uint8_t>(shape.kernel);
  job.stride = static_cast<uint8_t>(shape.stride);
  return job;
}

// Of a job whose blocks have been counted.
template <class Tiles>
void check_tile(Tiles tiles, LayerJob& job) {
  if (job.blocks == 0) throw std::runtime_error("persistent kernels have no such tile");
  with_tile(tiles, job.tile, [&](auto tile) { job.of_warpgroups = decltype(tile)::kOfWarpgroups; });
  if (job.of_warpgroups) require_warpgroup_products();
}

// Which job begins the launch after one that begins with job `first`: if possible, where a phase
// does.
std::size_t end_of_launch(const std::vector<LayerJob>& jobs, std::size_t first) {
  const std::size_t most = first + kMostJobs;
  if (jobs.size() <= most) return jobs.size();
  for (std::size_t end = most; end > first; --end) {
    if (jobs[end].waits) return end;
  }
  return most;
}

}  // namespace

bool fits_persistent(const ConvolutionShape& shape) {
  return convolution_fits(shape) && kSharedBytes <= largest_shared_bytes();
}

int PersistentLayers::convolve(const ConvolutionShape& shape, const Convolution& convolution,
                               Tiling tiling, int phase) {
  LayerJob job = job_of(shape);
  job.x = convolution.x;
  job.weight = convolution.weight;
  job.y = convolution.y;
  job.added = convolution.added;
  job.mask = convolution.mask;
  job.sums = tiling.parts > 1 || tiling.by_taps ? convolution.parts : nullptr;
  job.parts = static_cast<uint16_t>(tiling.parts);
  job.tile = static_cast<uint8_t>(tiling.tile);
  job.transposed = convolution.transposed;
  job.relu = convolution.relu;
  job.rounds = convolution.rounds;
  job.kind = tiling.by_taps ? LayerJob::kProductsOfTaps : LayerJob::kConvolution;
  ConvolutionCall call;
  set_up(job, static_cast<int>(batch_), call);
  job.blocks = call.row_tiles * call.column_tiles * tiling.parts;
  check_tile(ConvolutionTiles(), job);
  add(job, phase++);
  if (job.sums == nullptr) return phase;
  job.kind = tiling.by_taps ? LayerJob::kAddTaps : LayerJob::kAddParts;
  set_up(job, static_cast<int>(batch_), call);
  job.blocks = up(call.values, 8 * kPersistentThreads);
  add(job, phase++);
  return phase;
}

int PersistentLayers::weight_gradient(const ConvolutionShape& shape, const void* small_map,
                                      const void* large_map, float* parts, Tiling tiling,
                                      int phase) {
  LayerJob job = job_of(shape);
  job.x = small_map;
  job.weight = large_map;
  job.sums = parts;
  job.parts = static_cast<uint16_t>(tiling.parts);
  job.tile = static_cast<uint8_t>(tiling.tile);
  job.kind = LayerJob::kWeightGradient;
  WeightGradientCall call;
  with_factor(type_,
              [&](auto value) { set_up<decltype(value)>(job, static_cast<int>(batch_), call); });
  job.blocks = call.row_tiles * call.column_tiles * tiling.parts;
  check_tile(GradientTiles(), job);
  if (up(call.chunks, call.chunks_of_part) != tiling.parts) {
    throw std::runtime_error("there are too many parts of a weight's gradient");
  }
  add(job, phase);
  return phase + 1;
}

void PersistentLayers::add(const LayerJob& job, int phase) {
  const auto index = static_cast<std::size_t>(phase);
  if (phases_.size() <= index) phases_.resize(index + 1);
  phases_[index].push_back(job);
}

std::vector<LayerJob> PersistentLayers::in_order() const {
  std::vector<LayerJob> jobs;
  for (const std::vector<LayerJob>& phase : phases_) {
    const std::size_t first = jobs.size();
    jobs.insert(jobs.end(), phase.begin(), phase.end());
    if (!phase.empty()) jobs[first].waits = true;
  }
  return jobs;
}

int64_t PersistentLayers::launches() const {
  const std::vector<LayerJob> jobs = in_order();
  int64_t count = 0;
  for (std::size_t first = 0; first < jobs.size(); first = end_of_launch(jobs, first)) ++count;
  return count;
}

void PersistentLayers::run(unsigned long long* counters, CudaStream stream) {
  if (empty()) return;
  const std::vector<LayerJob> jobs = in_order();
  fill_zero(counters, launches() * sizeof(*counters), stream);
  with_factor(type_, [&](auto value) {
    using T = decltype(value);
    const bool of_warpgroups = std::any_of(jobs.begin(), jobs.end(),
                                           [](const LayerJob& job) { return job.of_warpgroups; });
    const auto kernel =
        of_warpgroups ? persistent_layers_kernel<T, true> : persistent_layers_kernel<T, false>;
    const int most = co_resident_blocks(kernel, kPersistentThreads, kSharedBytes);
    for (std::size_t first = 0; first < jobs.size();) {
      const std::size_t end = end_of_launch(jobs, first);
      JobTable table;
      table.batch = static_cast<int>(batch_);
      table.counter = counters++;
      int64_t blocks = 0, of_phase = 0;
      for (std::size_t i = first; i < end; ++i) {
        of_phase = (jobs[i].waits ? 0 : of_phase) + jobs[i].blocks;
        blocks = std::max(blocks, of_phase);
        table.jobs[table.count++] = jobs[i];
      }
      launch_cooperative(kernel, static_cast<unsigned>(std::min<int64_t>(blocks, most)),
                         kPersistentThreads, kSharedBytes, stream, table);
      first = end;
    }
  });
  phases_.clear();
}

}  // namespace asng::cuda
