"""How good supernets are, over the time that their searches have taken (Figure 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from asng_ext._checks import brief, check_mapping, listed
from asng_ext.plots._picture import DPI, FilePath, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_elapsed"]

Curve: TypeAlias = tuple[Sequence[float], Sequence[float]]
"""Seconds and values."""
Curves: TypeAlias = Mapping[str, Sequence[Curve]]
"""Of each name the curves of all its seeds."""

_STYLES = {" (mix)": "--", " (fix)": ":"}
"""Endings of names that share a color, and how they are drawn."""


def plot_elapsed(panels: Mapping[str, Curves], path: FilePath, label: str) -> Path:
    """Plots the mean over seeds, with a band of one standard deviation on either side.

    Names that end in " (mix)" and " (fix)" are drawn in one color. Values that are not finite are
    left out. Of seeds with more values than others only as many count.

    Args:
        panels: Curves for each panel, by its title.
        path: Where to write the picture.
        label: What the values are.

    Returns:
        The path.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: There is no curve, or another ending.
        FileNotFoundError: The folder does not exist.
    """
    check_mapping("panels", panels)
    for title, curves in panels.items():
        check_mapping(f"panels[{title!r}]", curves)
        for name, seeds in curves.items():
            for curve in listed(f"panels[{title!r}][{name!r}]", seeds, "curves"):
                if not (isinstance(curve, Sequence) and len(curve) == 2):
                    raise TypeError(f"panels must hold pairs of numbers' lists, got {brief(curve)}")
    if not any(seeds for curves in panels.values() for seeds in curves.values()):
        raise ValueError(f"panels must hold at least one curve, got {brief(dict(panels))}")
    bases = list(dict.fromkeys(_split(name)[0] for c in panels.values() for name in c))
    with picture(path) as save:
        from matplotlib import colormaps
        from matplotlib.figure import Figure

        # Its dark colors first: neighbors are a dark and a light one of the same hue.
        palette = [colormaps["tab20"](i) for i in (*range(0, 20, 2), *range(1, 20, 2))]
        colors = {base: palette[i % len(palette)] for i, base in enumerate(bases)}
        figure = Figure(figsize=(8, 4.2 * len(panels)), dpi=DPI, layout="constrained")
        column = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axes, (title, curves) in zip(column, panels.items()):
            for name, seeds in curves.items():
                base, ending = _split(name)
                _draw(axes, name, seeds, colors[base], _STYLES.get(ending, "-"))
            axes.set_title(title)
            axes.set_ylabel(label)
            axes.set_xlabel("search, minutes")
            axes.grid(color="#e3e3e3", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        return save(figure)


def _split(name: str) -> tuple[str, str]:
    """A name without its ending, and the ending."""
    for ending in _STYLES:
        if name.endswith(ending):
            return name.removesuffix(ending), ending
    return name, ""


def _draw(axes: Axes, name: str, seeds: Sequence[Curve], color: object, style: str) -> None:
    points = []
    for each in zip(*(zip(seconds, values) for seconds, values in seeds)):
        if all(math.isfinite(number) for pair in each for number in pair):
            mean = sum(value for _, value in each) / len(each)
            spread = sum((value - mean) ** 2 for _, value in each) / max(1, len(each) - 1)
            minutes = sum(seconds for seconds, _ in each) / len(each) / 60
            points.append((minutes, mean, math.sqrt(spread)))
    if not points:
        return
    x, y, spread_of = zip(*points)
    marker = "o" if len(points) <= 25 else None  # few points are better seen so
    axes.plot(x, y, style, color=color, linewidth=1.4, marker=marker, markersize=3, label=name)  # type: ignore[arg-type]
    if len(seeds) > 1:
        low, high = ([v + side * s for v, s in zip(y, spread_of)] for side in (-1, 1))
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)  # type: ignore[arg-type]
