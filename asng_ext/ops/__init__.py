"""Compiled operators, and whether they can be used here: importing this registers all of them."""

from asng_ext.ops import autoencoder, cell
from asng_ext.ops._libraries import available
from asng_ext.ops.mixed_node import NodeWeights, capability, mixed_node, release_memory

__all__ = [
    "NodeWeights",
    "autoencoder",
    "available",
    "capability",
    "cell",
    "mixed_node",
    "release_memory",
]
