// What comes last of the gradient of a state, for one image.
#pragma once

#include "kernels/cuda/persistent_backward_image.h"
#include "kernels/cuda/pool.h"

namespace asng::cuda::gradients_of_nodes {

// Completes the gradient of a state for one image with what identities and pools pass on, and adds
// the sums for the normalizations that gave the state to the totals.
template <int C, int S, class V>
__device__ __noinline__ void complete_state(int number, int image) {
  using Place = Cut<C>;
  const Plan<V>& plan = plan_of_block<V>();
  const Completion<V>& state = plan.completions[number];
  float *shared = values_of_block<V>(), *red = shared + plan.layout.scratch;
  double* totals = reinterpret_cast<double*>(shared + plan.layout.totals);
  constexpr int kPixels = InputPatches<S>::kPixels;
  const InputPatches<S> patches = {state.height, state.width};
  const int count = patches.count(1), c = Place::own_channel();
  const bool adds_up = state.items[0] >= 0 || state.items[1] >= 0;
  V* to = in_global(state.to);
  Vec4<float> sums[1 + kCellEdges] = {};
#pragma unroll 1
  for (int patch = Place::own_pixel(); patch < count; patch += Place::kStep) {
    // As many patches lie side by side as there are pixels of a node.
    const int down = static_cast<int>(multiply_high(patch, plan.layout.per_row));
    const Pixel first = {image, down * patches.kRows,
                         (patch - down * plan.shape.out_width) * patches.kColumns};
    Vec4<float> grads[kPixels] = {};
    if (state.begun) patches.load(to, first, C, c, grads);
#pragma unroll 1
    for (int i = 0; i < state.passes; ++i) {
      const Pass<V>& pass = plan.passes[state.first_pass + i];
      const V* passed = in_global(pass.grads);
      if (pass.form == Form::kIdentity) {
        Vec4<float> values[kPixels];
        patches.load(passed, first, C, c, values);
#pragma unroll
        for (int p = 0; p < kPixels; ++p) {
          add_product(grads[p], values[p], fill_vec4(static_cast<float>(pass.multiplicity)));
        }
      } else if (pass.maxima == nullptr) {
        pool_backward<S>(plan.shape, passed, nullptr, pass.multiplicity, first, c, grads);
      } else {
        pool_backward<S>(plan.shape, passed, in_global(pass.maxima), pass.multiplicity, first, c,
                         grads);
      }
    }
    if (state.passes > 0) {
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        if (!patches.inside(first, p)) continue;
        grads[p] = store_rounded(to + patches.offset(first, p, C, c), grads[p]);
      }
    }
    if (!adds_up) continue;
    // What is not there has no item, and its sums are not asked for.
    Vec4<float> values[kCellEdges][kPixels];
#pragma unroll
    for (int e = 0; e < kCellEdges; ++e) {
      patches.load(in_global(state.z[e]), first, C, c, values[e]);
    }
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      if (!patches.inside(first, p)) grads[p] = fill_vec4(0.0f);
      sums[0] += grads[p];
    }
#pragma unroll
    for (int e = 0; e < kCellEdges; ++e) {
      const Affine<float> affine =
          load_affine(state.norms[e] < 0 ? nullptr : shared + state.norms[e], C, c);
#pragma unroll
      for (int p = 0; p < kPixels; ++p) add_product(sums[1 + e], grads[p], affine(values[e][p]));
    }
  }
  if (!adds_up) return;
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = Place::lane();
#pragma unroll
  for (int k = 0; k < 1 + kCellEdges; ++k) {
#pragma unroll
    for (int other = Place::kQuads; other < 32; other *= 2) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[k].v[j] += __shfl_xor_sync(~0u, sums[k].v[j], other);
    }
    if (lane < Place::kQuads) store_vec4(red + (warp * (1 + kCellEdges) + k) * C + c, sums[k]);
  }
  __syncthreads();
  const int e = threadIdx.x / (2 * C), kind = threadIdx.x / C % 2, column = threadIdx.x % C;
  if (e < kCellEdges && state.items[e] >= 0) {
    double sum = 0;
#pragma unroll
    for (int w = 0; w < kCellWarps; ++w) {
      sum += static_cast<double>(red[(w * (1 + kCellEdges) + kind * (1 + e)) * C + column]);
    }
    totals[(state.items[e] * 2 + kind) * C + column] += sum;
  }
}

}  // namespace asng::cuda::gradients_of_nodes
