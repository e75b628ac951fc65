// One call of a node or a cell, on the CPU kernels and on the CUDA kernels that run on the CPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <type_traits>
#include <vector>

#include "ops/cell/cpu.h"
#include "ops/cell/cuda.h"
#include "platform/grid_on_cpu/grid.h"

namespace asng::test {

// Operations by their numbers.
constexpr int kIdentity = operation_number(Form::kIdentity);
constexpr int kMaxPool = operation_number(Form::kMaxPool);
constexpr int kSeparable3 = operation_number(Form::kSeparable, 0);
constexpr int kSeparable5 = operation_number(Form::kSeparable, 1);

// Values that are saved where feature maps are stored as V.
template <class V>
int64_t saved_values(const SavedSize& size) {
  return cuda::saved_values<V>(size.statistics, size.feature_maps);
}

// Memory as a device's allocator gives it: aligned, and full of what was there before. Its bounds
// are those of the request, for AddressSanitizer.
class Memory {
 public:
  explicit Memory(size_t bytes)
      : data_(::operator new(bytes + 1, std::align_val_t{256})), bytes_(bytes) {
    std::memset(data_, 0xff, bytes + 1);
  }
  ~Memory() { ::operator delete(data_, std::align_val_t{256}); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* get() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
  size_t bytes_;
};

// What a call gives: tensors one after the other.
template <class T>
using Tensors = std::vector<std::vector<T>>;

template <class T>
std::vector<T> take(const Memory& memory, int64_t count) {
  return std::vector<T>(memory.as<T>(), memory.as<T>() + count);
}

// One number in another type; to bfloat16 it is rounded.
template <class To, class From>
To converted1(From value) {
  if constexpr (std::is_same_v<To, cuda::BFloat16>) {
    return {__float2bfloat16(static_cast<float>(value)).bits};
  } else if constexpr (std::is_same_v<From, cuda::BFloat16>) {
    return static_cast<To>(__bfloat162float({value.bits}));
  } else {
    return static_cast<To>(value);
  }
}
template <class To, class From>
std::vector<To> converted(const std::vector<From>& values) {
  std::vector<To> result;
  result.reserve(values.size());
  for (const From value : values) result.push_back(converted1<To>(value));
  return result;
}

// ‖a − b‖ / (‖b‖ + 1e-3); infinite if one holds a NaN.
template <class T>
double difference(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double distance = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    distance += d * d;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  const double relative = std::sqrt(distance) / (std::sqrt(norm) + 1e-3);
  return relative == relative ? relative : std::numeric_limits<double>::infinity();
}

class Draw {
 public:
  explicit Draw(unsigned seed) : generator_(seed) {}

  template <class T>
  std::vector<T> normal(int64_t count) {
    std::normal_distribution<double> distribution;
    std::vector<T> values(static_cast<size_t>(count));
    for (T& value : values) value = static_cast<T>(distribution(generator_));
    return values;
  }
  // Feature maps: zeros beyond the real channels.
  template <class T>
  std::vector<T> images(int64_t pixels, int64_t channels) {
    const int64_t padded = padded_channels(channels);
    std::vector<T> values = normal<T>(pixels * padded);
    for (size_t i = 0; i < values.size(); ++i) {
      if (static_cast<int64_t>(i) % padded >= channels) values[i] = 0;
    }
    return values;
  }
  int32_t below(int32_t count) {
    return std::uniform_int_distribution<int32_t>(0, count - 1)(generator_);
  }

 private:
  std::mt19937 generator_;
};

// Weights of `edges` separable convolutions and of `reductions` factorized reductions.
template <class T>
struct OperationWeights {
  std::vector<T> depthwise[2], pointwise[2], reduction;

  OperationWeights(Draw& draw, int64_t edges, int64_t reductions, int64_t channels) {
    for (int kind = 0; kind < 2; ++kind) {
      depthwise[kind] = draw.normal<T>(edges * 2 * channels * (kind == 0 ? 9 : 25));
      pointwise[kind] = draw.normal<T>(edges * 2 * channels * channels);
    }
    reduction = draw.normal<T>(reductions * channels * channels);
  }

  // The same numbers in another type.
  template <class U>
  explicit OperationWeights(const OperationWeights<U>& other)
      : reduction(converted<T>(other.reduction)) {
    for (int kind = 0; kind < 2; ++kind) {
      depthwise[kind] = converted<T>(other.depthwise[kind]);
      pointwise[kind] = converted<T>(other.pointwise[kind]);
    }
  }

  void fill(T value) {
    for (auto* values : {&depthwise[0], &depthwise[1], &pointwise[0], &pointwise[1], &reduction}) {
      values->assign(values->size(), value);
    }
  }
  void append_to(Tensors<T>& tensors) const {
    for (auto* values : {&depthwise[0], &pointwise[0], &depthwise[1], &pointwise[1], &reduction}) {
      tensors.push_back(*values);
    }
  }
  template <class W>
  W pointers() {
    W w;
    for (int kind = 0; kind < 2; ++kind) {
      w.depthwise[kind] = depthwise[kind].data();
      w.pointwise[kind] = pointwise[kind].data();
    }
    w.reduction = reduction.empty() ? nullptr : reduction.data();
    return w;
  }
};

}  // namespace asng::test
