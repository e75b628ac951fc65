"""Compiled layers of convolutional autoencoders: convolution, skip and ReLU in one operator.

They compute the channels of the weight they are given, which may be a corner of a larger one. On
the CPU they make 5 to 6 times fewer multiplications than the sum over the taps (minimal filtering
of 8×8 tiles); in single precision the result differs from that sum by about 1e-5 of the largest
value. On CUDA devices the convolutions are PyTorch's, with TF32 where its settings allow that.

All have first derivatives and run under `torch.compile` and `torch.autocast`. On the CPU they take
float32 or float64, and compute in float32 under autocast; on CUDA devices they take bfloat16 and
float16, too, and autocast has its say. Images are (N, C, H, W) and best channels-last; results are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asng_ext.ops import _libraries
from asng_ext.ops._libraries import available, cuda_available
from asng_ext.ops._registration import call

__all__ = ["KERNELS", "available", "cuda_available", "decode", "encode"]

KERNELS = (3, 5)
"""Sides of kernels that the operators have."""

_WIDE = (torch.float32, torch.float64)
_HALF = (torch.bfloat16, torch.float16)


def encode(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """ReLU of a convolution padded with ⌊k/2⌋ zeros.

    Args:
        x: Images (N, I, H, W).
        weight: (O, I, k, k), k 3 or 5; it may be a part of a larger tensor.
        stride: 1 or 2.

    Returns:
        (N, O, ⌈H/stride⌉, ⌈W/stride⌉), channels-last.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: An argument has the wrong shape, device or value.
        RuntimeError: The operators are not available.
    """
    weight = _checked(x, weight, 1, stride)
    out: Tensor = call("cae_encode", _to_nhwc(x), weight, stride)
    return out.permute(0, 3, 1, 2)


def decode(
    x: Tensor,
    weight: Tensor,
    skipped: Tensor | None = None,
    stride: int = 1,
    size: tuple[int, int] | None = None,
    relu: bool = True,
) -> Tensor:
    """Transposed convolution, the mirror image of `encode`'s, plus a skip, then ReLU.

    Args:
        x: Images (N, I, h, w).
        weight: (I, O, k, k), k 3 or 5; it may be a part of a larger tensor.
        skipped: What to add before ReLU, (N, O, H, W).
        stride: 1 or 2.
        size: (H, W) of the result, where ⌈H/stride⌉ is h and ⌈W/stride⌉ is w;
            (stride·h, stride·w) if None.
        relu: Whether negative values become zeros.

    Returns:
        (N, O, H, W), channels-last.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: An argument has the wrong shape, device or value.
        RuntimeError: The operators are not available.
    """
    weight = _checked(x, weight, 0, stride)
    height, width = size or (stride * x.shape[2], stride * x.shape[3])
    if [-(-height // stride), -(-width // stride)] != list(x.shape[2:]):
        raise ValueError(
            f"size must be halved by stride {stride} to {tuple(x.shape[2:])}, got {size}"
        )
    if skipped is not None:
        _check_tensor(skipped, "skipped", x)
        expected = (x.shape[0], weight.shape[1], height, width)
        if tuple(skipped.shape) != expected:
            raise ValueError(f"skipped must have shape {expected}, got {tuple(skipped.shape)}")
        skipped = _to_nhwc(skipped)
    out: Tensor = call("cae_decode", _to_nhwc(x), weight, skipped, stride, height, width, relu)
    return out.permute(0, 3, 1, 2)


def _to_nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _check_tensor(x: Tensor, name: str, like: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dim() != 4 or 0 in x.shape:
        raise ValueError(
            f"{name} must have 4 dimensions, none of them 0, got shape {tuple(x.shape)}"
        )
    on_gpu = x.device.type == "cuda"
    if on_gpu:
        _libraries.require_cuda()
    elif x.device.type not in ("cpu", "meta"):
        raise ValueError(f"{name} must be on the CPU or a CUDA device, got {x.device}")
    if x.device != like.device:
        raise ValueError(f"{name} must be on {like.device} as the images are, got {x.device}")
    if torch.is_autocast_enabled("cuda" if on_gpu else "cpu"):
        return
    if x.dtype not in _WIDE and not (on_gpu and x.dtype in _HALF):
        known = "float32, float64, bfloat16 or float16" if on_gpu else "float32 or float64"
        raise TypeError(f"{name} must be {known}, got {x.dtype}")
    if x.dtype != like.dtype:
        raise TypeError(f"{name} must be {like.dtype} as the images are, got {x.dtype}")


def _checked(x: Tensor, weight: Tensor, channel_axis: int, stride: int) -> Tensor:
    """The weight, with each kernel in one piece, if all arguments fit."""
    _libraries.require()
    _check_tensor(x, "x", x)
    _check_tensor(weight, "weight", x)
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, got {stride!r}")
    kernel = weight.shape[3]
    if weight.shape[2] != kernel or kernel not in KERNELS:
        raise ValueError(
            f"weight must have kernels of side {' or '.join(map(str, KERNELS))}, "
            f"got shape {tuple(weight.shape)}"
        )
    if weight.shape[channel_axis] != x.shape[1]:
        raise ValueError(
            f"weight must have {x.shape[1]} channels in dimension {channel_axis} as x has, "
            f"got shape {tuple(weight.shape)}"
        )
    if weight.stride()[2:] != (kernel, 1):
        return weight.contiguous()
    return weight
