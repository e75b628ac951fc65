// Which kernels a cell runs on.
#pragma once

#include "platform/environment.h"

namespace asng::cuda {

enum class Path {
  kGeneric,  // a launch for each step of all architectures, for cells of any shape
  // One launch for all of the forward pass, and for all nodes of the backward pass, whose blocks
  // keep their images; an error where not.
  kPersistent,
  kAuto,  // that where it can be
};

// As the environment variable ASNG_CUDA_PATH says: generic, persistent or auto, which is the
// default.
inline Path path_choice() {
  return chosen("ASNG_CUDA_PATH", {"generic", "persistent", "auto"}, Path::kAuto);
}

}  // namespace asng::cuda
