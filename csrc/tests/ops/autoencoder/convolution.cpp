// Convolutions on tensor cores and their gradients, on a grid that runs on the CPU, against sums
// in float64.
#include "ops/autoencoder/convolution.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "ops/autoencoder/cuda_path.h"
#include "ops/autoencoder/persistent_layers.h"
#include "platform/cuda.h"
#include "tests/platform/sanitized.h"

namespace {

using namespace asng::cuda;

template <class T>
struct Type;
template <>
struct Type<float> {
  static constexpr Float kName = Float::kFloat32;
  static float from(double x) { return __uint_as_float(to_tf32(static_cast<float>(x))); }
  static double value(float x) { return x; }
};
template <>
struct Type<__nv_bfloat16> {
  static constexpr Float kName = Float::kBFloat16;
  static __nv_bfloat16 from(double x) { return __float2bfloat16(static_cast<float>(x)); }
  static double value(__nv_bfloat16 x) { return __bfloat162float(x); }
};

template <class T>
using Values = std::vector<T>;

// Everything a layer has, as large as it must be, so that a sanitizer sees what goes beyond.
template <class T>
struct Layer {
  ConvolutionShape shape;
  Values<T> large, small, weight, turned;

  Layer(ConvolutionShape shape, unsigned seed) : shape(shape) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<double> draw(-1, 1);
    const auto fill = [&](Values<T>& values, int64_t count) {
      for (int64_t i = 0; i < count; ++i) values.push_back(Type<T>::from(draw(random)));
    };
    fill(large, large_size());
    fill(small, small_size());
    const int64_t taps = shape.kernel * shape.kernel;
    fill(weight, shape.small_channels * taps * shape.channels);
    for (int64_t c = 0; c < shape.channels; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t r = 0; r < shape.small_channels; ++r) {
          turned.push_back(weight[(r * taps + tap) * shape.channels + c]);
        }
      }
    }
  }

  int64_t large_size() const { return shape.batch * shape.height * shape.width * shape.channels; }
  int64_t small_size() const {
    return shape.batch * shape.small_height() * shape.small_width() * shape.small_channels;
  }

  // Calls f(pixel of the smaller map, tap, pixel of the larger one) for all that belong together.
  template <class F>
  void each(F f) const {
    const int64_t high = shape.small_height(), wide = shape.small_width(), k = shape.kernel;
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int64_t y = 0; y < high; ++y) {
        for (int64_t x = 0; x < wide; ++x) {
          for (int64_t tap = 0; tap < k * k; ++tap) {
            const int64_t at_y = y * shape.stride + tap / k - k / 2;
            const int64_t at_x = x * shape.stride + tap % k - k / 2;
            if (at_y < 0 || at_y >= shape.height || at_x < 0 || at_x >= shape.width) continue;
            f((b * high + y) * wide + x, tap, (b * shape.height + at_y) * shape.width + at_x);
          }
        }
      }
    }
  }

  double product(const Values<T>& values, int64_t pixel, int64_t channels, int64_t c) const {
    return Type<T>::value(values[pixel * channels + c]);
  }
  double weight_at(int64_t r, int64_t tap, int64_t c) const {
    return Type<T>::value(weight[(r * shape.kernel * shape.kernel + tap) * shape.channels + c]);
  }

  Values<double> convolved(bool transposed) const {
    Values<double> sums(transposed ? large_size() : small_size());
    each([&](int64_t p, int64_t tap, int64_t q) {
      for (int64_t r = 0; r < shape.small_channels; ++r) {
        for (int64_t c = 0; c < shape.channels; ++c) {
          const double w = weight_at(r, tap, c);
          if (transposed) {
            sums[q * shape.channels + c] += w * product(small, p, shape.small_channels, r);
          } else {
            sums[p * shape.small_channels + r] += w * product(large, q, shape.channels, c);
          }
        }
      }
    });
    return sums;
  }
  Values<double> gradient() const {
    Values<double> sums(weight.size());
    const int64_t taps = shape.kernel * shape.kernel;
    each([&](int64_t p, int64_t tap, int64_t q) {
      for (int64_t r = 0; r < shape.small_channels; ++r) {
        for (int64_t c = 0; c < shape.channels; ++c) {
          sums[(r * taps + tap) * shape.channels + c] +=
              product(small, p, shape.small_channels, r) * product(large, q, shape.channels, c);
        }
      }
    });
    return sums;
  }
};

