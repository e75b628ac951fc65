"""Adaptive stochastic natural gradient (ASNG) for one-shot neural architecture search."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    import_module("asng_ext._host")
except ModuleNotFoundError:
    raise ImportError(
        f"{__path__[0]} holds asng_ext without its compiled parts, as the source folder does after "
        "`pip install .`. Start Python in another folder to use what is installed, or run "
        "`pip install -e .` in the source folder to use it from there"
    ) from None
except ImportError as error:
    raise ImportError(
        f"the compiled part of asng_ext (_host) cannot be loaded: {error}. Install the package "
        "again with `pip install .`"
    ) from error

from asng_ext.costs import CostTable
from asng_ext.optimizers import ASNG, SNG, NaturalAdam, Penalty, Theta
from asng_ext.space import Categorical, Integer, Real, Samples, SearchSpace

if TYPE_CHECKING:
    from asng_ext import compat as compat
    from asng_ext import data as data
    from asng_ext import nn as nn
    from asng_ext.driver import drive as drive
    from asng_ext.retrained import load_architecture as load_architecture
    from asng_ext.retrained import load_network as load_network

__version__ = "0.1.0"

__all__ = [
    "ASNG",
    "SNG",
    "Categorical",
    "CostTable",
    "Integer",
    "NaturalAdam",
    "Penalty",
    "Real",
    "Samples",
    "SearchSpace",
    "Theta",
    "__version__",
    "compat",
    "data",
    "drive",
    "load_architecture",
    "load_network",
    "nn",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use: an optimizer alone does not need torch.
    if name in ("compat", "data", "nn"):
        return import_module(f"asng_ext.{name}")
    if name == "drive":
        return import_module("asng_ext.driver").drive
    if name in ("load_architecture", "load_network"):
        return getattr(import_module("asng_ext.retrained"), name)
    raise AttributeError(f"module 'asng_ext' has no attribute {name!r}")
