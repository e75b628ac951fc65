// Runs CUDA kernels that were compiled as C++, with the part of CUDA that they use: the threads of
// a block are fibers of the calling thread, so that barriers, shared memory, warp shuffles and
// atomics mean what they mean on a device. For tests: slow, and strict where CUDA leaves behavior
// undefined. Errors (thrown by run() as std::runtime_error, saying which threads and where) are
//   a barrier or warp operation that some of its threads never reach, or reach at another line;
//   a shuffle that reads a lane outside its mask; a launch that no device would accept: of blocks
//   or grids too large, or of a block with more shared memory than 48 KiB, or than its kernel has
//   opted in to; static shared memory, which such limits count as well, beside dynamic; an address
//   of shared memory for what a device does to global memory only, or the other way round.
// Blocks run one after another, or alternate if the launch is cooperative. Static shared memory
// keeps what the last block left there, dynamic shared memory starts as NaNs, and AddressSanitizer
// guards the bounds of both.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <source_location>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__                                              \
  const asng::cuda_on_cpu::StaticShared ASNG_AT_LINE(__LINE__); \
  static
#define ASNG_AT_LINE(line) ASNG_JOINED(asng_static_shared_, line)
#define ASNG_JOINED(name, line) name##line
#define __forceinline__ inline
#define __noinline__
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)

struct uint3 {
  unsigned int x, y, z;
};
struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};

// Libraries find these without a call, unlike other variables of a thread.
#define ASNG_OF_THREAD [[gnu::tls_model("initial-exec")]] inline thread_local
ASNG_OF_THREAD uint3 threadIdx{}, blockIdx{};
ASNG_OF_THREAD dim3 blockDim, gridDim;

namespace asng::cuda_on_cpu {

using Location = std::source_location;

// Blocks that wait for each other need a cooperative launch; they cannot have static shared memory,
// of which there is one for all blocks here.
enum class Blocks { kOneByOne, kTogether };

// Runs the grid; every thread calls `kernel`, which stands for `function`.
void run(const void* function, dim3 grid, dim3 block, std::size_t shared_bytes,
         const std::function<void()>& kernel, Blocks how = Blocks::kOneByOne);

// As cudaFuncSetAttribute does for the largest dynamic shared memory.
void opt_in(const void* function, std::size_t bytes);

inline constexpr std::size_t kLargestShared = 227 * 1024;  // of compute capability 9.0
std::size_t largest_shared_bytes();

// While one of these lives, blocks may opt in to that much, less than otherwise.
class SharedLimit {
 public:
  explicit SharedLimit(std::size_t bytes);
  ~SharedLimit();
  SharedLimit(const SharedLimit&) = delete;
  SharedLimit& operator=(const SharedLimit&) = delete;
};

void fill_zero(void* memory, std::size_t bytes);
void copy_memory(void* to, const void* from, std::size_t bytes);

// While one of these lives, launches are checked, but nothing runs and no memory is looked at;
// blocks may opt in to that much shared memory.
class LaunchesOnly {
 public:
  explicit LaunchesOnly(std::size_t largest_shared = kLargestShared);
  ~LaunchesOnly();
  LaunchesOnly(const LaunchesOnly&) = delete;
  LaunchesOnly& operator=(const LaunchesOnly&) = delete;
};

// Stands where a kernel declares static shared memory; fails where it may not.
struct StaticShared {
  explicit StaticShared(const Location& where = Location::current());
};

// The dynamic shared memory of the current thread's block.
struct DynamicShared {
  unsigned char* begin = nullptr;
  std::size_t bytes = 0;

  bool has(const void* address) const {
    return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(begin) < bytes;
  }
};
ASNG_OF_THREAD DynamicShared dynamic;

inline void* dynamic_shared() { return dynamic.begin; }

// What this thread has begun and a device does beside it, in groups of which the last one is open.
using DelayedWork = std::vector<std::vector<std::function<void()>>>;
DelayedWork& delayed_work();

// Copies to shared memory, which are as late as they may be: made when they are waited for. Until
// then there is NaN, so that neither what was there before nor what is to come can be read. From
// null come zeros.
void start_copy(void* to, const void* from, std::size_t bytes);
void close_copies();
void wait_for_copies();
void wait_for_closed_copies(std::size_t open);

// For what a device does to one space of memory only: throws for the address of another. Static
// shared memory is not told from global memory.
[[noreturn]] void fail_access(bool to_shared);
inline void check_global(const void* address) {
  if (dynamic.has(address)) fail_access(false);
}
inline void check_shared(const void* address) {
  if (dynamic.bytes > 0 && !dynamic.has(address)) fail_access(true);
}

// Threads and blocks run in ascending order, or in descending order while one of these
// lives. A kernel that lacks a barrier tends to give different results in the two orders.
class Backward {
 public:
  Backward();
  ~Backward();
  Backward(const Backward&) = delete;
  Backward& operator=(const Backward&) = delete;
};

// Waits for all threads of the block; returns how many of them passed true.
int block_barrier(const char* what, bool predicate, const Location& where);

// Waits until *counter >= target.
void spin(const unsigned long long* counter, unsigned long long target, const Location& where);
// Waits until *word is odd.
void spin(const unsigned int* word, const Location& where);

struct Exchanged {
  alignas(16) unsigned char value[16];
  unsigned int ballot;  // the lanes that passed true
};
// Waits for the lanes in `mask`; returns the value of lane `source`, until the next call.
const Exchanged& exchange(const char* what, unsigned int mask, bool predicate, int source,
                          const void* value, std::size_t size, const Location& where);

// Waits for all 32 lanes, then is called once, with the arguments of each.
using Collective = void (*)(void* const (&of_lanes)[32]);
void collect(const char* what, void* arguments, Collective collective, const Location& where);

inline int lane() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) %
                          32);
}

