"""Where operators run in a test: on the CPU, on a CUDA device, or on a grid on the CPU."""

from __future__ import annotations

import os

import pytest

GRID = "ASNG_CUDA_ON_CPU" in os.environ
"""The CPU's operators are those for CUDA, compiled for a grid on the CPU (see conftest.py)."""

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
DEVICES = ["cpu", CUDA]
CUDA_DEVICES = [pytest.param("cpu", marks=pytest.mark.grid(only=True)), CUDA]
"""For what the operators for CUDA do and those for the CPU do not."""
