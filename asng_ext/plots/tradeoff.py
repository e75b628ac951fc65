"""What networks cost, and how good they are for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asng_ext._checks import brief, listed
from asng_ext.plots._picture import BLUE, DPI, GRAY, FilePath, picture

__all__ = ["plot_sweep"]


def plot_sweep(rows: Sequence[Mapping[str, Any]], path: FilePath) -> Path:
    """Plots the loss over each cost of a sweep, with a line through the rows that are best.

    Args:
        rows: As :func:`asng_ext.engine.sweep.sweep` gives them.
        path: Where to write the picture.

    Returns:
        The path.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: There is no row, or another ending.
        FileNotFoundError: The folder does not exist.
    """
    rows = listed("rows", rows, "searches")
    if not rows:
        raise ValueError("rows must hold at least one search, got none")
    for row in rows:
        if not (isinstance(row, Mapping) and {"costs", "metrics", "best", "of"} <= set(row)):
            raise ValueError(f"rows must be those of a sweep, got {brief(row)}")
    costs = list(rows[0]["costs"])
    with picture(path) as save:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 0.4 + 3.2 * len(costs)), dpi=DPI, layout="constrained")
        column = figure.subplots(len(costs), 1, squeeze=False)[:, 0]
        for axes, name in zip(column, costs):
            points = [
                (row["costs"][name]["cost"], row["metrics"]["loss"], row["best"], _label(row))
                for row in rows
            ]
            best = sorted((x, y) for x, y, is_best, _ in points if is_best)
            axes.plot([x for x, _ in best], [y for _, y in best], color=BLUE, linewidth=1.3)
            for x, y, is_best, label in points:
                axes.plot([x], [y], "o", color=BLUE if is_best else GRAY, markersize=5)
                axes.annotate(
                    label, (x, y), xytext=(4, 4), textcoords="offset points", color=GRAY, fontsize=8
                )
            axes.set_xlabel(name)
            axes.set_ylabel(f"loss of the {rows[0]['of']}")
            axes.margins(0.15)
            axes.grid(color="#e3e3e3", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        return save(figure)


def _label(row: Mapping[str, Any]) -> str:
    return "no limit" if row["factor"] is None else f"× {row['factor']:g}"
