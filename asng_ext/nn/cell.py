"""The cell space (Section 3.2): how an architecture is written down, and one cell of a network."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, SupportsIndex, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asng_ext._checks import brief, check_mapping, check_positive, listed
from asng_ext.nn.operations import (
    OPERATIONS,
    PAPER_OPERATIONS,
    FactorizedReduction,
    Norm,
    ReLUConvNorm,
    drop_path,
    make_operation,
)
from asng_ext.space import Categorical, SearchSpace

__all__ = ["Architecture", "Cell", "CellArchitecture", "CellSpace", "Edge", "Population"]

Architecture: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]] | Tensor
"""The value of every categorical variable of a `CellSpace`, in order: shape (d,)."""

Population: TypeAlias = npt.NDArray[np.integer[Any]] | Tensor | list[Architecture]
"""Architectures, shape (λ, d)."""

# Inputs of a node are counted from prev_prev, the output of the cell before the last; prev is that
# of the last cell, and node k is input k + 2. In files, as values of variables and in names of
# weights, the first two are "older" and "newer".
PREV_PREV, PREV, FIRST_NODE = 0, 1, 2


class Edge(NamedTuple):
    """One of the two terms of a node: an operation applied to an input."""

    input: int
    """0 is the input prev_prev of the cell, 1 is prev, k + 2 the output of node k."""
    operation: str
    """One of `asng_ext.nn.operations.OPERATIONS`."""


@dataclass(frozen=True)
class CellArchitecture:
    """What one kind of cell computes: node i is the sum of its two edges."""

    nodes: tuple[tuple[Edge, Edge], ...]

    @property
    def inputs(self) -> frozenset[int]:
        """Every input that some node reads, numbered as in `Edge`."""
        return frozenset(edge.input for node in self.nodes for edge in node)

    @property
    def leaf_nodes(self) -> tuple[int, ...]:
        """The nodes that no other node reads; they make the cell's output.

        The last node is always one of them. Every other node is read or is a leaf, so no node of
        a cell is ever idle.
        """
        inputs = self.inputs
        return tuple(i for i in range(len(self.nodes)) if i + FIRST_NODE not in inputs)


@dataclass(frozen=True)
class CellSpace:
    """Search space of two kinds of cells, normal and reduction, with `nodes` nodes each.

    Every node has four categorical variables: input 0, input 1 (node i has i + 2 choices for each)
    and operation 0, operation 1 (each one of `operations`). All variables of the normal cell come
    first. An architecture is the sequence of their values, as indices; five nodes and the paper's
    operations make d = 40 variables with n_θ = 140 free parameters.

    Args:
        nodes: Nodes of a cell.
        operations: Names of the operations to choose from, of `asng_ext.nn.operations.OPERATIONS`.

    Raises:
        ValueError: `nodes` is not a positive integer, or an operation is unknown or named twice, or
            there is none.
    """

    nodes: int = 5
    operations: tuple[str, ...] = PAPER_OPERATIONS

    KINDS: ClassVar[tuple[str, str]] = ("normal", "reduction")

    def __post_init__(self) -> None:
        check_positive("nodes", self.nodes)
        names = tuple(listed("operations", self.operations, "names"))
        known = all(isinstance(name, str) and name in OPERATIONS for name in names)
        if not names or not known or len(set(names)) < len(names):
            raise ValueError(
                f"operations must be different ones of {', '.join(OPERATIONS)}, got "
                f"{', '.join(map(brief, names)) or 'none'}"
            )
        object.__setattr__(self, "operations", names)

    @property
    def variables(self) -> dict[str, tuple[str, ...]]:
        """Readable values of every variable by its name, such as "normal/node0/input1"."""
        inputs = ("older", "newer", *(f"node{i}" for i in range(self.nodes)))
        variables: dict[str, tuple[str, ...]] = {}
        for kind in self.KINDS:
            for node in range(self.nodes):
                for j in range(2):
                    variables[f"{kind}/node{node}/input{j}"] = inputs[: node + FIRST_NODE]
                for j in range(2):
                    variables[f"{kind}/node{node}/operation{j}"] = self.operations
        return variables

    @property
    def categories(self) -> list[int]:
        """Number of choices of every variable, (d,)."""
        return [len(values) for values in self.variables.values()]

    @property
    def n_theta(self) -> int:
        """Number of free distribution parameters: Σ (K_i − 1)."""
        return self.search_space().n_theta

    def search_space(self) -> SearchSpace:
        """The space for an optimizer; its samples' categorical rows are architectures."""
        return SearchSpace({name: Categorical(v) for name, v in self.variables.items()})

    def check(self, architecture: Architecture) -> tuple[int, ...]:
        """The architecture as a tuple of integers.

        Raises:
            ValueError: The architecture has the wrong length, or a value is not an index of its
                variable.
        """
        values = architecture.tolist() if hasattr(architecture, "tolist") else architecture
        categories = self.categories
        if not isinstance(values, Sequence) or len(values) != len(categories):
            shape = getattr(architecture, "shape", None)
            got = f"length {len(values)}" if isinstance(values, Sequence) else repr(architecture)
            raise ValueError(
                f"architecture must be one-dimensional with {len(categories)} category indices, "
                f"got {f'shape {tuple(shape)}' if shape is not None else got}"
            )
        return tuple(
            self._index(i, v, k) for i, (v, k) in enumerate(zip(values, categories, strict=True))
        )

    def _index(self, position: int, value: object, categories: int) -> int:
        try:
            index = -1 if isinstance(value, bool) else operator.index(cast(SupportsIndex, value))
        except TypeError:
            index = -1
        if not 0 <= index < categories:
            raise ValueError(
                f"architecture[{position}] ({list(self.variables)[position]}) must be an integer "
                f"from 0 to {categories - 1}, got {value!r}"
            )
        return index

    def parse(self, architecture: Architecture) -> tuple[CellArchitecture, CellArchitecture]:
        """What the architecture's normal cells and its reduction cells compute.

        Raises:
            ValueError: See `check`.
        """
        values = self.check(architecture)
        nodes = tuple(
            (Edge(left, self.operations[left_op]), Edge(right, self.operations[right_op]))
            for left, right, left_op, right_op in (
                values[i : i + 4] for i in range(0, len(values), 4)
            )
        )
        return CellArchitecture(nodes[: self.nodes]), CellArchitecture(nodes[self.nodes :])

    def to_dict(self, architecture: Architecture) -> dict[str, str]:
        """The architecture by names, fit for JSON: {"normal/node0/input0": "older", …}.

        Raises:
            ValueError: See `check`.
        """
        return self.search_space().decode(self.check(architecture))

    def to_indices(self, names: Mapping[str, str]) -> list[int]:
        """The architecture that `to_dict` has written by names; the order does not matter.

        Raises:
            ValueError: A variable is missing or unknown, or has a value that it cannot take.
        """
        check_mapping("names", names)
        indices: list[int] = self.search_space().encode(names)[0].tolist()
        return indices


