"""The figure of the toy study. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asng_ext._files import write_atomically

if TYPE_CHECKING:
    from asng_ext.toy.study import Case, Summary

__all__ = ["draw", "require_matplotlib"]

NAMES = {"ASNG": "ASNG", "SNG": "SNG", "NaturalAdam": "Adam"}
# Colors that stay apart for color-blind readers (Okabe and Ito), and markers for print.
STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v")]


def require_matplotlib() -> None:
    """ImportError that says what to do, if it is not there."""
    try:
        import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError(
            f"the figure needs matplotlib ({error}): `pip install matplotlib`, or leave the "
            "figure out with --no-figure"
        ) from error


def draw(
    points: Sequence[tuple[Case, Summary]], path: Path, *, by_alpha: bool = False, dpi: int = 110
) -> None:
    """Draws one panel per learning rate with iterations to success, divided by the success rate,
    as lines with quartile bands; where no run succeeded there is nothing.

    Args:
        points: Cases and what came of them.
        path: An image file; its ending decides the format.
        by_alpha: α on the horizontal axis and a line per step size, instead of the initial step
            size and a line per optimizer.
        dpi: Dots per inch, for formats made of dots.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    positions = [c.optimizer.alpha if by_alpha else c.optimizer.step_size for c, _ in points]
    rates = list(dict.fromkeys(case.settings.learning_rate for case, _ in points))
    figure = Figure(figsize=(4.2 * len(rates) + 0.6, 3.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(rates), sharey=True))
    for panel, rate in zip(panels, rates):
        here = [(case, point) for case, point in points if case.settings.learning_rate == rate]
        lines: dict[str, list[tuple[float, Summary]]] = {}
        for case, point in here:
            optimizer = case.optimizer
            if by_alpha:
                label, place = f"$\\delta^0$ = {optimizer.step_size:.3g}", optimizer.alpha
            else:
                label, place = NAMES[optimizer.name], optimizer.step_size
            lines.setdefault(label, []).append((place, point))
        for (label, line), (color, marker) in zip(lines.items(), STYLES * len(lines)):
            line.sort(key=lambda item: item[0])
            x = [item[0] for item in line]
            panel.fill_between(
                x,
                [point.lower for _, point in line],
                [point.upper for _, point in line],
                color=color,
                alpha=0.18,
                linewidth=0,
            )
            panel.plot(
                x,
                [point.median for _, point in line],
                color=color,
                marker=marker,
                markersize=5,
                label=label,
            )
        panel.set_xscale("log")
        panel.set_xlim(min(positions) / 1.6, max(positions) * 1.6)
        panel.set_yscale("log")
        panel.set_title(f"$\\epsilon_x$ = {rate:g}")
        panel.set_xlabel("$\\alpha$" if by_alpha else "$\\delta^0$, step size")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panel.yaxis.set_minor_locator(NullLocator())
        if by_alpha:
            ticks = sorted(set(positions))
            panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(True, which="major", alpha=0.3)
    if not any(np.isfinite(point.median) for _, point in points):
        panels[0].set_ylim(1, 1e5)  # a logarithmic axis cannot do without
    panels[0].set_ylabel("iterations to success / success rate")
    panels[-1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:] or None
    write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=dpi))
