// What cells are told of architectures, from the values that an optimizer draws.
#pragma once

#include <cstdint>

#include "platform/cuda_stream.h"

namespace asng::cuda {

struct ChoicesJob {
  int archs = 0, nodes = 0;
  // (archs, 2, nodes, 4): of normal cells and of reduction cells, for each node, two inputs and
  // then two operations
  const int64_t* values = nullptr;
  int operations = 0;
  const int64_t* numbers = nullptr;  // (operations,) of each value of an operation
  int32_t* inputs = nullptr;         // (2, archs, nodes, 2)
  int32_t* chosen = nullptr;         // the same, of the operations
};

// A value that is none becomes -1, which is no input and no operation.
void make_choices(const ChoicesJob& job, CudaStream stream);

}  // namespace asng::cuda
