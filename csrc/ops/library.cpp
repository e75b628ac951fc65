// The schema of every operator, with its contract. Kernels for a device are registered where they
// are implemented; fake kernels, derivatives and autocast rules in asng_ext/ops, one file an
// operator.
//
// Throughout: λ architectures, a batch of B, C channels. Feature maps are (λ, B, H, W, P),
// contiguous, where P is C rounded up to a multiple of 16; the values beyond C are zeros. Floating
// point tensors of one call are all float32 or all float64; on a CUDA device feature maps and their
// gradients may also be bfloat16 where the rest is float32, in which all is computed: what lies in
// memory is rounded, and nothing else. `inputs` and `operations` are int32 on the device of the
// feature maps. Those out of range are errors on the CPU; on a CUDA device, where no call
// synchronizes to look at them, the output of their architecture is NaN. Operations, and what an
// identity is with stride 2, are those of csrc/core/operations.h. Batch normalization is non-affine
// and takes the statistics of the batch for one architecture. Results do not depend on the number
// of threads or on their order. With `tf32` a CUDA device may round the factors of float32 matrix
// products to TF32; with feature maps in bfloat16 it does so anyway. The CPU never does.
//
// Weights are in the order, and have the names and shapes, of csrc/ops/cell/shape.h; where there is
// no reduction that tensor is empty. Their gradients are in the same order.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(asng, m) {
  // A node: the sum of E edges for each architecture; edge e of architecture a applies
  // operations[a, e] to bank[inputs[a, e], a].
  //   bank (S, λ, B, H, W, P)            the S candidate inputs
  //   inputs, operations (λ, E)
  //   weights                            operation_weights(S, S, C); with stride 1 the reduction
  //   may
  //                                      be empty
  // Returns the node (λ, B, ⌈H/stride⌉, ⌈W/stride⌉, P), and what the backward pass needs, a flat
  // tensor of the weights' type which is empty if not `save`.
  m.def(
      "mixed_node(Tensor bank, Tensor inputs, Tensor operations, Tensor[] weights, int stride, "
      "bool save, bool tf32) -> (Tensor, Tensor)");
  // Gradients of the bank and of the weights. Those of inputs and weights that no architecture uses
  // are zeros.
  m.def(
      "_mixed_node_backward(Tensor grad, Tensor bank, Tensor saved, Tensor inputs, "
      "Tensor operations, Tensor[] weights, int stride, bool tf32) -> (Tensor, Tensor[])");

  // A cell of N nodes: projections of its two inputs, the nodes, and the projection of the leaf
  // nodes, which no node reads.
  //   prev_prev, prev (λ or 1, B, H, W, P')  a first dimension of 1 means that all architectures
  //                                      share the input; what is shared is computed once.
  //                                      prev_prev is twice as high and wide if prev_prev_is_larger
  //   inputs, operations (λ, N, 2)       input 0 is prev_prev, 1 is prev, k + 2 is node k
  //   weights                            cell_weights(N, C, C', C'); with a reduction it is a
  //                                      reduction cell
  // Returns the normalized output (λ, B, H', W', P) and what the backward pass needs.
  m.def(
      "cell(Tensor prev_prev, Tensor prev, Tensor inputs, Tensor operations, Tensor[] weights, "
      "bool prev_prev_is_larger, bool save, bool tf32) -> (Tensor, Tensor)");
  // Gradients of prev_prev and prev (empty where not needed) and of the weights.
  m.def(
      "_cell_backward(Tensor grad, Tensor prev_prev, Tensor prev, Tensor output, Tensor saved, "
      "Tensor inputs, Tensor operations, Tensor[] weights, bool prev_prev_is_larger, "
      "bool prev_prev_needs_grad, bool prev_needs_grad, bool tf32) "
      "-> (Tensor, Tensor, Tensor[])");
  // On CUDA devices alone: what the kernels of all cells of a stack look up and pack before a pass,
  // forward or backward, of such images, in at most two launches for eight cells. Arguments as
  // for `cells`. Returns a plan for one pass of each cell, which uses it up.
  m.def(
      "_cell_plans(Tensor images, Tensor inputs, Tensor operations, Tensor[] weights, "
      "bool backward) -> Tensor[]");
  // The same as `cell`, with its plan.
  m.def(
      "_planned_cell(Tensor(a!) plan, Tensor prev_prev, Tensor prev, Tensor inputs, "
      "Tensor operations, Tensor[] weights, bool prev_prev_is_larger, bool save, bool tf32) "
      "-> (Tensor, Tensor)");
  // The same as `_cell_backward` on CUDA devices alone. Where another reader of prev has sent a
  // gradient, grad_prev, that of prev is added to it, and the result for it is empty.
  m.def(
      "_cell_backward_onto(Tensor grad, Tensor prev_prev, Tensor prev, Tensor output, "
      "Tensor saved, Tensor inputs, Tensor operations, Tensor[] weights, "
      "bool prev_prev_is_larger, bool prev_prev_needs_grad, bool prev_needs_grad, "
      "Tensor(a!)? grad_prev, Tensor(b!)? plan, bool tf32) -> (Tensor, Tensor, Tensor[])");

  // A stack of cells, one after the other: the first reads `images` twice, each later one the
  // outputs of the two cells before it. What it computes is what the cells alone compute; it need
  // not store what only the next cell reads.
  //   images (1 or λ, B, H, W, P')
  //   inputs, operations (2, λ, N, 2)    first those of normal cells, then those of reduction cells
  //   weights                            of the first cell, of the second, and so on
  // Returns the normalized output of the last cell and what the backward pass needs.
  m.def(
      "cells(Tensor images, Tensor inputs, Tensor operations, Tensor[] weights, bool save) "
      "-> (Tensor, Tensor)");
  // Gradients of images (empty if not needed) and of the weights.
  m.def(
      "_cells_backward(Tensor grad, Tensor images, Tensor output, Tensor saved, Tensor inputs, "
      "Tensor operations, Tensor[] weights, bool images_need_grad) -> (Tensor, Tensor[])");

  // The nodes of a cell as mixtures: each the sum of any of the edges that it may have, multiplied
  // by coefficients, for one architecture and so without λ.
  //   inputs, S of (B, H, W, P)          what nodes read beside each other; an edge that reads one
  //                                      has the stride
  //   coefficients (E,)                  of the weights' type
  //   edges (E·3)                        of each edge the node, its input and its operation; input
  //                                      S + k is node k. No edge occurs twice, no node has none.
  //   weights                            those of each edge in order: of a separable convolution
  //                                      depthwise (C, 1, k, k) and pointwise (C, C, 1, 1) of both
  //                                      stages; of a factorized reduction (⌈C/2⌉, C, 1, 1) of even
  //                                      pixels and (⌊C/2⌋, C, 1, 1) of odd ones
  // Returns all nodes (N, B, ⌈H/stride⌉, ⌈W/stride⌉, P) and what the backward pass needs.
  m.def(
      "mixture(Tensor[] inputs, Tensor coefficients, int[] edges, Tensor[] weights, int nodes, "
      "int stride, bool save, bool tf32) -> (Tensor, Tensor)");
  // Gradients of inputs, coefficients and weights, of these none where not needed.
  m.def(
      "_mixture_backward(Tensor grad, Tensor[] inputs, Tensor coefficients, Tensor output, "
      "Tensor saved, int[] edges, Tensor[] weights, int nodes, int stride, "
      "bool weights_need_grad, bool tf32) "
      "-> (Tensor[], Tensor, Tensor[])");

  // The stem: 3×3 convolution of images (B, H, W, C'), contiguous and not padded, with a weight
  // (C, C', 3, 3), then batch normalization with weight and bias (C). Returns (1, B, H, W, P), an
  // input of cells that all architectures share, and what the backward pass needs.
  m.def(
      "stem(Tensor images, Tensor weight, Tensor scale, Tensor bias, bool tf32) "
      "-> (Tensor, Tensor)");
  // Gradients of weight, scale and bias; the images have none.
  m.def(
      "_stem_backward(Tensor grad, Tensor images, Tensor saved, Tensor weight, Tensor scale, "
      "Tensor bias, bool tf32) -> (Tensor, Tensor, Tensor)");

  // What surrounds the cells in a step of a search, on CUDA devices alone; elsewhere it is made of
  // PyTorch's operators.
  // From values of architectures (λ, 8·N) int64, as draws of an optimizer, inputs and operations
  // (2, λ, N, 2) of normal and of reduction cells. An operation's value v becomes numbers[v]; a
  // value that is none becomes -1.
  m.def("_choices(Tensor architectures, Tensor numbers) -> (Tensor, Tensor)");
  // A batch of B images of a set (n, H, W, C) uint8 with labels (n,) int64: (B, H, W, C),
  // byte·scale + shift in float32 or rounded to bfloat16, and (B,) int64. See
  // asng_ext/data/augment.py for draws (B, 5) int64 and for what they decide; without, images are
  // not augmented.
  m.def(
      "_batch(Tensor images, Tensor labels, Tensor indices, Tensor? draws, Tensor scale, "
      "Tensor shift, int crop_padding, bool flip, int cutout, bool bfloat16) -> (Tensor, Tensor)");
  // The mean of features (λ, B, H, W, P) over their pixels, a linear layer with weight (K, C) and
  // bias (K,), and cross-entropy with labels (B,) int64. Returns the mean losses (λ,), the mean
  // accuracy () float32, and what the backward pass needs.
  m.def(
      "head(Tensor features, Tensor weight, Tensor bias, Tensor labels) "
      "-> (Tensor, Tensor, Tensor)");
  // Gradients of features, weight and bias from that of the losses.
  m.def(
      "_head_backward(Tensor grad, Tensor features, Tensor saved, Tensor weight, Tensor bias) "
      "-> (Tensor, Tensor, Tensor)");
  // A step of SGD after the norm of all gradients is clipped; learning_rate is () float32,
  // velocities are the momentum buffers.
  m.def(
      "_sgd_step(Tensor(a!)[] weights, Tensor[] gradients, Tensor(b!)[] velocities, "
      "Tensor learning_rate, float momentum, float weight_decay, float max_norm) -> ()");
  // The same, without weight decay, where leading slices of the weights' rows and columns are in
  // use: a gradient is that of a slice of the velocity's, which is that of a slice of the weight.
  m.def(
      "_active_sgd_step(Tensor(a!)[] weights, Tensor[] gradients, Tensor(b!)[] velocities, "
      "float learning_rate, float momentum, float max_norm) -> ()");
  // Of each weight, what steps without a gradient come to: weight - distance·velocity, and
  // factor·velocity.
  m.def(
      "_active_sgd_catch_up(Tensor(a!)[] weights, Tensor(b!)[] velocities, float[] distances, "
      "float[] factors) -> ()");
  // Adds the mean of each metric to totals; then, unless `watched` is -1, 1 if no number of that
  // metric is finite; then 1.
  m.def("_add_means(Tensor(a!) totals, Tensor[] metrics, int watched) -> ()");

  // The optimizer on a device: P optimizers of one space with m categorical and n Gaussian
  // variables advance together. Floating point is float64; nothing is read back from the device.
  // A single optimizer's tensors may lack the dimension P.
  //   state (P, …)    one after another, integers as the bits of int64 numbers:
  //     (kCounters,)    see csrc/core/counters.h
  //     (2,)            γ and Δ
  //     ()              the smallest loss, negated if larger is better
  //     (Θ,)            the probabilities; those of variable i begin at o_i
  //     (n,), (n,)      means and variances
  //     (n_θ,)          s, the accumulated natural gradient
  //     (m,), (n,)      the sample of the smallest loss, integers and numbers
  //   space (…)       one after another:
  //     (m + 1,)        o, integers
  //     (m,)            lower bounds of the probabilities
  //     (4, n)          low, high, least and largest standard deviation
  //   gaussian        n
  //   largest         the largest number of categories of a variable
  // Draws `population` samples and counts it: (P, λ, m) int64 categories, (P, λ, n) numbers. Where
  // n is 0 there is no tensor of numbers, neither here nor below.
  m.def(
      "_asng_ask(Tensor(a!) state, Tensor space, int gaussian, int largest, int population) "
      "-> (Tensor, Tensor?)");
  // Updates the distributions from λ samples each, of whichever draw, with (P, λ) float64 or
  // float32 losses; what is not finite ranks last and ties. Returns (P,) bool: whether anything
  // moved.
  m.def(
      "_asng_tell(Tensor(a!) state, Tensor space, int gaussian, int largest, Tensor categorical, "
      "Tensor? numerical, Tensor losses, float alpha, float delta_init, float delta_max, "
      "float variance_ratio_min, bool maximize) -> Tensor");

  // Layers of convolutional autoencoders. Feature maps are (B, H, W, C), contiguous and not padded.
  // A weight is (C', C, k, k), k 3 or 5: the encoder's convolution makes C' channels of C, the
  // decoder's transposed one C of C'. It may be a part of a larger tensor if each kernel is
  // contiguous. Padding is with k/2 zeros.
  // ReLU of the convolution, (B, ⌈H/stride⌉, ⌈W/stride⌉, C').
  m.def("cae_encode(Tensor x, Tensor weight, int stride) -> Tensor");
  // Gradients of x (empty unless wanted) and of the weight, contiguous; `grad` need not be: some of
  // PyTorch's own gradients have other strides than its compiler expects.
  m.def(
      "_cae_encode_backward(Tensor grad, Tensor output, Tensor x, Tensor weight, int stride, "
      "bool x_needs_grad) -> (Tensor, Tensor)");
  // Transposed convolution to (B, height, width, C), plus `skipped` of that shape, then ReLU.
  m.def(
      "cae_decode(Tensor x, Tensor weight, Tensor? skipped, int stride, int height, int width, "
      "bool relu) -> Tensor");
  // Likewise; `output` where ReLU was. The gradient of skipped is grad where output is above 0.
  m.def(
      "_cae_decode_backward(Tensor grad, Tensor? output, Tensor x, Tensor weight, int stride, "
      "bool x_needs_grad) -> (Tensor, Tensor)");
  // On CUDA devices alone, where feature maps may be bfloat16 or float16, too, and weights need not
  // be of their type: adds `skipped` to y, contiguous, then ReLU, in place.
  m.def("_cae_finish(Tensor(a!) y, Tensor? skipped, bool relu) -> ()");

  // On CUDA devices alone: λ whole autoencoders of the same images x (B, H, W, C), each with n
  // layers and the convolution that gives the image. Feature maps and weights as above, any odd k
  // up to 31; each row of a weight is contiguous.
  //   weights (Σ (2n + 1))       of one autoencoder after the other, in the order of their use: of
  //                              the encoder, of the decoder, which lead back, and (C₁, C, k, k) of
  //                              the last convolution
  //   strides (Σ n)              of the encoders' layers; with 1 a layer has a skip
  //   layers (λ)                 n
  // ReLU follows all but the last one. Returns λ results (B, H, W, C), and if `save` what the
  // backward pass needs: x, and for each the other feature maps but the result, (B, H', W', P).
  m.def(
      "cae_chains(Tensor x, Tensor[] weights, int[] strides, int[] layers, bool save, bool tf32) "
      "-> (Tensor[], Tensor[])");
  // Of the gradients of all results those of x (empty unless wanted; a sum in the order of the
  // autoencoders) and of the weights, contiguous.
  m.def(
      "_cae_chains_backward(Tensor[] grads, Tensor[] saved, Tensor[] weights, int[] strides, "
      "int[] layers, bool x_needs_grad, bool tf32) -> (Tensor, Tensor[])");

  // Gives memory that the operators keep for the next call back to the system; returns the bytes.
  m.def("_release_cached() -> int");
  // Instruction set in use: 0 baseline, 1 AVX2, 2 AVX-512.
  m.def("_cpu_capability() -> int");
}
