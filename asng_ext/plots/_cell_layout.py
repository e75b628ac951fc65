"""Where the boxes and arrows of a cell's graph go: a layered drawing, in inches, y upwards.

Boxes stand in columns by depth. An arrow that passes columns occupies a slot of its own in each of
them, so it meets no box and no label; arrows cross one another only between columns. The order in
the columns comes from the barycenter heuristic, the heights from sweeps that move one column at a
time to where its arrows bend least.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from asng_ext.nn.cell import CellArchitecture

__all__ = ["HEAD", "Arrow", "Box", "Layout", "lay_out"]

INPUT_WIDTH, NODE_WIDTH, LABEL_HEIGHT = 0.78, 0.36, 0.25
LABEL_STEP = 0.31
"""Distance of the two labels of a node."""
LINK = 0.24
"""From a label to its node."""
HEAD = 0.12
"""Length of an arrow's head."""
PORT_STEP = 0.12
"""Distance of arrows that leave the same box, where it is high enough."""
RESTARTS, SWEEPS, ROUNDS = 12, 8, 20

Order: TypeAlias = list[list[int]]
Wishes: TypeAlias = Sequence[tuple[float, float]]
"""Values that a number should have, with weights."""


@dataclass(frozen=True)
class Box:
    """A rectangle with its left end at `x` and its middle at height `y`."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Arrow:
    """An arrow with its operation's label, or without one to the output."""

    source: int
    """0 is the input prev_prev, 1 prev, k + 2 node k, as in `Edge`."""
    target: int
    """As `source`; the number after the last node's is the output."""
    operation: str | None
    stretches: tuple[tuple[float, float, float], ...]
    """Level pieces (x from, x to, y); a smooth curve leads from one to the next."""
    label: Box | None


@dataclass(frozen=True)
class Layout:
    """The graph of a cell; `boxes` are the inputs prev_prev and prev, the nodes, the output."""

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    width: float
    height: float


def lay_out(cell: CellArchitecture, label_width: float) -> Layout:
    """Places a cell in the quadrant above (0, 0); the same cell always looks the same."""
    graph = _Graph(cell)
    graph.order_columns()
    graph.connect()
    y = graph.heights()
    # Boxes move once more because arrows have moved along them.
    for _ in range(2):
        graph.straighten(y)
        y = graph.heights()
    graph.straighten(y)
    bottom = min(y[v] - h / 2 for v, h in enumerate(graph.size))
    y = [value - bottom for value in y]
    x, widths = graph.abscissas(y, label_width)
    boxes = []
    for v in range(graph.boxes):
        column = graph.column[v]
        width = NODE_WIDTH if 0 < column < len(x) - 1 else INPUT_WIDTH
        boxes.append(Box(x[column] + widths[column] - width, y[v], width, graph.size[v]))
    arrows = []
    for i, path in enumerate(graph.paths):
        source, target = boxes[path[0]], boxes[path[-1]]
        start, end = source.x + source.width, x[graph.column[path[-1]]]
        stretches = [(start, start, y[path[0]] + graph.leaves[i])]
        for v in path[1:-1]:
            left = x[graph.column[v]]
            stretches.append((left, left + widths[graph.column[v]], y[v]))
        level = y[path[-1]] + graph.enters[i]
        operation = graph.operations[i]
        # Even without a label, the arrow's head is level.
        stretches.append((end if operation is not None else end - HEAD, target.x, level))
        label = Box(end, level, label_width, LABEL_HEIGHT) if operation is not None else None
        arrows.append(Arrow(path[0], path[-1], operation, tuple(stretches), label))
    height = max(y[v] + h / 2 for v, h in enumerate(graph.size))
    return Layout(tuple(boxes), tuple(arrows), x[-1] + widths[-1], height)


