"""Packages that some data sets need, and others do not."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, package: str, purpose: str) -> Any:
    """A module of an optional package, found by name: it need not be there nor have types.

    Raises ImportError, with `purpose` and what to install, if it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{purpose} {package}, which is not installed: "
            f"pip install {package.lower()} (or asng-ext[demo])"
        ) from error
