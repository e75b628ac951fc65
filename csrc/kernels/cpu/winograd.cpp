#include "kernels/cpu/winograd.h"

#include <algorithm>
#include <vector>

#include "platform/dispatch.h"
#include "platform/memory.h"
#include "platform/threads.h"

namespace asng::cpu {

ASNG_DISPATCH(WinogradKernels, winograd_kernels)

namespace {

// Tiles that are transformed and multiplied together: enough that reading the weights of 64 GEMMs
// pays, and few enough that everything else of a thread stays in its cache.
constexpr int64_t kTaskTiles = 48;
// Tiles whose products are accumulated in registers before they are added to a weight's gradient.
constexpr int64_t kGradientTiles = 192;
constexpr int64_t kGradientTaskTiles = 24;

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t rounded_up(int64_t a, int64_t b) { return divided_up(a, b) * b; }

// Values from one of 64 matrices to the next. A tile touches the same place in all of them, so the
// distance is an odd number of cache lines: otherwise these places would compete for a few sets.
template <class T>
int64_t spaced(int64_t values) {
  constexpr int64_t line = 64 / sizeof(T);
  return (divided_up(values, line) | 1) * line;
}

template <class T>
Block matrices(int64_t distance) {
  return acquire(static_cast<size_t>(kTileValues * distance) * sizeof(T));
}

}  // namespace

template <class T>
Winograd<T>::Winograd(const ConvolutionShape& shape)
    : shape_(shape), kernels_(winograd_kernels<T>()) {
  const auto side = [&](int64_t height, int64_t width, int64_t channels, int64_t stride) {
    return Side{{height, width, channels, stride}, rounded_up(channels, kernels_.lanes)};
  };
  input_ = side(shape.height, shape.width, shape.input_channels, shape.stride);
  downsampled_ =
      side(shape.downsampled_height(), shape.downsampled_width(), shape.downsampled_channels, 1);
  kernel_side_ = shape.stride == 1 ? shape.kernel : 3;
}

template <class T>
TileRange Winograd<T>::tiles() const {
  TileRange range;
  range.outputs = kTileSide + 1 - kernel_side_;
  range.halo = kernel_side_ / 2;
  range.tiles_y = divided_up(shape_.downsampled_height(), range.outputs);
  range.tiles_x = divided_up(shape_.downsampled_width(), range.outputs);
  range.total = shape_.batch * range.tiles_y * range.tiles_x;
  return range;
}

// Pixel s·q + d of the input meets pixel 0 of the downsampled feature map with the kernel element
// s·q + d + k/2. The elements of a phase d are those with q from -1 to 1 (with stride 1 from -k/2
// to k/2), or in reverse order.
template <class T>
WeightView Winograd<T>::view(int64_t phase, bool flipped) const {
  WeightView view;
  view.kernel = shape_.kernel;
  view.side = kernel_side_;
  for (int64_t j = 0; j < kernel_side_; ++j) {
    const int64_t q = flipped ? kernel_side_ / 2 - j : j - kernel_side_ / 2;
    const auto element = [&](int64_t d) {
      const int64_t t = shape_.stride * q + d + shape_.kernel / 2;
      return t < 0 || t >= shape_.kernel ? -1 : t;
    };
    view.rows[j] = element(phase / shape_.stride);
    view.columns[j] = element(phase % shape_.stride);
  }
  return view;
}

// Transformed weights, 64 matrices (in.columns(), out.columns()) in panels. Flipped: from the
// downsampled feature maps to the input.
template <class T>
void Winograd<T>::pack(const T* weight, bool flipped, const Side& in, const Side& out,
                       T* packed) const {
  const int64_t lanes = kernels_.lanes, depth = in.columns(), columns = out.columns();
  const int64_t matrix = spaced<T>(depth * columns);
  run_tasks(columns / lanes, [&](int64_t task) {
    const int64_t n = task * lanes, out_channel = n % out.padded;
    const int64_t begin = n / (2 * lanes) * 2 * lanes;
    const int64_t width = std::min(2 * lanes, columns - begin);
    T* to = packed + begin * depth + n - begin;
    for (int64_t in_phase = 0; in_phase < in.phases(); ++in_phase) {
      WeightView phase = view(flipped ? n / out.padded : in_phase, flipped);
      phase.n_stride = flipped ? shape_.column_stride : shape_.row_stride;
      phase.k_stride = flipped ? shape_.row_stride : shape_.column_stride;
      for (int64_t k = 0; k < in.padded; ++k, to += width) {
        // No columns: zeros.
        const int64_t count = k < in.channels ? std::min(lanes, out.channels - out_channel) : 0;
        const T* from = weight + out_channel * phase.n_stride + k * phase.k_stride;
        kernels_.read_weight(count == 0 ? weight : from, phase, count, to, matrix);
      }
    }
  });
}

template <class T>
void Winograd<T>::run(const TiledSource<T>& from, const Side& in, const T* weight, bool flipped,
                      const TiledResult<T>& to, const Side& out) const {
  const int64_t depth = in.columns(), columns = out.columns();
  const int64_t weights = spaced<T>(depth * columns);
  const Block packed_block = matrices<T>(weights);
  T* packed = static_cast<T*>(packed_block.get());
  pack(weight, flipped, in, out, packed);
  const std::vector<T> zeros(static_cast<size_t>(in.padded));

  TileRange whole = tiles();
  // At least two tasks, for two threads; and fewer tiles where four phases make them larger.
  const int64_t most = in.phases() * out.phases() == 1 ? kTaskTiles : kTaskTiles / 2;
  const int64_t tasks = std::max(divided_up(whole.total, most), std::min<int64_t>(2, whole.total));
  whole.rows = rounded_up(divided_up(whole.total, tasks), kernels_.row_block);
  const int64_t matrix = spaced<T>(whole.rows * depth), product = spaced<T>(whole.rows * columns);
  const size_t bytes = static_cast<size_t>(kTileValues * (matrix + product)) * sizeof(T);
  run_tasks(divided_up(whole.total, whole.rows), [&](int64_t task) {
    TileRange range = whole;
    range.first = task * range.rows;
    range.end = range.rows;
    T *tiles = static_cast<T*>(scratch(bytes)), *products = tiles + kTileValues * matrix;
    for (int64_t p = 0; p < in.phases(); ++p) {
      kernels_.read(from, range, p / shape_.stride, p % shape_.stride, p * in.padded, depth, tiles,
                    matrix, zeros.data());
    }
    for (int64_t i = 0; i < kTileValues; ++i) {
      kernels_.multiply(range.rows, depth, in.used(), columns, tiles + i * matrix,
                        packed + i * weights, products + i * product);
    }
    for (int64_t p = 0; p < out.phases(); ++p) {
      kernels_.write(products, product, range, p / shape_.stride, p % shape_.stride, p * out.padded,
                     columns, to);
    }
  });
}

template <class T>
void Winograd<T>::down(const T* input, const T* mask, const T* weight, bool relu,
                       T* downsampled) const {
  run({input_, input, mask}, input_, weight, false, {downsampled_, downsampled, nullptr, relu},
      downsampled_);
}

template <class T>
void Winograd<T>::up(const T* downsampled, const T* mask, const T* weight, const T* added,
                     bool relu, T* input) const {
  run({downsampled_, downsampled, mask}, downsampled_, weight, true, {input_, input, added, relu},
      input_);
}

template <class T>
void Winograd<T>::weight_gradient(const T* input, const T* input_mask, const T* downsampled,
                                  const T* downsampled_mask, T* grad) const {
  const TiledSource<T> from{input_, input, input_mask};
  const TiledSource<T> to{downsampled_, downsampled, downsampled_mask};
  const int64_t lanes = kernels_.lanes, depth = input_.columns(), columns = downsampled_.columns();
  TileRange whole = tiles();
  whole.rows = rounded_up(std::min(whole.total, kGradientTiles), kernels_.row_block);
  const int64_t input_matrix = spaced<T>(whole.rows * depth);
  const int64_t downsampled_matrix = spaced<T>(whole.rows * columns);
  const int64_t matrix = spaced<T>(depth * columns);
  const Block input_block = matrices<T>(input_matrix);
  const Block downsampled_block = matrices<T>(downsampled_matrix);
  const Block sum_block = matrices<T>(matrix);
  T* input_tiles = static_cast<T*>(input_block.get());
  T* downsampled_tiles = static_cast<T*>(downsampled_block.get());
  T* sums = static_cast<T*>(sum_block.get());
  const std::vector<T> zeros(static_cast<size_t>(std::max(input_.padded, downsampled_.padded)));

  for (; whole.first < whole.total; whole.first += whole.rows) {
    run_tasks(divided_up(whole.rows, kGradientTaskTiles), [&](int64_t task) {
      TileRange range = whole;
      range.begin = task * kGradientTaskTiles;
      range.end = std::min(range.rows, range.begin + kGradientTaskTiles);
      for (int64_t p = 0; p < input_.phases(); ++p) {
        kernels_.read(from, range, p / shape_.stride, p % shape_.stride, p * input_.padded, depth,
                      input_tiles, input_matrix, zeros.data());
      }
      range.halo = 0;
      kernels_.read(to, range, 0, 0, 0, columns, downsampled_tiles, downsampled_matrix,
                    zeros.data());
    });
    run_tasks(kTileValues, [&](int64_t i) {
      T* sum = sums + i * matrix;
      if (whole.first == 0) std::fill_n(sum, depth * columns, T(0));
      kernels_.accumulate(whole.rows, depth, columns, input_tiles + i * input_matrix,
                          downsampled_tiles + i * downsampled_matrix, sum);
    });
  }
  const int64_t elements = shape_.kernel * shape_.kernel;
  run_tasks(columns / lanes, [&](int64_t task) {
    const int64_t n = task * lanes, begin = n / (2 * lanes) * 2 * lanes;
    const int64_t width = std::min(2 * lanes, columns - begin);
    for (int64_t p = 0; p < input_.phases(); ++p) {
      WeightView phase = view(p, false);
      phase.n_stride = shape_.input_channels * elements;
      phase.k_stride = elements;
      for (int64_t k = 0; k < shape_.input_channels; ++k) {
        const T* sum = sums + begin * depth + (p * input_.padded + k) * width + n - begin;
        kernels_.write_weight(sum, matrix, phase, std::min(lanes, shape_.downsampled_channels - n),
                              grad + n * phase.n_stride + k * phase.k_stride);
      }
    }
  });
}

template class Winograd<float>;
template class Winograd<double>;

}  // namespace asng::cpu