// As large as they come.
constexpr ConvolutionShape kWide = {.batch = 16,
                                    .height = 64,
                                    .width = 64,
                                    .channels = 256,
                                    .small_channels = 256,
                                    .kernel = 5,
                                    .stride = 1};

// What is done to a result.
struct End {
  bool adds, masks, relu, rounds;
};
constexpr End kEnds[] = {{false, false, false, false},
                         {true, false, true, true},
                         {false, false, true, true},
                         {true, true, false, true}};

// `sums` are those of layer.convolved(transposed).
template <class T>
void check_convolution(const Layer<T>& layer, const Values<double>& sums, bool transposed, End end,
                       Tiling tiling) {
  // Maps of the result's size, in which signs differ.
  Values<T> y(sums.size(), Type<T>::from(NAN)), added, mask;
  for (size_t i = 0; i < sums.size(); ++i) {
    added.push_back(Type<T>::from(static_cast<double>(i % 17) / 4 - 2));
    mask.push_back(Type<T>::from(i % 11 == 3 ? NAN : static_cast<double>(i % 3) - 1));
  }
  Values<float> parts(convolution_parts(transposed, layer.shape, tiling), NAN);
  convolve(Type<T>::kName, layer.shape,
           {.x = transposed ? layer.small.data() : layer.large.data(),
            .weight = transposed ? layer.turned.data() : layer.weight.data(),
            .y = y.data(),
            .added = end.adds ? added.data() : nullptr,
            .mask = end.masks ? mask.data() : nullptr,
            .transposed = transposed,
            .relu = end.relu,
            .rounds = end.rounds,
            .parts = parts.data()},
           tiling, nullptr);
  double worst = 0;
  bool rounded = true;
  for (size_t i = 0; i < sums.size(); ++i) {
    double expected = sums[i] + (end.adds ? Type<T>::value(added[i]) : 0);
    if (end.relu && expected < 0) expected = 0;
    if (end.masks && Type<T>::value(mask[i]) <= 0) expected = 0;
    const double got = Type<T>::value(y[i]);
    worst = std::isnan(got) ? INFINITY
                            : std::max(worst, std::abs(got - expected) / (1 + std::abs(expected)));
    if (end.rounds) rounded &= Type<T>::value(Type<T>::from(got)) == got;
  }
  CHECK(worst < (sizeof(T) == 2 ? 0x1p-8 : end.rounds ? 0x1p-11 : 1e-4));
  CHECK(rounded);
}

// `expected` is layer.gradient().
template <class T>
void check_gradient(const Layer<T>& layer, const Values<double>& expected, Tiling tiling) {
  Values<float> parts(tiling.parts * expected.size(), NAN), again = parts;
  const auto compute = [&](Values<float>& to) {
    weight_gradient(Type<T>::kName, layer.shape, layer.small.data(), layer.large.data(), to.data(),
                    tiling, nullptr);
  };
  compute(parts);
  if (!kSanitized) {  // which would see the same again
    compute(again);
    CHECK(parts == again);
  }
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    double sum = 0;
    for (int p = 0; p < tiling.parts; ++p) sum += parts[p * expected.size() + i];
    worst = std::isnan(sum)
                ? INFINITY
                : std::max(worst, std::abs(sum - expected[i]) / (1 + std::abs(expected[i])));
  }
  CHECK(worst < 1e-4);
}

// Parts of about so many, as many as there may be.
int parts_of(const ConvolutionShape& shape, int of_part, int deep) {
  const auto pixels = static_cast<int>(shape.batch * shape.small_height() * shape.small_width());
  const int chunks = (pixels + deep - 1) / deep;
  return (chunks + of_part - 1) / of_part;
}

