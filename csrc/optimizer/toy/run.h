// One run of the toy problem of section 3.1: weights x and distribution theta optimized in turn.
//
// All that a run reads and writes lies together and stays in the first or second level of the
// cache. Variables are processed several at a time, so their number is filled up to a multiple of
// eight with ones that always take their first category, of weight and noise 0: they add nothing to
// any sum and never move.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "core/adam.h"
#include "core/step_size.h"
#include "platform/lanes.h"

namespace asng::host {

enum class ToyProblem {
  // sum_i (x_{i,c_i} - z_i)^2 + c_i / K
  kSelectiveSquaredError,
  // D - sum_i prod_{l <= i} p_l with p_l = (1 - c_l / (K - 1)) sigmoid(x_{l,c_l} - z_l), plus
  // 1e-8 sum x^2: variable i counts only as far as all before it are right
  kOrderedProduct,
};

enum class ToyRule { kAsng, kSng, kNaturalAdam };

struct ToySettings {
  ToyProblem problem = ToyProblem::kSelectiveSquaredError;
  std::int64_t variables = 30;  // D
  std::int64_t categories = 5;  // K
  std::int64_t lambda = 2;      // samples of each evaluation
  double learning_rate = 0.05;  // epsilon_x at the start of its cosine
  double momentum = 0.9;        // of SGD
  double noise = 0.2;           // standard deviation of z
  double target = 0.2;          // a sample of at most this loss without noise is a success
  std::int64_t iteration_limit = 100000;
  ToyRule rule = ToyRule::kAsng;
  double alpha = 1.5;                                          // ASNG
  double delta = 1.0;                                          // ASNG: delta_init; SNG: delta
  double delta_max = std::numeric_limits<double>::infinity();  // ASNG: upper bound of Delta
  AdamSettings adam{0.01, 0.9, 0.999};
  double margin = 1.0 / 120.0;
};

// The key of the random numbers of run number `run`.
std::uint64_t toy_key(std::uint64_t seed, std::uint64_t run);
// Standard normal numbers: `count` of where x starts, row by row; of the noise of an evaluation.
void toy_start(std::uint64_t key, std::int64_t count, double* out);
void toy_noise(std::uint64_t key, std::uint64_t evaluation, std::int64_t count, double* out);

// How many variables this processor can process at a time: 2 and, if it has the registers, 4, 8.
const std::vector<int>& toy_widths();

struct ToyRun {
  explicit ToyRun(const ToySettings& settings);

  // Back to the start, with random numbers of their own for every key. The categories of
  // evaluation e are those that an Optimizer of that seed draws for its population number e;
  // evaluations 2t and 2t + 1 belong to iteration t.
  void start(std::uint64_t key);
  // Goes on for at most `count` iterations. Returns whether the run is over. `width` is how many
  // variables are processed at a time: one of toy_widths(), which makes no difference to the
  // result.
  bool advance(std::int64_t count, int width = toy_widths().back());
  bool over() const { return succeeded || iteration >= settings.iteration_limit; }

  // (D, K), row by row.
  std::vector<double> weights() const { return rows(x); }
  std::vector<double> probabilities() const { return rows(theta); }

  ToySettings settings;
  std::int64_t stride;  // D filled up to a multiple of eight
  std::uint64_t key = 0;
  std::int64_t iteration = 0;  // begun so far
  bool succeeded = false;

  // Element j * stride + i belongs to category j of variable i.
  LaneVector x, velocity, theta, gradient, root, s, first_moment, second_moment;
  StepSizeSettings step_settings;
  StepSize step;
  std::uint64_t updates = 0;  // of theta

  // One evaluation. Element k * stride + i of `category` belongs to sample k.
  LaneVector category, z, uniform_scale, noise_scale;
  std::vector<double> losses, utility;
  std::vector<std::int64_t> order;
  std::vector<std::uint32_t> words;

 private:
  std::vector<double> rows(const LaneVector& values) const;
};

}  // namespace asng::host
