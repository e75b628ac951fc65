"""Confusion matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from asng_ext._checks import brief
from asng_ext.plots._picture import DPI, GRAY, INK, FilePath, as_texts, picture, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_confusion"]

MOST_NUMBERS = 20
"""Classes up to which every field has its number."""
MOST_SIDE = 12.0
"""Inches of the matrix; with more classes fields get smaller."""


def draw_confusion(counts: npt.ArrayLike, class_names: Sequence[str], path: FilePath) -> Path:
    """Draws a confusion matrix: a row for every true class, a column for every predicted one.

    The color is the share of the row, the number that of images. At the end of a row stands the
    accuracy on its class.

    Args:
        counts: (K, K), for how many images of class i (row) class j (column) was predicted.
        class_names: The names of the classes, (K,).
        path: Where to write the picture.

    Returns:
        The path.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: The counts are no such matrix, or the path has another ending.
        FileNotFoundError: The folder does not exist.
    """
    class_names = as_texts("class_names", class_names)
    try:
        table = np.asarray(counts)
    except ValueError:  # of rows that differ in length
        raise ValueError(f"counts must be a matrix, got {brief(counts)}") from None
    classes = len(class_names)
    if table.shape != (classes, classes) or classes == 0:
        raise ValueError(
            f"counts must be ({classes}, {classes}), for as many class_names, got {table.shape} "
            f"for {brief(class_names)}"
        )
    if not np.issubdtype(table.dtype, np.integer) or (table < 0).any():
        raise ValueError(
            f"counts must be numbers of images, integers from 0, got {table.dtype}: {brief(counts)}"
        )
    with picture(path) as save:
        return save(_figure(table, [shortened(name, 18) for name in class_names]))


def _figure(counts: npt.NDArray[np.integer], names: Sequence[str]) -> Figure:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    classes = len(names)
    field = min(0.42 if classes <= MOST_NUMBERS else 0.22, MOST_SIDE / classes)
    side = field * classes
    label = 0.3 + 0.085 * max(len(name) for name in names)
    below = label if max(len(name) for name in names) > 2 else 0.5
    left, right, top, bottom = label + 0.3, 0.85, 0.75, below + 0.35
    width, height = max(left + side + right, 3.6), top + side + bottom
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    colors = LinearSegmentedColormap.from_list(
        "share", ["#ffffff", "#9ec3e6", "#2b6cb0", "#123a6b"]
    )
    # The few mistakes of a good classifier would be white on a linear scale.
    axes.imshow(np.sqrt(shares), cmap=colors, vmin=0, vmax=1, interpolation="nearest")
    step = math.ceil(0.14 / field)
    places = np.arange(0, classes, step)
    axes.set_xticks(places, names[::step], size=8.5, parse_math=False)
    axes.set_yticks(places, names[::step], size=8.5, parse_math=False)
    if max(len(name) for name in names) > 2:
        axes.tick_params(axis="x", rotation=90)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(1, classes) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, classes) - 0.5, minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color="#d5d5d5", linewidth=min(0.6, 2 * field))
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    for i in range(0, classes, step):
        accuracy = f"{100 * shares[i, i]:.1f} %" if totals[i] else "–"
        axes.text(classes - 0.3, i, accuracy, size=8, color=GRAY, va="center", clip_on=False)
    if classes <= MOST_NUMBERS:
        for i, j in np.argwhere(counts > 0):
            ink = "white" if shares[i, j] > 0.3 else INK
            text = str(counts[i, j])
            size = min(8.5, 42 * field / len(text))
            axes.text(j, i, text, size=size, color=ink, ha="center", va="center")
    images, correct = int(totals.sum()), int(counts.trace())
    title = f"{correct:,} of {images:,} test images correct"
    figure.text(0.15 / width, 1 - 0.15 / height, title, size=11, color=INK, va="top")
    return figure
