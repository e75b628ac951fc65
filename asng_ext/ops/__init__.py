"""Compiled operators, and whether they can be used here.

Importing this package, or any module of it, registers all of them.
"""

from asng_ext.ops import autoencoder, batch, cell, choices, head, means, mixture, sgd, stem
from asng_ext.ops._libraries import available, capability, release_memory
from asng_ext.ops.mixed_node import OPERATION_COUNT, NodeWeights, mixed_node

__all__ = [
    "OPERATION_COUNT",
    "NodeWeights",
    "autoencoder",
    "available",
    "batch",
    "capability",
    "cell",
    "choices",
    "head",
    "means",
    "mixed_node",
    "mixture",
    "release_memory",
    "sgd",
    "stem",
]
