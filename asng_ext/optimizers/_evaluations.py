"""Evaluations and values as users give them, in the form that an optimizer works with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from asng_ext import _host
from asng_ext.space import Samples, SearchSpace

__all__ = ["as_array", "check_space", "checked_values"]


def as_array(losses: Any) -> npt.NDArray[np.float64]:
    """Losses as float64: anything NumPy reads, and tensors of any floating type and device, with
    or without a gradient, also in a list."""
    if hasattr(losses, "detach"):  # a tensor; bfloat16 and CUDA ones are unknown to NumPy
        losses = losses.detach().double().cpu().numpy()
    try:
        if isinstance(losses, (list, tuple)):
            losses = _host.numbers(list(losses))
        array = np.asarray(losses, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"losses must be a sequence of numbers, got {type(losses).__name__}"
        ) from None
    if array.ndim == 0:
        raise TypeError(f"losses must be a sequence of numbers, got {losses!r}")
    if array.ndim != 1:
        raise ValueError(f"losses must have shape (λ,), got {array.shape}")
    return np.ascontiguousarray(array)


def check_space(samples: Samples, space: SearchSpace) -> None:
    """ValueError unless the samples' space is an equal one; samples read back from a file belong
    to a space of their own."""
    difference = space.difference(samples.space.description)
    if difference:
        raise ValueError(f"samples must be of the optimizer's space, but their {difference}")


def checked_values(argument: str, values: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """A copy of values of some variables by name (TypeError, ValueError if the space lacks any)."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{argument} must map names to values, got {values!r}")
    unknown = sorted(set(values) - set(space), key=str)
    if unknown:
        raise ValueError(f"{argument} must name variables of the space, which lacks {unknown}")
    for name, value in values.items():
        try:
            space.position(name, value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{argument}: {error}") from None
    return dict(values)
