// Everything a .cu file needs of CUDA: the toolkit's headers and launches. The same file compiles
// with nvcc and, with ASNG_CUDA_ON_CPU defined, as plain C++, where a launch runs the grid at once
// on the calling thread (csrc/platform/grid_on_cpu). What only a device can do is a function here
// with a twin for that grid; nothing outside of platform/ asks which of the two it is.
//
// Kernels are called by launch() instead of <<<>>>, and get their dynamic shared memory from
// dynamic_shared<T>() instead of an extern array. A kernel has dynamic or static shared memory, not
// both: a device's limits are on the sum, and so what a launch asks for is all that counts.
#pragma once

#if defined(ASNG_WITHOUT_NVCC)
#error "nvcc does not compile this source, so it cannot include what is for devices"
#endif

#include <cmath>
#include <cstddef>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "platform/cuda_stream.h"

#if defined(ASNG_CUDA_ON_CPU)
#include "platform/grid_on_cpu/grid.h"
#include "platform/grid_on_cpu/half.h"
#include "platform/grid_on_cpu/tensor_cores.h"
#else
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "the CUDA kernels need compute capability 8.0 or newer; see TORCH_CUDA_ARCH_LIST"
#endif
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace asng::cuda {

// Shared memory that every kernel may use without opting in to more.
constexpr std::size_t kPlainSharedBytes = 48 * 1024;

namespace detail {

enum class Launch { kPlain, kCooperative, kEarly };

inline void allow_shared(const void* kernel, std::size_t bytes);

}  // namespace detail

#if defined(ASNG_CUDA_ON_CPU)

using cuda_on_cpu::largest_shared_bytes;

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(cuda_on_cpu::dynamic_shared());
}

namespace detail {

using cuda_on_cpu::opt_in;

template <class... P>
void start(Launch how, void (*kernel)(P...), std::tuple<P...>& values, dim3 grid, dim3 block,
           std::size_t shared_bytes, CudaStream) {
  cuda_on_cpu::run(
      reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
      [&] { std::apply(kernel, values); },
      how == Launch::kCooperative ? cuda_on_cpu::Blocks::kTogether
                                  : cuda_on_cpu::Blocks::kOneByOne);
}

}  // namespace detail

template <class... P>
int co_resident_blocks(void (*)(P...), unsigned int, std::size_t) {
  return 6;
}

inline void wait_for_earlier_kernels() {}
inline void arrive(unsigned long long* counter) { ++*counter; }
inline void wait_for(unsigned long long* counter, unsigned long long target,
                     cuda_on_cpu::Location where = cuda_on_cpu::Location::current()) {
  cuda_on_cpu::spin(counter, target, where);
}
inline void hand_over(void* to, const uint4& words) {
  cuda_on_cpu::check_global(to);
  std::memcpy(to, &words, sizeof(words));
}
template <int kCount, class At>
void receive(At at, uint4 (&to)[kCount],
             cuda_on_cpu::Location where = cuda_on_cpu::Location::current()) {
  for (int i = 0; i < kCount; ++i) {
    const void* from = at(i);
    to[i] = uint4{1, 1, 1, 1};
    if (from == nullptr) continue;
    for (int word = 0; word < 4; ++word) {
      cuda_on_cpu::spin(static_cast<const unsigned*>(from) + word, where);
    }
    std::memcpy(&to[i], from, sizeof(to[i]));
  }
}

// Few, so that small tests also reach the code for more work than multiprocessors.
inline int multiprocessor_count() { return 3; }

inline void fill_zero(void* memory, std::size_t bytes, CudaStream) {
  cuda_on_cpu::fill_zero(memory, bytes);
}
inline void copy_memory(void* to, const void* from, std::size_t bytes, CudaStream) {
  cuda_on_cpu::copy_memory(to, from, bytes);
}

namespace detail {

template <class Vector>
void write_aligned(void* to, const Vector& value) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(value) != 0) {
    throw std::runtime_error("an access of " + std::to_string(sizeof(value)) +
                             " bytes is not aligned");
  }
  std::memcpy(to, &value, sizeof(value));
}

}  // namespace detail

template <class Vector>
void write_at_once(void* to, const Vector& value) {
  cuda_on_cpu::check_global(to);
  detail::write_aligned(to, value);
}

inline float max_or_nan(float a, float b) { return a > b || a != a ? a : b; }

