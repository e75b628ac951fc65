#include "kernels/cpu/winograd.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "platform/dispatch.h"
#include "platform/memory.h"
#include "platform/threads.h"

namespace asng::cpu {

ASNG_DISPATCH(WinogradKernels, winograd_kernels)

namespace {

// Tiles that are transformed and multiplied together: so many that reading the weights of 64
// products pays, and so few that a thread's part of everything else stays in its cache.
constexpr int64_t kTaskTiles = 48;
// Tiles whose products are summed in registers before they are added to a weight's gradient.
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

// Working memory for tasks: as many blocks as run at the same time.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : bytes_(bytes) {}

  Block take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (blocks_.empty()) return acquire(bytes_);
    Block block = std::move(blocks_.back());
    blocks_.pop_back();
    return block;
  }

  void give(Block block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_.push_back(std::move(block));
  }

 private:
  size_t bytes_;
  std::mutex mutex_;
  std::vector<Block> blocks_;
};

template <class T>
Block matrices(int64_t distance) {
  return acquire(static_cast<size_t>(kTileValues * distance) * sizeof(T));
}

}  // namespace

template <class T>
Winograd<T>::Winograd(const ConvolutionShape& shape)
    : shape_(shape), kernels_(winograd_kernels<T>()) {
  const int64_t lanes = kernels_.lanes;
  low_ = {shape.low_channels, rounded_up(shape.low_channels, lanes), 1};
  high_ = {shape.high_channels, rounded_up(shape.high_channels, lanes),
           shape.stride * shape.stride};
  taps_ = shape.stride == 1 ? shape.kernel : 3;
}

template <class T>
TileRange Winograd<T>::range() const {
  TileRange range;
  range.outputs = kTileSide + 1 - taps_;
  range.margin = taps_ / 2;
  range.tiles_y = divided_up(shape_.low_height(), range.outputs);
  range.tiles_x = divided_up(shape_.low_width(), range.outputs);
  range.total = shape_.images * range.tiles_y * range.tiles_x;
  return range;
}

// Pixel s·q + d of the high image meets pixel 0 of the low one with tap s·q + d + k/2. The taps of
// a phase d are those with q from -1 to 1 (with stride 1 from -k/2 to k/2), or in reverse order.
template <class T>
WeightView Winograd<T>::view(int64_t phase, bool flipped) const {
  WeightView view;
  view.kernel = shape_.kernel;
  view.count = taps_;
  for (int64_t j = 0; j < taps_; ++j) {
    const int64_t q = flipped ? taps_ / 2 - j : j - taps_ / 2;
    const auto tap = [&](int64_t d) {
      const int64_t t = shape_.stride * q + d + shape_.kernel / 2;
      return t < 0 || t >= shape_.kernel ? -1 : t;
    };
    view.rows[j] = tap(phase / shape_.stride);
    view.columns[j] = tap(phase % shape_.stride);
  }
  return view;
}

// Transformed weights, 64 matrices (in.columns(), out.columns()) in panels. Flipped: from the low
// image to the high one.
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
    for (int64_t in_phase = 0; in_phase < in.phases; ++in_phase) {
      WeightView part = view(flipped ? n / out.padded : in_phase, flipped);
      part.n_stride = flipped ? shape_.column_stride : shape_.row_stride;
      part.k_stride = flipped ? shape_.row_stride : shape_.column_stride;
      for (int64_t k = 0; k < in.padded; ++k, to += width) {
        // No columns: zeros.
        const int64_t count = k < in.channels ? std::min(lanes, out.channels - out_channel) : 0;
        const T* from = weight + out_channel * part.n_stride + k * part.k_stride;
        kernels_.read_weight(count == 0 ? weight : from, part, count, to, matrix);
      }
    }
  });
}

template <class T>
void Winograd<T>::run(const TiledImage<T>& from, const Side& in, const T* weight, bool flipped,
                      const TiledResult<T>& to, const Side& out) const {
  const int64_t depth = in.columns(), columns = out.columns();
  const int64_t weights = spaced<T>(depth * columns);
  const Block packed_block = matrices<T>(weights);
  T* packed = static_cast<T*>(packed_block.get());
  pack(weight, flipped, in, out, packed);
  const std::vector<T> zeros(static_cast<size_t>(in.padded));

  TileRange whole = range();
  // At least two tasks, for two threads; and fewer tiles where four phases make them larger.
  const int64_t most = in.phases * out.phases == 1 ? kTaskTiles : kTaskTiles / 2;
  const int64_t parts = std::max(divided_up(whole.total, most), std::min<int64_t>(2, whole.total));
  whole.rows = rounded_up(divided_up(whole.total, parts), kernels_.row_block);
  const int64_t matrix = spaced<T>(whole.rows * depth), product = spaced<T>(whole.rows * columns);
  Workspace workspace(static_cast<size_t>(kTileValues * (matrix + product)) * sizeof(T));
  run_tasks(divided_up(whole.total, whole.rows), [&](int64_t task) {
    TileRange part = whole;
    part.first = task * part.rows;
    part.end = part.rows;
    Block block = workspace.take();
    T *tiles = static_cast<T*>(block.get()), *products = tiles + kTileValues * matrix;
    for (int64_t p = 0; p < in.phases; ++p) {
      kernels_.read(from, part, p / shape_.stride, p % shape_.stride, p * in.padded, depth, tiles,
                    matrix, zeros.data());
    }
    for (int64_t i = 0; i < kTileValues; ++i) {
      kernels_.multiply(part.rows, depth, in.used(), columns, tiles + i * matrix,
                        packed + i * weights, products + i * product);
    }
    for (int64_t p = 0; p < out.phases; ++p) {
      kernels_.write(products, product, part, p / shape_.stride, p % shape_.stride, p * out.padded,
                     columns, to);
    }
    workspace.give(std::move(block));
  });
}

