"""A folder of images, such as CelebA, scaled and cropped once and kept for the next time."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from asng_ext.progress import Progress
from asng_ext.run import write_atomically

from .images import ImageData
from .photos import unlabelled

__all__ = ["load_folder"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
TEST_SHARE = 10
"""Without a division in the folder, one image in so many is for testing."""
_NAMED = 5
"""How many unreadable files are named."""


def load_folder(
    folder: str | Path,
    image_size: int = 64,
    *,
    cache: str | Path | None = None,
    stream: TextIO | None = sys.stderr,
) -> ImageData:
    """The images of a folder, RGB, their central squares scaled to image_size × image_size.

    Images below "train" and "test" (such as train/img and test/img) are for training and for
    testing. Without these two folders all images below `folder` count, or those below its
    "img_align_celeba", and the last tenth by name is for testing; CelebA is ordered by its own
    division, so the two parts show different people.

    The pixels are kept in a file that is found again as long as the list of files, their sizes
    and times of change, and image_size stay the same. Files that cannot be read are left out,
    with a word about it. Labels are 0, and batches are in [0, 1].

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
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"image_size must be a positive integer, got {image_size!r}")
    kept = Path(cache) if cache is not None else _user_cache()
    train, test = _divided(Path(folder))
    parts = [
        torch.from_numpy(_cached(paths, name, Path(folder), image_size, kept, stream))
        for name, paths in (("train", train), ("test", test))
    ]
    return unlabelled(*parts)


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
    place = hashlib.sha256(f"{folder.resolve()}/{name}/{size}".encode()).hexdigest()[:16]
    target = cache / f"{place}-{_fingerprint(paths, folder)}.npy"
    try:
        found: NDArray[np.uint8] = np.load(target)
        return found
    except (OSError, ValueError, EOFError):
        pass  # not there, or damaged: read the images
    images = _read_all(paths, name, size, stream)
    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda file: np.save(file, images))
    for other in cache.glob(f"{place}-*.npy"):
        if other != target:
            other.unlink(missing_ok=True)  # of the folder as it was before
    return images


def _fingerprint(paths: Sequence[Path], folder: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
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
        chunks = (paths[i : i + 256] for i in range(0, len(paths), 256))
        done = 0
        for chunk in chunks:
            for path, image in zip(chunk, pool.map(read, chunk)):
                if image is None:
                    unreadable.append(path)
                else:
                    images[count] = image
                    count += 1
            done += len(chunk)
            if progress.due():
                progress.draw(done, {"unreadable": len(unreadable)})
    progress.line(len(paths), {"unreadable": len(unreadable)})
    if unreadable:
        named = ", ".join(str(path) for path in unreadable[:_NAMED])
        more = f" and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
        if not count:
            raise ValueError(f"none of {len(paths)} images can be read: {named}{more}")
        if stream is not None:
            stream.write(f"left out {len(unreadable)} unreadable images: {named}{more}\n")
    return images[:count]


def _reader(size: int) -> Callable[[Path], NDArray[np.uint8] | None]:
    """Reads a file as (size, size, 3), or as None if it is no image that Pillow can read."""
    try:
        # By name, since Pillow is optional.
        pillow: Any = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise ImportError(
            "reading a folder of images needs Pillow, which is not installed: "
            "pip install pillow (or asng-ext[demo])"
        ) from error

    def read(path: Path) -> NDArray[np.uint8] | None:
        try:
            with pillow.open(path) as image:
                width, height = image.size
                side = min(width, height)
                if side >= size:
                    # A JPEG may be decoded at a fraction of its size, if that is enough.
                    image.draft("RGB", (2 * size * width // side, 2 * size * height // side))
                    rgb = image.convert("RGB")
        except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError):
            return None
        if side < size:
            raise ValueError(
                f"images must have at least image_size={size} pixels on each side, "
                f"got {width}×{height} in {path}"
            )
        width, height = rgb.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = (left, top, left + side, top + side)
        scaled = rgb.crop(square).resize((size, size), pillow.Resampling.BILINEAR)
        return np.asarray(scaled, dtype=np.uint8)

    return read
