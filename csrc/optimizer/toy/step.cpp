// The iterations of the toy problem, over variables several at a time.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/categorical.h"
#include "core/utility.h"
#include "optimizer/toy/noise.h"
#include "optimizer/toy/run.h"
#include "platform/dispatch.h"

namespace asng::host {

namespace {

constexpr double kRegularization = 1e-8;  // of the ordered product

template <int Width>
struct Iterations {
  using L = Lanes<Width>;
  using Real = typename L::Real;

  ToyRun& run;
  const ToySettings& with = run.settings;
  const std::int64_t K = with.categories;
  const std::int64_t lambda = with.lambda;
  const std::int64_t stride = run.stride;

  // Up to number `end` or success.
  ASNG_INLINE void operator()(std::int64_t end) {
    const double half = 0.5 * with.learning_rate;
    const double frequency = 3.141592653589793 / static_cast<double>(with.iteration_limit);
    while (run.iteration < end && !run.succeeded) {
      const auto t = static_cast<std::uint64_t>(run.iteration);
      ++run.iteration;
      draw(2 * t);
      if (any_success()) {
        run.succeeded = true;
        break;
      }
      const double rate = half * (1.0 + std::cos(frequency * static_cast<double>(t)));
      if (with.problem == ToyProblem::kOrderedProduct) {
        move_ordered_product(rate);
      } else {
        move_squared_error(rate);
      }
      draw(2 * t + 1);
      if (any_success()) {
        run.succeeded = true;
        break;
      }
      update();
    }
  }

  // Categories of lambda samples and the noise that they share.
  ASNG_INLINE void draw(std::uint64_t evaluation) {
    const double* theta = run.theta.data();
    std::uint32_t* words = run.words.data();
    for (std::int64_t k = 0; k < lambda; ++k) {
      fill_words(run.key, Stream::kCategorical, evaluation, static_cast<std::uint32_t>(k),
                 stride / 4, words);
      double* category = run.category.data() + k * stride;
      for (std::int64_t i = 0; i < stride; i += Width) {
        const Real uniform = L::from_words(words + i) * L::load(run.uniform_scale.data() + i);
        Real cumulative{};
        Real index{};
        for (std::int64_t j = 0; j + 1 < K; ++j) {
          cumulative += L::load(theta + j * stride + i);
          index += L::masked(uniform >= cumulative, L::all(1.0));
        }
        L::store(category + i, index);
      }
    }
    const std::int64_t blocks = (stride + 15) / 16 * 4;
    fill_words(run.key, Stream::kToyNoise, evaluation, 0, blocks, words);
    double* z = run.z.data();
    for (std::int64_t i = 0; i < stride; i += 16) {
      double numbers[16];
      sixteen_normals<Width>(words + i, numbers);
      const std::int64_t count = std::min<std::int64_t>(16, stride - i);
      for (std::int64_t lane = 0; lane < count; ++lane) {
        z[i + lane] = numbers[lane] * run.noise_scale[i + lane];
      }
    }
  }

  ASNG_INLINE bool any_success() const {
    for (std::int64_t k = 0; k < lambda; ++k) {
      if (loss(k, false) <= with.target) {
        return true;
      }
    }
    return false;
  }

  ASNG_INLINE double loss(std::int64_t k, bool noisy) const {
    const double* category = run.category.data() + k * stride;
    if (with.problem == ToyProblem::kOrderedProduct) {
      return ordered_product(category, noisy);
    }
    LaneSum<Width> categories;  // whole numbers, so exact
    for (std::int64_t i = 0; i < stride; i += Width) {
      categories.add(i, L::load(category + i));
    }
    const double cost = categories.total() / static_cast<double>(K);
    if (!noisy && cost > with.target) {
      return cost;  // a lower bound is enough to know that this is no success
    }
    LaneSum<Width> squares;
    for (std::int64_t i = 0; i < stride; i += Width) {
      const Real index = L::load(category + i);
      Real offset = L::load(run.x.data() + i);
      for (std::int64_t j = 1; j < K; ++j) {
        offset = index == static_cast<double>(j) ? L::load(run.x.data() + j * stride + i) : offset;
      }
      if (noisy) {
        offset -= L::load(run.z.data() + i);
      }
      squares.add(i, offset * offset);
    }
    return squares.total() + cost;
  }

  // SGD with momentum on the mean loss of the samples; the momentum moves all weights, whether or
  // not they were sampled.
  ASNG_INLINE void move_squared_error(double rate) {
    const Real scale = L::all(2.0 / static_cast<double>(lambda));
    for (std::int64_t i = 0; i < stride; i += Width) {
      const Real z = L::load(run.z.data() + i);
      for (std::int64_t j = 0; j < K; ++j) {
        Real factor{};  // scale times how many samples chose category j
        for (std::int64_t k = 0; k < lambda; ++k) {
          const Real index = L::load(run.category.data() + k * stride + i);
          factor += L::masked(index == static_cast<double>(j), scale);
        }
        double* x = run.x.data() + j * stride + i;
        double* velocity = run.velocity.data() + j * stride + i;
        const Real moved = with.momentum * L::load(velocity) + factor * (L::load(x) - z);
        L::store(velocity, moved);
        L::store(x, L::load(x) - rate * moved);
      }
    }
  }

