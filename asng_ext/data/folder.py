"""A folder of images, such as CelebA, scaled and cropped once and kept for the next time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from asng_ext._checks import check_positive
from asng_ext._files import write_atomically
from asng_ext._terminal import STDERR, Progress, say

from ._optional import require
from .images import ImageData
from .photos import unlabeled

__all__ = ["load_folder"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
"""What a file may be, whatever its name says: for some others Pillow starts other programs."""
_LARGE, _TOO_LARGE = 2**24, 2**26
"""Pixels to decode, 16 bytes each, from which on an image is decoded alone, or left out."""
TEST_SHARE = 10
"""Without a division in the folder, one image in this many is for testing."""
_NAMED = 5
"""How many unreadable files are named."""


def load_folder(
    folder: str | Path,
    image_size: int = 64,
    *,
    cache: str | Path | None = None,
    stream: TextIO | None = STDERR,
) -> ImageData:
    """The images of a folder, RGB, their central squares scaled to image_size × image_size.

    Images below "train" and "test" (such as train/img and test/img) are for training and for
    testing. Without these two folders all images below `folder` count, or those below its
    "img_align_celeba", and the last tenth by name is for testing; CelebA is ordered by its own
    division, so the two parts show different people.

    The pixels are kept in a file that is found again as long as the list of files, their sizes
    and times of change, and image_size stay the same; others than its owner cannot read it. Files
    that cannot be read are left out, with a word about it, and so are those of more than 67
    megapixels that cannot be decoded at a fraction of their size, as JPEG files can. Labels are 0,
    and batches are in [0, 1].

    Args:
        folder: The folder.
        image_size: Side in pixels.
        cache: Where to keep the pixels; by default "asng-ext" in the user's cache folder.
        stream: Where progress and unreadable files are shown; None for nowhere.

    Raises:
        FileNotFoundError: If the folder does not exist, or holds no images.
        ImportError: If Pillow is missing.
        ValueError: If an image is smaller than `image_size`, or none can be read.
    """
    check_positive("image_size", image_size)
    kept = Path(cache) if cache is not None else _user_cache()
    train, test = _divided(Path(folder))
    sets = [
        torch.from_numpy(_cached(paths, name, Path(folder), image_size, kept, stream))
        for name, paths in (("train", train), ("test", test))
    ]
    return unlabeled(*sets)


def _divided(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files for training and for testing, each sorted."""
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist")
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        return _images(folder / "train"), _images(folder / "test")
    aligned = folder / "img_align_celeba"
    paths = _images(aligned if aligned.is_dir() else folder)
    if len(paths) < 2:
        raise FileNotFoundError(
            f"{folder} must hold 2 images or more, some to train on and some to test on, "
            f"got {len(paths)}"
        )
    count = max(1, len(paths) // TEST_SHARE)
    return paths[:-count], paths[-count:]


def _images(folder: Path) -> list[Path]:
    paths = [
        Path(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    ]
    if not paths:
        raise FileNotFoundError(f"no images in {folder}; looked for {', '.join(SUFFIXES)}")
    return sorted(paths)


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "asng-ext"


def _cached(
    paths: Sequence[Path], name: str, folder: Path, size: int, cache: Path, stream: TextIO | None
) -> NDArray[np.uint8]:
    """(n, size, size, 3) from the cache, or from the files and then into the cache."""
    key = hashlib.sha256(f"{folder.resolve()}/{name}/{size}".encode()).hexdigest()[:16]
    target = cache / f"{key}-{_fingerprint(paths, folder)}.npy"
    kept = _load(target, len(paths), size)
    if kept is not None:
        return kept
    images = _read_all(paths, name, size, stream)

    def write(file: IO[bytes]) -> None:
        os.chmod(file.fileno(), 0o600)  # the images may be private
        np.save(file, images)

    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(target, write)
        for other in cache.glob(f"{key}-*.npy"):
            if other != target:
                other.unlink(missing_ok=True)  # of the folder as it was before
    except OSError as error:
        say(stream, f"the images will be read again the next time: cannot cache them: {error}\n")
    return images


def _load(path: Path, most: int, size: int) -> NDArray[np.uint8] | None:
    """Up to ``most`` images of a file in the cache; None if it is not there, damaged or of
    something else."""
    try:
        with open(path, "rb") as file:
            found = np.load(file)
    except Exception:  # a damaged file can end in almost any
        return None
    if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.ndim != 4:
        return None
    fits = found.shape[1:] == (size, size, 3) and 1 <= len(found) <= most
    return found if fits else None


def _fingerprint(paths: Sequence[Path], folder: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = path.stat()
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            state = "missing"  # where a link leads, say
        digest.update(f"{path.relative_to(folder).as_posix()}\0{state}\n".encode(errors="replace"))
    return digest.hexdigest()[:16]


def _read_all(
    paths: Sequence[Path], name: str, size: int, stream: TextIO | None
) -> NDArray[np.uint8]:
    read = _reader(size)
    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    unreadable: list[Path] = []
    count = 0
    progress = Progress(f"reading {name} images", len(paths), 0, stream)
    # Decoding releases Python's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done in range(0, len(paths), 256):
            chunk = paths[done : done + 256]
            for path, image in zip(chunk, pool.map(read, chunk)):
                if image is None:
                    unreadable.append(path)
                else:
                    images[count] = image
                    count += 1
            if progress.due():
                progress.draw(done + len(chunk), {"unreadable": len(unreadable)})
    progress.line(len(paths), {"unreadable": len(unreadable)})
    if unreadable:
        named = ", ".join(str(path) for path in unreadable[:_NAMED])
        more = f" and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
        if not count:
            raise ValueError(f"none of {len(paths)} images can be read: {named}{more}")
        say(stream, f"left out {len(unreadable)} unreadable images: {named}{more}\n")
    return images[:count]


def _reader(size: int) -> Callable[[Path], NDArray[np.uint8] | None]:
    """Reads a file as (size, size, 3), or as None if it is no image that Pillow can read."""
    pillow = require("PIL.Image", "Pillow", "reading a folder of images needs")
    alone = threading.Lock()

    def read(path: Path) -> NDArray[np.uint8] | None:
        try:
            if not path.is_file():  # opening a pipe would block until something is written into it
                return None
            with pillow.open(path, formats=_FORMATS) as image:
                width, height = image.size
                side = min(width, height)
                if side >= size:
                    # A JPEG may be decoded at a fraction of its size, if that is enough.
                    image.draft("RGB", (2 * size * width // side, 2 * size * height // side))
                    pixels = image.width * image.height
                    if pixels > _TOO_LARGE:
                        return None
                    with alone if pixels > _LARGE else contextlib.nullcontext():
                        return scaled(image)
        except (OSError, SyntaxError, ValueError, MemoryError, pillow.DecompressionBombError):
            return None
        raise ValueError(
            f"images must have at least image_size={size} pixels on each side, "
            f"got {width}×{height} in {path}"
        )

    def scaled(image: Any) -> NDArray[np.uint8]:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        rgb = square if square.mode == "RGB" else square.convert("RGB")  # it would copy RGB, too
        return np.asarray(rgb.resize((size, size), pillow.Resampling.BILINEAR), dtype=np.uint8)

    return read