template <class T>
void check_tiles() {
  // Channels that no tile divides, stages that begin in the middle of a tap, and few pixels.
  const Layer<T> layer({.batch = 2,
                        .height = 9,
                        .width = 8,
                        .channels = kSanitized ? 24 : 40,
                        .small_channels = 136,
                        .kernel = 3,
                        .stride = 1},
                       1);
  const Values<double> sums = layer.convolved(false), transposed = layer.convolved(true);
  const Values<double> gradient = layer.gradient();
  for (int tile = 0; tile < convolution_tile_count(); ++tile) {
    CAPTURE(tile);
    check_convolution<T>(layer, sums, false, kEnds[1], {tile, 1});
    check_convolution<T>(layer, transposed, true, kEnds[3], {tile, 1 + tile});
  }
  for (int tile = 0; tile < gradient_tile_count(Type<T>::kName); ++tile) {
    CAPTURE(tile);
    for (int of_part : {1, 2, 100}) {
      check_gradient<T>(layer, gradient, {tile, parts_of(layer.shape, of_part, 128 / sizeof(T))});
    }
  }
  CHECK_THROWS(convolve(Type<T>::kName, layer.shape, {}, {convolution_tile_count(), 1}, nullptr));
  CHECK_THROWS(
      weight_gradient(Type<T>::kName, layer.shape, nullptr, nullptr, nullptr, {0, 1000}, nullptr));
}

template <class T>
void check_shapes() {
  unsigned seed = 0;
  for (int64_t kernel : {1, 3, 5, 7}) {
    // Every kernel but the smallest reaches beyond such maps, and the largest takes longest.
    if (kSanitized && kernel == 7) continue;
    for (int64_t stride : {1, 2}) {
      for (auto [height, width] : {std::pair<int64_t, int64_t>{1, 1}, {1, 9}, {6, 1}, {7, 10}}) {
        ConvolutionShape shape = {.batch = 1 + seed % 3,
                                  .height = height,
                                  .width = width,
                                  .channels = seed % 2 == 0 ? 8 : 32,
                                  .small_channels = seed % 3 == 0 ? 64 : 32,
                                  .kernel = kernel,
                                  .stride = stride};
        const Layer<T> layer(shape, ++seed);
        CAPTURE(kernel);
        CAPTURE(stride);
        CAPTURE(height);
        const Values<double> transposed = layer.convolved(true);
        check_convolution<T>(layer, layer.convolved(false), false, kEnds[seed % 4],
                             convolution_tiling(Type<T>::kName, false, shape));
        check_convolution<T>(layer, transposed, true, kEnds[seed % 4],
                             convolution_tiling(Type<T>::kName, true, shape));
        // Of some pixels of a transposed one there are few taps or none.
        check_convolution<T>(layer, transposed, true, kEnds[seed % 4], {6, 2});
        check_gradient<T>(layer, layer.gradient(), weight_gradient_tiling(Type<T>::kName, shape));
        if (shape.channels == 8 && stride == 1) {
          check_convolution<T>(layer, transposed, true, kEnds[seed % 4],
                               {.tile = 7, .by_taps = true});
        }
      }
    }
  }
}

// A convolution, a transposed one of its result, of which the gradient of the weight is computed
// beside one more, by taps: in launches of their own, and in a persistent kernel.
template <class T>
struct InARow {
  static constexpr int64_t kBatch = 1;
  Layer<T> first{{.batch = kBatch,
                  .height = 5,
                  .width = 4,
                  .channels = 40,
                  .small_channels = 72,
                  .kernel = 3,
                  .stride = 1},
                 1};
  Layer<T> second{{.batch = kBatch,
                   .height = 9,
                   .width = 7,
                   .channels = 32,
                   .small_channels = 72,
                   .kernel = 3,
                   .stride = 2},
                  2};
  Layer<T> third{{.batch = kBatch,
                  .height = 9,
                  .width = 7,
                  .channels = 8,
                  .small_channels = 32,
                  .kernel = 3,
                  .stride = 1},
                 3};
  Tiling tilings[3], of_gradient;
  Values<T> maps[3];
  Values<float> parts[3], gradient;

