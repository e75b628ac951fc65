"""Steps of stochastic gradient descent on leading slices of weights, on CUDA devices alone: what
`asng_ext.training.active_sgd` does, for all weights in use in a launch or two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asng_ext.ops._libraries import available
from asng_ext.ops._registration import register_fake

__all__ = ["active_sgd_catch_up", "active_sgd_step"]


def active_sgd_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    velocities: Sequence[Tensor],
    learning_rate: float,
    momentum: float,
    max_norm: float,
) -> None:
    """A step with momentum, of gradients whose norm is limited: v ← μ v + c g, w ← w − ε v.

    The arguments are checked by the operator alone. Gradients are not written, nor is anything read
    on the host.

    Args:
        weights: (rows, columns, …), contiguous, float32 or float64.
        gradients: Those of leading slices of the velocities' rows and columns, contiguous.
        velocities: Likewise of the weights'.
        learning_rate: ε.
        momentum: μ.
        max_norm: Largest Euclidean norm of all gradients together; longer ones are shortened by c.

    Raises:
        RuntimeError: An argument does not fit.
    """
    torch.ops.asng._active_sgd_step(
        list(weights), list(gradients), list(velocities), learning_rate, momentum, max_norm
    )


def active_sgd_catch_up(
    weights: Sequence[Tensor],
    velocities: Sequence[Tensor],
    distances: Sequence[float],
    factors: Sequence[float],
) -> None:
    """Steps that were deferred, each weight's own: w ← w − distance·v, v ← factor·v.

    Args:
        weights, velocities: See `active_sgd_step`.
        distances, factors: A number for each weight.

    Raises:
        RuntimeError: An argument does not fit.
    """
    torch.ops.asng._active_sgd_catch_up(
        list(weights), list(velocities), list(distances), list(factors)
    )


if available():
    register_fake("_active_sgd_step", lambda *_: None)
    register_fake("_active_sgd_catch_up", lambda *_: None)
