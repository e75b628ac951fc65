"""Checks of arguments that say which one is wrong, what was expected and what was received."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

__all__ = ["check_integer", "check_number", "check_one_process", "check_positive"]


def check_integer(name: str, value: Any, low: int, end: int) -> None:
    """TypeError unless an integer, ValueError unless in [low, end)."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not low <= value < end:
        raise ValueError(f"{name} must be at least {low} and below {end}, got {value}")


def check_number(
    name: str,
    value: Any,
    above: float = -math.inf,
    *,
    least: float = -math.inf,
    below: float = math.inf,
) -> None:
    """TypeError unless a number, ValueError unless finite, above ``above``, at least ``least`` and
    below ``below``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if math.isfinite(value) and value > above and least <= value < below:
        return
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("above", above), ("at least", least), ("below", below))
        if math.isfinite(bound)
    ]
    raise ValueError(f"{name} must be finite{''.join(' and ' + b for b in bounds)}, got {value}")


def check_positive(name: str, value: object) -> None:
    """ValueError unless a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_one_process() -> None:
    """ValueError if this is one of several processes that share a run, as torchrun starts them."""
    processes = os.environ.get("WORLD_SIZE", "")
    if processes.isdigit() and int(processes) > 1:
        raise ValueError(
            f"a run on several processes is not supported, and WORLD_SIZE is {processes}: start "
            "one process, without torchrun, and for several runs give each its own folder"
        )
