// Where the probabilities of categorical variables are.
#pragma once

#include <cstdint>

#include "platform/cuda.h"

namespace asng::cuda {

// Where a categorical variable has its probabilities.
struct Categories {
  std::int64_t begin, size;

  // Where all variables are alike, nothing has to be loaded before what is there can be.
  __device__ Categories(std::int64_t alike, const std::int64_t* offsets, std::int64_t i)
      : begin(i * alike), size(alike) {
    if (alike > 0) return;
    begin = offsets[i];
    size = offsets[i + 1] - begin;
  }
};

}  // namespace asng::cuda
