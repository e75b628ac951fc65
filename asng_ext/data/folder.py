"""A folder of images without classes, such as CelebA, scaled and cropped once and kept for the next
time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TextIO

from asng_ext._checks import check_positive
from asng_ext._files import as_path, cache_folder
from asng_ext._terminal import STDERR

from .image_files import image_paths, no_images, reader
from .images import ImageData
from .photos import unlabeled
from .pixel_cache import MappedImages, cache_key, cached

__all__ = ["load_folder"]

TEST_SHARE = 10
"""Without a division in the folder, one image in this many is for testing."""


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
    and times of change, and image_size stay the same; others than its owner cannot read it. It is
    mapped into memory, of which it takes 0.5 GiB at most. Files that cannot be read are left out,
    with a word about it, and so are those of more than 67 megapixels that cannot be decoded at a
    fraction of their size, as JPEG files can. Labels are 0, and batches are in [0, 1].

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
    folder = as_path("folder", folder)
    kept = cache_folder(cache)
    read = partial(reader, image_size, 3, enlarge=False)

    def load(name: str, paths: list[Path]) -> MappedImages:
        key = cache_key(paths, folder, name, image_size)
        return cached(paths, name, key, (image_size, image_size, 3), read, kept, stream).mapped

    train, test = _divided(folder)
    return unlabeled(load("train", train), load("test", test))


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
    paths = image_paths(folder)
    if not paths:
        raise no_images(folder)
    return paths
