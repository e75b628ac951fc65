"""The nodes of a cell as mixtures of operations, as a compiled operator.

Where `asng_ext.ops.cell` computes λ architectures, this computes one node of each with any number
of edges, each multiplied by a coefficient: a relaxation of the space has one for every operation on
every input. It works on the CPU with float32 or float64 and on CUDA devices also with feature maps
in bfloat16, has a derivative, and runs under `torch.compile` and under `torch.autocast`, where it
computes in float32. `asng_ext.nn.mixture` is made of it, and says the same in plain PyTorch.

Feature maps are channels-last and padded, (B, H, W, P).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asng_ext import _host
from asng_ext.ops import _libraries
from asng_ext.ops._feature_maps import allows_tf32, cast_feature_maps, cast_weights, halved
from asng_ext.ops._libraries import has_cuda_kernels
from asng_ext.ops._registration import call, call_backward, register_operator

__all__ = ["mixture"]


def mixture(
    inputs: Sequence[Tensor],
    coefficients: Tensor,
    edges: Sequence[tuple[int, int, int]],
    weights: Sequence[Tensor],
    nodes: int,
    stride: int = 1,
) -> Tensor:
    """The nodes of a cell, each the sum of its edges times their coefficients.

    The arguments are checked by the operator alone.

    Args:
        inputs: What nodes read beside each other, S of (B, H, W, P).
        coefficients: (E,), of the dtype of the weights.
        edges: E of (node, input, operation), none twice and at least one of every node: input S + k
            is node k; the operation is an index of `asng_ext.nn.operations.OPERATIONS`.
        weights: Those of every edge in order: of a separable convolution depthwise (C, 1, k, k) and
            pointwise (C, C, 1, 1) of both stages; of an identity with stride 2 the factorized
            reduction (⌈C/2⌉, C, 1, 1) of even pixels and (⌊C/2⌋, C, 1, 1) of odd ones.
        nodes: How many nodes there are, N.
        stride: Of the edges that read one of the inputs: 1, or 2 to halve height and width.

    Returns:
        (N, B, ⌈H/stride⌉, ⌈W/stride⌉, P)

    Raises:
        RuntimeError: An argument does not fit, or the operators are not available.
    """
    _libraries.require()
    out: Tensor = call(
        "mixture",
        [x.contiguous() for x in inputs],
        coefficients.contiguous(),
        [number for edge in edges for number in edge],
        [weight.contiguous() for weight in weights],
        nodes,
        stride,
        torch.is_grad_enabled(),
        allows_tf32(),
    )[0]
    return out


def _kept(edges: Sequence[int], inputs: int, stride: int) -> tuple[int, int, int]:
    """How many edges have two normalizations, how many one, and how many are max pools."""
    forms = [
        (_host.OPERATIONS[number].form, stride if i < inputs else 1)
        for _, i, number in zip(*[iter(edges)] * 3, strict=True)
    ]
    separable = sum(form == "separable" for form, _ in forms)
    pools = sum(form == "max_pool" for form, _ in forms)
    return separable, forms.count(("identity", 2)), pools


def _fake(
    inputs: Sequence[Tensor],
    coefficients: Tensor,
    edges: Sequence[int],
    weights: Sequence[Tensor],
    nodes: int,
    stride: int,
    save: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    batch, height, width, padded = inputs[0].shape
    out = inputs[0].new_empty((nodes, batch, halved(height, stride), halved(width, stride), padded))
    if not save:
        return out, coefficients.new_empty((0,))
    separable, factorized, pools = _kept(edges, len(inputs), stride)
    # Of each stage its values before normalization, and a scale and a shift.
    stages, maxima = 2 * separable + factorized, 0
    if has_cuda_kernels(out.device):
        # Each edge with any has places for two, and of a max pool it is known where maxima were.
        stages, maxima = 2 * (separable + factorized), pools
    size = stages * 2 * padded
    bytes_of_maps = out[0].numel() * (stages * out.element_size() + maxima)
    return out, coefficients.new_empty((size + bytes_of_maps // coefficients.element_size(),))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    given, coefficients, ctx.edges, weights, ctx.nodes, ctx.stride, ctx.save, ctx.tf32 = inputs
    ctx.inputs = len(given)
    ctx.save_for_backward(coefficients, *output, *given, *weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    coefficients, output, saved, *others = ctx.saved_tensors
    inputs, weights = others[: ctx.inputs], others[ctx.inputs :]
    of_maps = (grad, inputs, coefficients, output, saved)
    of_call = (ctx.edges, weights, ctx.nodes, ctx.stride)
    flags = (any(ctx.needs_input_grad[3]), ctx.tf32)
    grad_inputs, grad_coefficients, grad_weights = call_backward(
        "mixture", *of_maps, *of_call, *flags
    )
    return grad_inputs, grad_coefficients, None, grad_weights


if _libraries.available():
    _gradients = {"inputs": None, "coefficients": None, "weights": "weights_need_grad"}
    _casts = {0: cast_feature_maps, 1: cast_weights, 3: cast_weights}
    register_operator("mixture", _fake, _setup, _backward, _gradients, _casts)
