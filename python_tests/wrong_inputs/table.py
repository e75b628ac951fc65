"""What a row of the tables of wrong inputs is, and what an error must say of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

NOTHING = object()


class Wrong(NamedTuple):
    """A call that must be refused.

    Attributes:
        name: Of the test.
        call: Takes the subject and the value.
        argument: What the message must name.
        value: What is wrong; the message must show it, see :func:`shown`.
        subject: Makes, in an empty folder, what must stay as it is.
        raises: What may be raised.
    """

    name: str
    call: Callable[[Any, Any], object]
    argument: str
    value: Any
    subject: Callable[[Path], Any] | None = None
    raises: tuple[type[Exception], ...] = (ValueError, TypeError, OSError)


def refused(
    where: str,
    call: Callable[[Any, Any], object],
    argument: str,
    values: Iterable[Any],
    subject: Callable[[Path], Any] | None = None,
) -> list[Wrong]:
    """A row for each value."""
    return [
        Wrong(f"{where}-{argument}-{i}-{_brief(value)}", call, argument, value, subject)
        for i, value in enumerate(values)
    ]


def _brief(value: Any) -> str:
    # Names of tests are the same in all processes; addresses are not.
    written = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    text = f"{type(value).__name__} {written:.24}"
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text).replace("\\", "?")


class Given(NamedTuple):
    """A value, and a text that the message must show in its place, such as a part of it."""

    value: Any
    text: str


def shown(value: Any) -> list[str]:
    """Texts of which a message must hold one to show a value."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        shape = tuple(value.shape)
        texts = [str(shape), str(list(shape)), str(value.dtype), str(value.device)]
        texts += [*map(str, shape), repr(value)[:20], f"got {type(value).__name__}"]
        return [*texts, *(["none"] if 0 in shape else [])]
    texts = [str(value), repr(value), repr(value)[:20], f"got {type(value).__name__}"]
    if isinstance(value, float):
        texts.append(f"{value:g}")
    if isinstance(value, (str, list, tuple, dict, range)) and not value:
        return [*texts, "none", "got ''", "got 0"]
    if isinstance(value, (str, list, tuple, dict)):
        texts.append(f"got {len(value)}")
        if not isinstance(value, str):
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            texts += [text for part in parts for text in shown(part)]
    return [text for text in texts if text]


def snapshot(subject: Any) -> Any:
    """All of a subject that a refused call must leave as it was."""
    if isinstance(subject, Path):
        return {
            str(path.relative_to(subject)): path.read_bytes() if path.is_file() else None
            for path in sorted(subject.rglob("*"))
        }
    if isinstance(subject, torch.Tensor):
        return subject.clone()
    if hasattr(subject, "state_dict"):
        return repr(subject.state_dict())
    return repr(subject)
