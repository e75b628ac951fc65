"""What stands below the drawing of an architecture: sizes, and choices that were near ties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from asng_ext.plots._picture import INK, OPERATION_STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NearTies: TypeAlias = Mapping[str, Mapping[str, float]]
"""Of each variable the probabilities of the value that was chosen and of the next, by value."""

LINE = 0.19
"""Height of a line, in inches."""
_MOST_TIES = 8


def notes(sizes: Mapping[str, Any], near_ties: NearTies) -> list[str]:
    """Lines of text. Of the sizes, numbers count; of ties, the nearest."""
    shown = [
        f"{name.replace('_', ' ')} {value:,}"
        for name, value in sizes.items()
        if isinstance(value, int)
    ]
    lines = [", ".join(shown)] if shown else []
    ties = sorted(near_ties.items(), key=lambda tie: _lead(tie[1]))
    if ties:
        lines.append("Near ties, and their probabilities:")
    for name, likely in ties[:_MOST_TIES]:
        choices = ", ".join(f"{_text(value)} {p:.2f}" for value, p in likely.items())
        lines.append(f"    {name}: {choices}")
    if len(ties) > _MOST_TIES:
        lines.append(f"    and {len(ties) - _MOST_TIES} more")
    return lines


def _lead(likely: Mapping[str, float]) -> float:
    return max(likely.values()) - min(likely.values())


def _text(value: str) -> str:
    return OPERATION_STYLES[value].short if value in OPERATION_STYLES else value


def draw_notes(axes: Axes, x: float, y: float, lines: list[str]) -> None:
    """Writes the lines below a point of axes whose unit is an inch."""
    for number, line in enumerate(lines):
        axes.text(x, y - LINE * number, line, size=9, color=INK, va="top", parse_math=False)
