// The kernels of autoencoders, on a grid that runs on the CPU, and the half precision that the grid
// has.
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

// Where the mask is not above 0 there is no gradient.
template <class T>
void check_mask(int64_t count, bool adds) {
  std::vector<T> y, added, mask, expected;
  for (int64_t i = 0; i < count; ++i) {
    const double a = static_cast<double>(i % 17) - 8, b = static_cast<double>(i % 5) / 4;
    const double sign = i % 7 == 0 ? kNan : static_cast<double>(i % 3) - 1;
    y.push_back(Type<T>::from(a));
    added.push_back(Type<T>::from(b));
    mask.push_back(Type<T>::from(sign));
    expected.push_back(Type<T>::from(sign <= 0 ? 0 : adds ? a + b : a));
  }
  finish_layer(Type<T>::kName, {y.data(), adds ? added.data() : nullptr, mask.data(), false, count},
               nullptr);
  for (int64_t i = 0; i < count; ++i) {
    CHECK(same(Type<T>::value(y[i]), Type<T>::value(expected[i])));
  }
}

// Arrays are as large as they must be, so that a sanitizer sees what goes beyond.
template <class T>
void check_channels(int64_t from_channels, int64_t to_channels, int64_t pixels, int count = 1) {
  std::vector<std::vector<T>> from(count), to(count);
  std::vector<ChannelChange> changes;
  for (int n = 0; n < count; ++n) {
    for (int64_t i = 0; i < pixels * from_channels; ++i) {
      from[n].push_back(Type<T>::from(static_cast<double>((i + 3 * n) % 251) + 1));
    }
    to[n].assign(pixels * to_channels, Type<T>::from(kNan));
    changes.push_back({from[n].data(), to[n].data()});
  }
  change_channels(Type<T>::kName, changes, from_channels, to_channels, pixels, false, nullptr);
  for (int n = 0; n < count; ++n) {
    for (int64_t i = 0; i < pixels * to_channels; ++i) {
      const int64_t pixel = i / to_channels, channel = i % to_channels;
      const double expected =
          channel < from_channels ? Type<T>::value(from[n][pixel * from_channels + channel]) : 0;
      CHECK(Type<T>::value(to[n][i]) == expected);
    }
  }
}

// A gradient of 1, 2 and so on in several parts, of which each half is as large as the one before.
void check_parts(int parts) {
  constexpr int kRows = 3, kColumns = 50, kTaps = 25, kWide = 64, kHigh = 4;
  constexpr int kValues = kHigh * kTaps * kWide;
  std::vector<float> padded(parts * kValues, 0.0f), weight(kRows * kColumns * kTaps, NAN);
  std::vector<__nv_bfloat16> half(weight.size());
  double sum = 0;
  for (int p = 0; p < parts; ++p) {
    sum += std::ldexp(1.0, -p);
    for (int row = 0; row < kRows; ++row) {
      for (int tap = 0; tap < kTaps; ++tap) {
        for (int column = 0; column < kColumns; ++column) {
          padded[p * kValues + (row * kTaps + tap) * kWide + column] =
              static_cast<float>(std::ldexp((row * kColumns + column) * kTaps + tap, -p));
        }
      }
    }
  }
  PaddedWeight given = {
      weight.data(), kColumns * kTaps, padded.data(), kRows, kColumns, kTaps, kHigh, kWide};
  given.parts = parts;
  crop_weights(Float::kFloat32, Float::kFloat32, {given}, nullptr);
  given.weight = half.data();
  crop_weights(Float::kBFloat16, Float::kFloat32, {given}, nullptr);
  bool right = true;
  for (size_t i = 0; i < weight.size(); ++i) {
    const double expected = sum * static_cast<double>(i);
    right &= std::abs(weight[i] - expected) <= 1e-6 * expected;
    right &= std::abs(Type<__nv_bfloat16>::value(half[i]) - expected) <= 4e-3 * expected;
  }
  CHECK(right);
}

// Turned weights of several shapes, and rounded to TF32 if `rounds`.
template <class T>
void check_turned(bool rounds, bool flipped = false) {
  struct Shape {
    int rows, columns, taps, padded_rows, padded_columns;
  };
  for (const Shape& shape :
       {Shape{3, 5, 9, 32, 8}, {40, 2, 1, 64, 32}, {9, 37, 25, 32, 64}, {2, 3, 289, 32, 8}}) {
    constexpr int kGap = 3;
    const int64_t pitch = shape.columns * shape.taps + kGap;
    std::vector<float> plain(shape.rows * pitch - kGap);
    for (size_t i = 0; i < plain.size(); ++i) {
      plain[i] = 1 + static_cast<float>(i % 101) / 8192;
    }
    std::vector<T> turned(shape.padded_rows * shape.taps * shape.padded_columns,
                          Type<T>::from(kNan));
    pad_weights(Float::kFloat32, Type<T>::kName,
                {{plain.data(), pitch, turned.data(), shape.rows, shape.columns, shape.taps,
                  shape.padded_rows, shape.padded_columns, true, flipped}},
                rounds, nullptr);
    bool right = true;
    for (int64_t i = 0; i < static_cast<int64_t>(turned.size()); ++i) {
      const int64_t row = i % shape.padded_rows, rest = i / shape.padded_rows;
      const int64_t tap = flipped ? shape.taps - 1 - rest % shape.taps : rest % shape.taps;
      const int64_t column = rest / shape.taps;
      double expected = 0;
      if (row < shape.rows && column < shape.columns) {
        float value = plain[row * pitch + column * shape.taps + tap];
        if (rounds) value = std::floor(value * 1024 + 0.5f) / 1024;
        expected = Type<T>::value(Type<T>::from(value));
      }
      right &= Type<T>::value(turned[i]) == expected;
    }
    CHECK(right);
  }
}

