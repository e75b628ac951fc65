// Compiled once per instruction set: ASNG_CAPABILITY is the namespace of this compilation.

#include "kernels/cpu/kernels.h"

#include "kernels/cpu/combine.h"
#include "kernels/cpu/pointwise.h"
#include "kernels/cpu/separable.h"

namespace asng::cpu::ASNG_CAPABILITY {

template <class T>
const Kernels<T>& kernels() {
  static constexpr Kernels<T> table = {&separable_forward<T>,
                                       &separable_backward<T>,
                                       &pointwise_forward<T>,
                                       &pointwise_backward<T>,
                                       &combine_forward<T>,
                                       &combine_backward<T>,
                                       &reduce<T>,
                                       &normalize<T>};
  return table;
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace asng::cpu::ASNG_CAPABILITY