  // The factor p_i of variable i, and its logarithmic derivative by x.
  double ordered_factor(const double* category, std::int64_t i, bool noisy, double* slope) const {
    const double shift = noisy ? run.z[i] : 0.0;
    const std::int64_t c = static_cast<std::int64_t>(category[i]);
    *slope = 1.0 / (1.0 + std::exp(run.x[c * stride + i] - shift));
    return (1.0 - category[i] / static_cast<double>(K - 1)) * (1.0 - *slope);
  }

  double ordered_product(const double* category, bool noisy) const {
    double product = 1.0;
    double value = static_cast<double>(with.variables);
    for (std::int64_t i = 0; i < with.variables && product != 0.0; ++i) {
      double slope;
      product *= ordered_factor(category, i, noisy, &slope);
      value -= product;
    }
    double squares = 0.0;
    for (double x : run.x) {
      squares += x * x;
    }
    return value + kRegularization * squares;
  }

  void move_ordered_product(double rate) {
    for (std::size_t e = 0; e < run.x.size(); ++e) {
      run.gradient[e] = 2.0 * kRegularization * run.x[e];
    }
    for (std::int64_t k = 0; k < lambda; ++k) {
      const double* category = run.category.data() + k * stride;
      double product = 1.0;
      double products = 0.0;  // sum over all variables of the product up to them
      for (std::int64_t i = 0; i < with.variables && product != 0.0; ++i) {
        double slope;
        product *= ordered_factor(category, i, true, &slope);
        products += product;
      }
      // d loss / d x_i = -slope_i times the sum over m >= i of the product up to m
      double before = 0.0;
      product = 1.0;
      for (std::int64_t i = 0; i < with.variables && product != 0.0; ++i) {
        double slope;
        product *= ordered_factor(category, i, true, &slope);
        const std::int64_t c = static_cast<std::int64_t>(category[i]);
        run.gradient[c * stride + i] -= slope * (products - before) / static_cast<double>(lambda);
        before += product;
      }
    }
    for (std::size_t e = 0; e < run.x.size(); ++e) {
      run.velocity[e] = with.momentum * run.velocity[e] + run.gradient[e];
      run.x[e] -= rate * run.velocity[e];
    }
  }

  ASNG_INLINE void update() {
    if (!rank()) {
      return;
    }
    const double norm = natural_gradient();
    if (!(norm > 0.0) || !std::isfinite(norm)) {
      return;
    }
    ++run.updates;
    switch (with.rule) {
      case ToyRule::kAsng:
        move_adaptively(norm);
        break;
      case ToyRule::kSng:
        move_along_gradient(with.delta / norm);
        break;
      case ToyRule::kNaturalAdam:
        move_by_adam(norm);
        break;
    }
  }

  // Utilities of the samples divided by lambda; false if all are 0.
  ASNG_INLINE bool rank() {
    double* losses = run.losses.data();
    for (std::int64_t k = 0; k < lambda; ++k) {
      const double value = loss(k, true);
      losses[k] = std::isnan(value) ? std::numeric_limits<double>::infinity() : value;
    }
    std::iota(run.order.begin(), run.order.end(), std::int64_t{0});
    if (lambda == 2) {
      if (losses[1] < losses[0]) {
        std::swap(run.order[0], run.order[1]);
      }
    } else {
      std::sort(run.order.begin(), run.order.end(),
                [losses](std::int64_t a, std::int64_t b) { return losses[a] < losses[b]; });
    }
    if (!rank_utilities(losses, run.order.data(), lambda, run.utility.data())) {
      return false;
    }
    for (double& utility : run.utility) {
      utility /= static_cast<double>(lambda);
    }
    return true;
  }

  // G of all variables (eq. 12) and F^(1/2) G; returns ||G||_F. See core/categorical.h.
  ASNG_INLINE double natural_gradient() {
    // Smaller sums of utilities are what rounding left of 0.
    const Real canceled =
        L::all(kCanceledUtility / static_cast<double>(lambda * selected_count(lambda)));
    const Real floor = L::all(kProbabilityFloor);
    const std::int64_t end = (K - 1) * stride;
    LaneSum<Width> squares;
    for (std::int64_t i = 0; i < stride; i += Width) {
      double* gradient = run.gradient.data() + i;
      const double* theta = run.theta.data() + i;
      for (std::int64_t j = 0; j < K; ++j) {
        Real total{};
        for (std::int64_t k = 0; k < lambda; ++k) {
          const Real index = L::load(run.category.data() + k * stride + i);
          total += L::masked(index == static_cast<double>(j), L::all(run.utility[k]));
        }
        L::store(gradient + j * stride, L::masked(L::absolute(total) > canceled, total));
      }
      const Real last = L::larger(L::load(theta + end), floor);
      const Real shared = -L::load(gradient + end) / (last + L::square_root(last));
      for (std::int64_t j = 0; j + 1 < K; ++j) {
        const Real scale = L::square_root(L::larger(L::load(theta + j * stride), floor));
        const Real root = L::load(gradient + j * stride) / scale + scale * shared;
        L::store(run.root.data() + j * stride + i, root);
        squares.add(i, root * root);
      }
    }
    return std::sqrt(squares.total());
  }

