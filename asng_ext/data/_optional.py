"""Packages that some data sets need, and others do not."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, package: str, purpose: str, *, in_demo: bool = True) -> Any:
    """A module of an optional package, found by name: it need not be there nor have types.

    Raises ImportError, with `purpose` and what to install, if it is missing; `in_demo`: whether
    that may be asng-ext[demo].
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{purpose} {package}, which is not installed: pip install {package.lower()}"
            + " (or asng-ext[demo])" * in_demo
        ) from error
