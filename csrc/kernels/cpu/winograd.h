// Winograd convolution (Lavin and Gray, 2016) with kernels of 3×3 and 5×5 elements, F(6×6, 3×3) and
// F(4×4, 5×5), and its transpose: tiles of 8×8 values are transformed, multiplied as 64 GEMMs over
// the channels, and transformed back. That takes 25·16/64 = 6.3 times fewer multiplications than
// direct convolution with 5×5 elements, and 9·36/64 = 5.1 times fewer than with 3×3.
//
// A convolution reads its input and writes the downsampled feature maps, (H, W) → (⌈H/stride⌉,
// ⌈W/stride⌉); a transposed convolution goes back. Both have the weight (downsampled channels,
// input channels, k, k), and each is the other's gradient. With stride 2 the input falls into four
// phases (even and odd rows and columns), each of which meets the downsampled feature maps with
// stride 1 and at most 3×3 kernel elements.
//
// Feature maps are channels-last with any number of channels.
//
// Its twin on CUDA devices is PyTorch's convolution: see asng_ext/ops/autoencoder.py.
#pragma once

#include <cstdint>
#include <vector>

namespace asng::cpu {

inline constexpr int64_t kTileSide = 8;
inline constexpr int64_t kTileValues = kTileSide * kTileSide;

struct FeatureMaps {
  int64_t height = 0, width = 0, channels = 0;
  int64_t stride = 1;  // its square is the number of phases
};

// The input of a convolution or its downsampled feature maps, or the gradient of one of them.
template <class T>
struct TiledSource : FeatureMaps {
  const T* x = nullptr;
  const T* relu_mask = nullptr;  // if not null, values where it is not above 0 read as 0
};

template <class T>
struct TiledResult : FeatureMaps {
  T* y = nullptr;
  const T* added = nullptr;  // may be null
  bool relu = false;
};

// Rows [begin, end) of a matrix of tiles. Row t is tile `first` + t of the downsampled feature
// maps, counted in rows of tiles, sample after sample; rows from tile `total` on are zeros. A tile
// has `outputs`² values of its own, and `halo` more are read on each side.
struct TileRange {
  int64_t tiles_y = 0, tiles_x = 0, total = 0;
  int64_t outputs = 0, halo = 0;
  int64_t first = 0, rows = 0;
  int64_t begin = 0, end = 0;
};

// A weight as the transform reads it: w[n * n_stride + k * k_stride + element]. rows[j] is the row
// of the kernel that serves row j of the phase's kernel, or -1; so for columns.
struct WeightView {
  int64_t n_stride = 0, k_stride = 0;
  int64_t kernel = 0;
  int64_t side = 0;  // of the phase's kernel, 3 or 5
  int64_t rows[5] = {}, columns[5] = {};
};

// What the processor's instruction set decides. A matrix (rows, columns) is kept in panels of two
// vectors of columns, each with its rows next to each other; columns are a multiple of a vector.
// There are 64 of a kind, `matrix` values apart.
template <class T>
struct WinogradKernels {
  int64_t lanes;
  int64_t row_block;  // rows of tiles are a multiple of it
  // Transformed inputs: tiles of the phase (dy, dx) to `columns` columns from `column` on. Without
  // a halo the same of what has the sizes of results, for the gradient of weights.
  void (*read)(const TiledSource<T>&, const TileRange&, int64_t dy, int64_t dx, int64_t column,
               int64_t columns, T* tiles, int64_t matrix, const T* zeros);
  // From products back: results of the phase.
  void (*write)(const T* tiles, int64_t matrix, const TileRange&, int64_t dy, int64_t dx,
                int64_t column, int64_t columns, const TiledResult<T>&);
  // out (rows, columns) = a (rows, depth) · b (depth, columns); `rows` a multiple of row_block.
  // Only the first `used` of the depth are not 0.
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
  int64_t batch = 0;
  int64_t height = 0, width = 0;  // of the input
  int64_t downsampled_channels = 0, input_channels = 0;
  int64_t kernel = 3, stride = 1;             // 3 or 5, 1 or 2
  int64_t row_stride = 0, column_stride = 0;  // of the weight, in values; a kernel is contiguous

  int64_t downsampled_height() const { return (height + stride - 1) / stride; }
  int64_t downsampled_width() const { return (width + stride - 1) / stride; }
};

template <class T>
class Winograd {
 public:
  explicit Winograd(const ConvolutionShape& shape);

  // downsampled = convolution of input, with ReLU if `relu`.
  void down(const T* input, const T* mask, const T* weight, bool relu, T* downsampled) const;

  // input = transposed convolution of downsampled, plus `added` if not null, with ReLU if `relu`.
  void up(const T* downsampled, const T* mask, const T* weight, const T* added, bool relu,
          T* input) const;

  // The weight's gradient (downsampled channels, input channels, k, k), contiguous, where either
  // `input` or `downsampled` is a gradient.
  void weight_gradient(const T* input, const T* input_mask, const T* downsampled,
                       const T* downsampled_mask, T* grad) const;

 private:
  struct Side : FeatureMaps {
    int64_t padded = 0;  // channels
    int64_t phases() const { return stride * stride; }
    int64_t columns() const { return padded * phases(); }
    // Of all columns, those that may differ from 0 come first if there is one phase.
    int64_t used() const { return stride == 1 ? channels : columns(); }
  };
  void pack(const T* weight, bool flipped, const Side& in, const Side& out, T* packed) const;
  void run(const TiledSource<T>& from, const Side& in, const T* weight, bool flipped,
           const TiledResult<T>& to, const Side& out) const;
  WeightView view(int64_t phase, bool flipped) const;
  TileRange tiles() const;

  ConvolutionShape shape_;
  const WinogradKernels<T>& kernels_;
  Side downsampled_, input_;
  int64_t kernel_side_;  // of a phase's kernel
};

}  // namespace asng::cpu
