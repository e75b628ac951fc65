"""The stem of the cell space's networks as a compiled operator (Section 3.2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from asng_ext import _host
from asng_ext.ops._feature_maps import (
    allows_tf32,
    cast_feature_maps,
    cast_weights,
    new_saved,
    padded_channels,
)
from asng_ext.ops._libraries import available
from asng_ext.ops._registration import call, call_backward, register_operator

__all__ = ["stem"]


def stem(images: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """A 3×3 convolution, then batch normalization with the statistics of the batch.

    The arguments are checked by the operator alone. There is no gradient for the images.

    Args:
        images: (B, H, W, I), contiguous.
        weight: (C, I, 3, 3).
        scale, bias: Of the normalization, (C,).

    Returns:
        (1, B, H, W, P), where P is C padded as in `padded_channels`.

    Raises:
        RuntimeError: An argument does not fit.
    """
    out: Tensor = call("stem", images, weight, scale, bias, allows_tf32())[0]
    return out


def _fake(images: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    size = (1, *images.shape[:3], padded_channels(weight.shape[0]))
    return images.new_empty(size), new_saved(_host.STEM_SAVED_UNITS, images, weight, size)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    images, weight, scale, bias, ctx.tf32 = inputs
    ctx.save_for_backward(images, output[1], weight, scale, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if ctx.needs_input_grad[0]:
        raise RuntimeError("asng::stem has no gradient with respect to the images")
    return (None, *call_backward("stem", grad, *ctx.saved_tensors, ctx.tf32))


if available():
    _gradients = {"weight": None, "scale": None, "bias": None}
    _casts = {0: cast_feature_maps, 1: cast_weights, 2: cast_weights, 3: cast_weights}
    register_operator("stem", _fake, _setup, _backward, _gradients, _casts)
