#pragma once

#include <pybind11/pybind11.h>

namespace asng::host {

// Adds ToyRun, toy_batch and the toy problem's random numbers to the module.
void bind_toy(pybind11::module_& module);

}  // namespace asng::host