template <class T>
T shuffle(const char* what, unsigned int mask, T value, int source, const Location& where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 16);
  const Exchanged& got = exchange(what, mask, false, source, &value, sizeof(T), where);
  T result;
  std::memcpy(&result, got.value, sizeof(T));
  return result;
}

}  // namespace asng::cuda_on_cpu

// Barriers and warp operations.

#define ASNG_HERE asng::cuda_on_cpu::Location where = asng::cuda_on_cpu::Location::current()

inline void __syncthreads(ASNG_HERE) {
  asng::cuda_on_cpu::block_barrier("__syncthreads", false, where);
}
inline int __syncthreads_or(int predicate, ASNG_HERE) {
  return asng::cuda_on_cpu::block_barrier("__syncthreads_or", predicate != 0, where) > 0;
}
inline void __syncwarp(unsigned int mask = 0xffffffffu, ASNG_HERE) {
  asng::cuda_on_cpu::exchange("__syncwarp", mask, false, asng::cuda_on_cpu::lane(), nullptr, 0,
                              where);
}
inline unsigned int __ballot_sync(unsigned int mask, int predicate, ASNG_HERE) {
  return asng::cuda_on_cpu::exchange("__ballot_sync", mask, predicate != 0,
                                     asng::cuda_on_cpu::lane(), nullptr, 0, where)
      .ballot;
}
template <class T>
T __shfl_sync(unsigned int mask, T value, int source, int width = 32, ASNG_HERE) {
  const int lane = asng::cuda_on_cpu::lane();
  const int first = lane & ~(width - 1);
  return asng::cuda_on_cpu::shuffle("__shfl_sync", mask, value, first + (source & (width - 1)),
                                    where);
}
template <class T>
T __shfl_xor_sync(unsigned int mask, T value, int lane_mask, int width = 32, ASNG_HERE) {
  const int lane = asng::cuda_on_cpu::lane();
  const int source = lane ^ lane_mask;
  const bool readable = source < (lane & ~(width - 1)) + width;
  return asng::cuda_on_cpu::shuffle("__shfl_xor_sync", mask, value, readable ? source : lane,
                                    where);
}
template <class T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = 32, ASNG_HERE) {
  const int lane = asng::cuda_on_cpu::lane();
  const int source = lane + static_cast<int>(delta);
  const bool readable = source < (lane & ~(width - 1)) + width;
  return asng::cuda_on_cpu::shuffle("__shfl_down_sync", mask, value, readable ? source : lane,
                                    where);
}
template <class T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = 32, ASNG_HERE) {
  const int lane = asng::cuda_on_cpu::lane();
  const int source = lane - static_cast<int>(delta);
  const bool readable = source >= (lane & ~(width - 1));
  return asng::cuda_on_cpu::shuffle("__shfl_up_sync", mask, value, readable ? source : lane, where);
}

#undef ASNG_HERE

inline void __threadfence() {}

// Atomics: threads only alternate where they wait, so plain operations are atomic.

template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  const T old = *address;
  *address = old + value;
  return old;
}
// Wraps to 0 after `limit`.
inline unsigned int atomicInc(unsigned int* address, unsigned int limit) {
  const unsigned int old = *address;
  *address = old >= limit ? 0 : old + 1;
  return old;
}

// Vector types, with CUDA's alignment, on which wide loads rely.

#define ASNG_VECTOR(T, name, bytes)                                            \
  struct alignas(2 * bytes) name##2 { T x, y; };                               \
  struct alignas((4 * bytes < 16) ? 4 * bytes : 16) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                   \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
ASNG_VECTOR(float, float, 4)
ASNG_VECTOR(double, double, 8)
ASNG_VECTOR(unsigned int, uint, 4)
#undef ASNG_VECTOR

// Arithmetic that CUDA has without a header.

using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;

template <class T>
T __ldcg(const T* address) {
  asng::cuda_on_cpu::check_global(address);
  return *address;
}
inline int __popc(unsigned int bits) { return std::popcount(bits); }
template <class T>
T __ldg(const T* address) {
  asng::cuda_on_cpu::check_global(address);
  return *address;
}
inline unsigned int __float_as_uint(float x) {
  unsigned int bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
// One more than the position of the lowest bit; 0 if there is none.
inline int __ffs(int bits) {
  return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1;
}
inline float __uint_as_float(unsigned int bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// bfloat16, as in cuda_bf16.h.
struct __nv_bfloat16 {
  std::uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
  return __uint_as_float(static_cast<unsigned int>(x.bits) << 16);
}
inline __nv_bfloat16 __float2bfloat16(float x) {
  const unsigned int bits = __float_as_uint(x);
  if (std::isnan(x)) return {0x7fff};
  // To the nearest, ties to even.
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16(x), __float2bfloat16(y)};
}
