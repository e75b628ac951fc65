"""Search optimizers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asng_ext._checks import brief
from asng_ext.optimizers.asng import ASNG
from asng_ext.optimizers.natural_adam import NaturalAdam
from asng_ext.optimizers.sng import SNG
from asng_ext.space import SearchSpace

__all__ = ["REGISTRY", "make", "names", "register"]

REGISTRY: dict[str, Callable[..., Any]] = {"ASNG": ASNG, "SNG": SNG, "NaturalAdam": NaturalAdam}
"""What makes an optimizer of each name from a space and keyword arguments."""


def register(name: str, factory: Callable[..., Any]) -> None:
    """Adds an optimizer to those that go by a name.

    Args:
        name: A name that is not taken.
        factory: A class, or a function, called as ``factory(space, seed=..., population_size=...,
            **settings)``. What it returns has ``ask``, ``tell`` and the other members of
            :class:`asng_ext.tasks.protocol.Optimizer`; deriving from :class:`Optimizer` is one way.

    Raises:
        ValueError: If the name is taken by another.
        TypeError: If ``name`` is no string, or ``factory`` cannot be called.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}")
    if not callable(factory):
        raise TypeError(f"factory must be callable, got {factory!r}")
    if REGISTRY.setdefault(name, factory) is not factory:
        raise ValueError(f"name must not be taken, got {name!r}, which is {REGISTRY[name]!r}")


def names() -> tuple[str, ...]:
    """The names that are registered."""
    return tuple(REGISTRY)


def make(
    name: str, space: SearchSpace, *, seed: int | None, population_size: int, **settings: Any
) -> Any:
    """A new optimizer of ``space``.

    Args:
        name: One of :func:`names`.
        space, seed, population_size: See :class:`Optimizer`.
        settings: Further arguments of that optimizer.

    Raises:
        ValueError, TypeError: If there is no such name, or as the optimizer says.
    """
    if not isinstance(name, str) or name not in REGISTRY:
        raise ValueError(f"name must be one of {names()}, got {brief(name)}")
    return REGISTRY[name](space, seed=seed, population_size=population_size, **settings)
