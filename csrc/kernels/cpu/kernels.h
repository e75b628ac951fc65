// Kernels on a range of feature maps, without threads, without PyTorch.
//
// Feature maps are channels-last: pixel after pixel, each with `channels` values, a multiple of
// kChannelBlock. Channels beyond the real ones are zeros and stay zeros. Every kernel takes plain
// pointers in one struct; the table of kernels is compiled once per instruction set from the same
// source and chosen once (platform/dispatch.h).
#pragma once

#include <cstdint>

#include "core/operations.h"
#include "platform/dispatch.h"

namespace asng::cpu {

// What a reader makes of stored values: value·scale + shift per channel. A pass that computes
// statistics leaves its values raw; whoever reads them normalizes on the way. Null means as stored.
template <class T>
struct Affine {
  const T* scale = nullptr;
  const T* shift = nullptr;
};

// Gradient of a batch normalization's input: a·g + b·z + c per channel, where g is the gradient of
// the output and z the stored value.
template <class T>
struct NormGradient {
  const T* a = nullptr;
  const T* b = nullptr;
  const T* c = nullptr;
};

struct Shape {
  int64_t images = 0;
  int64_t height = 0, width = 0;          // of the input
  int64_t out_height = 0, out_width = 0;  // of the output
  int64_t channels = 0;
  int64_t stride = 1;
  int separable = 0;  // which separable convolution it is
};

// ReLU → depthwise → 1×1, one stage of a separable convolution before its normalization.
template <class T>
struct SeparableForward {
  Shape shape;
  const T* x = nullptr;
  Affine<T> affine;
  const T* depthwise = nullptr;  // (kernel², channels)
  const T* pointwise = nullptr;  // (in, out)
  T* z = nullptr;
  double* sum = nullptr;  // += over pixels, per channel
  double* sum_squares = nullptr;
};

template <class T>
struct SeparableBackward {
  Shape shape;
  const T* grad = nullptr;  // of the normalized output
  const T* z = nullptr;
  NormGradient<T> norm;
  const T* x = nullptr;
  Affine<T> affine;
  const T* depthwise = nullptr;  // (kernel², channels)
  const T* flipped = nullptr;    // the same, kernel elements in reverse order
  const T* pointwise = nullptr;  // (out, in)
  T* grad_x = nullptr;           // of the input as read, that is after the affine map
  bool accumulate = false;       // add to grad_x instead of writing it
  // += (kernel², channels) and (out, in); null: not needed, both or none
  T* grad_depthwise = nullptr;
  T* grad_pointwise = nullptr;
  double* sum = nullptr;  // += Σ grad_x, may be null
  double* dot = nullptr;  // += Σ grad_x · x
};

// One of the inputs that a pointwise convolution concatenates. It reads pixel (stride·i + offset)
// for output pixel i; positions beyond the edge read as zeros.
template <class T>
struct Source {
  const T* x = nullptr;
  Affine<T> affine;
  T* grad = nullptr;  // null: not needed
  bool accumulate = false;
  // Backward, if not null: += Σ grad and Σ grad·x after ReLU, over what grad holds then. The
  // gradient must be zero wherever ReLU is.
  double* sum = nullptr;
  double* dot = nullptr;
  int64_t channels = 0;
  int64_t height = 0, width = 0;
  int64_t stride = 1, offset = 0;
  // Not 0: x has this number of values per pixel, unpadded, and a pixel is read as the 3×3 window
  // around it, as it is, without ReLU: 9·window_channels values and zeros up to `channels`. No
  // gradient.
  int64_t window_channels = 0;

  ASNG_INLINE int64_t stored_channels() const {
    return window_channels != 0 ? window_channels : channels;
  }
};

// Concatenation of sources → ReLU → 1×1.
template <class T>
struct PointwiseForward {
  const Source<T>* sources = nullptr;
  int64_t source_count = 0;
  int64_t images = 0, out_height = 0, out_width = 0;
  int64_t out_channels = 0;
  const T* weight = nullptr;  // (in, out)
  T* z = nullptr;
  double* sum = nullptr;
  double* sum_squares = nullptr;
};

template <class T>
struct PointwiseBackward {
  const Source<T>* sources = nullptr;
  int64_t source_count = 0;
  int64_t images = 0, out_height = 0, out_width = 0;
  int64_t out_channels = 0;
  const T* const* grads = nullptr;  // their sum is the gradient of the normalized output
  int64_t grad_count = 1;
  const T* z = nullptr;
  NormGradient<T> norm;
  const T* weight = nullptr;  // (out, in)
  T* grad_weight = nullptr;   // += (out, in)
};

// One term of a node. A normalized term is read at the size of the output.
template <class T>
struct Term {
  Form form = Form::kIdentity;
  bool normalized = false;  // what is read is the result already, but for its normalization
  T factor = 1;
  const T* x = nullptr;
  Affine<T> affine;
  int64_t height = 0, width = 0, stride = 1;
  // Backward only.
  T* grad = nullptr;  // of the input as read; unused by normalized terms
  bool accumulate = false;
};

template <class T>
struct Combine {
  const Term<T>* terms = nullptr;
  int64_t term_count = 0;
  int64_t images = 0, out_height = 0, out_width = 0, channels = 0;
  T* out = nullptr;         // forward
  const T* grad = nullptr;  // backward: gradient of out
};

// Sums for the gradient of a normalization: Σ g and Σ g · (z after the affine map).
template <class T>
struct Reduce {
  int64_t pixels = 0, channels = 0;
  const T* const* grads = nullptr;
  int64_t grad_count = 1;
  const T* z = nullptr;
  Affine<T> affine;
  double* sum = nullptr;
  double* dot = nullptr;
};

template <class T>
struct Kernels {
  void (*separable_forward)(const SeparableForward<T>&);
  void (*separable_backward)(const SeparableBackward<T>&);
  void (*pointwise_forward)(const PointwiseForward<T>&);
  void (*pointwise_backward)(const PointwiseBackward<T>&);
  void (*combine_forward)(const Combine<T>&);
  void (*combine_backward)(const Combine<T>&);
  void (*reduce)(const Reduce<T>&);
  void (*normalize)(T* x, int64_t pixels, int64_t channels, Affine<T> affine);
};

// Those for the chosen instruction set.
template <class T>
const Kernels<T>& kernels();

}  // namespace asng::cpu