  // Tiles and parts of all kinds: those of blocks of 128 threads.
  static constexpr int kVariants = 8, kTiles[kVariants] = {3, 4, 5, 6, 7, 11, 12, 13};
  static constexpr int kGradientTiles[] = {4, 5, 6, 8, 9};
  explicit InARow(int variant)
      : tilings{{kTiles[variant % kVariants], 1 + variant % 3},
                {kTiles[(variant + 2) % kVariants], 1 + variant % 2},
                {7, 1}},
        of_gradient{kGradientTiles[variant % (sizeof(T) == 2 ? 5 : 3)],
                    parts_of(second.shape, 1 + variant, 128 / sizeof(T))} {
    tilings[2].by_taps = true;
    forget();
  }
  void forget() {
    const int64_t sizes[] = {first.small_size(), second.large_size(), third.large_size()};
    const ConvolutionShape* shapes[] = {&first.shape, &second.shape, &third.shape};
    for (int i = 0; i < 3; ++i) {
      maps[i].assign(sizes[i], Type<T>::from(NAN));
      parts[i].assign(convolution_parts(i > 0, *shapes[i], tilings[i]), NAN);
    }
    gradient.assign(of_gradient.parts * second.weight.size(), NAN);
  }
  Convolution convolution(int i) {
    const Layer<T>& layer = i == 0 ? first : i == 1 ? second : third;
    return {.x = i == 0 ? layer.large.data() : maps[i - 1].data(),
            .weight = i == 0 ? layer.weight.data() : layer.turned.data(),
            .y = maps[i].data(),
            .added = i == 1 ? layer.large.data() : nullptr,
            .mask = i == 2 ? layer.large.data() : nullptr,
            .transposed = i > 0,
            .relu = i < 2,
            .rounds = i < 2,
            .parts = parts[i].data()};
  }
  void separately() {
    convolve(Type<T>::kName, first.shape, convolution(0), tilings[0], nullptr);
    convolve(Type<T>::kName, second.shape, convolution(1), tilings[1], nullptr);
    weight_gradient(Type<T>::kName, second.shape, maps[0].data(), maps[1].data(), gradient.data(),
                    of_gradient, nullptr);
    convolve(Type<T>::kName, third.shape, convolution(2), tilings[2], nullptr);
  }
  // Returns the phase after them.
  int add_to(PersistentLayers& layers, int phase) {
    phase = layers.convolve(first.shape, convolution(0), tilings[0], phase);
    phase = layers.convolve(second.shape, convolution(1), tilings[1], phase);
    layers.weight_gradient(second.shape, maps[0].data(), maps[1].data(), gradient.data(),
                           of_gradient, phase);
    return layers.convolve(third.shape, convolution(2), tilings[2], phase);
  }
  bool has(const InARow& other) const {
    bool same =
        std::memcmp(gradient.data(), other.gradient.data(), gradient.size() * sizeof(float)) == 0;
    for (int i = 0; i < 3; ++i) {
      same &= std::memcmp(maps[i].data(), other.maps[i].data(), maps[i].size() * sizeof(T)) == 0;
    }
    return same;
  }
};

