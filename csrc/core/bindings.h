// The Python bindings of what csrc defines once and Python asks for.
#pragma once

#include <pybind11/pybind11.h>

namespace asng {

void bind_constants(pybind11::module_& module);

}  // namespace asng
