"""Images beside what was taken away from them and what a network made of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from asng_ext._similarity import psnr
from asng_ext.plots._picture import DPI, INK, FilePath, check_images, picture, show_image

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["draw_restored"]

TILE, GAP, LABEL, CAPTION, MARGIN = 1.15, 0.06, 0.85, 0.22, 0.12


def draw_restored(original: Tensor, corrupted: Tensor, restored: Tensor, path: FilePath) -> Path:
    """Draws three rows of images, with the PSNR of every restored one below it.

    Args:
        original, corrupted, restored: (N, C, H, W) in [0, 1], with one channel or three.
        path: Where to write the picture.

    Returns:
        The path.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: The shapes differ or are none of these, or the path has another ending.
        FileNotFoundError: The folder does not exist.
    """
    for name, images in (("original", original), ("corrupted", corrupted), ("restored", restored)):
        check_images(name, images)
    shape = original.shape
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise ValueError(f"original must be (N, 1 or 3, H, W), got {tuple(shape)}")
    for name, images in (("corrupted", corrupted), ("restored", restored)):
        if images.shape != shape:
            raise ValueError(f"{name} must be {tuple(shape)}, got {tuple(images.shape)}")
    decibels = psnr(restored, original).tolist()
    with picture(path) as save:
        from matplotlib.figure import Figure

        count, _, high, wide = shape
        tile_height = TILE * high / wide
        width = LABEL + count * (TILE + GAP) + MARGIN
        height = 3 * (tile_height + GAP) + CAPTION + 2 * MARGIN
        figure = Figure(figsize=(width, height), dpi=DPI)
        rows = (("original", original), ("corrupted", corrupted), ("restored", restored))
        for row, (name, images) in enumerate(rows):
            bottom = height - MARGIN - (row + 1) * tile_height - row * GAP
            middle = (bottom + tile_height / 2) / height
            figure.text(MARGIN / width, middle, name, size=9.5, color=INK, va="center")
            for column, image in enumerate(images):
                left = LABEL + column * (TILE + GAP)
                axes = figure.add_axes(
                    (left / width, bottom / height, TILE / width, tile_height / height)
                )
                show_image(axes, image)
                axes.set_axis_off()
        for column, value in enumerate(decibels):
            x = LABEL + column * (TILE + GAP) + TILE / 2
            y = (MARGIN + 0.02) / height
            figure.text(x / width, y, f"{value:.1f} dB", size=8.5, color=INK, ha="center")
        return save(figure)