// Weights of several shapes there and back; between rows lies what is to stay as it is.
template <class W, class T>
void check_weights(int copies) {
  struct Shape {
    int rows, columns, taps, padded_rows, padded_columns;
  };
  std::vector<Shape> shapes;
  for (int i = 0; i < copies; ++i) {
    shapes.insert(shapes.end(), {{3, 5, 9, 4, 8}, {2, 2, 1, 2, 2}, {1, 200, 25, 3, 224}});
  }
  constexpr int kGap = 3;
  std::vector<std::vector<W>> plain, back;
  std::vector<std::vector<T>> padded;
  std::vector<PaddedWeight> there, again;
  for (const Shape& shape : shapes) {
    const int64_t pitch = shape.columns * shape.taps + kGap;
    plain.emplace_back(shape.rows * pitch - kGap);
    for (size_t i = 0; i < plain.back().size(); ++i) {
      plain.back()[i] = Type<W>::from(static_cast<double>(i % 101) - 50);
    }
    back.emplace_back(plain.back().size(), Type<W>::from(kNan));
    padded.emplace_back(shape.padded_rows * shape.taps * shape.padded_columns, Type<T>::from(kNan));
    there.push_back({plain.back().data(), pitch, padded.back().data(), shape.rows, shape.columns,
                     shape.taps, shape.padded_rows, shape.padded_columns});
    again.push_back(there.back());
    again.back().weight = back.back().data();
  }
  pad_weights(Type<W>::kName, Type<T>::kName, there, false, nullptr);
  crop_weights(Type<W>::kName, Type<T>::kName, again, nullptr);
  for (size_t i = 0; i < shapes.size(); ++i) {
    const Shape& shape = shapes[i];
    const int run = shape.columns * shape.taps;
    const auto value = [&](int row, int column, int tap) {
      return Type<W>::value(plain[i][row * (run + kGap) + column * shape.taps + tap]);
    };
    bool right = true;
    for (int row = 0; row < shape.padded_rows; ++row) {
      for (int tap = 0; tap < shape.taps; ++tap) {
        for (int column = 0; column < shape.padded_columns; ++column) {
          const bool inside = row < shape.rows && column < shape.columns;
          const int at = (row * shape.taps + tap) * shape.padded_columns + column;
          right &= Type<T>::value(padded[i][at]) == (inside ? value(row, column, tap) : 0);
        }
      }
    }
    for (size_t k = 0; k < back[i].size(); ++k) {
      const double got = Type<W>::value(back[i][k]);
      right &= static_cast<int>(k % (run + kGap)) < run ? got == Type<W>::value(plain[i][k])
                                                        : std::isnan(got);
    }
    CHECK(right);
  }
}

}  // namespace

TEST_CASE("CUDA: layers are finished in every precision") {
  check_type<float>();
  check_type<double>();
  check_type<__nv_bfloat16>();
  check_type<__half>();
}

TEST_CASE("CUDA: gradients are masked in every precision") {
  for (int64_t count : {1, 8, 19, 4001}) {
    for (bool adds : {false, true}) {
      check_mask<float>(count, adds);
      check_mask<double>(count, adds);
      check_mask<__nv_bfloat16>(count, adds);
      check_mask<__half>(count, adds);
    }
  }
}

TEST_CASE("CUDA: images get other numbers of channels") {
  // All at once, and more than a launch takes.
  check_channels<float>(3, 8, 5, 35);
  for (int64_t pixels : {1, 7, 30'000}) {
    check_channels<float>(3, 8, pixels);
    check_channels<__nv_bfloat16>(8, 3, pixels);
    check_channels<double>(1, 1, pixels);
    check_channels<__half>(5, 16, pixels);
  }
}

TEST_CASE("CUDA: weights are padded and cropped in every precision") {
  check_weights<float, float>(1);
  check_weights<double, double>(1);
  check_weights<float, __nv_bfloat16>(1);
  check_weights<float, __half>(1);
  check_weights<__half, __half>(1);
  // More than fit into a launch.
  check_weights<__nv_bfloat16, __nv_bfloat16>(25);
}

TEST_CASE("CUDA: parts of gradients are added") {
  for (int parts : {1, 2, 4, 7, 20}) check_parts(parts);
}

TEST_CASE("CUDA: weights are turned") {
  check_turned<float>(false);
  check_turned<float>(true);
  check_turned<float>(true, true);
  check_turned<__nv_bfloat16>(false);
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
