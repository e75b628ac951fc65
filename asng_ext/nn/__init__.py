"""Building blocks of supernets: the cell space of Section 3.2, the autoencoder spaces of Section
3.3, and a choice between any modules."""

from asng_ext.nn.autoencoder import CaeNetwork, CaeSupernet, base_layers
from asng_ext.nn.autoencoder_space import CaeCatSpace, CaeIntSpace, CaeLayer, CaeSpace
from asng_ext.nn.cell import Architecture, Cell, CellArchitecture, CellSpace, Edge
from asng_ext.nn.cell_network import (
    CellNetwork,
    CellSupernet,
    parameter_count,
    widest_channels,
)
from asng_ext.nn.choice import Choice, derive, search_space, set_architecture, subnet
from asng_ext.nn.costs import CaeCost, Latencies, cell_costs, choice_costs, count_flops
from asng_ext.nn.fused import FusedCellSupernet, cell_supernet
from asng_ext.nn.mixed_node import MixedNode
from asng_ext.nn.mixture import Relaxation
from asng_ext.nn.sliceable_weight import SliceableWeight, WeightBank

__all__ = [
    "Architecture",
    "CaeCatSpace",
    "CaeCost",
    "CaeIntSpace",
    "CaeLayer",
    "CaeNetwork",
    "CaeSpace",
    "CaeSupernet",
    "Cell",
    "CellArchitecture",
    "CellNetwork",
    "CellSpace",
    "CellSupernet",
    "Choice",
    "Edge",
    "FusedCellSupernet",
    "Latencies",
    "MixedNode",
    "Relaxation",
    "SliceableWeight",
    "WeightBank",
    "base_layers",
    "cell_costs",
    "cell_supernet",
    "choice_costs",
    "count_flops",
    "derive",
    "parameter_count",
    "search_space",
    "set_architecture",
    "subnet",
    "widest_channels",
]
