"""The images that a classifier gets most wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asng_ext._checks import brief, is_number, listed
from asng_ext.plots._picture import (
    DPI,
    GRAY,
    INK,
    FilePath,
    as_texts,
    check_images,
    picture,
    shortened,
    show_image,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["draw_mistakes"]

TILE, GAP, CAPTION, MARGIN, TITLE = 1.3, 0.14, 0.34, 0.15, 0.35
COLUMNS = 6
MOST = 12
"""Letters of a class."""


def draw_mistakes(
    images: Tensor,
    classes: Sequence[str],
    predicted: Sequence[tuple[str, float]],
    path: FilePath,
    *,
    title: str = "Worst mistakes",
) -> Path:
    """Draws images in rows of six, with the true and the predicted class below each.

    Args:
        images: (N, C, H, W) in [0, 1], with one channel or three; N may be 0.
        classes: The true class of each, (N,).
        predicted: The predicted class of each, and its probability, (N,).
        path: Where to write the picture.
        title: What stands above all.

    Returns:
        The path.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: The images are none of these, the numbers of classes differ from that of images,
            or the path has another ending.
        FileNotFoundError: The folder does not exist.
    """
    check_images("images", images)
    classes = as_texts("classes", classes)
    predicted = listed("predicted", predicted, "pairs (class, probability)")
    shape = images.shape
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape[1:]:
        raise ValueError(f"images must be (N, 1 or 3, H, W), got {tuple(shape)}")
    for name, values in (("classes", classes), ("predicted", predicted)):
        if len(values) != len(images):
            raise ValueError(f"{name} must be {len(images)}, one per image, got {len(values)}")
    if not all(isinstance(p, (tuple, list)) and len(p) == 2 and is_number(p[1]) for p in predicted):
        raise TypeError(f"predicted must be pairs (class, probability), got {brief(predicted)}")
    captions = [
        f"{shortened(name, MOST)}, predicted\n{shortened(other, MOST)} ({100 * probability:.0f} %)"
        for name, (other, probability) in zip(classes, predicted)
    ]
    with picture(path) as save:
        from matplotlib.figure import Figure

        count, _, high, wide = shape
        tile_height = TILE * high / wide
        columns, rows = COLUMNS, -(-count // COLUMNS)
        row_height = tile_height + CAPTION + GAP
        width = 2 * MARGIN + columns * TILE + (columns - 1) * GAP
        height = 2 * MARGIN + TITLE + max(rows * row_height, 0.2)
        figure = Figure(figsize=(width, height), dpi=DPI)
        top = 1 - MARGIN / height
        figure.text(MARGIN / width, top, title, size=11, color=INK, va="top", parse_math=False)
        for number, (image, caption) in enumerate(zip(images, captions)):
            row, column = divmod(number, columns)
            left = MARGIN + column * (TILE + GAP)
            bottom = height - MARGIN - TITLE - row * row_height - tile_height
            axes = figure.add_axes(
                (left / width, bottom / height, TILE / width, tile_height / height)
            )
            show_image(axes, image)
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set(color=GRAY, linewidth=0.5)  # or white images would have no edge
            figure.text(
                (left + TILE / 2) / width,
                (bottom - 0.05) / height,
                caption,
                size=8,
                color=INK,
                ha="center",
                va="top",
                parse_math=False,
            )
        return save(figure)