inline void store_shared(float* to, float a, float b, float c, float d) {
  cuda_on_cpu::check_shared(to);
  detail::write_aligned(to, make_float4(a, b, c, d));
}
inline void store_shared(double* to, double a, double b) {
  cuda_on_cpu::check_shared(to);
  detail::write_aligned(to, make_double2(a, b));
}

template <class T>
const T* kept(const T* pointer) {
  return pointer;
}

inline double reciprocal(double x) { return 1.0 / x; }
inline double reciprocal_root(double x) { return 1.0 / std::sqrt(x); }

inline int opaque(int value) { return value; }
template <class T>
T* in_global(T* pointer) {
  if (pointer != nullptr) cuda_on_cpu::check_global(pointer);
  return pointer;
}

template <int kBytes>
void copy_async(void* to, const void* from) {
  cuda_on_cpu::check_global(from);
  cuda_on_cpu::start_copy(to, from, kBytes);
}
inline void copy_async8(void* to, const void* from) { copy_async<8>(to, from); }
inline void copy_async16(void* to, const void* from) { copy_async<16>(to, from); }
inline void copy_async16(void* to, const void* from, bool there) {
  if (there) return copy_async<16>(to, from);
  cuda_on_cpu::start_copy(to, nullptr, 16);
}
using cuda_on_cpu::close_copies;
using cuda_on_cpu::wait_for_copies;
template <int kOpen>
void wait_for_closed_copies() {
  cuda_on_cpu::wait_for_closed_copies(kOpen);
}
inline void prefetch(const void*) {}

inline unsigned multiply_high(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}

#else

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + what + " failed: " +
                             cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
  }
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "asking for the device");
  return device;
}

// A thread asks once for each.
inline int device_attribute(cudaDeviceAttr attribute) {
  static thread_local std::map<std::pair<int, cudaDeviceAttr>, int> known;
  const int device = current_device();
  const auto found = known.find({device, attribute});
  if (found != known.end()) return found->second;
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, device), "asking for a device attribute");
  known[{device, attribute}] = value;
  return value;
}

template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char asng_dynamic_shared[];
  return reinterpret_cast<T*>(asng_dynamic_shared);
}

namespace detail {

// Allows the kernel that much dynamic shared memory on the current device, unless it was allowed as
// much before: asking takes longer than a launch.
inline void opt_in(const void* kernel, std::size_t bytes) {
  static std::mutex guard;
  static std::map<std::pair<const void*, int>, std::size_t> allowed;
  const std::lock_guard lock(guard);
  std::size_t& before = allowed[{kernel, current_device()}];
  if (bytes <= before) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "asking for shared memory");
  before = bytes;
}

template <class... P>
void start(Launch how, void (*kernel)(P...), std::tuple<P...>& values, dim3 grid, dim3 block,
           std::size_t shared_bytes, CudaStream stream) {
  std::apply(
      [&](auto&... value) {
        // One more, because an array must not be empty.
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))..., nullptr};
        const void* function = reinterpret_cast<const void*>(kernel);
        if (how == Launch::kEarly && device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9) {
          cudaLaunchAttribute early = {};
          early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
          early.val.programmaticStreamSerializationAllowed = 1;
          cudaLaunchConfig_t config = {};
          config.gridDim = grid;
          config.blockDim = block;
          config.dynamicSmemBytes = shared_bytes;
          config.stream = stream;
          config.attrs = &early;
          config.numAttrs = 1;
          check(cudaLaunchKernelExC(&config, function, pointers), "a kernel launch");
          return;
        }
        check(
            how == Launch::kCooperative
                ? cudaLaunchCooperativeKernel(function, grid, block, pointers, shared_bytes, stream)
                : cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream),
            "a kernel launch");
      },
      values);
}

}  // namespace detail

inline int multiprocessor_count() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// Of a block on the current device, for kernels that opt in.
inline std::size_t largest_shared_bytes() {
  return static_cast<std::size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

// How many blocks of a kernel the current device runs at the same time. A thread asks once for
// each.
template <class... P>
int co_resident_blocks(void (*kernel)(P...), unsigned int threads, std::size_t shared_bytes) {
  static thread_local std::map<std::tuple<const void*, int, unsigned int, std::size_t>, int> known;
  const void* const function = reinterpret_cast<const void*>(kernel);
  const std::tuple key(function, current_device(), threads, shared_bytes);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  detail::allow_shared(function, shared_bytes);
  int per_multiprocessor = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel,
                                                      static_cast<int>(threads), shared_bytes),
        "asking how many blocks fit");
  return known[key] = per_multiprocessor * multiprocessor_count();
}

