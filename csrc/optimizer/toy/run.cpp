#include "optimizer/toy/run.h"

#include <algorithm>
#include <cmath>

#include "core/philox.h"
#include "optimizer/toy/noise.h"

namespace asng::host {

namespace {

void normals(std::uint64_t key, Stream stream, std::uint64_t generation, std::int64_t count,
             double* out) {
  std::uint32_t words[16];
  double numbers[16];
  for (std::int64_t begin = 0; begin < count; begin += 16) {
    for (std::uint32_t b = 0; b < 4; ++b) {
      const PhiloxBlock block = philox(
          key, draw_counter(stream, generation, 0, static_cast<std::uint32_t>(begin / 4) + b));
      std::copy(block.word, block.word + 4, words + 4 * b);
    }
    sixteen_normals<2>(words, numbers);
    std::copy(numbers, numbers + std::min<std::int64_t>(16, count - begin), out + begin);
  }
}

}  // namespace

std::uint64_t toy_key(std::uint64_t seed, std::uint64_t run) {
  const PhiloxBlock block = philox(seed, draw_counter(Stream::kToyKey, run, 0, 0));
  return (std::uint64_t{block.word[0]} << 32) | block.word[1];
}

void toy_start(std::uint64_t key, std::int64_t count, double* out) {
  normals(key, Stream::kToyStart, 0, count, out);
}

void toy_noise(std::uint64_t key, std::uint64_t evaluation, std::int64_t count, double* out) {
  normals(key, Stream::kToyNoise, evaluation, count, out);
}

ToyRun::ToyRun(const ToySettings& with)
    : settings(with), stride((with.variables + kLanes - 1) / kLanes * kLanes) {
  const std::int64_t D = settings.variables;
  const std::int64_t K = settings.categories;
  const auto width = static_cast<std::size_t>(stride);
  const std::size_t all = width * static_cast<std::size_t>(K);
  const auto samples = static_cast<std::size_t>(settings.lambda);
  for (LaneVector* values : {&x, &velocity, &theta, &gradient, &root}) {
    values->resize(all);
  }
  if (settings.rule == ToyRule::kAsng) {
    s.resize(all);
  } else if (settings.rule == ToyRule::kNaturalAdam) {
    first_moment.resize(all);
    second_moment.resize(all);
  }
  category.resize(samples * width);
  z.resize(width);
  uniform_scale.resize(width);
  noise_scale.resize(width);
  std::fill_n(uniform_scale.begin(), D, 0x1p-32);
  std::fill_n(noise_scale.begin(), D, settings.noise);
  losses.resize(samples);
  utility.resize(samples);
  order.resize(samples);
  words.resize(width + kLanes);  // normal numbers come in sixteens
  const double root_n = std::sqrt(static_cast<double>(D * (K - 1)));
  step_settings = {settings.alpha, settings.delta, settings.delta_max, root_n};
}

void ToyRun::start(std::uint64_t with) {
  key = with;
  iteration = 0;
  succeeded = false;
  updates = 0;
  step = {};
  step.Delta = step_settings.bounded(1.0);
  for (LaneVector* values : {&x, &velocity, &s, &first_moment, &second_moment}) {
    std::fill(values->begin(), values->end(), 0.0);
  }
  const std::int64_t D = settings.variables;
  const std::int64_t K = settings.categories;
  std::fill(theta.begin(), theta.end(), 1.0 / static_cast<double>(K));
  std::vector<double> numbers(static_cast<std::size_t>(D * K));
  toy_start(key, D * K, numbers.data());
  for (std::int64_t i = 0; i < D; ++i) {
    for (std::int64_t j = 0; j < K; ++j) {
      x[j * stride + i] = numbers[i * K + j];
    }
  }
}

std::vector<double> ToyRun::rows(const LaneVector& values) const {
  std::vector<double> out;
  for (std::int64_t i = 0; i < settings.variables; ++i) {
    for (std::int64_t j = 0; j < settings.categories; ++j) {
      out.push_back(values[j * stride + i]);
    }
  }
  return out;
}

}  // namespace asng::host
