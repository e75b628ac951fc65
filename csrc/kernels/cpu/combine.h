// A node: the sum of its operations. Identities, pools and normalizations cost one pass together.
#pragma once

#include <limits>

#include "kernels/cpu/pool.h"
#include "platform/memory.h"

namespace asng::cpu::ASNG_CAPABILITY {

template <class T>
ASNG_INLINE bool is_pool(const Term<T>& s) {
  return s.form == Form::kAveragePool || s.form == Form::kMaxPool;
}

// Row y of a term of one image.
template <class T>
inline void combine_row(const Term<T>& s, int64_t image, int64_t y, int64_t width, int64_t channels,
                        T* columns, Row<T> out) {
  const T* x = s.x + image * s.height * s.width * channels;
  if (is_pool(s)) {
    pool_any_row(s.form == Form::kMaxPool, s.stride, x, s.height, s.width, channels, s.affine, y,
                 width, s.factor, columns, out);
    return;
  }
  x += y * width * channels;
  for_channels<T>(channels, [&](int64_t first, auto vectors) ASNG_INLINE_LAMBDA {
    constexpr int N = vectors.value;
    AffineVectors<T, N> map(s.affine, first);
    for (int n = 0; n < N; ++n) {
      map.scale[n] *= s.factor;
      map.shift[n] *= s.factor;
    }
    for (int64_t p = first; p < width * channels; p += channels) {
      for (int n = 0; n < N; ++n) {
        const int64_t i = p + n * kLanes<T>;
        out.put(i, map(n, load(x + i)));
      }
    }
  });
}

template <class T>
void combine_forward(const Combine<T>& task) {
  const int64_t channels = task.channels, line = task.out_width * channels;
  int64_t widest = 0;
  for (int64_t s = 0; s < task.term_count; ++s) {
    widest = task.terms[s].width > widest ? task.terms[s].width : widest;
  }
  T *sum = nullptr, *columns = nullptr;
  take_scratch([&](Arena& arena) {
    sum = arena.take<T>(line);
    columns = arena.take<T>((widest + 2) * channels);
  });
  for (int64_t image = 0; image < task.images; ++image) {
    for (int64_t y = 0; y < task.out_height; ++y) {
      T* out = task.out + (image * task.out_height + y) * line;
      // The sum is made in a row that stays in the cache; the last term writes it to the output.
      for (int64_t s = 0; s < task.term_count; ++s) {
        combine_row(task.terms[s], image, y, task.out_width, channels, columns,
                    Row<T>{s + 1 == task.term_count ? out : sum, s == 0 ? nullptr : sum});
      }
    }
  }
}

template <class T>
void combine_backward(const Combine<T>& task) {
  const int64_t channels = task.channels, pixels = task.out_height * task.out_width;
  int64_t row = 0;
  for (int64_t s = 0; s < task.term_count; ++s) {
    const Term<T>& term = task.terms[s];
    const int64_t width = (term.width + 2) * channels;
    if (is_pool(term) && width > row) row = width;
  }
  PoolBuffers<T> buffers = {};
  take_scratch([&](Arena& arena) {
    buffers.padded = arena.take<T>(row);
    buffers.spread = arena.take<T>(row);
    for (int r = 0; r < 3; ++r) {
      buffers.best[r] = arena.take<T>(row);
      buffers.along[r] = arena.take<T>(row);
      buffers.received[r] = arena.take<T>(row);
    }
  });
  for (int64_t s = 0; s < task.term_count; ++s) {
    const Term<T>& term = task.terms[s];
    if (term.form == Form::kIdentity && !term.normalized) {
      const Row<T> to = row_of(term.grad, term.accumulate);
      for (int64_t i = 0; i < task.images * pixels * channels; i += kLanes<T>) {
        to.put(i, load(task.grad + i) * term.factor);
      }
    }
    if (!is_pool(term)) continue;
    fill_with(buffers.padded, row, -std::numeric_limits<T>::infinity());
    for (T* received : buffers.received) fill_with(received, row, T(0));
    // Values in the padding are compared, and add zeros.
    for (T* along : buffers.along) fill_with(along, row, T(0));
    for (int64_t image = 0; image < task.images; ++image) {
      pool_backward(term, channels, task.out_height, task.out_width, image,
                    task.grad + image * pixels * channels, buffers);
    }
  }
}

}  // namespace asng::cpu::ASNG_CAPABILITY
