"""Cells as graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from asng_ext._checks import brief
from asng_ext.plots._cell_layout import HEAD, Arrow, Box, Layout, lay_out
from asng_ext.plots._notes import LINE, NearTies, draw_notes, notes
from asng_ext.plots._picture import (
    DPI,
    GRAY,
    INK,
    OPERATION_STYLES,
    FilePath,
    draw_box,
    picture,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from asng_ext.nn.cell import Architecture, CellSpace

__all__ = ["draw_cells"]

LEGEND_WIDTH = 7.4
INPUTS = 2
"""A cell's inputs are numbered before its nodes."""
_INPUTS = ("older\ncell k−2", "newer\ncell k−1")
_MEANINGS = (
    "older and newer are the outputs of the cell before the last, k−2, and of the last, k−1.",
    "A node is the sum of its two; output joins the nodes that no other reads, and projects them.",
)


def draw_cells(
    space: CellSpace,
    architecture: Architecture,
    path: FilePath,
    *,
    sizes: Mapping[str, Any] = MappingProxyType({}),
    near_ties: NearTies = MappingProxyType({}),
) -> Path:
    """Draws the normal cell and the reduction cell as graphs that run from left to right.

    Arrows carry the operations; a node is the sum of its two. The nodes that no other node reads
    lead to the output.

    Args:
        space: The space of the architecture.
        architecture: The value of every variable, (d,).
        path: Where to write the picture.
        sizes: Of the network, by name; numbers are written below.
        near_ties: Probabilities of variables for which another value is nearly as likely as that of
            the architecture, by variable and value; the nearest are written below.

    Returns:
        The path.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: The architecture is none of the space, or the path has another ending.
        FileNotFoundError: The folder does not exist.
    """
    if not hasattr(space, "parse"):
        raise TypeError(f"space must be a CellSpace, got {brief(space)}")
    cells = space.parse(architecture)
    with picture(path) as save:
        from matplotlib.figure import Figure

        layouts = []
        for cell, reduction in zip(cells, (False, True)):
            texts = (
                _label(e.operation, reduction and e.input < INPUTS) for n in cell.nodes for e in n
            )
            layouts.append(lay_out(cell, 0.16 + 0.076 * max(len(text) for text in texts)))
        first, second = layouts
        below = [*_MEANINGS, *notes(sizes, near_ties)]
        margin, title, legend = 0.25, 0.36, 0.85 + LINE * len(below)
        beside = first.width + second.width <= 10
        if beside:
            width = first.width + second.width + 0.8
            height = title + max(first.height, second.height)
            corners = [(0.0, height), (first.width + 0.8, height)]
        else:
            width = max(first.width, second.width)
            height = 2 * title + first.height + 0.45 + second.height
            corners = [(0.0, height), (0.0, second.height + title)]
        width = max(width, LEGEND_WIDTH)
        size = (width + 2 * margin, height + margin + legend)
        figure = Figure(figsize=size, dpi=DPI)
        # One unit of the axes is an inch, so that boxes fit their text.
        axes = figure.add_axes(
            (0, 0, 1, 1), xlim=(-margin, width + margin), ylim=(-legend, height + margin)
        )
        axes.axis("off")
        for layout, kind, (x, y) in zip(layouts, space.KINDS, corners):
            axes.text(x, y, f"{kind.capitalize()} cell", size=13, weight="bold", va="top")
            _draw_cell(axes, layout, x, y - title - layout.height, kind == "reduction")
        draw_notes(axes, 0, -0.15, below)
        _draw_legend(figure, layouts)
        return save(figure)


def _label(operation: str, halves: bool) -> str:
    return OPERATION_STYLES[operation].short + (" /2" if halves else "")


def _draw_cell(axes: Axes, layout: Layout, x: float, y: float, reduction: bool) -> None:
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path as Curve

    for arrow in layout.arrows:
        color = OPERATION_STYLES[arrow.operation].color if arrow.operation is not None else INK
        curve = Curve(*_curve(arrow, x, y))
        # A white rim separates arrows that cross.
        for line_color, line_width in (("white", 4.4), (color, 1.5)):
            axes.add_patch(
                PathPatch(curve, fill=False, edgecolor=line_color, linewidth=line_width, zorder=1)
            )
        _, end, level = arrow.stretches[-1]
        tip = (x + end, y + level)
        wings = [(tip[0] - HEAD, tip[1] + 0.05), (tip[0] - HEAD, tip[1] - 0.05)]
        axes.add_patch(Polygon([tip, *wings], facecolor=color, linewidth=0, zorder=2))
    for arrow in layout.arrows:
        if arrow.operation is not None and arrow.label is not None:
            text = _label(arrow.operation, reduction and arrow.source < INPUTS)
            color = OPERATION_STYLES[arrow.operation].color
            _draw_box(axes, arrow.label, x, y, text, size=9, fill=color, edge=color, ink="white")
    output = len(layout.boxes) - 1
    used = {arrow.source for arrow in layout.arrows}
    for k, box in enumerate(layout.boxes):
        if INPUTS <= k < output:
            _draw_box(axes, box, x, y, str(k - INPUTS), size=12, fill="#f4f1e8", edge=INK, ink=INK)
        elif k in used or k == output:
            text = _INPUTS[k] if k < INPUTS else "output"
            _draw_box(axes, box, x, y, text, size=9.5, fill="#e4e9f0", edge=INK, ink=INK)
        else:
            text = _INPUTS[k] + "\n(unused)"
            _draw_box(axes, box, x, y, text, size=7.5, fill="white", edge="#aaaaaa", ink=GRAY)


def _curve(arrow: Arrow, x: float, y: float) -> tuple[list[tuple[float, float]], list[int]]:
    """Vertices and codes of a matplotlib path: level pieces joined by cubic curves."""
    from matplotlib.path import Path as Curve

    start, end, level = arrow.stretches[0]
    points, codes = [(x + start, y + level)], [int(Curve.MOVETO)]
    for left, right, height in arrow.stretches[1:]:
        half = (left - end) / 2
        points += [
            (x + end + half, y + level),
            (x + left - half, y + height),
            (x + left, y + height),
            (x + right, y + height),
        ]
        codes += [int(Curve.CURVE4)] * 3 + [int(Curve.LINETO)]
        end, level = right, height
    # The line ends inside the head, whose tip is sharper than a line.
    points[-1] = (points[-1][0] - HEAD / 2, points[-1][1])
    return points, codes


def _draw_box(
    axes: Axes, box: Box, x: float, y: float, text: str, size: float, fill: str, edge: str, ink: str
) -> None:
    center = (x + box.x + box.width / 2, y + box.y)
    extent = (box.width, box.height)
    draw_box(axes, center, extent, text, font_size=size, fill=fill, edge=edge, ink=ink)


def _draw_legend(figure: Figure, layouts: Sequence[Layout]) -> None:
    from matplotlib.lines import Line2D

    used = {arrow.operation for layout in layouts for arrow in layout.arrows}
    handles = [
        Line2D([], [], color=color, linewidth=5, label=name)
        for operation, (_, color, name) in OPERATION_STYLES.items()
        if operation in used
    ]
    if any(a.operation and a.source < INPUTS for a in layouts[1].arrows):
        halves = Line2D([], [], linestyle="none", marker="$/2$", markersize=10, color=INK)
        halves.set(markeredgewidth=0, label="stride 2")
        handles.append(halves)
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=9.5)