class _Graph:
    """The boxes, and the slots of passing arrows, as vertices in columns (0 at the bottom)."""

    def __init__(self, cell: CellArchitecture) -> None:
        self.column = [0, 0]
        for node in cell.nodes:
            self.column.append(1 + max(self.column[edge.input] for edge in node))
        self.boxes = len(self.column) + 1
        output = self.boxes - 1
        self.column.append(max(self.column) + 1)
        ends: list[tuple[int, int, str | None]] = [
            (edge.input, node + 2, edge.operation)
            for node, edges in enumerate(cell.nodes)
            for edge in edges
        ]
        ends += [(node + 2, output, None) for node in cell.leaf_nodes]
        self.operations = [operation for _, _, operation in ends]
        self.paths: list[list[int]] = []
        for source, target, _ in ends:
            path = [source]
            for column in range(self.column[source] + 1, self.column[target]):
                path.append(len(self.column))
                self.column.append(column)
            self.paths.append([*path, target])
        self.before: list[list[int]] = [[] for _ in self.column]
        self.after: list[list[int]] = [[] for _ in self.column]
        for path in self.paths:
            for u, v in pairwise(path):
                self.after[u].append(v)
                self.before[v].append(u)
        self.order: Order = [[] for _ in range(self.column[output] + 1)]
        for v, column in enumerate(self.column):
            self.order[column].append(v)
        # The input prev_prev stays on top: by symmetry, that costs no crossing.
        self.order[0].reverse()
        self.size = [0.0] * len(self.column)
        for v in range(self.boxes):
            ports = max(len(self.after[v]), len(self.before[v]) if v == output else 0)
            self.size[v] = max(0.44, PORT_STEP * (ports + 1))
            if 2 <= v < output:
                self.size[v] = LABEL_STEP + LABEL_HEIGHT

    # Order of the columns

    def order_columns(self) -> None:
        """Orders the columns so that few arrows cross and, among such orders, arrows are short."""
        best, best_cost = self.order, self._cost(self.order)
        generator = random.Random(0)
        for restart in range(RESTARTS):
            order = [list(column) for column in self.order]
            if restart:
                for column in order[1:]:
                    generator.shuffle(column)
            for sweep in range(SWEEPS):
                self._sweep(order, forward=sweep % 2 == 0)
                cost = self._cost(order)
                if cost < best_cost:
                    best, best_cost = [list(column) for column in order], cost
        self.order = best

    def _positions(self, order: Order) -> list[float]:
        """The rank of every vertex in its column, from the middle."""
        positions = [0.0] * len(self.column)
        for column in order:
            for rank, v in enumerate(column):
                positions[v] = rank - (len(column) - 1) / 2
        return positions

    def _cost(self, order: Order) -> tuple[int, float]:
        position = self._positions(order)
        crossings, length = 0, 0.0
        for column in order:
            crossings += sum(
                _inversions(
                    [position[w] for w in self.after[u]], [position[w] for w in self.after[v]]
                )
                for u, v in combinations(column, 2)
            )
            length += sum(abs(position[w] - position[v]) for v in column for w in self.after[v])
        return crossings, length

    def _sweep(self, order: Order, forward: bool) -> None:
        columns = range(1, len(order)) if forward else range(len(order) - 2, 0, -1)
        for c in columns:
            position = self._positions(order)
            near = self.before if forward else self.after
            order[c].sort(key=lambda v: sum(position[w] for w in near[v]) / len(near[v]))
        swapped = True
        while swapped:
            swapped = False
            for column in order[1:]:
                position = self._positions(order)
                for i in range(len(column) - 1):
                    u, v = column[i : i + 2]
                    gain = 0
                    for near in (self.before, self.after):
                        a, b = ([position[w] for w in near[k]] for k in (u, v))
                        gain += _inversions(a, b) - _inversions(b, a)
                    if gain > 0:
                        column[i], column[i + 1] = v, u
                        swapped = True

    # Coordinates

    def connect(self) -> None:
        """Decides where on its boxes every arrow starts and ends, relative to their middles."""
        position = self._positions(self.order)
        self.leaves = [0.0] * len(self.paths)
        self.enters = [0.0] * len(self.paths)
        self.leaving: list[list[int]] = []
        self.entering: list[list[int]] = []
        for v in range(self.boxes):
            arrows = [i for i, path in enumerate(self.paths) if path[-1] == v]
            arrows.sort(key=lambda i: (position[self.paths[i][-2]], i))
            self.entering.append(arrows)
            for rank, i in enumerate(arrows):
                self.enters[i] = LABEL_STEP * (rank - (len(arrows) - 1) / 2)
        for v in range(self.boxes):
            arrows = [i for i, path in enumerate(self.paths) if path[0] == v]
            arrows.sort(key=lambda i: (position[self.paths[i][1]], self.enters[i]))
            self.leaving.append(arrows)
        self.straighten([0.0] * len(self.column))

    def straighten(self, y: Sequence[float]) -> None:
        """Moves the ends of arrows along their boxes to where they bend less.

        Arrows to a node end at their labels, which do not move.
        """
        output = self.boxes - 1
        for v in range(output):
            wishes = []
            for i in self.leaving[v]:
                after = self.paths[i][1]
                wishes.append(y[after] + self.enters[i] * (after < output) - y[v])
            for i, place in zip(self.leaving[v], _ports(wishes, self.size[v])):
                self.leaves[i] = place
        wishes = []
        for i in self.entering[output]:
            before = self.paths[i][-2]
            wishes.append(y[before] + self.leaves[i] * (before < output) - y[output])
        for i, place in zip(self.entering[output], _ports(wishes, self.size[output])):
            self.enters[i] = place

    def heights(self) -> list[float]:
        """The height of every vertex's middle."""
        # For each vertex, (other vertex, wanted difference of heights, weight) of its arrows. The
        # longer the arrow, the more it should be straight.
        pulls: list[list[tuple[int, float, float]]] = [[] for _ in self.column]
        for i, path in enumerate(self.paths):
            for k, (u, v) in enumerate(pairwise(path)):
                passing = (k > 0) + (k < len(path) - 2)
                shift = (self.leaves[i] if k == 0 else 0.0) - (
                    self.enters[i] if k == len(path) - 2 else 0.0
                )
                pulls[u].append((v, -shift, (1.0, 2.0, 8.0)[passing]))
                pulls[v].append((u, shift, (1.0, 2.0, 8.0)[passing]))
        y = [0.0] * len(self.column)
        for column in self.order:
            for below, v in pairwise(column):
                y[v] = y[below] + self._distance(below, v)
            middle = (y[column[0]] + y[column[-1]]) / 2
            for v in column:
                y[v] -= middle
        # Squared bends first, for a good start; absolute ones then make arrows straight.
        for center in (_mean, _median):
            for _ in range(ROUNDS):
                for column in [*self.order, *self.order[::-1]]:
                    self._relax(column, y, pulls, center)
        return y

    def _distance(self, below: int, above: int) -> float:
        gap = 0.24 if below < self.boxes and above < self.boxes else 0.15
        return (self.size[below] + self.size[above]) / 2 + gap

    def _relax(
        self,
        column: Sequence[int],
        y: list[float],
        pulls: Sequence[Sequence[tuple[int, float, float]]],
        center: Callable[[Wishes], float],
    ) -> None:
        """Moves a column's vertices to where their arrows bend least, keeping their distances."""
        offsets = [0.0]
        for below, v in pairwise(column):
            offsets.append(offsets[-1] + self._distance(below, v))
        wishes = [
            [(y[w] + shift - offset, weight) for w, shift, weight in pulls[v]]
            or [(y[v] - offset, 1.0)]  # an input that no node reads
            for v, offset in zip(column, offsets)
        ]
        for v, offset, value in zip(column, offsets, _increasing(wishes, center)):
            y[v] = value + offset

    def abscissas(self, y: Sequence[float], label_width: float) -> tuple[list[float], list[float]]:
        """Left end and width of every column; steep arrows get more room."""
        columns = len(self.order)
        widths = [INPUT_WIDTH, *[label_width + LINK + NODE_WIDTH] * (columns - 2), INPUT_WIDTH]
        rise = [0.0] * columns
        for i, path in enumerate(self.paths):
            for k, (u, v) in enumerate(pairwise(path)):
                start = y[u] + (self.leaves[i] if k == 0 else 0.0)
                end = y[v] + (self.enters[i] if k == len(path) - 2 else 0.0)
                rise[self.column[u]] = max(rise[self.column[u]], abs(end - start))
        x = [0.0]
        for c in range(columns - 1):
            x.append(x[-1] + widths[c] + min(1.8, 0.42 + 0.35 * rise[c]))
        return x, widths


