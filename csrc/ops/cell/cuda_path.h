// Which kernels a cell runs on.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

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
  const char* variable = std::getenv("ASNG_CUDA_PATH");
  const std::string name = variable == nullptr ? "" : variable;
  if (name.empty() || name == "auto") return Path::kAuto;
  if (name == "generic") return Path::kGeneric;
  if (name == "persistent") return Path::kPersistent;
  throw std::runtime_error("ASNG_CUDA_PATH must be generic, persistent or auto, got " + name);
}

}  // namespace asng::cuda
