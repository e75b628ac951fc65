// Patches of pixels: what a thread computes at once of a feature map, four channels of each pixel.
// What the windows of a patch have in common is loaded once, and all loads are under way before the
// first is waited for: what lies beyond the edge is no branch between them.
#pragma once

#include "kernels/cuda/dag.h"

namespace asng::cuda {

struct Pixel {
  int image, y, x;
};

// The patches of images, in rows one after the other. Neighboring threads have neighboring patches,
// so a patch is narrow: they read whole lines of memory together.
template <int kPatchRows, int kPatchColumns>
struct Patches {
  static constexpr int kRows = kPatchRows, kColumns = kPatchColumns, kPixels = kRows * kColumns;

  int height, width;  // of an image

  ASNG_HD int across() const { return (width + kColumns - 1) / kColumns; }
  ASNG_HD int down() const { return (height + kRows - 1) / kRows; }
  ASNG_HD int count(int images) const { return images * down() * across(); }
  // The first pixel of a patch.
  __device__ Pixel at(int patch) const {
    const unsigned columns = across(), rows = down();
    const unsigned line = static_cast<unsigned>(patch) / columns, image = line / rows;
    return {static_cast<int>(image), static_cast<int>(line - image * rows) * kRows,
            static_cast<int>(patch - line * columns) * kColumns};
  }
  __device__ bool inside(const Pixel& first, int i) const {
    return first.y + i / kColumns < height && first.x + i % kColumns < width;
  }
  // Of four channels of pixel i of a patch, or of the nearest one inside of the image.
  __device__ int64_t offset(const Pixel& first, int i, int padded, int channel) const {
    const int pixel = (first.image * height + first.y) * width + first.x;
    const int down = i < kColumns ? 0 : min(i / kColumns, height - 1 - first.y);
    const int right = i % kColumns == 0 ? 0 : min(i % kColumns, width - 1 - first.x);
    return static_cast<int64_t>(pixel) * padded + channel + (down * width + right) * padded;
  }
  // The pixels of a patch, those outside of the image as above, so that nothing stands between the
  // loads.
  template <class V>
  __device__ void load(const V* from, const Pixel& first, int padded, int channel,
                       Vec4<Compute<V>> (&to)[kPixels]) const {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) to[i] = load_vec4(from + offset(first, i, padded, channel));
  }
};

// The patches of the input of operations with stride S. With stride 2, which outputs see a pixel
// depends on whether its coordinates are even, so a patch has one pixel of each sort.
template <int S>
using InputPatches = Patches<S == 1 ? 4 : 2, S>;

// 0 ≤ position < size, in one comparison.
__device__ __forceinline__ bool is_within(int position, int size) {
  return static_cast<unsigned>(position) < static_cast<unsigned>(size);
}

// Where an image of four channels begins.
template <class V>
__device__ const V* image_of(const V* images, int image, int height, int width, int padded,
                             int channel) {
  return images + static_cast<int64_t>(image) * height * width * padded + channel;
}

// Every output of K×K windows with stride S and dilation D, padded so that stride 1 keeps the size,
// that sees a pixel of a patch of their input: calls use(pixel of the patch, ky, kx, value), where
// the pixel is at (ky, kx) of the window, and the value what load(offset of the output's pixel in
// its image, whether there is one) has returned.
template <int K, int D, int S, class Load, class Use>
__device__ __forceinline__ void visit_readers(const DagShape& s, const Pixel& first, Load load,
                                              Use use) {
  using Patch = InputPatches<S>;
  constexpr int kMiddle = D * (K / 2), kFirst = -(kMiddle / S);
  constexpr int kRows = (Patch::kRows - 1 + kMiddle) / S - kFirst + 1;
  constexpr int kColumns = (Patch::kColumns - 1 + kMiddle) / S - kFirst + 1;
  const auto taps = [](int distance) {
    return distance >= 0 && distance % D == 0 && distance / D < K;
  };
  const int top = first.y / S + kFirst, left = first.x / S + kFirst;
  const int line = s.out_width * s.padded;
  // With stride 1 all columns are alike, so that a loop over them is the shorter code.
  [[maybe_unused]] constexpr int kUnrolled = S == 1 ? 1 : kColumns;
#pragma unroll kUnrolled
  for (int q = 0; q < kColumns; q += S == 1 ? D : 1) {
    const int x = left + q;
    const bool in_line = is_within(x, s.out_width);
    const int start = top * line + x * s.padded;
    decltype(load(0, true)) values[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      values[r] = load(start + r * line, in_line && is_within(top + r, s.out_height));
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < Patch::kPixels; ++i) {
        const int dy = i / Patch::kColumns + kMiddle - (kFirst + r) * S;
        const int dx = i % Patch::kColumns + kMiddle - (kFirst + q) * S;
        if (taps(dy) && (S == 1 || taps(dx))) use(i, dy / D, dx / D, values[r]);
      }
    }
  }
}

// Calls visit(patch, channel) for this block's share of `count` patches and all their channels:
// threads have neighboring channels, and then neighboring patches.
template <class Visit>
__device__ void visit_patches(int count, int padded, Visit visit) {
  const int threads = blockDim.x, quads = padded / 4;
  const int width = min(quads, threads), slots = threads / width;
  const int lane = threadIdx.x % width, slot = threadIdx.x / width;
  if (slot >= slots) return;
  for (int quad = lane; quad < quads; quad += width) {
    for (int patch = blockIdx.x * slots + slot; patch < count; patch += gridDim.x * slots) {
      visit(patch, quad * 4);
    }
  }
}

}  // namespace asng::cuda
