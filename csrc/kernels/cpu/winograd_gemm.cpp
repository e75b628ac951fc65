// Compiled once per instruction set, like kernels.cpp.

#include "kernels/cpu/winograd_transform.h"

namespace asng::cpu::ASNG_CAPABILITY {

namespace {

template <class T>
inline constexpr int64_t kPanel = 2 * kLanes<T>;

// Rows of accumulators: with two vectors each they leave registers for one row of b and a value.
inline constexpr int kRows = kManyRegisters ? 12 : 6;
// Rows of a gradient are channels, of which there is a multiple of the lanes.
template <class T>
inline constexpr int kGradientRows = kManyRegisters ? 8 : (kLanes<T> < 4 ? kLanes<T> : 4);

template <class T>
ASNG_INLINE int64_t panel_width(int64_t begin, int64_t columns) {
  return columns - begin < kPanel<T> ? columns - begin : kPanel<T>;
}

// Adds `depth` products to P × N accumulators; a is (P, width) here, b (depth, N vectors).
template <class T, int P, int N, int64_t width>
ASNG_INLINE void multiply_panel(int64_t depth, const T* a, const T* b, Vec<T> (&acc)[P][N]) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> w[N];
    for (int n = 0; n < N; ++n) w[n] = load(b + (k * N + n) * lanes);
    for (int p = 0; p < P; ++p) {
      const T value = a[p * width + k];
      for (int n = 0; n < N; ++n) acc[p][n] += w[n] * value;
    }
  }
}

template <class T, int N>
ASNG_INLINE void multiply_columns(int64_t rows, int64_t depth, int64_t used, const T* a, const T* b,
                                  T* out) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t t = 0; t < rows; t += kRows) {
    Vec<T> acc[kRows][N] = {};
    int64_t k = 0;
    for (; k + kPanel<T> <= depth; k += kPanel<T>) {
      const int64_t left = used - k < kPanel<T> ? used - k : kPanel<T>;
      multiply_panel<T, kRows, N, kPanel<T>>(left, a + k * rows + t * kPanel<T>, b + k * N * lanes,
                                             acc);
    }
    if (k < depth) {
      multiply_panel<T, kRows, N, lanes>(used - k, a + k * rows + t * lanes, b + k * N * lanes,
                                         acc);
    }
    for (int p = 0; p < kRows; ++p) {
      for (int n = 0; n < N; ++n) store(out + ((t + p) * N + n) * lanes, acc[p][n]);
    }
  }
}

template <class T>
void multiply(int64_t rows, int64_t depth, int64_t used, int64_t columns, const T* a, const T* b,
              T* out) {
  for (int64_t n = 0; n < columns; n += kPanel<T>) {
    if (panel_width<T>(n, columns) == kPanel<T>) {
      multiply_columns<T, 2>(rows, depth, used, a, b + n * depth, out + n * rows);
    } else {
      multiply_columns<T, 1>(rows, depth, used, a, b + n * depth, out + n * rows);
    }
  }
}

template <class T, int N, int64_t width>
ASNG_INLINE void accumulate_panel(int64_t rows, const T* a, const T* b, T* out) {
  constexpr int64_t lanes = kLanes<T>;
  constexpr int P = kGradientRows<T>;
  for (int64_t r = 0; r < width; r += P) {
    Vec<T> acc[P][N];
    for (int p = 0; p < P; ++p) {
      for (int n = 0; n < N; ++n) acc[p][n] = load(out + ((r + p) * N + n) * lanes);
    }
    for (int64_t t = 0; t < rows; ++t) {
      Vec<T> w[N];
      for (int n = 0; n < N; ++n) w[n] = load(b + (t * N + n) * lanes);
      for (int p = 0; p < P; ++p) {
        const T value = a[t * width + r + p];
        for (int n = 0; n < N; ++n) acc[p][n] += w[n] * value;
      }
    }
    for (int p = 0; p < P; ++p) {
      for (int n = 0; n < N; ++n) store(out + ((r + p) * N + n) * lanes, acc[p][n]);
    }
  }
}

template <class T, int N>
ASNG_INLINE void accumulate_columns(int64_t rows, int64_t depth, const T* a, const T* b, T* out) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t k = 0;
  for (; k + kPanel<T> <= depth; k += kPanel<T>) {
    accumulate_panel<T, N, kPanel<T>>(rows, a + k * rows, b, out + k * N * lanes);
  }
  if (k < depth) accumulate_panel<T, N, lanes>(rows, a + k * rows, b, out + k * N * lanes);
}

template <class T>
void accumulate(int64_t rows, int64_t depth, int64_t columns, const T* a, const T* b, T* out) {
  for (int64_t n = 0; n < columns; n += kPanel<T>) {
    if (panel_width<T>(n, columns) == kPanel<T>) {
      accumulate_columns<T, 2>(rows, depth, a, b + n * rows, out + n * depth);
    } else {
      accumulate_columns<T, 1>(rows, depth, a, b + n * rows, out + n * depth);
    }
  }
}

template <class T>
void read(const TiledSource<T>& source, const TileRange& range, int64_t dy, int64_t dx,
          int64_t column, int64_t columns, T* tiles, int64_t matrix, const T* zeros) {
  const bool masked = source.relu_mask != nullptr;
  const auto reader =
      range.halo > 0 ? (masked ? &read_tiles<T, kTileSide, true> : &read_tiles<T, kTileSide, false>)
      : range.outputs == 4 ? (masked ? &read_tiles<T, 4, true> : &read_tiles<T, 4, false>)
                           : (masked ? &read_tiles<T, 6, true> : &read_tiles<T, 6, false>);
  reader(source, range, dy, dx, column, columns, tiles, matrix, zeros);
}

template <class T>
void write(const T* tiles, int64_t matrix, const TileRange& range, int64_t dy, int64_t dx,
           int64_t column, int64_t columns, const TiledResult<T>& result) {
  const auto writer = range.outputs == 4 ? &write_tiles<T, 4> : &write_tiles<T, 6>;
  writer(tiles, matrix, range, dy, dx, column, columns, result);
}

template <class T>
void read_weight(const T* w, const WeightView& view, int64_t count, T* to, int64_t matrix) {
  view.side == 5 ? read_kernel<T, 5>(w, view, count, to, matrix)
                 : read_kernel<T, 3>(w, view, count, to, matrix);
}

template <class T>
void write_weight(const T* from, int64_t matrix, const WeightView& view, int64_t count, T* w) {
  view.side == 5 ? write_kernel<T, 5>(from, matrix, view, count, w)
                 : write_kernel<T, 3>(from, matrix, view, count, w);
}

}  // namespace

template <class T>
const WinogradKernels<T>& winograd_kernels() {
  static constexpr WinogradKernels<T> table = {kLanes<T>,       kRows,           &read<T>,
                                               &write<T>,       &multiply<T>,    &accumulate<T>,
                                               &read_weight<T>, &write_weight<T>};
  return table;
}

template const WinogradKernels<float>& winograd_kernels<float>();
template const WinogradKernels<double>& winograd_kernels<double>();

}  // namespace asng::cpu::ASNG_CAPABILITY
