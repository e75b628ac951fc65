"""From values of architectures to what cells take, in one launch, on CUDA devices alone."""

from __future__ import annotations

import torch
from torch import Tensor

from asng_ext.ops._libraries import available
from asng_ext.ops._registration import register_fake

__all__ = ["choices"]


def choices(architectures: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and operations of λ architectures of N nodes a cell.

    Args:
        architectures: (λ, 8·N) int64: of normal and then of reduction cells, for each node, input
            0, input 1, operation 0, operation 1.
        numbers: (K,) int64, the number that operators know each operation of the space by.

    Returns:
        Inputs and operations, (2, λ, N, 2) int32. What is no input, or no operation of the space,
        is -1.

    Raises:
        RuntimeError: An argument does not fit.
    """
    inputs, operations = torch.ops.asng._choices(architectures, numbers)
    return inputs, operations


def _fake(architectures: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    archs, columns = architectures.shape
    inputs = architectures.new_empty((2, archs, columns // 8, 2), dtype=torch.int32)
    return inputs, torch.empty_like(inputs)


if available():
    register_fake("_choices", _fake)
