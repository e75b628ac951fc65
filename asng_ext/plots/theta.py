"""Categorical distributions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from asng_ext._checks import brief, check_mapping, listed
from asng_ext.plots._picture import (
    DPI,
    GRAY,
    INK,
    OPERATION_STYLES,
    FilePath,
    as_texts,
    picture,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_theta"]


def plot_theta(
    theta: npt.ArrayLike,
    names: Sequence[str],
    labels: Mapping[str, Sequence[object]],
    path: FilePath,
) -> Path:
    """Plots categorical distributions as a heat map with a row for every variable.

    Args:
        theta: (n_cat, max K), probabilities; a row with fewer categories than columns is padded.
        names: The variables' names, (n_cat,).
        labels: The categories of every variable by its name, K_i of them.
        path: Where to write the picture.

    Returns:
        The path.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: The shapes do not agree, a number is no probability, or another ending.
        FileNotFoundError: The folder does not exist.
    """
    names = as_texts("names", names)
    check_mapping("labels", labels)
    for name, values in labels.items():
        listed(f"labels[{name!r}]", list(values) if isinstance(values, str) else values, "labels")
    try:
        table = np.asarray(theta, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"theta must be an array of numbers, got {brief(theta)}") from None
    texts = _check_theta(table, names, labels)
    with picture(path) as save:
        return save(_theta_figure(table, names, texts))


def _check_theta(
    theta: npt.NDArray[np.float64], names: Sequence[str], labels: Mapping[str, Sequence[object]]
) -> list[list[str]]:
    """The categories' texts of every row."""
    if theta.ndim != 2 or theta.shape[0] != len(names) or theta.size == 0:
        raise ValueError(
            f"theta must have one row for each of {len(names)} names and at least one column, "
            f"got shape {theta.shape}"
        )
    texts = []
    for row, name in zip(theta, names):
        if name not in labels or not 1 <= len(labels[name]) <= len(row):
            got = f"{len(labels[name])} labels" if name in labels else "none"
            raise ValueError(f"labels must give {name!r} 1 to {len(row)} categories, got {got}")
        probabilities = row[: len(labels[name])]
        # A NaN fails the comparison.
        if not ((probabilities >= -1e-9) & (probabilities <= 1 + 1e-9)).all():
            raise ValueError(f"theta of {name!r} must be probabilities, got {probabilities}")
        texts.append([_category_text(value) for value in labels[name]])
    return texts


def _category_text(value: object) -> str:
    text = str(value)
    if text in OPERATION_STYLES:
        return OPERATION_STYLES[text].short
    return shortened(text, 16)


def _theta_figure(
    theta: npt.NDArray[np.float64], names: Sequence[str], texts: Sequence[Sequence[str]]
) -> Figure:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows, columns = theta.shape
    longest = max(len(text) for row in texts for text in row)
    with_text = columns * (0.55 + 0.075 * longest) <= 20
    cell = 0.55 + 0.075 * longest if with_text else min(0.45, 20 / columns)
    left = 0.35 + 0.078 * max(len(name) for name in names)
    top, right, bottom = 0.45, 0.95, 0.2
    # Many rows get thinner, without text, so that the picture does not become too high for a PNG.
    high = min(0.29, 90 / rows)
    width, height = left + max(cell * columns, 2.0) + right, top + high * rows + bottom
    figure = Figure(figsize=(width, height), dpi=DPI)
    inner = (left / width, bottom / height, cell * columns / width, high * rows / height)
    axes = figure.add_axes(inner, xlim=(0, columns), ylim=(rows, 0))
    colors = LinearSegmentedColormap.from_list(
        "theta", ["#ffffff", "#9ec3e6", "#2b6cb0", "#123a6b"]
    )
    padded = np.arange(columns) >= np.array([len(row) for row in texts])[:, None]
    image = axes.imshow(
        np.ma.masked_array(theta, padded),
        cmap=colors,
        vmin=0,
        vmax=1,
        aspect="auto",
        extent=(0, columns, rows, 0),
        interpolation="nearest",
    )
    for i, row in enumerate(texts):
        if len(row) < columns:
            axes.add_patch(
                Rectangle(
                    (len(row), i),
                    columns - len(row),
                    1,
                    facecolor="#f2f2f2",
                    edgecolor="#d5d5d5",
                    hatch="////",
                    linewidth=0,
                )
            )
        if high < 0.29:
            continue
        for j, text in enumerate(row):
            p = float(theta[i, j])
            ink = "white" if p > 0.55 else INK if p > 0.1 else GRAY
            x = j + 0.08 / cell
            if with_text:
                axes.text(x, i + 0.5, text, size=8, color=ink, va="center", parse_math=False)
            if p > 0.1 and cell >= 0.3:
                x = j + 1 - 0.08 / cell
                axes.text(x, i + 0.5, f"{p:.2f}", size=8, color=ink, va="center", ha="right")
    axes.set_xticks([])
    step = math.ceil(0.14 / high)
    axes.set_yticks(np.arange(0, rows, step) + 0.5, names[::step], size=8.5, parse_math=False)
    axes.tick_params(length=0)
    for i in range(rows + 1):
        # Variables of one part ("normal/node0") stand together.
        ends = i in (0, rows) or _part(names[i]) != _part(names[i - 1])
        axes.axhline(i, color=INK if ends else "#cccccc", linewidth=0.9 if ends else 0.5)
    axes.vlines(np.arange(1, columns), 0, rows, color="#cccccc", linewidth=0.5)
    axes.set_title("Probabilities θ of the categories", size=11, loc="left")
    bar_height = min(high * rows, 3.0) / height
    bar = figure.add_axes(
        (
            (left + cell * columns + 0.2) / width,
            inner[1] + inner[3] - bar_height,
            0.15 / width,
            bar_height,
        )
    )
    figure.colorbar(image, cax=bar).ax.tick_params(labelsize=8)
    return figure


def _part(name: str) -> str:
    return name.rpartition("/")[0]
