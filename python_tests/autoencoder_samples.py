"""Inputs of the layers of autoencoders, and these in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asng_ext.nn import CaeSpace
from asng_ext.ops import autoencoder as cae_ops

Case = tuple[Tensor, Tensor, Tensor, int, tuple[int, int]]
ChainCase = tuple[Tensor, list[Tensor], list[Tensor], Tensor, list[int]]
"""Images, and weights and strides of an autoencoder."""


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


def chain_sample(
    channels: list[int],
    kernels: list[int],
    strides: list[int],
    size: tuple[int, int] = (7, 6),
    batch: int = 2,
    images: int = 3,
    seed: int = 0,
) -> ChainCase:
    """Images and weights, which are leading slices of larger ones that end in NaN."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def weight(rows: int, columns: int, kernel: int) -> Tensor:
        whole = torch.full((rows + 2, columns + 1, kernel, kernel), torch.nan).double()
        fan_in = max(rows, columns) * kernel**2
        whole[:rows, :columns] = draw(rows, columns, kernel, kernel) / fan_in**0.5
        return whole[:rows, :columns]

    inside = [*channels[1:], *channels[-1:]]
    encoder = [weight(*pair) for pair in zip(channels, [images, *channels], kernels)]
    decoder = [weight(*pair) for pair in zip(inside, channels, kernels)]
    output = weight((channels or [images])[0], images, 3)
    return draw(batch, images, *size), encoder, decoder, output, strides


def plain_chain(x: Tensor, *weights: Tensor, strides: list[int]) -> Tensor:
    """In PyTorch, by the layers' definition."""
    count = len(strides)
    encoder, decoder, output = weights[:count], weights[count:-1], weights[-1]
    maps = [x]
    for weight, stride in zip(encoder, strides):
        maps.append(plain_encode(maps[-1], weight, stride))
    y = maps[-1]
    for i in reversed(range(count)):
        skipped = maps[i + 1] if strides[i] == 1 else None
        y = plain_decode(y, decoder[i], skipped, strides[i], tuple(maps[i].shape[2:]))
    return plain_decode(y, output, None, 1, tuple(x.shape[2:]), relu=False)


def fused_chain(x: Tensor, *weights: Tensor, strides: list[int]) -> Tensor:
    """By the operator for whole autoencoders."""
    count = len(strides)
    chain = cae_ops.Chain(weights[:count], weights[count:-1], weights[-1], strides)
    return cae_ops.chains(x, [chain])[0]


def run_chain(
    function: Callable[..., Tensor], case: ChainCase, device: str = "cpu"
) -> list[Tensor]:
    """Output, and gradients of images and of all weights."""
    x, encoder, decoder, output, strides = case
    given: list[Tensor | None] = [t.to(device) for t in (x, *encoder, *decoder, output)]
    return run(partial(function, strides=strides), given)


def in_dtype(case: ChainCase, dtype: torch.dtype) -> ChainCase:
    x, encoder, decoder, output, strides = case
    parts = ([w.to(dtype) for w in part] for part in (encoder, decoder))
    return (x.to(dtype), *parts, output.to(dtype), strides)


def random_layers(space: CaeSpace, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    variables = space.search_space()
    draws = [int(torch.randint(n, (), generator=generator)) for n in variables.sizes]
    numbers = [
        v.low + (v.high - v.low) * float(torch.rand((), generator=generator))
        for v in variables.numerical.values()
    ]
    return space.decode(variables.decode(draws, numbers))