  ASNG_INLINE void move_along_gradient(double eps) {
    const double* gradient = run.gradient.data();
    move_theta([=](std::int64_t e)
                   __attribute__((always_inline)) { return eps * L::load(gradient + e); });
  }

  ASNG_INLINE void move_adaptively(double norm) {
    const double beta = run.step.beta(run.step_settings);
    move_along_gradient(run.step.delta(run.step_settings) / norm);  // eqs. (13), (14)
    const double keep = 1.0 - beta;
    const double add = std::sqrt(beta * (2.0 - beta)) / norm;
    LaneSum<Width> squares;
    double* s = run.s.data();
    const double* root = run.root.data();
    for (std::int64_t e = 0; e < (K - 1) * stride; e += Width) {
      const Real moved = keep * L::load(s + e) + add * L::load(root + e);  // eq. (19)
      L::store(s + e, moved);
      squares.add(e, moved * moved);
    }
    run.step.adapt(run.step_settings, beta, squares.total());
  }

  ASNG_INLINE void move_by_adam(double norm) {
    const AdamStep step(with.adam, run.updates);
    const double scale = 1.0 / (norm + kAdamNormOffset);
    const double* gradient = run.gradient.data();
    double* firsts = run.first_moment.data();
    double* seconds = run.second_moment.data();
    move_theta([=](std::int64_t e) __attribute__((always_inline)) {
      Real first = L::load(firsts + e);
      Real second = L::load(seconds + e);
      const Real normalized = L::load(gradient + e) * scale;
      step.accumulate(normalized, first, second);
      L::store(firsts + e, first);
      L::store(seconds + e, second);
      return step.step_size * (first * step.unbias1) /
             (L::square_root(second * step.unbias2) + kAdamEpsilon);
    });
  }

  // theta += move, then the projection of core/categorical.h. move(e) belongs to elements from e.
  template <typename Move>
  ASNG_INLINE void move_theta(Move move) {
    const Real margin = L::all(with.margin);
    for (std::int64_t i = 0; i < stride; i += Width) {
      double* theta = run.theta.data() + i;
      Real total{};
      Real room{};
      for (std::int64_t j = 0; j < K; ++j) {
        const Real moved = L::larger(L::load(theta + j * stride) + move(j * stride + i), margin);
        L::store(theta + j * stride, moved);
        total += moved;
        room += moved - margin;
      }
      const Real share = room > 0.0 ? (total - 1.0) / room : Real{};
      Real left{};
      for (std::int64_t j = 0; j < K; ++j) {
        const Real clipped = L::load(theta + j * stride);
        const Real reduced = clipped - share * (clipped - margin);
        L::store(theta + j * stride, reduced);
        left += reduced;
      }
      const Real scale = 1.0 / left;
      for (std::int64_t j = 0; j < K; ++j) {
        L::store(theta + j * stride, L::load(theta + j * stride) * scale);
      }
    }
  }
};

#if defined(ASNG_HAVE_X86)
__attribute__((target("avx512f,avx512dq,avx512vl"))) void eight_at_a_time(ToyRun& run,
                                                                          std::int64_t end) {
  Iterations<8>{run}(end);
}
__attribute__((target("avx2"))) void four_at_a_time(ToyRun& run, std::int64_t end) {
  Iterations<4>{run}(end);
}
#endif
void two_at_a_time(ToyRun& run, std::int64_t end) { Iterations<2>{run}(end); }

}  // namespace

const std::vector<int>& toy_widths() {
  static const std::vector<int> widths = [] {
    std::vector<int> found{2};
    if (capability() >= Capability::kAvx2) {
      found.push_back(4);
    }
    if (capability() >= Capability::kAvx512) {
      found.push_back(8);
    }
    return found;
  }();
  return widths;
}

bool ToyRun::advance(std::int64_t count, int width) {
  const std::int64_t end = std::min(settings.iteration_limit, iteration + count);
  switch (width) {
#if defined(ASNG_HAVE_X86)
    case 8:
      eight_at_a_time(*this, end);
      break;
    case 4:
      four_at_a_time(*this, end);
      break;
#endif
    default:
      two_at_a_time(*this, end);
  }
  return over();
}

}  // namespace asng::host
