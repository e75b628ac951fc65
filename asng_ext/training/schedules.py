"""Learning rates of a training, as functions of how much of it is done."""

from __future__ import annotations

import math

__all__ = ["cosine", "multi_step_decay"]


def cosine(start: float, done: int, total: int) -> float:
    """The learning rate after ``done`` of ``total`` steps: half a cosine from ``start`` to 0."""
    return start * (1 + math.cos(math.pi * done / total)) / 2


def multi_step_decay(start: float, done: int, total: int) -> float:
    """The learning rate after ``done`` of ``total`` steps: ``start``, a tenth of it from 2/5 of the
    steps on, and a hundredth from 4/5 on."""
    return start * 0.1 ** ((5 * done >= 2 * total) + (5 * done >= 4 * total))
