// The part of mma.h that the kernels use, for a grid that runs on the CPU: matmuls of 16×8 and
// 8×16 tiles in TF32. It is strict: all lanes of a warp must arrive, with the same arguments;
// memory must be aligned; factors must have been rounded to TF32. Which entries of a tile a lane
// holds is unspecified in CUDA, and not what it is on a device here.
#pragma once

#include <stdexcept>
#include <string>

#include "platform/grid_on_cpu/grid.h"

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
namespace precision {
struct tf32;
}
enum layout_t { mem_row_major, mem_col_major };

namespace detail {

using asng::cuda_on_cpu::Location;

[[noreturn]] inline void fail(const std::string& what, const Location& where) {
  throw std::runtime_error(what + " at " + where.file_name() + ":" + std::to_string(where.line()));
}

// Waits for the warp; all lanes must pass the same value.
template <class T>
void same_in_warp(const char* what, T value, const Location& where) {
  if (asng::cuda_on_cpu::shuffle(what, 0xffffffffu, value, 0, where) != value) {
    fail(std::string("lanes pass different arguments to ") + what, where);
  }
}

inline int warp() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) /
                          32);
}

// The entries of a tile of `kSize` entries that a lane holds.
template <int kSize>
struct Part {
  static constexpr int num_elements = kSize / 32;
  float x[num_elements];

  static int entry(int element) {
    return (asng::cuda_on_cpu::lane() * num_elements + element) * 37 % kSize;
  }
};

// Whole factors, as the lanes of a warp put them together.
struct Factors {
  float a[16 * 8], b[8 * 16];
};
inline Factors& factors() {
  static thread_local Factors of_warps[32];
  return of_warps[warp()];
}

inline void check_memory(const void* memory, unsigned int row, const Location& where) {
  if (reinterpret_cast<std::uintptr_t>(memory) % 32 != 0 || row % 4 != 0) {
    fail("a tile must begin at a multiple of 32 bytes, with rows a multiple of 4 values apart,",
         where);
  }
}

inline float checked(float x, const Location& where) {
  if ((__float_as_uint(x) & 0x1fffu) != 0 && !std::isnan(x)) {
    fail("a factor was not rounded to TF32", where);
  }
  return x;
}

}  // namespace detail

template <class Use, int m, int n, int k, class T, class Layout = void>
struct fragment;
template <class Layout>
struct fragment<matrix_a, 16, 16, 8, precision::tf32, Layout> : detail::Part<128> {};
template <class Layout>
struct fragment<matrix_b, 16, 16, 8, precision::tf32, Layout> : detail::Part<128> {};
template <>
struct fragment<accumulator, 16, 16, 8, float> : detail::Part<256> {};

#define ASNG_HERE const asng::cuda_on_cpu::Location& where = asng::cuda_on_cpu::Location::current()

// To the nearest, ties away from zero, 10-bit mantissa.
inline float __float_to_tf32(float x) {
  const unsigned int bits = __float_as_uint(x);
  return std::isfinite(x) ? __uint_as_float((bits + 0x1000u) & ~0x1fffu) : x;
}

template <class Fragment>
void fill_fragment(Fragment& to, float value) {
  for (float& x : to.x) x = value;
}

namespace detail {

template <class Part>
void load(Part& to, const float* from, unsigned int row, int columns, bool transposed,
          const Location& where) {
  same_in_warp("load_matrix_sync", from, where);
  same_in_warp("load_matrix_sync", row, where);
  check_memory(from, row, where);
  for (int i = 0; i < to.num_elements; ++i) {
    const int r = Part::entry(i) / columns, c = Part::entry(i) % columns;
    to.x[i] = transposed ? from[c * row + r] : from[r * row + c];
  }
}

}  // namespace detail

template <class Layout>
void load_matrix_sync(fragment<matrix_a, 16, 16, 8, precision::tf32, Layout>& to, const float* from,
                      unsigned int row, ASNG_HERE) {
  detail::load(to, from, row, 8, std::is_same_v<Layout, col_major>, where);
}
template <class Layout>
void load_matrix_sync(fragment<matrix_b, 16, 16, 8, precision::tf32, Layout>& to, const float* from,
                      unsigned int row, ASNG_HERE) {
  detail::load(to, from, row, 16, std::is_same_v<Layout, col_major>, where);
}
inline void load_matrix_sync(fragment<accumulator, 16, 16, 8, float>& to, const float* from,
                             unsigned int row, layout_t layout, ASNG_HERE) {
  detail::load(to, from, row, 16, layout == mem_col_major, where);
}

inline void store_matrix_sync(float* to, const fragment<accumulator, 16, 16, 8, float>& from,
                              unsigned int row, layout_t layout, ASNG_HERE) {
  detail::same_in_warp("store_matrix_sync", to, where);
  detail::same_in_warp("store_matrix_sync", row, where);
  detail::check_memory(to, row, where);
  for (int i = 0; i < from.num_elements; ++i) {
    const int r = from.entry(i) / 16, c = from.entry(i) % 16;
    (layout == mem_col_major ? to[c * row + r] : to[r * row + c]) = from.x[i];
  }
}

template <class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, 16, 16, 8, float>& to,
              const fragment<matrix_a, 16, 16, 8, precision::tf32, LayoutA>& a,
              const fragment<matrix_b, 16, 16, 8, precision::tf32, LayoutB>& b,
              const fragment<accumulator, 16, 16, 8, float>& c, ASNG_HERE) {
  detail::Factors& factors = detail::factors();
  for (int i = 0; i < a.num_elements; ++i) {
    factors.a[a.entry(i)] = detail::checked(a.x[i], where);
    factors.b[b.entry(i)] = detail::checked(b.x[i], where);
  }
  detail::same_in_warp("mma_sync", 0, where);
  for (int i = 0; i < to.num_elements; ++i) {
    const int row = to.entry(i) / 16, column = to.entry(i) % 16;
    float sum = 0;
    for (int k = 0; k < 8; ++k) sum += factors.a[row * 8 + k] * factors.b[k * 16 + column];
    to.x[i] = c.x[i] + sum;
  }
  detail::same_in_warp("mma_sync", 1, where);
}

}  // namespace nvcuda::wmma

namespace asng::cuda {

// As mma.m16n8k8: lane 4·g + t holds rows g and g + 8 of a at columns t and t + 4, column g of b at
// rows t and t + 4, and rows g and g + 8 of c at columns 2·t and 2·t + 1.
inline void mma_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], ASNG_HERE) {
  namespace detail = nvcuda::wmma::detail;
  detail::Factors& factors = detail::factors();
  const int g = cuda_on_cpu::lane() / 4, t = cuda_on_cpu::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    factors.a[(g + i % 2 * 8) * 8 + t + i / 2 * 4] = detail::checked(__uint_as_float(a[i]), where);
  }
  for (int i = 0; i < 2; ++i) {
    factors.b[(t + i * 4) * 8 + g] = detail::checked(__uint_as_float(b[i]), where);
  }
  detail::same_in_warp("mma_tf32", 0, where);
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    float sum = 0;
    for (int k = 0; k < 8; ++k) sum += factors.a[row * 8 + k] * factors.b[k * 8 + column];
    c[i] += sum;
  }
  detail::same_in_warp("mma_tf32", 1, where);
}

inline unsigned to_tf32(float x) { return __float_as_uint(nvcuda::wmma::__float_to_tf32(x)); }

#undef ASNG_HERE

}  // namespace asng::cuda
