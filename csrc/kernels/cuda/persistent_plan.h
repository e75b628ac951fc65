// Plans of what the blocks of an architecture do in one launch, in which order and on what. They
// are made before a pass, for all cells at once, when memory for feature maps is not there yet: so
// addresses are counted from where several kinds of memory will begin, and a block that takes a
// plan from global to shared memory puts in where they do.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/cuda/persistent.h"

namespace asng::cuda {

enum class Base : int {
  kKnown,    // address 0
  kPlanned,  // what is written before the pass, which may be moved
  kSaved,    // what is kept for the backward pass
  kScratch,
  kOfBlock,  // as kScratch, and for each block of an architecture so much further
  kShared,   // the values in shared memory
  kCount,
};
inline constexpr int kBaseShift = 60;
inline constexpr uint64_t kOffset = (uint64_t{1} << kBaseShift) - 1;

// `place` counted from another base, where a null is its beginning.
template <class T>
ASNG_HD T* counted_from(Base base, T* place = nullptr) {
  const uint64_t begin = static_cast<uint64_t>(base) << kBaseShift;
  return reinterpret_cast<T*>(begin | (reinterpret_cast<uint64_t>(place) & kOffset));
}

// Where all of them begin for a block, in shared memory: the first thing there is in a plan.
struct alignas(16) Bases {
  uint64_t begin[static_cast<int>(Base::kCount)];

  // For all threads of the block. The bases are there after the next barrier.
  __device__ void set(const void* planned, const void* saved, const void* scratch,
                      int64_t block_bytes, const void* shared) {
    if (threadIdx.x != 0) return;
    const uint64_t of_scratch = reinterpret_cast<uint64_t>(scratch);
    begin[static_cast<int>(Base::kKnown)] = 0;
    begin[static_cast<int>(Base::kPlanned)] = reinterpret_cast<uint64_t>(planned);
    begin[static_cast<int>(Base::kSaved)] = reinterpret_cast<uint64_t>(saved);
    begin[static_cast<int>(Base::kScratch)] = of_scratch;
    begin[static_cast<int>(Base::kOfBlock)] = of_scratch + blockIdx.x * block_bytes;
    begin[static_cast<int>(Base::kShared)] = reinterpret_cast<uint64_t>(shared);
  }

  // Adds them to the addresses that are the first words of each record. `turn` is which of all
  // words is this thread's, also of earlier records; returns what is left of it.
  template <int kWords, class Record, int kRecords>
  __device__ int add_to(Record (&records)[kRecords], int turn) const {
    if (turn >= 0 && turn < kRecords * kWords) {
      char* at = reinterpret_cast<char*>(records + turn / kWords) + turn % kWords * 8;
      void* const word = __builtin_assume_aligned(at, 8);
      uint64_t address;
      std::memcpy(&address, word, 8);
      const int base = static_cast<int>(address >> kBaseShift);
      // Where there is no record there may be anything.
      if (base < static_cast<int>(Base::kCount)) address = begin[base] + (address & kOffset);
      std::memcpy(word, &address, 8);
    }
    return turn - kRecords * kWords;
  }
};

// Starts to copy the plan of this block's architecture, but for the bases, to shared memory.
template <class Plan>
__device__ __forceinline__ void start_plan(const Plan* plans, Plan& to) {
  static_assert(sizeof(Plan) % 16 == 0);
  const char* from = reinterpret_cast<const char*>(plans + blockIdx.y);
#pragma unroll 1
  for (int i = sizeof(Bases) + threadIdx.x * 16; i < static_cast<int>(sizeof(Plan));
       i += kCellThreads * 16) {
    copy_async16(reinterpret_cast<char*>(&to) + i, from + i);
  }
}

// Keeps a plan that a block has made in shared memory.
template <class Plan>
__device__ void keep_plan(const Plan& plan, Plan* to) {
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x * 16; i < static_cast<int>(sizeof(Plan)); i += kCellThreads * 16) {
    uint4 piece;
    const char* from = reinterpret_cast<const char*>(&plan) + i;
    std::memcpy(&piece, __builtin_assume_aligned(from, 16), 16);
    write_at_once(reinterpret_cast<char*>(to) + i, piece);
  }
}

// Makes the plans of all cells, a block for each cell and architecture: of make(cell), the jobs
// that the kernel takes.
template <class Plan, class Job, class Cell, class Make>
void launch_plans(void (*kernel)(Jobs<Job>), const std::vector<Cell>& cells, Make make,
                  CudaStream stream) {
  for (std::size_t first = 0; first < cells.size(); first += Jobs<Job>::kMost) {
    Jobs<Job> some;
    const auto count =
        static_cast<unsigned>(std::min<std::size_t>(cells.size() - first, Jobs<Job>::kMost));
    int archs = 0;
    for (unsigned i = 0; i < count; ++i) {
      const Cell& cell = cells[first + i];
      some.jobs[i] = make(cell);
      archs = std::max(archs, cell.dag.shape.archs);
    }
    launch(kernel, dim3(count, static_cast<unsigned>(archs)), kCellThreads, sizeof(Plan), stream,
           some);
  }
}

}  // namespace asng::cuda
