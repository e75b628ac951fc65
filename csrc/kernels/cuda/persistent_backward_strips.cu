// The kernels for the gradients of all nodes where images are in strips: see
// persistent_backward.cu. What operations on inputs do with stride 2 is in all of them.
#include "kernels/cuda/persistent_backward_nodes.h"

namespace asng::cuda::gradients_of_nodes {

namespace {

template <class V, int C>
Kernel<V> choose(const DagShape& s) {
  return choose_kernel<V>(
      s.tf32, [](auto rounds) { return &nodes_backward_kernel<V, C, true, !rounds(), true>; });
}

}  // namespace

template <class V>
Kernel<V> choose_for_strips(const DagShape& s) {
  return s.padded == 16 ? choose<V, 16>(s) : s.padded == 32 ? choose<V, 32>(s) : choose<V, 64>(s);
}

template Kernel<float> choose_for_strips(const DagShape&);
template Kernel<BFloat16> choose_for_strips(const DagShape&);

}  // namespace asng::cuda::gradients_of_nodes