def _inversions(first: Sequence[float], second: Sequence[float]) -> int:
    """Number of crossings if the vertex with neighbors `first` stands below the other."""
    return sum(a > b for a in first for b in second)


def _ports(wishes: Sequence[float], height: float) -> list[float]:
    """Places in order on a box of this height, near the wishes and not too near each other."""
    last = len(wishes) - 1
    half = height / 2 - 0.06
    step = min(PORT_STEP, 2 * half / max(1, last))
    free = [
        [(min(max(wish - k * step, -half), half - last * step), 1.0)]
        for k, wish in enumerate(wishes)
    ]
    return [value + k * step for k, value in enumerate(_increasing(free, _mean))]


def _increasing(wishes: Sequence[Wishes], center: Callable[[Wishes], float]) -> list[float]:
    """The values nearest to the wishes that do not decrease.

    Pools adjacent violators: neighbors in the wrong order get one value, the center of all their
    wishes.
    """
    blocks: list[tuple[list[tuple[float, float]], int, float]] = []
    for wish in wishes:
        block, count, value = list(wish), 1, center(wish)
        while blocks and blocks[-1][2] >= value:
            more, others, _ = blocks.pop()
            block, count = more + block, count + others
            value = center(block)
        blocks.append((block, count, value))
    return [value for _, count, value in blocks for _ in range(count)]


def _mean(wishes: Wishes) -> float:
    return math.fsum(v * w for v, w in wishes) / math.fsum(w for _, w in wishes)


def _median(wishes: Wishes) -> float:
    """A weighted median; among several, the one nearest to the mean."""
    half = sum(w for _, w in wishes) / 2
    low, high, below = -math.inf, math.inf, 0.0
    for value, weight in sorted(wishes):
        if below < half - 1e-9:
            low = value
        below += weight
        if below > half + 1e-9:
            high = value
            break
    return min(max(_mean(wishes), low), high)
