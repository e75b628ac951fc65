"""Optimizers of search spaces on one ask/tell protocol."""

from asng_ext.optimizers._distribution import Theta, margins
from asng_ext.optimizers.asng import ASNG
from asng_ext.optimizers.base import Best, Optimizer
from asng_ext.optimizers.natural_adam import NaturalAdam
from asng_ext.optimizers.penalty import Penalty
from asng_ext.optimizers.registry import REGISTRY, make, names, register
from asng_ext.optimizers.sng import SNG

__all__ = [
    "ASNG",
    "REGISTRY",
    "SNG",
    "Best",
    "NaturalAdam",
    "Optimizer",
    "Penalty",
    "Theta",
    "make",
    "margins",
    "names",
    "register",
]
