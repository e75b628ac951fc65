"""Shapes, derivatives and autocast rules of the compiled layers of autoencoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import Library, register_autocast

from asng_ext.ops import _autoencoder_cuda as _cae_cuda
from asng_ext.ops._registration import call_backward, register_fake, register_operator

__all__ = ["register"]

# What is registered by it ends with it.
_CUDA = Library("asng", "IMPL")  # type: ignore[no-untyped-call]


def _encode_fake(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    batch, height, width, _ = x.shape
    halved = [(side + stride - 1) // stride for side in (height, width)]
    return x.new_empty((batch, *halved, weight.shape[0]))


def _encode_backward_fake(
    grad: Tensor, output: Tensor, x: Tensor, weight: Tensor, stride: int, x_needs_grad: bool
) -> tuple[Tensor, Tensor]:
    grad_x = x.new_empty(x.shape if x_needs_grad else (0,))
    return grad_x, weight.new_empty(weight.shape)


def _encode_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.stride = inputs
    ctx.save_for_backward(output, x, weight)


def _encode_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x_needs_grad = ctx.needs_input_grad[0]
    grad_x, grad_weight = call_backward(
        "cae_encode", grad.contiguous(), *ctx.saved_tensors, ctx.stride, x_needs_grad
    )
    return grad_x if x_needs_grad else None, grad_weight, None


def _decode_fake(
    x: Tensor,
    weight: Tensor,
    skipped: Tensor | None,
    stride: int,
    height: int,
    width: int,
    relu: bool,
) -> Tensor:
    return x.new_empty((x.shape[0], height, width, weight.shape[1]))


def _decode_backward_fake(
    grad: Tensor, output: Tensor | None, x: Tensor, weight: Tensor, stride: int, x_needs_grad: bool
) -> tuple[Tensor, Tensor]:
    grad_x = x.new_empty(x.shape if x_needs_grad else (0,))
    return grad_x, weight.new_empty(weight.shape)


def _decode_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.stride, _, _, relu = inputs
    ctx.save_for_backward(output if relu else None, x, weight)


def _decode_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    output, x, weight = ctx.saved_tensors
    grad = grad.contiguous()
    x_needs_grad, _, wants_skipped = ctx.needs_input_grad[:3]
    if wants_skipped and output is not None:
        # This is the skipped tensor's gradient, and then nobody else need look at the output.
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
        output = None
    grad_x, grad_weight = call_backward(
        "cae_decode", grad, output, x, weight, ctx.stride, x_needs_grad
    )
    return (
        grad_x if x_needs_grad else None,
        grad_weight,
        grad if wants_skipped else None,
        *(None,) * 4,
    )


def _finish_fake(y: Tensor, skipped: Tensor | None, relu: bool) -> None:
    pass


def register() -> None:
    """To be called once the library is loaded."""
    register_operator(
        "cae_encode", _encode_fake, _encode_setup, _encode_backward, _encode_backward_fake
    )
    register_operator(
        "cae_decode", _decode_fake, _decode_setup, _decode_backward, _decode_backward_fake
    )
    # The transforms need more than half precision.
    for name in ("asng::cae_encode", "asng::cae_decode"):
        register_autocast(name, "cpu", torch.float32)
    register_fake("_cae_finish", _finish_fake)
    _cae_cuda.register(_CUDA)
