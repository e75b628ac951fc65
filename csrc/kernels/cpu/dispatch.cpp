#include "platform/dispatch.h"

#include "kernels/cpu/kernels.h"

namespace asng::cpu {

ASNG_DISPATCH(Kernels, kernels)

}  // namespace asng::cpu
