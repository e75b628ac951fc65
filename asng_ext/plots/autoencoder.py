"""Autoencoders as two rows of layers, the decoder below the encoder it mirrors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from asng_ext._checks import brief, check_size, listed
from asng_ext.nn.autoencoder_space import CaeLayer, fitting_layers
from asng_ext.plots._notes import LINE, NearTies, draw_notes, notes
from asng_ext.plots._picture import (
    BLUE,
    DPI,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    FilePath,
    draw_box,
    picture,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_autoencoder"]

COLUMN, BOX_WIDTH, BOX_HEIGHT, ROW = 1.22, 0.78, 0.5, 1.35
TITLE, LEGEND = 6.0, 0.4
"""Width that the texts need, and the height of the legend."""
KERNEL_COLORS = {1: BLUE, 3: ORANGE, 5: PURPLE}
_MEANINGS = (
    "Above the encoder, below the decoder. In a box: kernel, and channels of the result;",
    "/2 halves height and width, ·2 doubles them. At an arrow: height × width.",
)


def draw_autoencoder(
    layers: Sequence[CaeLayer],
    path: FilePath,
    image_size: tuple[int, int] = (64, 64),
    in_channels: int = 3,
    *,
    sizes: Mapping[str, Any] = MappingProxyType({}),
    near_ties: NearTies = MappingProxyType({}),
) -> Path:
    """Draws the layers that images of a size go through: encoder above, decoder below.

    A box holds a layer's kernel and channels, an arrow the height and width of what it carries.
    Green arrows are skips. A legend says so.

    Args:
        layers: In order, from the image.
        path: Where to write the picture.
        image_size: (height, width) of the images in pixels.
        in_channels: Channels of the images.
        sizes: Of the network, by name; numbers are written below.
        near_ties: Probabilities of variables for which another value is nearly as likely as that of
            the network, by variable and value; the nearest are written below.

    Returns:
        The path.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: The path has another ending.
        FileNotFoundError: The folder does not exist.
    """
    layers = listed("layers", layers, "CaeLayer")
    if not all(isinstance(layer, CaeLayer) for layer in layers):
        raise TypeError(f"layers must be CaeLayer, got {brief(layers)}")
    check_size("image_size", image_size)
    layers, extents = fitting_layers(layers, *image_size)
    with picture(path) as save:
        from matplotlib.figure import Figure

        columns = len(layers) + 1
        width, height = max(columns * COLUMN + 0.5, TITLE), ROW + BOX_HEIGHT + 0.75
        below = [*_MEANINGS, *notes(sizes, near_ties)]
        under = LINE * len(below) + LEGEND
        figure = Figure(figsize=(width, height + under), dpi=DPI)
        # One unit of the axes is an inch, so that boxes fit their text.
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(-under, height))
        axes.axis("off")
        low = 0.3 + BOX_HEIGHT / 2
        high = low + ROW
        places = [0.3 + BOX_WIDTH / 2 + i * COLUMN for i in range(columns)]
        _box(axes, places[0], high, f"image\n{in_channels}", INK)
        _box(axes, places[0], low, f"3×3\n{in_channels}", INK)
        for i, (x, layer) in enumerate(zip(places[1:], layers)):
            color = KERNEL_COLORS.get(layer.kernel, INK)
            stride = "" if layer.skip else " /2"
            text = f"{layer.kernel}×{layer.kernel}{stride}\n{layer.channels}"
            _box(axes, x, high, text, color)
            _box(axes, x, low, text.replace("/2", "·2"), color)
            before = f"{extents[i][0]}×{extents[i][1]}"
            _arrow(axes, (places[i] + BOX_WIDTH / 2, high), (x - BOX_WIDTH / 2, high), INK, before)
            _arrow(axes, (x - BOX_WIDTH / 2, low), (places[i] + BOX_WIDTH / 2, low), INK, before)
            if layer.skip:
                # Behind the last layer there is the arrow that turns, too.
                place = x + 0.12 if i + 1 == len(layers) else x
                start, end = (place, high - BOX_HEIGHT / 2), (place, low + BOX_HEIGHT / 2)
                _arrow(axes, start, end, GREEN, "")
        last = places[len(layers)]
        # Behind the last layer the size is that before one more, which a skip would not change.
        more = fitting_layers([*layers, CaeLayer(len(layers), 1, 1, skip=True)], *image_size)
        turn = "{}×{}".format(*more[1][-1])
        start = (last, high - BOX_HEIGHT / 2)
        _arrow(axes, start, (last, low + BOX_HEIGHT / 2), INK, turn, beside=True)
        axes.text(
            0.3,
            height - 0.12,
            f"{len(layers)} layers and their mirror images",
            size=11,
            weight="bold",
            va="top",
        )
        draw_notes(axes, 0.3, -0.05, below)
        _draw_legend(figure, layers)
        return save(figure)


def _draw_legend(figure: Figure, layers: Sequence[CaeLayer]) -> None:
    from matplotlib.lines import Line2D

    kernels = sorted({layer.kernel for layer in layers})
    entries = {f"{k}×{k} kernel": KERNEL_COLORS.get(k, INK) for k in kernels}
    if any(layer.skip for layer in layers):
        entries["skip: is added"] = GREEN
    handles = [Line2D([], [], color=c, linewidth=5, label=name) for name, c in entries.items()]
    if handles:
        figure.legend(handles=handles, loc="lower left", ncols=4, frameon=False, fontsize=9)


def _box(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    fill, ink = ("#f4f1e8", INK) if color == INK else (color, "white")
    size = (BOX_WIDTH, BOX_HEIGHT)
    draw_box(axes, (x, y), size, text, font_size=9, fill=fill, edge=color, ink=ink)


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str,
    text: str,
    beside: bool = False,
) -> None:
    axes.annotate(
        "",
        xy=end,
        xytext=start,
        arrowprops={
            "arrowstyle": "-|>",
            "color": color,
            "linewidth": 1.4,
            "shrinkA": 0,
            "shrinkB": 0,
        },
        zorder=1,
    )
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    if beside:
        axes.text(x - 0.06, y, text, size=7.5, color=color, ha="right", va="center")
    elif text:
        axes.text(x, y + 0.06, text, size=7.5, color=color, ha="center", va="bottom")
