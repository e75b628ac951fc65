// Sampling on the CPU, from memory that the caller owns.
#pragma once

#include <cstdint>

#include "optimizer/cpu_update.h"

namespace asng::host {

// Draws population number `asked` of `lambda` samples: (lambda, n_categorical) category indices,
// (lambda, n_gaussian) values in antithetic pairs.
void draw_samples(const Layout& layout, const Parameters& parameters, std::uint64_t seed,
                  std::uint64_t asked, std::int64_t lambda, std::int64_t* categorical,
                  double* gaussian);

}  // namespace asng::host
