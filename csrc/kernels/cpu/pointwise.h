// Concatenation → ReLU → 1×1 over tiles of pixels: the inputs and the output of a cell, and
// factorized reductions, whose two halves are two strided sources of one matmul.
//
// A tile holds one block of kChannelBlock channels after the other, each with kTilePixels pixels.
#pragma once

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/norm.h"
#include "platform/memory.h"

namespace asng::cpu::ASNG_CAPABILITY {

// Calls visit(i, pixel) for output pixels i from begin to end, where pixel is the one of the source
// that is read, or -1 beyond the edge.
template <class T, class Visit>
ASNG_INLINE void for_each_pixel(const Source<T>& source, int64_t out_width, int64_t begin,
                                int64_t end, Visit visit) {
  const int64_t stride = source.stride, offset = source.offset;
  const int64_t height = source.height, width = source.width;
  if (stride == 1 && offset == 0) {
    for (int64_t i = begin; i < end; ++i) visit(i, i);
    return;
  }
  int64_t y = begin / out_width, x = begin % out_width;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t sy = y * stride + offset, sx = x * stride + offset;
    visit(i, sy < height && sx < width ? sy * width + sx : -1);
    if (++x == out_width) {
      x = 0;
      ++y;
    }
  }
}

// Distance from a block of channels to the next in a tile.
inline constexpr int64_t kTileBlock = kTilePixels * kChannelBlock;

// The 3×3 windows around pixels [begin, end), zeros beyond the edge.
template <class T>
inline void gather_windows(const Source<T>& source, const T* image, int64_t begin, int64_t end,
                           T* tile) {
  const int64_t values = source.window_channels;
  int64_t y = begin / source.width, x = begin % source.width;
  for (int64_t i = begin; i < end; ++i, tile += kChannelBlock) {
    int64_t k = 0;
    const auto put = [&](T value) {
      tile[k / kChannelBlock * kTileBlock + k % kChannelBlock] = value;
      ++k;
    };
    for (int64_t sy = y - 1; sy <= y + 1; ++sy) {
      for (int64_t sx = x - 1; sx <= x + 1; ++sx) {
        const bool inside = sy >= 0 && sy < source.height && sx >= 0 && sx < source.width;
        const T* from = image + (sy * source.width + sx) * values;
        for (int64_t v = 0; v < values; ++v) put(inside ? from[v] : T(0));
      }
    }
    while (k < source.channels) put(T(0));
    if (++x == source.width) {
      x = 0;
      ++y;
    }
  }
}

// Pixels [begin, end) of one feature map, all sources side by side, after ReLU.
template <class T>
inline void gather(const Source<T>* sources, int64_t count, int64_t image, int64_t out_width,
                   int64_t begin, int64_t end, T* tile) {
  const Vec<T> zero = {};
  for (int64_t s = 0; s < count; ++s) {
    const Source<T>& source = sources[s];
    const int64_t channels = source.channels;
    const T* x = source.x + image * source.height * source.width * source.stored_channels();
    if (source.window_channels != 0) {
      gather_windows(source, x, begin, end, tile);
      tile += channels / kChannelBlock * kTileBlock;
      continue;
    }
    for_channels<T>(channels, [&](int64_t first, auto vectors) ASNG_INLINE_LAMBDA {
      constexpr int N = vectors.value;
      const AffineVectors<T, N> map(source.affine, first);
      T* to[N];
      for (int n = 0; n < N; ++n) {
        const int64_t c = first + n * kLanes<T>;
        to[n] = tile + c / kChannelBlock * kTileBlock + c % kChannelBlock;
      }
      const T* from = x + first;
      // What the next tile will read at the place of a pixel.
      const T* next = from + (end - begin) * source.stride * source.stride * channels;
      for_each_pixel(source, out_width, begin, end,
                     [&](int64_t i, int64_t pixel) ASNG_INLINE_LAMBDA {
                       for (int n = 0; n < N; ++n) {
                         const int64_t at = pixel * channels + n * kLanes<T>;
                         const Vec<T> v = pixel < 0 ? zero : relu<T>(map(n, load(from + at)));
                         store(to[n] + (i - begin) * kChannelBlock, v);
                         prefetch(next + at);
                       }
                     });
    });
    tile += channels / kChannelBlock * kTileBlock;
  }
}

// The reverse: gradients go where ReLU let the value pass.
template <class T>
inline void spread_gradient(const Source<T>* sources, int64_t count, int64_t image,
                            int64_t out_width, int64_t begin, int64_t end, const T* tile,
                            const T* grad) {
  const Vec<T> zero = {};
  for (int64_t s = 0; s < count; ++s) {
    const Source<T>& source = sources[s];
    const int64_t channels = source.channels;
    // A strided source does not reach every pixel, so its gradient was cleared and is added to.
    const bool accumulate = source.accumulate || source.stride != 1;
    T* out = source.grad == nullptr ? nullptr
                                    : source.grad + image * source.height * source.width * channels;
    const auto pass = [&](int64_t first, auto vectors) ASNG_INLINE_LAMBDA {
      constexpr int N = vectors.value;
      Vec<T> sum[N] = {}, dot[N] = {};
      int64_t place[N];
      for (int n = 0; n < N; ++n) {
        const int64_t c = first + n * kLanes<T>;
        place[n] = c / kChannelBlock * kTileBlock + c % kChannelBlock;
      }
      for_each_pixel(source, out_width, begin, end,
                     [&](int64_t i, int64_t pixel) ASNG_INLINE_LAMBDA {
                       if (pixel < 0) return;
                       T* to = out + pixel * channels + first;
                       for (int n = 0; n < N; ++n) {
                         const int64_t at = place[n] + (i - begin) * kChannelBlock;
                         const Vec<T> x = load(tile + at);
                         Vec<T> g = x > zero ? load(grad + at) : zero;
                         if (accumulate) g += load(to + n * kLanes<T>);
                         store(to + n * kLanes<T>, g);
                         sum[n] += g;
                         dot[n] += g * x;
                       }
                     });
      if (source.sum == nullptr) return;
      for (int n = 0; n < N; ++n) {
        add_wide<T>(source.sum + first + n * kLanes<T>, sum[n]);
        add_wide<T>(source.dot + first + n * kLanes<T>, dot[n]);
      }
    };
    if (out != nullptr) for_channels<T>(channels, pass);
    tile += channels / kChannelBlock * kTileBlock;
    grad += channels / kChannelBlock * kTileBlock;
  }
}

