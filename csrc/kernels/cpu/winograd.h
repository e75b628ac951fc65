// Convolutions and transposed convolutions with kernels of 3×3 and 5×5 taps by minimal filtering
// (Winograd): tiles of 8×8 values are transformed, multiplied as 64 matrix products over the
// channels, and transformed back. That takes 25·16/64 = 6.3 times fewer multiplications than the
// sum over 5×5 taps, and 9·36/64 = 5.1 times fewer than over 3×3.
//
// A convolution reads a high image and writes a low one, (H, W) → (⌈H/stride⌉, ⌈W/stride⌉); a
// transposed convolution goes back. Both have the weight (low channels, high channels, k, k), and
// each is the other's gradient. With stride 2 the high image falls into four phases (even and odd
// rows and columns), each of which meets the low image with stride 1 and at most 3×3 taps.
//
// Images are channels-last with any number of channels.
#pragma once

#include <cstdint>
#include <vector>

namespace asng::cpu {

inline constexpr int64_t kTileSide = 8;
inline constexpr int64_t kTileValues = kTileSide * kTileSide;

// One of the two images of a convolution, or a gradient of it.
template <class T>
struct TiledImage {
  const T* x = nullptr;
  const T* gate = nullptr;  // not null: values where it is not above 0 read as 0
  int64_t height = 0, width = 0, channels = 0;
  int64_t stride = 1;
};

template <class T>
struct TiledResult {
  T* y = nullptr;
  const T* added = nullptr;  // may be null
  bool relu = false;
  int64_t height = 0, width = 0, channels = 0;
  int64_t stride = 1;
};

// Rows [begin, end) of a matrix of tiles. Row t is tile `first` + t of the low image, counted in
// rows of tiles, image after image; rows from tile `total` on are zeros. A tile has `outputs`²
// values of its own, and `margin` more are read on each side.
struct TileRange {
  int64_t tiles_y = 0, tiles_x = 0, total = 0;
  int64_t outputs = 0, margin = 0;
  int64_t first = 0, rows = 0;
  int64_t begin = 0, end = 0;
};

// A weight as the transform reads it: element (n, k, tap) is w[n * n_stride + k * k_stride + tap].
// `taps`[j] is the row (or column) of the kernel that serves tap j of the phase, or -1.
struct WeightView {
  int64_t n_stride = 0, k_stride = 0;
  int64_t kernel = 0;
  int64_t count = 0;  // taps per side of the phase, 3 or 5
  int64_t rows[5] = {}, columns[5] = {};
};

// What the processor's instruction set decides. A matrix (rows, columns) is kept in panels of two
// vectors of columns, each with its rows next to each other; columns are a multiple of a vector.
// There are 64 of a kind, `matrix` values apart.
template <class T>
struct WinogradKernels {
  int64_t lanes;
  int64_t row_block;  // rows of tiles are a multiple of it
  // Transformed inputs: tiles of the phase (dy, dx) to `columns` columns from `column` on.
  void (*read)(const TiledImage<T>&, const TileRange&, int64_t dy, int64_t dx, int64_t column,
               int64_t columns, T* tiles, int64_t matrix, const T* zeros);
  // The same of what has the sizes of results: for the gradient of weights.
  void (*read_outputs)(const TiledImage<T>&, const TileRange&, int64_t columns, T* tiles,
                       int64_t matrix, const T* zeros);
  // The reverse of products: results of the phase.
  void (*write)(const T* tiles, int64_t matrix, const TileRange&, int64_t dy, int64_t dx,
                int64_t column, int64_t columns, const TiledResult<T>&);
  // out (rows, columns) = a (rows, depth) · b (depth, columns); `rows` a multiple of row_block.
  // Of the depth the first `used` count.
  void (*multiply)(int64_t rows, int64_t depth, int64_t used, int64_t columns, const T* a,
                   const T* b, T* out);
  // out (depth, columns) += a (rows, depth)ᵀ · b (rows, columns)
  void (*accumulate)(int64_t rows, int64_t depth, int64_t columns, const T* a, const T* b, T* out);
  // `count` ≤ lanes columns n of one row k to `to`, the same place in 64 matrices, and back.
  void (*read_weight)(const T* w, const WeightView&, int64_t count, T* to, int64_t matrix);
  void (*write_weight)(const T* from, int64_t matrix, const WeightView&, int64_t count, T* w);
};

template <class T>
const WinogradKernels<T>& winograd_kernels();

struct ConvolutionShape {
  int64_t images = 0;
  int64_t height = 0, width = 0;  // of the high image
  int64_t low_channels = 0, high_channels = 0;
  int64_t kernel = 3, stride = 1;             // 3 or 5, 1 or 2
  int64_t row_stride = 0, column_stride = 0;  // of the weight, in values; a kernel is contiguous

  int64_t low_height() const { return (height + stride - 1) / stride; }
  int64_t low_width() const { return (width + stride - 1) / stride; }
};

template <class T>
class Winograd {
 public:
  explicit Winograd(const ConvolutionShape& shape);

  // low = convolution of high, with ReLU if wanted. Gates: see TiledImage.
  void down(const T* high, const T* gate, const T* weight, bool relu, T* low) const;

  // high = transposed convolution of low, plus `added` if not null, with ReLU if wanted.
  void up(const T* low, const T* gate, const T* weight, const T* added, bool relu, T* high) const;

  // The weight's gradient (low channels, high channels, k, k), contiguous, if one of the images is
  // a gradient.
  void weight_gradient(const T* high, const T* high_gate, const T* low, const T* low_gate,
                       T* grad) const;

 private:
  struct Side {
    int64_t channels, padded, phases;
    int64_t columns() const { return padded * phases; }
    // Of all columns, those that may differ from 0 come first if there is one phase.
    int64_t used() const { return phases == 1 ? channels : columns(); }
  };
  void pack(const T* weight, bool flipped, const Side& in, const Side& out, T* packed) const;
  void run(const TiledImage<T>& from, const Side& in, const T* weight, bool flipped,
           const TiledResult<T>& to, const Side& out) const;
  WeightView view(int64_t phase, bool flipped) const;
  TileRange range() const;

  ConvolutionShape shape_;
  const WinogradKernels<T>& kernels_;
  Side low_, high_;
  int64_t taps_;
};

}  // namespace asng::cpu
