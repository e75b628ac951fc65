"""Where operators run in a test: on the CPU, on a CUDA device, or on a grid on the CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")

ON_GRID = "ASNG_CUDA_ON_CPU" in os.environ
"""The CPU's operators are those for CUDA, compiled for a grid on the CPU (see conftest.py)."""

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
DEVICES = ["cpu", CUDA]
CUDA_DEVICES = [pytest.param("cpu", marks=pytest.mark.grid(only=True)), CUDA]
"""For what the operators for CUDA do and those for the CPU do not."""


def fewer_on_grid(values: Sequence[T], on_grid: Sequence[T]) -> Sequence[T]:
    """Values to parametrize with. The grid is hundreds of times slower than the CPU, so it gets
    those only that take other ways through the kernels."""
    return on_grid if ON_GRID else values