class LeafProjection(nn.Module):
    """Output of a cell: concatenated leaf nodes, ReLU, 1×1 convolution, normalization.

    The weight has `channels` columns for each of `nodes`; a supernet, where the leaf nodes change
    from call to call, uses the columns of those that are leaves.
    """

    def __init__(self, nodes: tuple[int, ...], channels: int, norm: Norm) -> None:
        super().__init__()
        self.nodes = nodes
        self.channels = channels
        self.conv = nn.Conv2d(len(nodes) * channels, channels, 1, bias=False)
        self.norm = norm(channels)

    def columns(self, leaf: tuple[int, ...]) -> Tensor:
        """The weight for the leaf nodes, (channels, len(leaf)·channels, 1, 1)."""
        if leaf == self.nodes:
            return self.conv.weight
        starts = [self.channels * self.nodes.index(node) for node in leaf]
        return torch.cat([self.conv.weight[:, i : i + self.channels] for i in starts], dim=1)

    def forward(
        self, outputs: list[Tensor], leaf: tuple[int, ...], weights: Tensor | None = None
    ) -> Tensor:
        """Reads the outputs of the nodes in `leaf`, weighted by `weights`, (len(leaf),), if any."""
        columns = self.columns(leaf)
        if weights is not None:
            scale = weights.to(columns.dtype).repeat_interleave(self.channels)
            columns = columns * scale[:, None, None]
        y: Tensor = self.norm(F.conv2d(F.relu(torch.cat(outputs, dim=1)), columns))
        return y