template <class T>
void check_persistent() {
  for (int variant = 0; variant < InARow<T>::kVariants; ++variant) {
    CAPTURE(variant);
    InARow<T> expected(variant), got(variant);
    // Beside them others, of which the first one may begin later.
    InARow<T> other_expected(variant + 1), other(variant + 1);
    expected.separately();
    other_expected.separately();
    PersistentLayers layers(Type<T>::kName, InARow<T>::kBatch);
    CHECK(layers.empty());
    for (const bool backward : {false, true}) {
      if (kSanitized && backward) continue;  // sanitizers see no more in another order
      std::optional<asng::cuda_on_cpu::Backward> order;
      if (backward) order.emplace();
      for (int others = kSanitized ? 1 : 0; others <= 1; ++others) {
        got.forget();
        other.forget();
        // A convolution in parts takes two phases, and so does the one by taps.
        const int parts = (got.tilings[0].parts > 1) + (got.tilings[1].parts > 1);
        CHECK(got.add_to(layers, 0) == 4 + parts);
        if (others > 0) other.add_to(layers, variant % 3);
        CHECK(layers.launches() == 1);
        unsigned long long counter = 77;
        layers.run(&counter, nullptr);
        CHECK(layers.empty());
        CHECK(got.has(expected));
        CHECK((others == 0 || other.has(other_expected)));
        CHECK(counter > 0);
      }
    }
  }
}

// More than a launch takes, in a row or beside each other in a phase.
template <class T>
void check_many() {
  InARow<T> expected(1), got(1);
  expected.separately();
  PersistentLayers layers(Type<T>::kName, InARow<T>::kBatch);
  const Layer<T> tiny({.batch = InARow<T>::kBatch,
                       .height = 1,
                       .width = 1,
                       .channels = 8,
                       .small_channels = 8,
                       .kernel = 1,
                       .stride = 1},
                      4);
  std::vector<Values<T>> results(115, Values<T>(tiny.small_size()));
  Convolution convolution = {};
  convolution.x = tiny.large.data();
  convolution.weight = tiny.weight.data();
  const auto add = [&](std::size_t i, int phase) {
    convolution.y = results[i].data();
    return layers.convolve(tiny.shape, convolution, {7, 1}, phase);
  };
  for (const bool beside : {false, true}) {
    got.forget();
    for (Values<T>& y : results) y.assign(y.size(), Type<T>::from(NAN));
    int phase = 0;
    if (beside) {
      for (std::size_t i = 0; i < results.size(); ++i) phase = add(i, 0);
    } else {
      for (std::size_t i = 0; i < 52; ++i) phase = add(i, phase);
    }
    got.add_to(layers, phase);
    const int64_t launches = layers.launches();
    CHECK(launches == (beside ? 3 : 2));
    std::vector<unsigned long long> counters(launches);
    layers.run(counters.data(), nullptr);
    CHECK(got.has(expected));
    for (std::size_t i = 1; i < (beside ? results.size() : 52); ++i) {
      CHECK(std::memcmp(results[i].data(), results[0].data(), results[0].size() * sizeof(T)) == 0);
    }
  }
  const Layer<T>& layer = got.first;
  CHECK_THROWS(layers.convolve(layer.shape, got.convolution(0), {0, 1}, 0));
  CHECK_THROWS(layers.weight_gradient(layer.shape, nullptr, nullptr, nullptr, {0, 1}, 0));
  CHECK_THROWS(layers.weight_gradient(layer.shape, nullptr, nullptr, nullptr, {4, 1000}, 0));
}

}  // namespace

TEST_CASE("CUDA: layers in a persistent kernel") {
  check_persistent<float>();
  check_persistent<__nv_bfloat16>();
}

TEST_CASE("CUDA: more layers than a persistent kernel takes") {
  check_many<float>();
  check_many<__nv_bfloat16>();
}

