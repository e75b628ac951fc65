"""What the pictures share: how they are saved, boxes, colors, and names of operations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from asng_ext._checks import brief, listed
from asng_ext._files import as_path, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

FilePath: TypeAlias = str | os.PathLike[str]

FORMATS = (".png", ".svg", ".pdf")
DPI = 160
BLUE, ORANGE, GREEN, PURPLE = "#3b6fb0", "#d55e00", "#2a8a4a", "#9c3587"
BROWN, GRAY, INK = "#8a5a2b", "#737373", "#222222"


class _Style(NamedTuple):
    short: str
    color: str
    long: str


OPERATION_STYLES = {
    "identity": _Style("identity", GRAY, "identity"),
    "avg_pool_3x3": _Style("avg 3×3", BLUE, "average pooling 3×3"),
    "max_pool_3x3": _Style("max 3×3", GREEN, "max pooling 3×3"),
    "sep_conv_3x3": _Style("sep 3×3", ORANGE, "separable convolution 3×3"),
    "sep_conv_5x5": _Style("sep 5×5", PURPLE, "separable convolution 5×5"),
    "dil_sep_conv_3x3": _Style("dil 3×3", BROWN, "dilated separable convolution 3×3"),
}


def shortened(text: str, most: int) -> str:
    """The text, cut where it has more than so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


@contextmanager
def picture(path: FilePath) -> Iterator[Callable[[Figure], Path]]:
    """Checks the path, sets matplotlib's own defaults for a while, and gives the way to save."""
    target = as_path("path", path)
    if target.suffix.lower() not in FORMATS:
        raise ValueError(f"path must end in {', '.join(FORMATS)}, got {str(path)!r}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: the folder {target.parent} does not exist")
    try:
        from matplotlib import style
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib; install it with `pip install matplotlib`"
        ) from error

    def save(figure: Figure) -> Path:
        kind = target.suffix.lower()[1:]
        # Without the date, the same content gives the same file.
        metadata = {} if kind == "png" else {"Date" if kind == "svg" else "CreationDate": None}
        write_atomically(
            target,
            lambda file: figure.savefig(file, format=kind, facecolor="white", metadata=metadata),
        )
        return target

    # The caller's style, such as white lines on black, must not leak into the file.
    with style.context(["default", {"svg.hashsalt": "asng"}]):
        yield save


def as_texts(name: str, texts: Sequence[str]) -> list[str]:
    """A list of texts; TypeError unless they are some."""
    found = list(texts) if isinstance(texts, str) else listed(name, texts, "texts")
    if not all(isinstance(text, str) for text in found):
        raise TypeError(f"{name} must be texts, got {brief(texts)}")
    return found


def check_images(name: str, images: Tensor) -> None:
    """TypeError unless they are a tensor."""
    if not hasattr(images, "detach"):
        raise TypeError(f"{name} must be a tensor (N, 1 or 3, H, W), got {brief(images)}")


def show_image(axes: Axes, image: Tensor) -> None:
    """Shows an image, (C, H, W) in [0, 1], gray or color, pixel by pixel."""
    pixels = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    axes.imshow(
        pixels if pixels.shape[2] == 3 else pixels[:, :, 0],
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )


def draw_box(
    axes: Axes,
    center: tuple[float, float],
    size: tuple[float, float],
    text: str,
    *,
    font_size: float,
    fill: str,
    edge: str,
    ink: str,
) -> None:
    """Draws a rounded box, (width, height) in units of the axes, around a text."""
    from matplotlib.patches import FancyBboxPatch

    (x, y), (width, height) = center, size
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=fill,
            edgecolor=edge,
            linewidth=1.2,
            zorder=2,
        )
    )
    axes.text(
        x,
        y,
        text,
        size=font_size,
        color=ink,
        ha="center",
        va="center" if "\n" in text else "center_baseline",
        zorder=3,
    )
