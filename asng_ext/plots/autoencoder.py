"""Autoencoders as two rows of layers, the decoder below the encoder it mirrors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asng_ext.nn.autoencoder_space import CaeLayer, fitting_layers
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

__all__ = ["draw_autoencoder"]

COLUMN, BOX_WIDTH, BOX_HEIGHT, ROW = 1.22, 0.78, 0.5, 1.35
TITLE = 3.6
"""Width that the title needs."""
KERNEL_COLORS = {1: BLUE, 3: ORANGE, 5: PURPLE}


def draw_autoencoder(
    layers: Sequence[CaeLayer],
    path: FilePath,
    image_size: tuple[int, int] = (64, 64),
    in_channels: int = 3,
) -> Path:
    """Draws the layers that images of a size go through: encoder above, decoder below.

    A box holds a layer's kernel and channels, an arrow the height and width of what it carries.
    Green arrows are skips.

    Args:
        layers: In order, from the image.
        path: Where to write the picture.
        image_size: (height, width) of the images in pixels.
        in_channels: Channels of the images.

    Returns:
        The path.

    Raises:
        ValueError: The path has another ending.
        FileNotFoundError: The folder does not exist.
    """
    layers, sizes = fitting_layers(layers, *image_size)
    with picture(path) as save:
        from matplotlib.figure import Figure

        columns = len(layers) + 1
        width, height = max(columns * COLUMN + 0.5, TITLE), ROW + BOX_HEIGHT + 0.75
        figure = Figure(figsize=(width, height), dpi=DPI)
        # One unit of the axes is an inch, so that boxes fit their text.
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
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
            before = f"{sizes[i][0]}×{sizes[i][1]}"
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
        return save(figure)


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
