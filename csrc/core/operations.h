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

struct Operation {
  const char* name;
  Form form;
  int kernel;        // side of the window, or of the depthwise convolutions
  int dilation = 1;  // of the depthwise convolutions
};

// The position is the value of an operation variable.
inline constexpr Operation kOperations[] = {
    {"identity", Form::kIdentity, 1},
    {"avg_pool_3x3", Form::kAveragePool, kPoolKernel},
    {"max_pool_3x3", Form::kMaxPool, kPoolKernel},
    {"sep_conv_3x3", Form::kSeparable, 3},
    {"sep_conv_5x5", Form::kSeparable, 5},
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

constexpr int most_kernel() {
  int most = 0;
  for (const Operation& o : kOperations) {
    most = o.form == Form::kSeparable && o.kernel > most ? o.kernel : most;
  }
  return most;
}
// Of depthwise convolutions.
inline constexpr int kMostKernel = most_kernel(), kMostKernelElements = kMostKernel * kMostKernel;

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

// Calls f with the kernel of a separable convolution as a std::integral_constant.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <int kFirst = 0, class F>
ASNG_HD inline void with_kernel(int64_t kernel, F&& f) {
  if constexpr (kFirst < kOperationCount) {
    if constexpr (kOperations[kFirst].form == Form::kSeparable) {
      constexpr int kKernel = kOperations[kFirst].kernel;
      if (kernel == kKernel) return f(std::integral_constant<int, kKernel>());
    }
    with_kernel<kFirst + 1>(kernel, f);
  }
}

}  // namespace asng
