"""Learning rates of a training, as functions of how much of it is done."""

from __future__ import annotations

import math

__all__ = ["cosine", "multi_step_decay", "restarted"]


def cosine(start: float, done: int, total: int, *, least: float = 0.0) -> float:
    """The learning rate after ``done`` of ``total`` steps: half a cosine from ``start`` to
    ``least``."""
    return least + (start - least) * (1 + math.cos(math.pi * done / total)) / 2


def restarted(done: int, first: int) -> tuple[int, int]:
    """How many steps of a period are done, and how many it has, where a schedule starts again after
    ``first`` steps, then after twice as many, and so on (SGDR)."""
    period = first
    while done >= period:
        done -= period
        period *= 2
    return done, period


def multi_step_decay(start: float, done: int, total: int) -> float:
    """The learning rate after ``done`` of ``total`` steps: ``start``, a tenth of it from 2/5 of the
    steps on, and a hundredth from 4/5 on."""
    return start * 0.1 ** ((5 * done >= 2 * total) + (5 * done >= 4 * total))
