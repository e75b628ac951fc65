"""Inputs of the layers of autoencoders, and these in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Case = tuple[Tensor, Tensor, Tensor, int, tuple[int, int]]


def sample(
    size: tuple[int, int] = (7, 6),
    channels: tuple[int, int] = (3, 5),
    kernel: int = 3,
    stride: int = 1,
    dtype: torch.dtype = torch.float64,
    batch: int = 2,
) -> Case:
    """Feature map, downsampled one, weight (a leading slice), stride, size of the first."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    high, low = channels
    whole = draw(low + 2, high + 1, kernel, kernel) / kernel
    halved = [-(-side // stride) for side in size]
    x = draw(batch, high, *size).contiguous(memory_format=torch.channels_last)
    return x, draw(batch, low, *halved), whole[:low, :high], stride, size


def plain_encode(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return F.relu(F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2))


def plain_decode(
    x: Tensor,
    weight: Tensor,
    skipped: Tensor | None,
    stride: int,
    size: tuple[int, int],
    relu: bool = True,
) -> Tensor:
    output_padding = [s - stride * (n - 1) - 1 for s, n in zip(size, x.shape[2:], strict=True)]
    y = F.conv_transpose2d(x, weight, None, stride, weight.shape[2] // 2, output_padding)
    y = y if skipped is None else y + skipped
    return F.relu(y) if relu else y


def run(function: Callable[..., Tensor], tensors: list[Tensor | None], *args: Any) -> list[Tensor]:
    """Output and gradients of a scalar of it."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    out = function(*leaves, *args)
    generator = torch.Generator().manual_seed(1)
    probe = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    grads = torch.autograd.grad((out * probe).sum(), [t for t in leaves if t is not None])
    return [out.detach(), *grads]


def assert_same(got: list[Tensor], expected: list[Tensor], tolerance: float = 1e-11) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        scale = 1 + b.abs().max()
        torch.testing.assert_close(a / scale, b / scale, rtol=tolerance, atol=tolerance)
