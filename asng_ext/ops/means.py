"""Sums of metrics over steps, in one launch, on CUDA devices alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asng_ext.ops._libraries import available
from asng_ext.ops._registration import register_fake

__all__ = ["add_means"]


def add_means(totals: Tensor, metrics: Sequence[Tensor], watched: int = -1) -> None:
    """Adds one step to the sums over an epoch.

    Args:
        totals: float32; of each metric the sum of its means, then, unless `watched` is -1, the
            number of steps in which no number of that metric was finite, then the number of steps.
        metrics: float32 or float64, contiguous, of any shape.
        watched: Position of a metric, or -1.

    Raises:
        RuntimeError: An argument does not fit.
    """
    torch.ops.asng._add_means(totals, list(metrics), watched)


if available():
    register_fake("_add_means", lambda *_: None)
