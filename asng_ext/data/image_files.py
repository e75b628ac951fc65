"""Files of images: found in a folder, measured by their headers, decoded and scaled."""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from asng_ext._terminal import Progress

from ._optional import require

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "Reader",
    "Survey",
    "fitted",
    "image_paths",
    "in_channels",
    "in_threads",
    "no_images",
    "reader",
    "reduced",
    "scaled",
    "survey",
    "unreadable_errors",
]

T = TypeVar("T")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
"""What a file may be, whatever its name says: for some others Pillow starts other programs."""
_IN_FLIGHT, _TOO_LARGE = 2**25, 2**26
"""Pixels that are decoded at once, up to 12 bytes each; an image beyond these is decoded alone, or
left out."""
GRAY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I", "F")
"""Pillow's modes of images without color."""
LARGEST_IMAGE = 1024
"""The largest side in pixels that images may be scaled to."""
LARGEST_SIDE, MULTIPLE = 224, 8
"""Of the side that they are scaled to by default."""

Reader = Callable[[Path], "NDArray[np.uint8] | None"]
"""Reads a file as (side, side, channels), or as None if it is no image that can be read."""


class Survey(NamedTuple):
    """What images are like: the side to scale them to, and 1 channel if none has color, or 3."""

    size: int
    channels: int


def image_paths(folder: Path) -> list[Path]:
    """The files in and below a folder that are called as images are, sorted."""
    return sorted(
        Path(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )


def survey(paths: Sequence[Path], stream: TextIO | None) -> Survey:
    """What the readable ones of these files are like, by their headers.

    Raises ValueError if there is none.
    """
    pillow = require("PIL.Image", "Pillow", "reading a folder of images needs")

    def measure(path: Path) -> tuple[int, bool] | None:
        try:
            if path.is_file():
                with pillow.open(path, formats=FORMATS) as image:
                    return min(image.size), image.mode not in GRAY_MODES
        except unreadable_errors():
            pass
        return None

    progress = Progress("measuring images", len(paths), 0, stream)
    found = []
    for done, measured in enumerate(in_threads(measure, paths), start=1):
        if measured is not None:
            found.append(measured)
        if progress.due():
            progress.draw(done, {})
    progress.line(len(paths), {})
    if not found:
        raise none_readable(paths)
    sides, colored = zip(*found)
    return Survey(suited_side(sides), 3 if any(colored) else 1)


def suited_side(sides: Iterable[int]) -> int:
    """The median, to the nearest multiple of 8 and up to 224 pixels."""
    median = statistics.median(sides)
    return min(LARGEST_SIDE, max(MULTIPLE, int(median / MULTIPLE + 0.5) * MULTIPLE))


def no_images(folder: Path) -> FileNotFoundError:
    """The error where a folder has no file that is called as images are."""
    return FileNotFoundError(f"no images in {folder}; looked for {', '.join(SUFFIXES)}")


def none_readable(paths: Sequence[Path]) -> ValueError:
    """The error where no file can be read."""
    return ValueError(f"none of {len(paths)} images can be read: {named(paths)}")


def named(paths: Sequence[object], most: int = 5) -> str:
    """Some of the files, and how many more there are."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(str(path) for path in paths[:most]) + more


def in_threads(work: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T]:
    """Results in order, few of them ahead of time. Decoding releases Python's lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, len(paths), 64):
            yield from pool.map(work, paths[first : first + 64])


def reader(size: int, channels: int, *, enlarge: bool) -> Reader:
    """Reads files as (size, size, channels): their central squares, scaled.

    Several threads may use it. An image that is smaller is scaled up, or without `enlarge` a
    ValueError.
    """
    pillow = require("PIL.Image", "Pillow", "reading a folder of images needs")
    gate = _Gate()

    def read(path: Path) -> NDArray[np.uint8] | None:
        try:
            if not path.is_file():  # opening a pipe would block until something is written into it
                return None
            with pillow.open(path, formats=FORMATS) as image:
                width, height = image.size
                side = min(width, height)
                if side >= size or enlarge:
                    reduced(image, (size, size), channels)
                    pixels = image.width * image.height
                    if pixels > _TOO_LARGE:
                        return None
                    with gate.held(pixels):
                        return scaled(image, size, channels)
        except unreadable_errors():
            return None
        raise ValueError(
            f"images must have at least image_size={size} pixels on each side, "
            f"got {width}×{height} in {path}"
        )

    return read


def scaled(image: Any, size: int, channels: int) -> NDArray[np.uint8]:
    """The central square of Pillow's image as (size, size, channels)."""
    return fitted(image, (size, size), channels)


def fitted(image: Any, image_size: tuple[int, int], channels: int) -> NDArray[np.uint8]:
    """The central part of Pillow's image that has the shape of (height, width), scaled to that, as
    (height, width, channels)."""
    pillow = require("PIL.Image", "Pillow", "scaling images needs")
    height, width = image_size
    part = image.crop(_central_part(image.size, image_size))
    part.info.pop("transparency", None)  # there is none left, of which Pillow might warn
    part = in_channels(part, channels)
    pixels = np.asarray(part.resize((width, height), pillow.Resampling.BILINEAR), dtype=np.uint8)
    return pixels.reshape(height, width, channels)


def reduced(image: Any, image_size: tuple[int, int], channels: int) -> None:
    """Has Pillow's image of a JPEG file decoded at a fraction of its size, if that is enough for
    its central part to be scaled to (height, width)."""
    left, _, right, _ = _central_part(image.size, image_size)
    width, part = image_size[1], right - left
    if part >= width:
        image.draft(_mode(channels), tuple(2 * width * side // part for side in image.size))


def _central_part(size: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest central part of an image of size (width, height)
    that has the shape of (height, width)."""
    width, height = size
    part_width = min(width, max(1, round(height * image_size[1] / image_size[0])))
    part_height = min(height, max(1, round(width * image_size[0] / image_size[1])))
    left, top = (width - part_width) // 2, (height - part_height) // 2
    return left, top, left + part_width, top + part_height


def in_channels(image: Any, channels: int) -> Any:
    """Pillow's image as a gray one, or one in color, of 8 bits."""
    if image.mode[0] == "I":  # 16 bits, which Pillow would clip at 255
        pillow = require("PIL.Image", "Pillow", "converting images needs")
        image = pillow.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    mode = _mode(channels)
    return image if image.mode == mode else image.convert(mode)  # it would copy it, too


def _mode(channels: int) -> str:
    """Pillow's."""
    return "L" if channels == 1 else "RGB"


def unreadable_errors() -> tuple[type[BaseException], ...]:
    """What Pillow raises for a file that it cannot read."""
    pillow = require("PIL.Image", "Pillow", "reading images needs")
    return OSError, SyntaxError, ValueError, MemoryError, pillow.DecompressionBombError


class _Gate:
    """Lets threads decode so many pixels at once that memory suffices."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pixels = 0

    @contextlib.contextmanager
    def held(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._pixels or self._pixels + pixels <= _IN_FLIGHT)
            self._pixels += pixels
        try:
            yield
        finally:
            with self._changed:
                self._pixels -= pixels
                self._changed.notify_all()