template <class T>
void Winograd<T>::down(const T* high, const T* gate, const T* weight, bool relu, T* low) const {
  const TiledImage<T> from{high,         gate, shape_.height, shape_.width, shape_.high_channels,
                           shape_.stride};
  const TiledResult<T> to{
      low, nullptr, relu, shape_.low_height(), shape_.low_width(), shape_.low_channels, 1};
  run(from, high_, weight, false, to, low_);
}

template <class T>
void Winograd<T>::up(const T* low, const T* gate, const T* weight, const T* added, bool relu,
                     T* high) const {
  const TiledImage<T> from{low, gate, shape_.low_height(), shape_.low_width(), shape_.low_channels,
                           1};
  const TiledResult<T> to{
      high, added, relu, shape_.height, shape_.width, shape_.high_channels, shape_.stride};
  run(from, low_, weight, true, to, high_);
}

template <class T>
void Winograd<T>::weight_gradient(const T* high, const T* high_gate, const T* low,
                                  const T* low_gate, T* grad) const {
  const TiledImage<T> from{
      high, high_gate, shape_.height, shape_.width, shape_.high_channels, shape_.stride};
  const TiledImage<T> to{
      low, low_gate, shape_.low_height(), shape_.low_width(), shape_.low_channels, 1};
  const int64_t lanes = kernels_.lanes, depth = high_.columns(), columns = low_.columns();
  TileRange whole = range();
  whole.rows = rounded_up(std::min(whole.total, kGradientTiles), kernels_.row_block);
  const int64_t high_matrix = spaced<T>(whole.rows * depth);
  const int64_t low_matrix = spaced<T>(whole.rows * columns);
  const int64_t matrix = spaced<T>(depth * columns);
  const Block high_block = matrices<T>(high_matrix), low_block = matrices<T>(low_matrix);
  const Block sum_block = matrices<T>(matrix);
  T* high_tiles = static_cast<T*>(high_block.get());
  T* low_tiles = static_cast<T*>(low_block.get());
  T* sums = static_cast<T*>(sum_block.get());
  const std::vector<T> zeros(static_cast<size_t>(std::max(high_.padded, low_.padded)));

  for (; whole.first < whole.total; whole.first += whole.rows) {
    run_tasks(divided_up(whole.rows, kGradientTaskTiles), [&](int64_t task) {
      TileRange part = whole;
      part.begin = task * kGradientTaskTiles;
      part.end = std::min(part.rows, part.begin + kGradientTaskTiles);
      for (int64_t p = 0; p < high_.phases; ++p) {
        kernels_.read(from, part, p / shape_.stride, p % shape_.stride, p * high_.padded, depth,
                      high_tiles, high_matrix, zeros.data());
      }
      kernels_.read_outputs(to, part, columns, low_tiles, low_matrix, zeros.data());
    });
    run_tasks(kTileValues, [&](int64_t i) {
      T* sum = sums + i * matrix;
      if (whole.first == 0) std::fill_n(sum, depth * columns, T(0));
      kernels_.accumulate(whole.rows, depth, columns, high_tiles + i * high_matrix,
                          low_tiles + i * low_matrix, sum);
    });
  }
  const int64_t taps = shape_.kernel * shape_.kernel;
  run_tasks(columns / lanes, [&](int64_t task) {
    const int64_t n = task * lanes, begin = n / (2 * lanes) * 2 * lanes;
    const int64_t width = std::min(2 * lanes, columns - begin);
    for (int64_t p = 0; p < high_.phases; ++p) {
      WeightView part = view(p, false);
      part.n_stride = shape_.high_channels * taps;
      part.k_stride = taps;
      for (int64_t k = 0; k < shape_.high_channels; ++k) {
        const T* sum = sums + begin * depth + (p * high_.padded + k) * width + n - begin;
        kernels_.write_weight(sum, matrix, part, std::min(lanes, shape_.low_channels - n),
                              grad + n * part.n_stride + k * part.k_stride);
      }
    }
  });
}

template class Winograd<float>;
template class Winograd<double>;

}  // namespace asng::cpu