class Cell(nn.Module):
    """One cell, either of a supernet (holds every operation) or of a fixed network.

    Args:
        space: Gives the number of nodes and the operations to choose from.
        prev_prev_channels, prev_channels: Channels of the two inputs, the outputs of the cell
            before the last and of the last cell.
        channels: Channels of every node and of the output.
        reduction: Whether the cell halves height and width.
        prev_prev_is_larger: Whether prev_prev has twice the height and width of prev, because the
            last cell is a reduction cell.
        norm: Makes the normalization layers.
        architecture: Makes only the operations of this architecture, and expects this one in every
            call; None makes all.

    Attributes:
        stride: Of the operations that read one of the cell's inputs.
    """

    def __init__(
        self,
        space: CellSpace,
        prev_prev_channels: int,
        prev_channels: int,
        channels: int,
        *,
        reduction: bool,
        prev_prev_is_larger: bool,
        norm: Norm,
        architecture: CellArchitecture | None = None,
    ) -> None:
        super().__init__()
        self.stride = 2 if reduction else 1
        shrink = FactorizedReduction if prev_prev_is_larger else ReLUConvNorm
        self.older = shrink(prev_prev_channels, channels, norm)
        self.newer = ReLUConvNorm(prev_channels, channels, norm)
        self.operations = nn.ModuleDict()
        for node in range(space.nodes):
            every = [
                Edge(i, operation)
                for i in range(node + FIRST_NODE)
                for operation in space.operations
            ]
            for edge in every if architecture is None else architecture.nodes[node]:
                # An edge that occurs twice in a node has its weights once.
                if _key(node, edge) not in self.operations:
                    stride = self.stride if edge.input < FIRST_NODE else 1
                    self.operations[_key(node, edge)] = make_operation(
                        edge.operation, channels, stride, norm
                    )
        leaf = tuple(range(space.nodes)) if architecture is None else architecture.leaf_nodes
        self.output = LeafProjection(leaf, channels, norm)

    def forward(
        self,
        prev_prev: Tensor,
        prev: Tensor,
        architecture: CellArchitecture,
        drop_path_factors: Iterator[Tensor] | None = None,
    ) -> Tensor:
        """Runs the operations of `architecture` and no others.

        Args:
            prev_prev: (N, prev_prev_channels, H, W), or twice as high and wide if it is larger.
            prev: (N, prev_channels, H, W).
            architecture: What to compute.
            drop_path_factors: (N,) of `drop_path_factors` for each of the `dropped_edges`; None
                drops nothing.

        Returns:
            (N, channels, H, W), or (N, channels, ⌈H/2⌉, ⌈W/2⌉) of a reduction cell.
        """
        inputs = architecture.inputs
        states: dict[int, Tensor] = {}
        if PREV_PREV in inputs:
            states[PREV_PREV] = self.older(prev_prev)
        if PREV in inputs:
            states[PREV] = self.newer(prev)
        for node, (left, right) in enumerate(architecture.nodes):
            first = self.run_edge(node, left, states)
            second = first if left == right else self.run_edge(node, right, states)
            if drop_path_factors is not None:
                first = self._drop(node, left, first, drop_path_factors)
                second = self._drop(node, right, second, drop_path_factors)
            states[node + FIRST_NODE] = first + second
        leaf = architecture.leaf_nodes
        y: Tensor = self.output([states[node + FIRST_NODE] for node in leaf], leaf)
        return y

    def run_edge(self, node: int, edge: Edge, states: Mapping[int, Tensor]) -> Tensor:
        """The operation of an edge of a node, applied to its input, of those by number."""
        y: Tensor = self.operations[_key(node, edge)](states[edge.input])
        return y

    def edge_weights(self, node: int, edge: Edge) -> list[Tensor]:
        """The weights of the operation of an edge, in the order in which it applies them."""
        layers = self.operations[_key(node, edge)].modules()
        return [layer.weight for layer in layers if isinstance(layer, nn.Conv2d)]

    def dropped_edges(self, architecture: CellArchitecture) -> int:
        """How many edges drop-path concerns: all but true identities."""
        edges = [(node, edge) for node, pair in enumerate(architecture.nodes) for edge in pair]
        return sum(not self._is_identity(node, edge) for node, edge in edges)

    def _drop(self, node: int, edge: Edge, x: Tensor, factors: Iterator[Tensor]) -> Tensor:
        return x if self._is_identity(node, edge) else drop_path(x, next(factors))

    def _is_identity(self, node: int, edge: Edge) -> bool:
        return isinstance(self.operations[_key(node, edge)], nn.Identity)


def _key(node: int, edge: Edge) -> str:
    return f"node{node}_input{edge.input}_{edge.operation}"