// In a kernel of launch_early(): waits until those queued before it are done. From there on the
// next one may begin.
__device__ __forceinline__ void wait_for_earlier_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Counts *counter up by one; what this thread wrote before, and what others of its block wrote
// before a barrier, is then there for who waits for that.
__device__ __forceinline__ void arrive(unsigned long long* counter) {
  asm volatile("red.release.gpu.global.add.u64 [%0], 1;" ::"l"(__cvta_generic_to_global(counter))
               : "memory");
}

// Waits, in a kernel launched together, until other blocks have counted *counter up to `target`;
// what they wrote before is then there to be read (by __ldcg, which passes over a stale first-level
// cache).
__device__ inline void wait_for(unsigned long long* counter, unsigned long long target) {
  unsigned long long seen;
  do {
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];"
                 : "=l"(seen)
                 : "l"(__cvta_generic_to_global(counter))
                 : "memory");
  } while (seen < target);
}

// Four words for other blocks of a kernel launched together, which have found zeros there: odd
// ones, so that each of them says by itself that it is there. Nothing else is handed on with them,
// and so nothing that was written before has to be waited for.
__device__ __forceinline__ void hand_over(void* to, const uint4& words) {
  asm volatile(
      "st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
      "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
      : "memory");
}

// Waits for such words at at(i), for each i < kCount; those of a null are ones. All are asked for
// at the same time, and all again until the last one is there, so that nothing stands between the
// loads.
template <int kCount, class At>
__device__ __forceinline__ void receive(At at, uint4 (&to)[kCount]) {
  unsigned there;
  do {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const void* from = at(i);
      to[i] = make_uint4(1, 1, 1, 1);
      if (from != nullptr) {
        asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[i].x), "=r"(to[i].y), "=r"(to[i].z), "=r"(to[i].w)
                     : "l"(__cvta_generic_to_global(from))
                     : "memory");
      }
    }
    there = 1;
#pragma unroll
    for (int i = 0; i < kCount; ++i) there &= to[i].x & to[i].y & to[i].z & to[i].w;
  } while (there == 0);
}

inline void fill_zero(void* memory, std::size_t bytes, CudaStream stream) {
  check(cudaMemsetAsync(memory, 0, bytes, stream), "filling memory with zeros");
}
// Within the device.
inline void copy_memory(void* to, const void* from, std::size_t bytes, CudaStream stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "copying memory");
}

// One access of 8 or 16 bytes to global memory. The compiler takes stores of a structure, and of
// CUDA's own vector types, apart there, into an access for each of their parts.
__device__ __forceinline__ void write_at_once(void* to, const float4& v) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
               : "memory");
}
__device__ __forceinline__ void write_at_once(void* to, const double2& v) {
  asm volatile("st.global.v2.f64 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "d"(v.x),
               "d"(v.y)
               : "memory");
}
__device__ __forceinline__ void write_at_once(void* to, const uint2& v) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(v.x),
               "r"(v.y)
               : "memory");
}
__device__ __forceinline__ void write_at_once(void* to, const uint4& v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// One access of 16 bytes to shared memory, for the same reason.
__device__ __forceinline__ void store_shared(float* to, float a, float b, float c, float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "f"(a), "f"(b), "f"(c), "f"(d)
               : "memory");
}
__device__ __forceinline__ void store_shared(double* to, double a, double b) {
  asm volatile(
      "st.shared.v2.f64 [%0], {%1, %2};" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
      "d"(a), "d"(b)
      : "memory");
}

// The pointer, in registers: otherwise compilers put it together again for every access.
template <class T>
__device__ __forceinline__ const T* kept(const T* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}

