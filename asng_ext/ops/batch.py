"""A batch of images, augmented and normalized, in one launch, on CUDA devices alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asng_ext.ops._libraries import available
from asng_ext.ops._registration import register_fake

__all__ = ["batch"]


def batch(
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    draws: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    *,
    crop_padding: int,
    flip: bool,
    cutout: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Chooses images of a set and prepares them as `asng_ext.data.Augmenter` does, bit for bit.

    The arguments are checked by the operator alone. An index that is none of the set makes an image
    of NaNs, since nothing is read on the host.

    Args:
        images: The set, (n, H, W, C) uint8.
        labels: (n,) int64.
        indices: (B,) int64.
        draws: (B, 5) int64 of `draw_augmentations`; None not to augment.
        scale, shift: (C,) float32, from bytes to normalized numbers.
        crop_padding, flip, cutout: See `asng_ext.data.Augmentation`.
        dtype: float32, or bfloat16 to which the numbers are rounded.

    Returns:
        (B, C, H, W), channels last, and labels (B,).

    Raises:
        ValueError: `dtype` is another.
        RuntimeError: An argument does not fit.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype}")
    bfloat16 = dtype == torch.bfloat16
    x, y = torch.ops.asng._batch(
        images, labels, indices, draws, scale, shift, crop_padding, flip, cutout, bfloat16
    )
    return x.permute(0, 3, 1, 2), y


def _fake(
    images: Tensor, labels: Tensor, indices: Tensor, draws: Tensor | None, *args: Any
) -> tuple[Tensor, Tensor]:
    size = (len(indices), *images.shape[1:])
    dtype = torch.bfloat16 if args[-1] else torch.float32
    return images.new_empty(size, dtype=dtype), labels.new_empty((len(indices),))


if available():
    register_fake("_batch", _fake)
