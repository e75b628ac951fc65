"""Checks of arguments that say which one is wrong, what was expected and what was received."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = [
    "brief",
    "check_integer",
    "check_mapping",
    "check_number",
    "check_one_process",
    "check_positive",
    "check_size",
    "check_truth_value",
    "is_integer",
    "is_number",
    "listed",
]

_LONGEST = 200


def brief(value: object) -> str:
    """A value for a message: its ``repr`` on one line, cut where that is long."""
    try:
        text = repr(value)
    except Exception:  # of an object that is broken, or an integer of thousands of digits
        return f"{type(value).__name__} without a repr"
    if "\n" in text:
        text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def is_integer(value: object) -> bool:
    """Whether it is an integer, of NumPy too; truth values, times and arrays are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.timedelta64))


def is_number(value: object) -> bool:
    """Whether it is a real number, of NumPy too; truth values, times and arrays are none."""
    return is_integer(value) or isinstance(value, (float, np.floating))


def check_integer(name: str, value: Any, low: int, end: int) -> None:
    """TypeError unless an integer, ValueError unless in [low, end)."""
    if not is_integer(value):
        raise TypeError(f"{name} must be an integer, got {brief(value)}")
    if not low <= value < end:
        raise ValueError(f"{name} must be at least {low} and below {end}, got {brief(int(value))}")


def check_number(
    name: str,
    value: Any,
    above: float = -math.inf,
    *,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
    infinite: bool = False,
) -> None:
    """TypeError unless a number, ValueError unless finite, above ``above``, at least ``least``,
    below ``below`` and at most ``most``; with ``infinite`` it may be infinite."""
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {brief(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer that no float can hold
        number = math.nan
    if (infinite and value == math.inf) or (
        math.isfinite(number) and number > above and least <= number < below and number <= most
    ):
        return
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (
            ("above", above),
            ("at least", least),
            ("below", below),
            ("at most", most),
        )
        if math.isfinite(bound)
    ]
    wanted = " and ".join(([] if infinite else ["finite"]) + bounds)
    given = brief(value.item() if isinstance(value, np.generic) else value)
    raise ValueError(f"{name} must be {wanted}, got {given}")


def check_positive(name: str, value: object) -> None:
    """ValueError unless a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {brief(value)}")


def check_size(name: str, value: Any) -> None:
    """TypeError or ValueError unless two positive integers, (height, width)."""
    sides = listed(name, value, "two integers, (height, width)")
    if len(sides) != 2 or not all(is_integer(side) and side > 0 for side in sides):
        raise ValueError(f"{name} must be positive integers (height, width), got {brief(value)}")


def check_truth_value(name: str, value: object) -> None:
    """TypeError unless True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {brief(value)}")


def check_mapping(name: str, value: object) -> None:
    """TypeError unless a mapping."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, got {brief(value)}")


def listed(name: str, values: Any, of: str) -> list[Any]:
    """The elements of a sequence, iterator or array; TypeError of what has none, and of a text."""
    try:
        if isinstance(values, (str, bytes, Mapping)):
            raise TypeError
        return list(values)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of {of}, got {brief(values)}") from None


def check_one_process() -> None:
    """ValueError if this is one of several processes that share a run, as torchrun starts them."""
    processes = os.environ.get("WORLD_SIZE", "")
    if processes.isdigit() and int(processes) > 1:
        raise ValueError(
            f"this is for one process, and WORLD_SIZE is {processes}: start it without torchrun; a "
            "search or a retraining in Python takes the ranks of asng_ext.distributed.joined"
        )