TEST_CASE("CUDA: tiles for persistent kernels") {
  for (int64_t channels : {8, 32, 64, 96, 128, 160, 256}) {
    const ConvolutionShape shape = {.batch = 16,
                                    .height = 32,
                                    .width = 32,
                                    .channels = channels,
                                    .small_channels = 256,
                                    .kernel = 3,
                                    .stride = 1};
    REQUIRE(fits_persistent(shape));
    for (bool transposed : {false, true}) {
      const Tiling tiling =
          convolution_tiling(Float::kBFloat16, transposed, shape, Launches::kPersistent);
      const Tiling each = convolution_tiling(Float::kBFloat16, transposed, shape);
      CHECK(convolution_tile_size(tiling.tile).first <= 128);
      CHECK(tiling.parts == each.parts);
      CHECK(tiling.by_taps == each.by_taps);
    }
    const Tiling tiling = weight_gradient_tiling(Float::kBFloat16, shape, Launches::kPersistent);
    const Tiling each = weight_gradient_tiling(Float::kBFloat16, shape);
    CHECK(gradient_tile_size(tiling.tile).second <= 128);
    CHECK(tiling.parts == each.parts);
    // A tile is not for launches of their own.
    CHECK(gradient_tile_size(each.tile) != std::pair(64, 128));
  }
  const asng::cuda_on_cpu::LaunchesOnly small_memory(64 * 1024);
  CHECK(!fits_persistent({.batch = 1,
                          .height = 2,
                          .width = 2,
                          .channels = 8,
                          .small_channels = 8,
                          .kernel = 1,
                          .stride = 1}));
}

TEST_CASE("CUDA: convolutions of every tile") {
  check_tiles<float>();
  check_tiles<__nv_bfloat16>();
}

TEST_CASE("CUDA: convolutions of every shape") {
  for (const char* products : {"mma", "wgmma"}) {
    CAPTURE(products);
    setenv("ASNG_CUDA_TENSOR_CORES", products, 1);
    check_shapes<float>();
    check_shapes<__nv_bfloat16>();
  }
  unsetenv("ASNG_CUDA_TENSOR_CORES");
}

TEST_CASE("CUDA: tiles for large convolutions") {
  CHECK(convolution_tile_size(convolution_tiling(Float::kFloat32, false, kWide).tile) ==
        std::pair(256, 128));
  // Of few pixels there are few tiles, so several parts.
  ConvolutionShape low = kWide;
  low.height = low.width = 8;
  low.batch = 1;
  CHECK(convolution_tiling(Float::kFloat32, false, kWide).parts == 1);
  CHECK(convolution_tiling(Float::kFloat32, false, low).parts > 1);
  ConvolutionShape narrow = kWide;
  narrow.channels = 8;
  CHECK(convolution_tiling(Float::kFloat32, true, narrow).by_taps);
  CHECK(!convolution_tiling(Float::kFloat32, false, narrow).by_taps);
  // Of a 1×1 kernel there is one tile or few, so many parts.
  narrow.channels = narrow.small_channels = 64;
  narrow.kernel = 1;
  CHECK(weight_gradient_tiling(Float::kBFloat16, narrow).parts > 2);
}

TEST_CASE("CUDA: tiles of warpgroups") {
  const Tiling of_warps = convolution_tiling(Float::kBFloat16, false, kWide);
  const Tiling gradient_of_warps = weight_gradient_tiling(Float::kBFloat16, kWide);
  const Tiling in_tf32 = weight_gradient_tiling(Float::kFloat32, kWide);
  setenv("ASNG_CUDA_TENSOR_CORES", "wgmma", 1);
  CHECK(tensor_cores_choice() == TensorCores::kWgmma);
  const Tiling tiling = convolution_tiling(Float::kBFloat16, false, kWide);
  CHECK(tiling.tile != of_warps.tile);
  CHECK(convolution_tile_size(tiling.tile) == std::pair(256, 128));
  CHECK(weight_gradient_tiling(Float::kBFloat16, kWide).tile != gradient_of_warps.tile);
  // Tensor cores do not turn factors in TF32.
  CHECK(weight_gradient_tiling(Float::kFloat32, kWide).tile == in_tf32.tile);
  CHECK(gradient_tile_count(Float::kFloat32) < gradient_tile_count(Float::kBFloat16));
  const Layer<float> layer({.batch = 1,
                            .height = 2,
                            .width = 2,
                            .channels = 8,
                            .small_channels = 8,
                            .kernel = 1,
                            .stride = 1},
                           1);
  Values<float> parts(64);
  CHECK_THROWS_WITH(
      weight_gradient(Float::kFloat32, layer.shape, layer.small.data(), layer.large.data(),
                      parts.data(), {gradient_tile_count(Float::kFloat32), 1}, nullptr),
      "there is no such tile in TF32");
  setenv("ASNG_CUDA_TENSOR_CORES", "fast", 1);
  CHECK_THROWS_WITH(tensor_cores_choice(), "ASNG_CUDA_TENSOR_CORES must be mma or wgmma, got fast");
  unsetenv("ASNG_CUDA_TENSOR_CORES");
  CHECK(tensor_cores_choice() == TensorCores::kMma);
}

