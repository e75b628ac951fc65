"""From the labels that data come with to 0, 1, 2, … and the names of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asng_ext._checks import brief, listed

from .image_files import named

__all__ = ["Labels", "check_class_names", "check_classes"]


class Labels:
    """What the labels of training images mean, and those of other images like them.

    Strings are names of classes, in the order of the alphabet. Integers count classes from 0 or
    from 1; two classes may be -1 and 1.

    Args:
        labels: (N,) or (N, 1), integers or strings, of the training images.
        names: The names of the classes; by default the labels themselves.

    Attributes:
        names: The names of the classes.

    Raises:
        TypeError: If the labels are neither integers nor strings.
        ValueError: If they are not one per image, or do not count classes.
    """

    def __init__(self, labels: Any, names: Sequence[str] | None = None) -> None:
        found = np.unique(_flat("labels", labels))
        given = None if names is None else check_class_names(names)
        values = _text_values(found, given) if found.dtype.kind == "U" else _counted(found, given)
        self.names = given or tuple(str(value) for value in values)
        self._values = np.array(values)

    def indices(self, name: str, labels: Any) -> NDArray[np.int64]:
        """(N,) indices of classes.

        Raises TypeError and ValueError, with the name of the argument, for labels that are none of
        these classes.
        """
        given = _flat(name, labels)
        if given.dtype.kind != self._values.dtype.kind:
            kinds = {"U": "strings", "i": "integers"}
            raise TypeError(
                f"{name} must be {kinds[self._values.dtype.kind]} as the training images' are, "
                f"got {kinds[given.dtype.kind]}"
            )
        order = self._values.argsort()
        places = np.searchsorted(self._values, given, sorter=order).clip(0, len(order) - 1)
        indices: NDArray[np.int64] = order[places].astype(np.int64)
        wrong = np.unique(given[self._values[indices] != given])
        if len(wrong):
            raise ValueError(
                f"{name} must be of the {len(self._values)} classes of the training images, "
                f"{named(self._values.tolist())}, got {named(wrong.tolist())}"
            )
        return indices


def check_class_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple; TypeError unless strings, ValueError unless different ones."""
    names = tuple(listed("class_names", names, "strings"))
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"class_names must be strings, got {names!r:.200}")
    if len(set(names)) < len(names):
        raise ValueError(f"class_names must be different ones, got {names!r:.200}")
    return names


def check_classes(labels: Any, names: Sequence[str]) -> None:
    """ValueError unless the labels of training images, (N,) integers, are of two classes at least
    and no class is empty."""
    counts = np.bincount(np.asarray(labels), minlength=len(names))
    if len(names) < 2:
        raise ValueError(
            f"images must be of 2 classes or more to be told apart, got {len(names)}: "
            f"{named(names)}"
        )
    empty = [name for name, count in zip(names, counts) if not count]
    if empty:
        raise ValueError(
            f"every class must have training images, got none of {named(empty)} "
            f"({len(empty)} of {len(names)} classes)"
        )


def _flat(name: str, labels: Any) -> NDArray[Any]:
    """(N,), int64 or strings."""
    try:
        array = np.asarray(labels)
    except (ValueError, TypeError):  # of several lengths; on torch's meta device
        raise ValueError(f"{name} must be (N,), one per image, got {brief(labels)}") from None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not len(array):
        hint = "; of one-hot labels take the argmax" if array.ndim == 2 else ""
        raise ValueError(f"{name} must be (N,), one per image, got {array.shape}{hint}")
    if array.dtype.kind in "ST" or (
        array.dtype.kind == "O" and all(isinstance(each, str) for each in array)
    ):
        array = array.astype(np.str_)
    if array.dtype.kind not in "iuU":
        kind = "objects of several types" if array.dtype.kind == "O" else str(array.dtype)
        raise TypeError(f"{name} must be integers or strings, got {kind}")
    return array if array.dtype.kind == "U" else array.astype(np.int64)


def _text_values(found: NDArray[Any], names: tuple[str, ...] | None) -> list[str]:
    if names is None:
        return [str(value) for value in found]
    unknown = sorted(set(found.tolist()) - set(names))
    if unknown:
        raise ValueError(f"labels must be among class_names, got {named(unknown)}")
    return list(names)


def _counted(found: NDArray[Any], names: tuple[str, ...] | None) -> list[int]:
    """The values that stand for the classes, in order."""
    lowest, highest = int(found[0]), int(found[-1])
    if found.tolist() == [-1, 1] and (names is None or len(names) == 2):
        return [-1, 1]
    if lowest < 0:
        raise ValueError(
            "labels must not be negative, but for two classes -1 and 1; images of which the class "
            f"is not known must be left out, got {lowest}"
        )
    if names is None:
        if lowest > 1:
            raise ValueError(f"labels must count classes from 0 or 1, got {lowest} as the least")
        if highest - lowest + 1 > len(found):
            missing = sorted(
                set(range(lowest, min(highest, lowest + 10_000))) - set(found.tolist())
            )
            raise ValueError(
                f"labels must count classes without gaps from {lowest} to {highest}, got none of "
                f"{named(missing)}; as strings, labels may be any"
            )
        return list(range(lowest, highest + 1))
    first = int(lowest >= 1 and highest == len(names))
    if highest >= first + len(names):
        raise ValueError(
            f"labels must lie in 0..{len(names) - 1}, or in 1..{len(names)}, one of "
            f"{len(names)} class_names, got {lowest}..{highest}"
        )
    return list(range(first, first + len(names)))
