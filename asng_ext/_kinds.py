"""What goes by a name, such as tasks and strategies: how it is added and found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from asng_ext._checks import brief

__all__ = ["add_kind", "kind_named"]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Kind = TypeVar("Kind", bound=_Named)


def add_kind(what: str, kinds: dict[str, Kind], kind: Kind, wanted: type[Kind]) -> None:
    """Adds one of what is called ``what`` in messages.

    Raises:
        TypeError: If ``kind`` is of another type than ``wanted``.
        ValueError: If there is one of that name already.
    """
    if not isinstance(kind, wanted):
        raise TypeError(f"kind must be a {wanted.__name__}, got {brief(kind)}")
    if kind.name in kinds:
        raise ValueError(f"kind must have a new name; there is a {what} {kind.name!r} already")
    kinds[kind.name] = kind


def kind_named(what: str, kinds: Mapping[str, Kind], name: Any) -> Kind:
    """The one of that name (ValueError if there is none)."""
    if not isinstance(name, str) or name not in kinds:
        raise ValueError(f"{what} must be one of {', '.join(kinds)}, got {brief(name)}")
    return kinds[name]