TEST_CASE("CUDA: whose convolutions") {
  const ConvolutionShape shape = {.batch = 1,
                                  .height = 2,
                                  .width = 2,
                                  .channels = 8,
                                  .small_channels = 8,
                                  .kernel = 1,
                                  .stride = 1};
  ConvolutionShape huge = shape;
  huge.height = 100'000;
  CHECK(convolution_fits(shape));
  CHECK(!convolution_fits(huge));
  const auto own = [&](Convolutions choice, Float type, bool tf32, const ConvolutionShape& of) {
    return is_own(choice, type, tf32, of, ConvolutionPass::kConvolve);
  };
  CHECK(!own(Convolutions::kCudnn, Float::kBFloat16, true, shape));
  CHECK(own(Convolutions::kOwn, Float::kBFloat16, false, shape));
  CHECK(own(Convolutions::kOwn, Float::kFloat32, true, shape));
  CHECK(!own(Convolutions::kAuto, Float::kFloat32, false, shape));
  CHECK(!own(Convolutions::kAuto, Float::kFloat64, true, shape));
  CHECK(!own(Convolutions::kAuto, Float::kBFloat16, true, huge));
  // Where there is much to do, cuDNN's are faster: in bfloat16 all, in TF32 transposed ones.
  CHECK(!own(Convolutions::kAuto, Float::kBFloat16, true, kWide));
  CHECK(!own(Convolutions::kAuto, Float::kFloat32, true, kWide));
  CHECK(!is_own(Convolutions::kAuto, Float::kFloat32, true, kWide, ConvolutionPass::kTranspose));
  CHECK(
      is_own(Convolutions::kAuto, Float::kFloat32, true, kWide, ConvolutionPass::kWeightGradient));
  CHECK(own(Convolutions::kOwn, Float::kBFloat16, true, kWide));
  ConvolutionShape halves = kWide;
  halves.stride = 2;
  CHECK(own(Convolutions::kAuto, Float::kFloat32, true, halves));
  CHECK_THROWS_WITH(own(Convolutions::kOwn, Float::kFloat32, false, shape),
                    "ASNG_CUDA_CONVOLUTIONS is own, which is not for other precisions than TF32 "
                    "and bfloat16");
  CHECK_THROWS(own(Convolutions::kOwn, Float::kBFloat16, false, huge));
  setenv("ASNG_CUDA_CONVOLUTIONS", "fast", 1);
  CHECK_THROWS_WITH(convolutions_choice(),
                    "ASNG_CUDA_CONVOLUTIONS must be cudnn, own or auto, got fast");
  setenv("ASNG_CUDA_CONVOLUTIONS", "own", 1);
  CHECK(convolutions_choice() == Convolutions::kOwn);
  unsetenv("ASNG_CUDA_CONVOLUTIONS");
  CHECK(convolutions_choice() == Convolutions::kAuto);
}

TEST_CASE("CUDA: how layers are launched") {
  unsetenv("ASNG_CUDA_LAYERS");
  CHECK(launches_choice() == Launches::kEach);
  setenv("ASNG_CUDA_LAYERS", "persistent", 1);
  CHECK(launches_choice() == Launches::kPersistent);
  setenv("ASNG_CUDA_LAYERS", "all", 1);
  CHECK_THROWS_WITH(launches_choice(), "ASNG_CUDA_LAYERS must be each or persistent, got all");
  unsetenv("ASNG_CUDA_LAYERS");
}
