"""Where the boxes and arrows of a cell's graph go: a layered drawing, in inches, y upwards.

Boxes stand in columns by depth. An arrow that passes columns occupies a slot of its own in each of
them, so it meets no box and no label; arrows cross one another only between columns. The order in
the columns comes from the barycenter heuristic, the heights from sweeps that move one column at a
time to where its arrows rise and fall least.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asng_ext.nn.cell import CellArchitecture

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
    graph.place_ports()
    y = graph.heights()
    x, widths = graph.abscissas(y, label_width)
    boxes = []
    for v in range(graph.boxes):
        column = graph.column[v]
        width = NODE_WIDTH if 0 < column < len(x) - 1 else INPUT_WIDTH
        boxes.append(Box(x[column] + widths[column] - width, y[v], width, graph.size[v]))
    arrows = []
    for i, (path, operation) in enumerate(zip(graph.paths, graph.operations)):
        source, target = boxes[path[0]], boxes[path[-1]]
        start, end = source.x + source.width, x[graph.column[path[-1]]]
        stretches = [(start, start, source.y + graph.leaves[i])]
        for v in path[1:-1]:
            left = x[graph.column[v]]
            stretches.append((left, left + widths[graph.column[v]], y[v]))
        level = target.y + graph.enters[i]
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
        output = len(self.column)
        self.boxes = output + 1
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
            passed = range(self.column[source] + 1, self.column[target])
            slots = range(len(self.column), len(self.column) + len(passed))
            self.column += passed
            self.paths.append([source, *slots, target])
        self.order: list[list[int]] = [[] for _ in range(self.column[output] + 1)]
        for v, column in enumerate(self.column):
            self.order[column].append(v)
        # The input prev_prev stays on top: by symmetry, that costs no crossing.
        self.order[0].reverse()
        # Every box has room for the ends of its arrows; slots are lines.
        self.size = [0.0] * len(self.column)
        for v in range(self.boxes):
            ports = sum((source, target)[v == output] == v for source, target, _ in ends)
            self.size[v] = max(0.44, PORT_STEP * (ports + 1))
            if 2 <= v < output:
                self.size[v] = LABEL_STEP + LABEL_HEIGHT

    def _pieces(self) -> Iterator[tuple[int, int, int]]:
        """The arrows cut at the columns: number of the arrow, vertex before, vertex after."""
        return ((i, u, v) for i, path in enumerate(self.paths) for u, v in pairwise(path))

    def order_columns(self) -> None:
        """Orders the columns so that few arrows cross and, among such orders, arrows are short."""
        links: list[list[tuple[int, int]]] = [[] for _ in self.order]
        near: list[tuple[list[int], list[int]]] = [([], []) for _ in self.column]
        for _, u, v in self._pieces():
            links[self.column[u]].append((u, v))
            near[u][1].append(v)
            near[v][0].append(u)

        def ranks() -> list[float]:
            """The place of every vertex in its column, from the middle."""
            rank = [0.0] * len(self.column)
            for column in order:
                for place, v in enumerate(column):
                    rank[v] = place - (len(column) - 1) / 2
            return rank

        def cost() -> tuple[int, float]:
            r = ranks()
            crossings = sum(
                (r[a] - r[b]) * (r[c] - r[d]) < 0
                for pieces in links
                for (a, c), (b, d) in combinations(pieces, 2)
            )
            return crossings, sum(abs(r[u] - r[v]) for pieces in links for u, v in pieces)

        tried = []
        generator = random.Random(0)
        for restart in range(RESTARTS):
            order = [list(column) for column in self.order]
            if restart:
                for column in order[1:]:
                    generator.shuffle(column)
            for sweep in range(SWEEPS):
                forward = sweep % 2 == 0
                for c in range(1, len(order)) if forward else range(len(order) - 2, 0, -1):
                    rank = ranks()
                    others = {v: near[v][0 if forward else 1] for v in order[c]}
                    order[c].sort(key=lambda v: sum(rank[w] for w in others[v]) / len(others[v]))
                tried.append((cost(), [list(column) for column in order]))
        self.order = min(tried)[1]

    def place_ports(self) -> None:
        """Decides where on its boxes every arrow starts and ends, relative to their middles.

        Arrows to a node end at its labels.
        """
        rank = {v: place for column in self.order for place, v in enumerate(column)}
        self.leaves = [0.0] * len(self.paths)
        self.enters = [0.0] * len(self.paths)
        for v in range(self.boxes):
            arrows = [i for i, path in enumerate(self.paths) if path[-1] == v]
            arrows.sort(key=lambda i: (rank[self.paths[i][-2]], i))
            step = PORT_STEP if v == self.boxes - 1 else LABEL_STEP
            for place, i in enumerate(arrows):
                self.enters[i] = step * (place - (len(arrows) - 1) / 2)
        for v in range(self.boxes):
            arrows = [i for i, path in enumerate(self.paths) if path[0] == v]
            arrows.sort(key=lambda i: (rank[self.paths[i][1]], self.enters[i]))
            step = min(PORT_STEP, (self.size[v] - 0.12) / max(1, len(arrows) - 1))
            for place, i in enumerate(arrows):
                self.leaves[i] = step * (place - (len(arrows) - 1) / 2)

    def _shift(self, arrow: int, before: int, after: int) -> float:
        """How much higher the middle of `before` is than that of `after` if the piece is level."""
        leaves = self.leaves[arrow] if before < self.boxes else 0.0
        return (self.enters[arrow] if after < self.boxes else 0.0) - leaves

    def heights(self) -> list[float]:
        """The height of every vertex's middle, the lowest box or slot at 0."""
        # For each vertex, (other vertex, wanted difference of heights, weight) of its arrows. The
        # longer the arrow, the more it should be straight.
        pulls: list[list[tuple[int, float, float]]] = [[] for _ in self.column]
        for i, u, v in self._pieces():
            shift = self._shift(i, u, v)
            weight = (1.0, 2.0, 8.0)[(u >= self.boxes) + (v >= self.boxes)]
            pulls[u].append((v, shift, weight))
            pulls[v].append((u, -shift, weight))
        stacks = []
        for column in self.order:
            stacks.append(list(accumulate(map(self._distance, column, column[1:]), initial=0.0)))
        y = [0.0] * len(self.column)
        for column, stack in zip(self.order, stacks):
            for v, offset in zip(column, stack):
                y[v] = offset - stack[-1] / 2
        for _ in range(ROUNDS):
            for column, stack in [*zip(self.order, stacks), *zip(self.order[::-1], stacks[::-1])]:
                wishes = []
                for v, offset in zip(column, stack):
                    # An input that no node reads stays where it is.
                    near = [(y[w] + d, weight) for w, d, weight in pulls[v]] or [(y[v], 1.0)]
                    weight = sum(weight for _, weight in near)
                    wishes.append((sum(h * w for h, w in near) / weight - offset, weight))
                for v, offset, value in zip(column, stack, _increasing(wishes)):
                    y[v] = value + offset
        bottom = min(middle - size / 2 for middle, size in zip(y, self.size))
        return [middle - bottom for middle in y]

    def _distance(self, below: int, above: int) -> float:
        gap = 0.24 if below < self.boxes and above < self.boxes else 0.15
        return (self.size[below] + self.size[above]) / 2 + gap

    def abscissas(self, y: Sequence[float], label_width: float) -> tuple[list[float], list[float]]:
        """Left end and width of every column; steep arrows get more room."""
        columns = len(self.order)
        widths = [INPUT_WIDTH, *[label_width + LINK + NODE_WIDTH] * (columns - 2), INPUT_WIDTH]
        rise = [0.0] * columns
        for i, u, v in self._pieces():
            c = self.column[u]
            rise[c] = max(rise[c], abs(y[v] - y[u] + self._shift(i, u, v)))
        rooms = [w + min(1.8, 0.42 + 0.35 * r) for w, r in zip(widths, rise)]
        return list(accumulate(rooms[:-1], initial=0.0)), widths


def _increasing(wishes: Sequence[tuple[float, float]]) -> list[float]:
    """The values nearest to the wishes, (value, weight) each, that do not decrease.

    Pools adjacent violators: neighbors in the wrong order get one value, the mean of their wishes.
    """
    blocks: list[tuple[float, float, int]] = []
    for value, weight in wishes:
        count = 1
        while blocks and blocks[-1][0] >= value:
            other, more, others = blocks.pop()
            value = (value * weight + other * more) / (weight + more)
            weight, count = weight + more, count + others
        blocks.append((value, weight, count))
    return [value for value, _, count in blocks for _ in range(count)]
