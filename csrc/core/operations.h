// The operations of the cell space (Section 3.2), and the constants of the layers they are made of.
// All code that needs to know of operations asks here; without torch, for the host and for CUDA
// devices.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/hd.h"

namespace asng {

// Feature maps have a multiple of so many channels, one AVX-512 register of floats; those beyond
// the real ones are zeros.
inline constexpr int kChannelBlock = 16;

template <class Int>
ASNG_HD constexpr Int padded_channels(Int channels) {
  return (channels + kChannelBlock - 1) / kChannelBlock * kChannelBlock;
}

// What a batch normalization adds to the variance.
inline constexpr double kEpsilon = 1e-5;

// Side of the windows of all pools, and their pixels.
inline constexpr int kPoolKernel = 3, kPoolPixels = kPoolKernel * kPoolKernel;

enum class Form : int32_t {
  kIdentity,  // with stride 2 a factorized reduction
  kAveragePool,
  kMaxPool,
  kSeparable,  // two stages of ReLU, depthwise and pointwise convolution, batch normalization
  kNone,       // of a number that is no operation's
};
inline constexpr const char* kFormNames[] = {"identity", "average_pool", "max_pool", "separable"};

struct Operation {
  const char* name;
  Form form;
  int kernel;            // side of the window, or of the depthwise convolutions
  int dilation = 1;      // of the depthwise convolutions
  bool in_paper = true;  // whether the paper's space has it

  // Side of the square of pixels that the window reaches over.
  ASNG_HD constexpr int extent() const { return (kernel - 1) * dilation + 1; }
};

// The position is the value of an operation variable.
inline constexpr Operation kOperations[] = {
    {"identity", Form::kIdentity, 1},
    {"avg_pool_3x3", Form::kAveragePool, kPoolKernel},
    {"max_pool_3x3", Form::kMaxPool, kPoolKernel},
    {"sep_conv_3x3", Form::kSeparable, 3},
    {"sep_conv_5x5", Form::kSeparable, 5},
    {"dil_sep_conv_3x3", Form::kSeparable, 3, 2, false},
};
inline constexpr int kOperationCount = static_cast<int>(std::extent_v<decltype(kOperations)>);

ASNG_HD constexpr bool is_factorized(Form form, int64_t stride) {
  return form == Form::kIdentity && stride == 2;
}

// How many separable convolutions come before operation `number`: they are numbered apart, too.
constexpr int separables_before(int number) {
  int count = 0;
  for (int i = 0; i < number; ++i) count += kOperations[i].form == Form::kSeparable;
  return count;
}
template <int kNumber>
inline constexpr int kSeparablesBefore = separables_before(kNumber);
inline constexpr int kSeparableCount = kSeparablesBefore<kOperationCount>;

template <class F>
constexpr int most_of_separables(F f) {
  int most = 0;
  for (const Operation& o : kOperations) {
    if (o.form == Form::kSeparable && f(o) > most) most = f(o);
  }
  return most;
}
// Of depthwise convolutions.
inline constexpr int kMostKernelElements =
    most_of_separables([](const Operation& o) { return o.kernel * o.kernel; });
inline constexpr int kMostExtent =
    most_of_separables([](const Operation& o) { return o.extent(); });

// What a kernel asks of operation `number`; of no operation the form is kNone. Device code cannot
// index a table of the host.
struct OperationInfo {
  Form form = Form::kNone;
  int kernel = 0;
  int separable = 0;  // its number among the separable convolutions
};
template <int kFirst = 0>
ASNG_HD constexpr OperationInfo operation_info(int number) {
  if constexpr (kFirst < kOperationCount) {
    constexpr OperationInfo kInfo = {kOperations[kFirst].form, kOperations[kFirst].kernel,
                                     kSeparablesBefore<kFirst>};
    return number == kFirst ? kInfo : operation_info<kFirst + 1>(number);
  }
  return {};
}

// The number of the first operation of a form, or of a separable convolution from its own number.
template <int kFirst = 0>
ASNG_HD constexpr int operation_number(Form form, int separable = 0) {
  if constexpr (kFirst < kOperationCount) {
    constexpr OperationInfo kInfo = operation_info(kFirst);
    const bool same =
        kInfo.form == form && (form != Form::kSeparable || kInfo.separable == separable);
    return same ? kFirst : operation_number<kFirst + 1>(form, separable);
  }
  return kOperationCount;
}

// What a depthwise convolution is compiled for.
template <int kKernel, int kDilation>
struct Window {
  static constexpr int kernel = kKernel, dilation = kDilation;
};

// Calls f with the Window of separable convolution `separable`.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <int kFirst = 0, class F>
ASNG_HD inline void with_window(int separable, F&& f) {
  if constexpr (kFirst < kOperationCount) {
    constexpr Operation kOperation = kOperations[kFirst];
    if constexpr (kOperation.form == Form::kSeparable) {
      if (separable == kSeparablesBefore<kFirst>) {
        return f(Window<kOperation.kernel, kOperation.dilation>());
      }
    }
    with_window<kFirst + 1>(separable, f);
  }
}

}  // namespace asng
