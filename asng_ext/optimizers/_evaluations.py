"""Evaluations and values as users give them, in the form that an optimizer works with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from asng_ext import _host
from asng_ext._checks import brief
from asng_ext.optimizers._distribution import Theta
from asng_ext.space import Samples, SearchSpace

__all__ = ["as_array", "check_space", "checked_theta", "checked_values"]


def as_array(losses: Any, name: str = "losses") -> npt.NDArray[np.float64]:
    """Losses as float64: anything NumPy reads, and tensors of any floating type and device, with
    or without a gradient, also in a list. ``name`` is for the message of an error."""
    numbers = losses
    try:
        if hasattr(losses, "detach"):  # a tensor; bfloat16 and CUDA ones are unknown to NumPy
            if losses.is_complex():
                raise TypeError
            numbers = losses.detach().double().cpu().numpy()
        elif isinstance(losses, (list, tuple)):
            numbers = _host.numbers(list(losses))
        array = np.asarray(numbers)
        if array.dtype.kind == "O" and array.ndim == 1:
            array = np.asarray(_host.numbers(array.tolist()))
        if array.dtype.kind not in "biuf":
            raise TypeError
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last of torch
        raise TypeError(f"{name} must be a sequence of numbers, got {brief(losses)}") from None
    if array.ndim == 0:
        raise TypeError(f"{name} must be a sequence of numbers, got {brief(losses)}")
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (λ,), got {array.shape}")
    return np.ascontiguousarray(array, dtype=np.float64)


def check_space(samples: Samples, space: SearchSpace) -> None:
    """ValueError unless the samples' space is an equal one; samples read back from a file belong
    to a space of their own."""
    difference = space.difference(samples.space.description)
    if difference:
        raise ValueError(f"samples must be of the optimizer's space, but their {difference}")


def checked_values(argument: str, values: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """A copy of values of some variables by name (TypeError, ValueError if the space lacks any)."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{argument} must map names to values, got {brief(values)}")
    unknown = sorted(set(values) - set(space), key=str)
    if unknown:
        raise ValueError(f"{argument} must name variables of the space, which lacks {unknown}")
    for name, value in values.items():
        try:
            space.position(name, value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{argument}: {error}") from None
    return dict(values)


def checked_theta(argument: str, theta: Theta, space: SearchSpace) -> Theta:
    """A copy of a distribution (TypeError, ValueError if it is none of the space)."""
    try:
        copied = Theta(*(np.array(part, dtype=np.float64) for part in theta))
    except (TypeError, ValueError):
        raise TypeError(f"{argument} must hold arrays of numbers, got {brief(theta)}") from None
    sizes = space.sizes
    shapes = (len(sizes), max(sizes, default=0)), (2, len(space.numerical))
    for name, part, shape in zip(theta._fields, copied, shapes, strict=True):
        if part.shape != shape or not np.isfinite(part).all():
            raise ValueError(
                f"{argument}.{name} must hold finite numbers of shape {shape}, got {part.shape}"
            )
    for name, row, size in zip(space.categorical, copied.categorical, sizes):
        if row.min(initial=0.0) < 0 or row[size:].any() or abs(row.sum() - 1) > 1e-6:
            raise ValueError(
                f"{argument}.categorical must hold probabilities of the {size} choices of "
                f"{name!r} that sum to 1, got {row.tolist()}"
            )
    mean, second = copied.numerical
    for name, variance in zip(space.numerical, second - mean**2):
        if variance < 0:
            raise ValueError(
                f"{argument}.numerical must hold moments of a variance of 0 or more, got "
                f"{variance:.6g} for {name!r}"
            )
    return copied
