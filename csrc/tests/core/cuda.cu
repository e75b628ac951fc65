// Compiles the arithmetic of csrc/core for CUDA devices, so that it stays usable in kernels.
#include "core/adam.h"
#include "core/categorical.h"
#include "core/gaussian.h"
#include "core/philox.h"
#include "core/step_size.h"
#include "core/utility.h"

namespace asng {

__global__ void touch_core(double* theta, double* root, std::int64_t* out,
                           StepSizeSettings settings) {
  const PhiloxBlock bits = philox(1, draw_counter(Stream::kCategorical, 2, 3, threadIdx.x));
  out[0] = sample_category(theta, 5, uniform32(bits.word[0]));
  double first, second;
  standard_normal_pair(bits, first, second);
  project_categorical(theta, 5, 0.01);
  StepSize step;
  step.adapt(settings, step.beta(settings), categorical_fisher_root(theta, root, 5, root));
  const GaussianGradient gradient{first, second};
  gaussian_fisher_root(first, 1.0, gradient, root[0], root[1]);
  step_gaussian(theta[0], theta[1], gradient, step.Delta, 0.0, 1.0, 0.25, 0.5, 0.5);
  rank_utilities(theta, out, 5, root);
  const AdamStep adam({0.1, 0.9, 0.999}, 3);
  adam.accumulate(first, root[0], root[1]);
  theta[0] += adam.move(root[0], root[1]);
}

}  // namespace asng
