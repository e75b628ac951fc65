// Compiled once per instruction set: ASNG_CAPABILITY is the namespace of this compilation.

#include "kernels/cpu/kernels.h"

#include "kernels/cpu/combine.h"
#include "kernels/cpu/pointwise.h"
#include "kernels/cpu/separable.h"

namespace asng::cpu::ASNG_CAPABILITY {

template <class T>
const Kernels<T>& table() {
  static constexpr Kernels<T> kernels = {
      &separable_forward<T>, &separable_backward<T>, &project_forward<T>, &project_backward<T>,
      &combine_forward<T>,   &combine_backward<T>,   &reduce<T>,          &normalize<T>};
  return kernels;
}

template const Kernels<float>& table<float>();
template const Kernels<double>& table<double>();

}  // namespace asng::cpu::ASNG_CAPABILITY
