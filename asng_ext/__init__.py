"""Adaptive stochastic natural gradient (ASNG) for one-shot neural architecture search."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    from asng_ext import _host as _host
except ImportError as error:
    raise ImportError(
        f"the compiled part of asng_ext (_host) cannot be loaded: {error}. Install the package "
        "with `pip install .`, and do not import it from its source folder unless it was "
        "installed with `pip install -e .`"
    ) from error

from asng_ext.optimizers import ASNG, SNG, NaturalAdam, Theta
from asng_ext.space import Categorical, Integer, Real, Samples, SearchSpace

if TYPE_CHECKING:
    from asng_ext import compat as compat
    from asng_ext import data as data
    from asng_ext import nn as nn

__version__ = "0.1.0"

__all__ = [
    "ASNG",
    "SNG",
    "Categorical",
    "Integer",
    "NaturalAdam",
    "Real",
    "Samples",
    "SearchSpace",
    "Theta",
    "__version__",
    "compat",
    "data",
    "nn",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use: an optimizer alone does not need torch.
    if name in ("compat", "data", "nn"):
        return import_module(f"asng_ext.{name}")
    raise AttributeError(f"module 'asng_ext' has no attribute {name!r}")