template <class T>
ASNG_INLINE int64_t total_channels(const Source<T>* sources, int64_t count) {
  int64_t depth = 0;
  for (int64_t s = 0; s < count; ++s) depth += sources[s].channels;
  return depth;
}

template <class T, int C>
void pointwise_forward_impl(const PointwiseForward<T>& task) {
  const int64_t depth = total_channels(task.sources, task.source_count);
  const int64_t channels = channels_of<C>(task.out_channels);
  const int64_t pixels = task.out_height * task.out_width;
  T *tile = nullptr, *sum = nullptr, *squares = nullptr;
  take_scratch([&](Arena& arena) {
    tile = arena.take<T>(kTilePixels * depth);
    sum = arena.take<T>(channels);
    squares = arena.take<T>(channels);
  });
  fill_with(sum, channels, T(0));
  fill_with(squares, channels, T(0));
  for (int64_t image = 0; image < task.images; ++image) {
    for (int64_t begin = 0; begin < pixels; begin += kTilePixels) {
      const int64_t end = begin + kTilePixels < pixels ? begin + kTilePixels : pixels;
      gather(task.sources, task.source_count, image, task.out_width, begin, end, tile);
      matmul<T, true, kChannelBlock, C>(
          end - begin, depth, channels, tile, kChannelBlock, kTileBlock, task.weight, channels,
          task.z + (image * pixels + begin) * channels, channels, sum, squares);
    }
    flush(sum, task.sum, channels);
    flush(squares, task.sum_squares, channels);
  }
}

template <class T, int C>
void pointwise_backward_impl(const PointwiseBackward<T>& task) {
  const int64_t depth = total_channels(task.sources, task.source_count);
  const int64_t channels = channels_of<C>(task.out_channels);
  const int64_t pixels = task.out_height * task.out_width;
  bool input_needs_grad = false;
  for (int64_t s = 0; s < task.source_count; ++s)
    input_needs_grad |= task.sources[s].grad != nullptr;
  T *tile = nullptr, *gz = nullptr, *total = nullptr, *grad = nullptr;
  take_scratch([&](Arena& arena) {
    tile = arena.take<T>(kTilePixels * depth);
    gz = arena.take<T>(kTilePixels * channels);
    total = arena.take<T>(task.grad_count == 1 ? 0 : kTilePixels * channels);
    grad = arena.take<T>(kTilePixels * depth);
  });
  for (int64_t image = 0; image < task.images; ++image) {
    for (int64_t s = 0; s < task.source_count; ++s) {
      const Source<T>& source = task.sources[s];
      if (source.grad == nullptr || source.stride == 1 || source.accumulate) continue;
      const int64_t size = source.height * source.width * source.channels;
      fill_with(source.grad + image * size, size, T(0));
    }
    for (int64_t begin = 0; begin < pixels; begin += kTilePixels) {
      const int64_t end = begin + kTilePixels < pixels ? begin + kTilePixels : pixels;
      const int64_t at = (image * pixels + begin) * channels;
      const T* g = task.grads[0] + at;
      if (task.grad_count > 1) {
        for (int64_t i = 0; i < (end - begin) * channels; i += kLanes<T>) {
          Vec<T> v = load(g + i);
          for (int64_t k = 1; k < task.grad_count; ++k) v += load(task.grads[k] + at + i);
          store(total + i, v);
        }
        g = total;
      }
      norm_gradient<T, C>(g, task.z + at, task.norm, end - begin, channels, gz);
      gather(task.sources, task.source_count, image, task.out_width, begin, end, tile);
      for (int64_t block = 0; block < depth / kChannelBlock; ++block) {
        outer_product<T, C, kChannelBlock>(end - begin, channels, kChannelBlock, gz, channels,
                                           tile + block * kTileBlock, kChannelBlock,
                                           task.grad_weight + block * kChannelBlock, depth);
        if (!input_needs_grad) continue;
        matmul<T, false, C, kChannelBlock>(end - begin, channels, kChannelBlock, gz, channels,
                                           kChannelBlock, task.weight + block * kChannelBlock,
                                           depth, grad + block * kTileBlock, kChannelBlock, nullptr,
                                           nullptr);
      }
      if (!input_needs_grad) continue;
      spread_gradient(task.sources, task.source_count, image, task.out_width, begin, end, tile,
                      grad);
    }
  }
}

template <class T>
void pointwise_forward(const PointwiseForward<T>& task) {
  with_channels<T>(task.out_channels, [&](auto c) { pointwise_forward_impl<T, c.value>(task); });
}

template <class T>
void pointwise_backward(const PointwiseBackward<T>& task) {
  with_channels<T>(task.out_channels, [&](auto c) { pointwise_backward_impl<T, c.value>(task); });
}

}  // namespace asng::cpu::ASNG_CAPABILITY