// 1/x and 1/√x, to an ulp or so, if both are normal numbers above 0: without the ways around those
// that are not, between which nothing else can be computed.
__device__ __forceinline__ double reciprocal(double x) {
  double y;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  const double error = fma(-x, y, 1.0);  // so small that its cube is nothing
  return fma(y, fma(error, error, error), y);
}
__device__ __forceinline__ double reciprocal_root(double x) {
  double y;
  asm("rsqrt.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  const double error = fma(-x * y, y, 1.0);
  return fma(y * error, fma(0.375, error, 0.5), y);
}

// The value as one of which nothing is known: what follows from it is computed here, and not kept
// from wherever it was computed before.
__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// The pointer, which points to global memory: of one that was loaded compilers do not know that.
template <class T>
__device__ __forceinline__ T* in_global(T* pointer) {
  __builtin_assume(__isGlobal(pointer));
  return pointer;
}

// The larger of both, or NaN if `a` is; b is a number.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

// Starts to copy 8 or 16 bytes from global to shared memory, both aligned to as many; they are
// there for this thread after wait_for_copies(), and for others after a barrier behind that.
__device__ __forceinline__ void copy_async8(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from))
               : "memory");
}
__device__ __forceinline__ void copy_async16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from))
               : "memory");
}
// Or zeros, unless the source is there; then nothing is read from it.
__device__ __forceinline__ void copy_async16(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}
// Makes a group of the copies that this thread has started since the last one, and waits for all
// groups but the last kOpen ones.
__device__ __forceinline__ void close_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kOpen>
__device__ __forceinline__ void wait_for_closed_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}

// Starts to bring the line of global memory to the second-level cache.
__device__ __forceinline__ void prefetch(const void* line) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(line)));
}

// The upper half of a product: x / d for x < 2¹⁶ and d < 2¹⁶ is that of x and 2³² / d, rounded up.
__device__ __forceinline__ unsigned multiply_high(unsigned a, unsigned b) { return __umulhi(a, b); }

// c += a·b of 16×8 and 8×8 values in TF32, by a warp. Lane 4·g + t holds rows g and g + 8 of a at
// columns t and t + 4, column g of b at rows t and t + 4, and rows g and g + 8 of c at columns 2·t
// and 2·t + 1; of a and c, entries of a row stand g, g + 8, g, g + 8, and g, g, g + 8, g + 8.
__device__ __forceinline__ void mma_tf32(float (&c)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same of 16×16 and 16×8 values in bfloat16, two of which a word holds, the first one in its
// lower half: where in TF32 a lane has column t of a, or row t of b, it has 2·t and 2·t + 1, and
// where it has t + 4, 2·t + 8 and 2·t + 9.
__device__ __forceinline__ void mma_bfloat16(float (&c)[4], const unsigned (&a)[4],
                                             const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Four matrices of 8 rows of 16 bytes in shared memory: row r of matrix i begins where lane 8·i + r
// says. Lane 4·g + t gets word t of row g of each.
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}
// Of 8×8 values of 16 bits, turned: the lane gets those of rows 2·t and 2·t + 1 in column g.
__device__ __forceinline__ void load_turned_matrices(unsigned (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}
// To the nearest with 10 bits of mantissa, ties away from zero.
__device__ __forceinline__ unsigned to_tf32(float x) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

#endif

namespace detail {

inline void allow_shared(const void* kernel, std::size_t bytes) {
  if (bytes <= kPlainSharedBytes) return;
  if (bytes > largest_shared_bytes()) {
    throw std::runtime_error("a kernel needs " + std::to_string(bytes) +
                             " bytes of shared memory, and a block of this device has " +
                             std::to_string(largest_shared_bytes()));
  }
  opt_in(kernel, bytes);
}

template <class... P, class... A>
void launch(Launch how, void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes,
            CudaStream stream, A&&... arguments) {
  std::tuple<P...> values(std::forward<A>(arguments)...);
  allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
  start(how, kernel, values, grid, block, shared_bytes, stream);
}

}  // namespace detail

// Queues kernel(arguments...) on the stream of the current device; throws std::runtime_error if the
// launch fails. Errors inside the kernel show up later, as CUDA has it.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes,
            CudaStream stream, A&&... arguments) {
  detail::launch(detail::Launch::kPlain, kernel, grid, block, shared_bytes, stream,
                 std::forward<A>(arguments)...);
}

// The same for kernels whose blocks may begin while what is queued before them is not done yet, and
// get ready. All their threads must call wait_for_earlier_kernels() before the first access to
// memory.
template <class... P, class... A>
void launch_early(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes,
                  CudaStream stream, A&&... arguments) {
  detail::launch(detail::Launch::kEarly, kernel, grid, block, shared_bytes, stream,
                 std::forward<A>(arguments)...);
}

// The same for kernels whose blocks wait for each other: all of them run at the same time. There
// must be no more than co_resident_blocks() of them.
template <class... P, class... A>
void launch_cooperative(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes,
                        CudaStream stream, A&&... arguments) {
  detail::launch(detail::Launch::kCooperative, kernel, grid, block, shared_bytes, stream,
                 std::forward<A>(arguments)...);
}

}  // namespace asng::cuda
