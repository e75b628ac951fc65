"""What the operators of nodes, cells and the stem have in common: their feature maps are channels-
last, padded to a multiple of `CHANNEL_BLOCK` channels, and on some devices may be bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from asng_ext import _host

CHANNEL_BLOCK = _host.CHANNEL_BLOCK
"""Feature maps have a multiple of so many channels, those beyond the real ones zero."""


def padded_channels(channels: int) -> int:
    """`channels` rounded up to a multiple of `CHANNEL_BLOCK`."""
    return (channels + CHANNEL_BLOCK - 1) // CHANNEL_BLOCK * CHANNEL_BLOCK


def halved(size: int, stride: int) -> int:
    """⌈size/stride⌉"""
    return (size + stride - 1) // stride


def stores_bfloat16(device_type: str) -> bool:
    """Whether feature maps may be bfloat16 on a type of device, with weights in float32."""
    return device_type in ("cuda", "meta")


def allows_tf32() -> bool:
    """Whether products of float32 matrices may be in TF32 on a CUDA device.

    They may where PyTorch's own convolutions may: by its setting when the operator is called, or
    compiled.
    """
    if torch.compiler.is_compiling():
        # Here, as it imports PyTorch's compiler, which takes a second.
        from asng_ext.ops._while_compiling import constant_allows_tf32

        return bool(constant_allows_tf32())
    return convolves_in_tf32()


def convolves_in_tf32() -> bool:
    """Whether PyTorch's own convolutions may be in TF32 now."""
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return bool(conv.fp32_precision == "tf32")


def cast_feature_maps(device_type: str, dtype: torch.dtype) -> torch.dtype:
    """Under autocast: bfloat16 where it asks for that and the operators store it.

    Otherwise float32: statistics of a batch need more than the range of float16.
    """
    return dtype if dtype == torch.bfloat16 and stores_bfloat16(device_type) else torch.float32


def cast_weights(device_type: str, dtype: torch.dtype) -> torch.dtype:
    """Under autocast: what is rounded is what goes through memory, not what is computed."""
    return torch.float32


def new_saved(
    units: _host.SavedUnits,
    like: Tensor,
    weight: Tensor,
    out: Sequence[int],
    prev: Sequence[int] | None = None,
) -> Tensor:
    """What is kept for the backward pass, without values.

    Args:
        units: See `_host`.
        like: Feature maps of the call.
        weight: Of the call; what is kept has its dtype.
        out: Shape of the output, (λ, B, H, W, P).
        prev: Likewise of the inputs, where something of their size is kept.
    """
    statistics, inputs, outputs = units
    archs, *batch, padded = out
    in_pixels = 0 if prev is None else math.prod(prev[1:4])
    values = (inputs * in_pixels + outputs * math.prod(batch)) * padded
    size = statistics * padded + values * like.dtype.itemsize // weight.dtype.itemsize
    return weight.new_empty((archs * size,))
