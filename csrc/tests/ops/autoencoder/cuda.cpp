// The end of an autoencoder's layer, on a grid that runs on the CPU, and the half precision that
// the grid has.
#include "ops/autoencoder/cuda.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "platform/grid_on_cpu/half.h"

namespace {

using namespace asng::cuda;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

template <class T>
struct Type;
template <>
struct Type<float> {
  static constexpr Float kName = Float::kFloat32;
  static float from(double x) { return static_cast<float>(x); }
  static double value(float x) { return x; }
};
template <>
struct Type<double> {
  static constexpr Float kName = Float::kFloat64;
  static double from(double x) { return x; }
  static double value(double x) { return x; }
};
template <>
struct Type<__nv_bfloat16> {
  static constexpr Float kName = Float::kBFloat16;
  static __nv_bfloat16 from(double x) { return __float2bfloat16(static_cast<float>(x)); }
  static double value(__nv_bfloat16 x) { return __bfloat162float(x); }
};
template <>
struct Type<__half> {
  static constexpr Float kName = Float::kHalf;
  static __half from(double x) { return __float2half(static_cast<float>(x)); }
  static double value(__half x) { return __half2float(x); }
};

bool same(double a, double b) { return std::isnan(a) ? std::isnan(b) : a == b; }

// `count` numbers from `offset` on of arrays that begin at a multiple of 16 bytes.
template <class T>
void check_finish(int64_t count, int64_t offset, bool skip, bool relu) {
  const int64_t size = count + offset + 5;
  std::vector<T> y, skipped, expected;
  for (int64_t i = 0; i < size; ++i) {
    double a = static_cast<double>(i * 37 % 101 - 50) / 8, b = static_cast<double>(i % 13) - 6;
    if (i % 29 == 3) a = kNan;
    if (i % 31 == 4) a = -kInfinity;
    y.push_back(Type<T>::from(a));
    skipped.push_back(Type<T>::from(b));
    double sum = Type<T>::value(y.back()) + (skip ? Type<T>::value(skipped.back()) : 0.0);
    if (relu && sum <= 0) sum = 0;
    expected.push_back(i >= offset && i < offset + count ? Type<T>::from(sum) : y.back());
  }
  const T* const added = skip ? skipped.data() + offset : nullptr;
  finish_layer(Type<T>::kName, {y.data() + offset, added, nullptr, relu, count}, nullptr);
  for (int64_t i = 0; i < size; ++i) {
    CHECK(same(Type<T>::value(y[i]), Type<T>::value(expected[i])));
  }
}

template <class T>
void check_type() {
  // The last is more than the grid's threads take in one stride.
  for (int64_t count : {0, 1, 3, 4, 7, 8, 15, 17, 1000, 100'003}) {
    for (int64_t offset : {0, 1, 16}) {
      for (int what = 0; what < 4; ++what) {
        if (count > 1000 && (offset == 16 || what != 3)) continue;
        check_finish<T>(count, offset, (what & 1) != 0, (what & 2) != 0);
      }
    }
  }
}

}  // namespace

TEST_CASE("CUDA: layers are finished in every precision") {
  check_type<float>();
  check_type<double>();
  check_type<__nv_bfloat16>();
  check_type<__half>();
}

TEST_CASE("CUDA: half precision on the CPU rounds to the nearest") {
  for (int bits = 0; bits < 0x7c00; ++bits) {
    const auto low = static_cast<std::uint16_t>(bits), high = static_cast<std::uint16_t>(bits + 1);
    const float a = __half2float({low});
    CHECK(__float2half(a).bits == low);
    CHECK(__float2half(-a).bits == (low | 0x8000));
    // Beyond the largest number lies what would be 65536.
    const float b = high == 0x7c00 ? 65536.0f : __half2float({high}), middle = (a + b) / 2;
    CHECK(a < b);
    CHECK(__float2half(middle).bits == (low % 2 == 0 ? low : high));
    CHECK(__float2half(std::nextafter(middle, a)).bits == low);
    CHECK(__float2half(std::nextafter(middle, b)).bits == high);
  }
  CHECK(__half2float({0x3c00}) == 1.0f);
  CHECK(__half2float({0x7bff}) == 65504.0f);
  CHECK(__half2float({1}) == 0x1p-24f);
  CHECK(std::isinf(__half2float({0xfc00})));
  CHECK(__half2float({0xfc00}) < 0);
  CHECK(std::isnan(__half2float({0x7e00})));
  CHECK(std::isnan(__half2float(__float2half(NAN))));
}
