"""Mixtures of architectures: a weight for every choice in the place of one choice.

DARTS, SNAS, GDAS and ProxylessNAS train on these. A node of the cell space is then

    Σ over its two slots j, inputs i and operations k of p^j_i q^j_k o_ik(h_i),

and as the slots share the weights of an operation, each o_ik runs once, weighted by
c_ik = Σ_j p^j_i q^j_k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from asng_ext import ops
from asng_ext._checks import brief, is_integer, listed
from asng_ext.nn.cell import FIRST_NODE, PREV, PREV_PREV, Cell, CellSpace, Edge
from asng_ext.nn.operations import OPERATIONS
from asng_ext.ops._feature_maps import padded_channels

__all__ = ["CellMixture", "Relaxation", "cell_mixtures"]


@dataclass(frozen=True, eq=False)
class Relaxation:
    """A weight for each choice of each categorical variable, in the place of one choice.

    The weights of a variable are usually its probabilities, but need neither be positive nor sum to
    1.

    Raises:
        TypeError: The weights of a variable are no floating-point tensor.
        ValueError: They are not one-dimensional, or `active` is not of them.
    """

    weights: tuple[Tensor, ...]
    """Of each categorical variable of the space (K_v,), differentiable."""
    active: tuple[tuple[int, ...], ...] | None = None
    """Of each variable the choices that count: any other one has the weight 0, whatever is said,
    and no gradient. None for all."""

    def __post_init__(self) -> None:
        weights = tuple(listed("weights", self.weights, "tensors"))
        for v, given in enumerate(weights):
            if not isinstance(given, Tensor) or not given.is_floating_point():
                raise TypeError(f"weights[{v}] must be a floating-point tensor, got {brief(given)}")
            if given.dim() != 1 or not len(given):
                raise ValueError(
                    f"weights[{v}] must have a weight for each choice, (K,), got shape "
                    f"{tuple(given.shape)}"
                )
        object.__setattr__(self, "weights", weights)
        if self.active is None:
            return
        active = tuple(
            tuple(listed(f"active[{v}]", choices, "choices"))
            for v, choices in enumerate(listed("active", self.active, "sequences of choices"))
        )
        if len(active) != len(weights):
            raise ValueError(
                f"active must have the choices of {len(weights)} variables as weights has, "
                f"got {len(active)}"
            )
        for v, (choices, given) in enumerate(zip(active, weights, strict=True)):
            known = all(is_integer(choice) and 0 <= choice < len(given) for choice in choices)
            if not choices or not known or len(set(choices)) < len(choices):
                raise ValueError(
                    f"active[{v}] must be different choices from 0 to {len(given) - 1}, at least "
                    f"one, got {brief(choices)}"
                )
        object.__setattr__(self, "active", active)

    def check(self, variables: Mapping[str, int]) -> None:
        """ValueError unless the variables are those given, by name, with so many choices each."""
        if len(self.weights) != len(variables):
            raise ValueError(
                f"relaxation must have the weights of {len(variables)} variables, "
                f"got those of {len(self.weights)}"
            )
        for v, ((name, choices), given) in enumerate(
            zip(variables.items(), self.weights, strict=True)
        ):
            if len(given) != choices:
                raise ValueError(
                    f"relaxation.weights[{v}] ({name}) must have shape ({choices},), "
                    f"got {tuple(given.shape)}"
                )

    def choices(self, variable: int) -> tuple[int, ...]:
        """The active choices of a variable, by its position."""
        if self.active is None:
            return tuple(range(len(self.weights[variable])))
        return self.active[variable]

    def table(self, variables: Sequence[int], columns: int) -> Tensor:
        """The weights of the choices of variables, (variables, columns), of at most so many
        choices each; 0 of choices that are not active or do not exist."""
        nothing = self.weights[variables[0]].new_zeros(columns)
        rows = []
        for v in variables:
            rows += [self.weights[v], nothing[len(self.weights[v]) :]]
        table = torch.cat(rows).view(len(variables), columns)
        if self.active is None:
            return table
        active = [[i in self.active[v] for i in range(columns)] for v in variables]
        return table.where(torch.tensor(active, device=table.device), nothing)


@dataclass(frozen=True, eq=False)
class CellMixture:
    """What one kind of cell computes of a relaxation: each node is the sum of its edges, each times
    a coefficient."""

    nodes: tuple[tuple[Edge, ...], ...]
    """The edges of each node that one of its slots may take."""
    coefficients: Tensor
    """Those of all edges, (E,), node by node."""
    in_output: tuple[int, ...]
    """The nodes that are in the cell's output: all but those that a later node is certain to
    read."""
    output_weights: Tensor | None
    """How much of these is there, (len(in_output),); None for all of them."""

    def run(self, cell: Cell, prev_prev: Tensor, prev: Tensor, compiled: bool = False) -> Tensor:
        """Runs the edges of the nodes in a cell that has every operation, and no others.

        Args:
            cell: The cell.
            prev_prev, prev: See `Cell.forward`.
            compiled: Whether on the compiled operator, which gives the same numbers.

        Returns:
            As `Cell.forward`.
        """
        inputs = {edge.input for edges in self.nodes for edge in edges}
        states: dict[int, Tensor] = {}
        if PREV_PREV in inputs:
            states[PREV_PREV] = cell.older(prev_prev)
        if PREV in inputs:
            states[PREV] = cell.newer(prev)
        outputs = (self._compiled if compiled else self._plain)(cell, states)
        read = [outputs[n] for n in self.in_output]
        y: Tensor = cell.output(read, self.in_output, self.output_weights)
        return y

    def _plain(self, cell: Cell, states: dict[int, Tensor]) -> list[Tensor]:
        """The nodes, from the projected inputs."""
        coefficients = iter(self.coefficients.unbind())
        for n, edges in enumerate(self.nodes):
            terms = (next(coefficients) * cell.run_edge(n, edge, states) for edge in edges)
            states[n + FIRST_NODE] = reduce(torch.add, terms)
        return [states[n + FIRST_NODE] for n in range(len(self.nodes))]

    def _compiled(self, cell: Cell, states: dict[int, Tensor]) -> list[Tensor]:
        """The same, on the compiled operator."""
        channels = cell.output.channels
        # Of the inputs only those that are read exist.
        places = {i: place for place, i in enumerate(states)}
        places |= {n + FIRST_NODE: n + len(states) for n in range(len(self.nodes))}
        numbered, weights = [], []
        for n, edges in enumerate(self.nodes):
            for edge in edges:
                numbered.append((n, places[edge.input], OPERATIONS.index(edge.operation)))
                weights.extend(cell.edge_weights(n, edge))
        maps = [_padded(x.permute(0, 2, 3, 1)) for x in states.values()]
        nodes = ops.mixture.mixture(
            maps,
            self.coefficients.to(weights[0].dtype if weights else maps[0].dtype),
            numbered,
            weights,
            len(self.nodes),
            cell.stride,
        )
        return [x[..., :channels].permute(0, 3, 1, 2) for x in nodes.unbind()]


def cell_mixtures(space: CellSpace, relaxation: Relaxation) -> tuple[CellMixture, CellMixture]:
    """What normal cells and reduction cells compute of a relaxation.

    A node is in the output of its cell as far as no other node reads it: its weight there is
    Π (1 − p) over the slots of later nodes, where p is the weight of the node in the slot's input.
    One that some slot is certain to read, because no other input of that slot is active, is not
    there.

    Raises:
        TypeError: The relaxation is no `Relaxation`.
        ValueError: It is none of the space.
    """
    if not isinstance(relaxation, Relaxation):
        raise TypeError(f"relaxation must be a Relaxation, got {brief(relaxation)}")
    names = dict(zip(space.variables, space.categories, strict=True))
    relaxation.check(names)
    variables = len(names) // 2
    return (_cell_mixture(space, relaxation, 0), _cell_mixture(space, relaxation, variables))


def _cell_mixture(space: CellSpace, relaxation: Relaxation, first: int) -> CellMixture:
    """Of the cells whose variables begin at position `first`."""
    nodes, inputs, operations = space.nodes, space.nodes + FIRST_NODE - 1, len(space.operations)
    # Positions of the variables of inputs, slot by slot; those of operations are the next but one.
    slots = [first + 4 * node + slot for node in range(nodes) for slot in (0, 1)]
    p = relaxation.table(slots, inputs)
    q = relaxation.table([v + 2 for v in slots], operations)
    # Not a matrix product, which autocast would make in half precision.
    products = (p[:, :, None] * q[:, None, :]).view(nodes, 2, inputs, operations).sum(dim=1)
    taken = [
        sorted(
            {
                (i, k)
                for v in slots[2 * node : 2 * node + 2]
                for i in relaxation.choices(v)
                for k in relaxation.choices(v + 2)
            }
        )
        for node in range(nodes)
    ]
    is_certain, may_be_read = [False] * nodes, [False] * nodes
    for v in slots:
        choices = relaxation.choices(v)
        for i in choices:
            if i >= FIRST_NODE:
                (is_certain if len(choices) == 1 else may_be_read)[i - FIRST_NODE] = True
    in_output = tuple(n for n in range(nodes) if not is_certain[n])
    output_weights = None
    if any(may_be_read[n] for n in in_output):
        # Not torch.prod, whose derivative looks for zeros, and waits for the device.
        unread = reduce(torch.mul, (1 - p[:, FIRST_NODE:]).unbind())
        unread = torch.cat((unread, unread.new_ones(1)))  # nothing reads the last node
        output_weights = torch.stack([unread[n] for n in in_output])
    return CellMixture(
        tuple(tuple(Edge(i, space.operations[k]) for i, k in edges) for edges in taken),
        _taken(products, taken),
        in_output,
        output_weights,
    )


def _taken(products: Tensor, taken: list[list[tuple[int, int]]]) -> Tensor:
    """Of (nodes, inputs, operations) those of the input and the operation of every edge, (E,)."""
    nodes, inputs, operations = products.shape
    if all(len(edges) == (n + FIRST_NODE) * operations for n, edges in enumerate(taken)):
        # Nothing of the host, which would keep a graph from being captured.
        return torch.cat([products[n, : n + FIRST_NODE].flatten() for n in range(nodes)])
    places = [(n * inputs + i) * operations + k for n, edges in enumerate(taken) for i, k in edges]
    return products.flatten()[torch.tensor(places, device=products.device)]


def _padded(maps: Tensor) -> Tensor:
    """(B, H, W, C) to (B, H, W, P)."""
    missing = padded_channels(maps.shape[-1]) - maps.shape[-1]
    return F.pad(maps, (0, missing)) if missing else maps
