"""Inputs, weights and gradients of mixed nodes, for tests of operators."""

from __future__ import annotations

from typing import Any

import torch

from asng_ext import _host, ops


def sample(
    channels: int = 5,
    size: tuple[int, int] = (6, 5),
    archs: int = 2,
    inputs: int = 3,
    batch: int = 3,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[torch.Tensor, ops.NodeWeights]:
    """A bank and weights."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator, dtype=dtype)
        return values.to(device).requires_grad_()

    bank = draw(inputs, archs, batch, *size, channels)
    shapes = _host.operation_weights(inputs, inputs, channels).values()
    return bank, ops.NodeWeights(*(draw(*shape) for shape in shapes))


def run(function: Any, bank: torch.Tensor, *args: Any) -> list[torch.Tensor]:
    """Output and all gradients of a scalar of it."""
    weights = args[2]
    out = function(bank, *args)
    generator = torch.Generator().manual_seed(1)
    probe = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    tensors = (bank, *weights)
    grads = torch.autograd.grad((out * probe).sum(), tensors, materialize_grads=True)
    return [out, *grads]
