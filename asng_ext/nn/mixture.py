"""Mixtures of architectures: a weight for every choice in the place of one choice.

DARTS, SNAS, GDAS and ProxylessNAS train on these. A node of the cell space is then

    Σ over its two slots j, inputs i and operations k of p^j_i q^j_k o_ik(h_i),

and as the slots share the weights of an operation, each o_ik runs once, weighted by
c_ik = Σ_j p^j_i q^j_k.
"""

from __future__ import annotations

from collections.abc import Mapping
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

__all__ = ["CellMixture", "NodeMixture", "Relaxation", "cell_mixtures"]


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

    def parts(self, variable: int) -> list[Tensor]:
        """The weight () of every choice of a variable, 0 of one that is not active."""
        weights, choices = self.weights[variable], self.choices(variable)
        none = weights.new_zeros(())
        return [part if i in choices else none for i, part in enumerate(weights.unbind())]


@dataclass(frozen=True, eq=False)
class NodeMixture:
    """What a node computes: the sum of its edges, each times a coefficient."""

    edges: Mapping[Edge, Tensor]
    """The coefficient () of every edge that one of the slots may take."""
    output_weight: Tensor | None
    """How much of the node is in the cell's output, (); None for all of it."""
    in_output: bool
    """False if a later node is certain to read it."""


@dataclass(frozen=True, eq=False)
class CellMixture:
    """What one kind of cell computes of a relaxation."""

    nodes: tuple[NodeMixture, ...]

    def run(self, cell: Cell, prev_prev: Tensor, prev: Tensor, compiled: bool = False) -> Tensor:
        """Runs the edges of the nodes in a cell that has every operation, and no others.

        Args:
            cell: The cell.
            prev_prev, prev: See `Cell.forward`.
            compiled: Whether on the compiled operator, which gives the same numbers.

        Returns:
            As `Cell.forward`.
        """
        inputs = {edge.input for node in self.nodes for edge in node.edges}
        states: dict[int, Tensor] = {}
        if PREV_PREV in inputs:
            states[PREV_PREV] = cell.older(prev_prev)
        if PREV in inputs:
            states[PREV] = cell.newer(prev)
        outputs = (self._compiled if compiled else self._plain)(cell, states)
        leaf = tuple(n for n, node in enumerate(self.nodes) if node.in_output)
        weights = tuple(self.nodes[n].output_weight for n in leaf)
        y: Tensor = cell.output([outputs[n] for n in leaf], leaf, weights)
        return y

    def _plain(self, cell: Cell, states: dict[int, Tensor]) -> list[Tensor]:
        """The nodes, from the projected inputs."""
        for n, node in enumerate(self.nodes):
            terms = (c * cell.run_edge(n, edge, states) for edge, c in node.edges.items())
            states[n + FIRST_NODE] = reduce(torch.add, terms)
        return [states[n + FIRST_NODE] for n in range(len(self.nodes))]

    def _compiled(self, cell: Cell, states: dict[int, Tensor]) -> list[Tensor]:
        """The same, on the compiled operator."""
        channels = cell.output.channels
        padding = padded_channels(channels) - channels
        # Of the inputs only those that are read exist.
        places = {i: place for place, i in enumerate(states)}
        places |= {n + FIRST_NODE: n + len(states) for n in range(len(self.nodes))}
        edges, weights = [], []
        for n, node in enumerate(self.nodes):
            for edge in node.edges:
                edges.append((n, places[edge.input], OPERATIONS.index(edge.operation)))
                weights.extend(cell.edge_weights(n, edge))
        coefficients = torch.stack([c for node in self.nodes for c in node.edges.values()])
        maps = [F.pad(x.permute(0, 2, 3, 1), (0, padding)) for x in states.values()]
        nodes = ops.mixture.mixture(
            maps,
            coefficients.to(weights[0].dtype if weights else maps[0].dtype),
            edges,
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
    edges: list[dict[Edge, Tensor]] = []
    unread: list[list[Tensor]] = [[] for _ in range(space.nodes)]
    is_certain = [False] * space.nodes
    for node in range(space.nodes):
        v = first + 4 * node
        slots = ((v, v + 2), (v + 1, v + 3))  # positions of the input and of the operation
        inputs = [relaxation.parts(of_input) for of_input, _ in slots]
        operations = [relaxation.parts(of_operation) for _, of_operation in slots]
        # Not a matrix product, which autocast would make in half precision.
        p, q = (
            torch.stack([torch.stack(parts) for parts in both]) for both in (inputs, operations)
        )
        coefficients = (p[:, :, None] * q[:, None, :]).sum(dim=0).flatten().unbind()
        taken = {
            (i, k)
            for slot in slots
            for i in relaxation.choices(slot[0])
            for k in relaxation.choices(slot[1])
        }
        edges.append(
            {
                Edge(i, space.operations[k]): coefficients[i * len(space.operations) + k]
                for i, k in sorted(taken)
            }
        )
        for (of_input, _), parts in zip(slots, inputs, strict=True):
            choices = relaxation.choices(of_input)
            for i in choices:
                if i < FIRST_NODE:
                    continue
                if len(choices) == 1:
                    is_certain[i - FIRST_NODE] = True
                else:
                    unread[i - FIRST_NODE].append(1 - parts[i])
    return CellMixture(
        tuple(
            # Not torch.prod, whose derivative looks for zeros, and waits for the device.
            NodeMixture(
                edges[n], reduce(torch.mul, unread[n]) if unread[n] else None, not is_certain[n]
            )
            for n in range(space.nodes)
        )
    )
