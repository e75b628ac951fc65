"""A folder of images with a subfolder for each class, scaled and cropped once and kept for the next
time."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from asng_ext._checks import check_integer
from asng_ext._files import as_path, cache_folder
from asng_ext._terminal import say

from .augment import Augmentation
from .image_files import (
    LARGEST_IMAGE,
    SUFFIXES,
    Survey,
    image_paths,
    named,
    no_images,
    reader,
    survey,
)
from .images import ImageData
from .labels import check_classes
from .own import DataShape, Labeled, divided
from .pixel_cache import cache_key, cached, stored

__all__ = ["data_from_folder", "folder_shape"]

_PARTS = ("train", "val", "test")


class _Part(NamedTuple):
    """A division of the folder: its files, sorted by class, and their (N,) labels."""

    paths: list[Path]
    labels: NDArray[np.int64]


def data_from_folder(
    folder: str | Path,
    *,
    image_size: int = 0,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    cache: str | Path | None = None,
    stream: TextIO | None = None,
) -> ImageData:
    """See `ImageData.from_folder`."""
    check_integer("image_size", image_size, 0, LARGEST_IMAGE + 1)
    folder, kept = as_path("folder", folder), cache_folder(cache)
    names, parts = _parts(folder, stream)
    size, channels = _surveyed(parts, folder, kept, stream)
    size = image_size or size

    def load(name: str, *group: _Part) -> tuple[Labeled, list[int]]:
        """The images of parts, one after the other, and how many there are of each."""
        paths = [path for part in group for path in part.paths]
        pixels = cached(
            paths,
            name,
            cache_key(paths, folder, "classes", name, size, channels),
            (size, size, channels),
            partial(reader, size, channels, enlarge=True),
            kept,
            stream,
        )
        ends = np.cumsum([len(part.paths) for part in group])[:-1]
        counts = [int(np.count_nonzero(kept)) for kept in np.split(pixels.kept, ends)]
        labels = np.concatenate([part.labels for part in group])
        return Labeled(pixels.mapped, labels[pixels.kept]), counts

    train, (_, *more) = load("training", *(parts[name] for name in parts if name != "test"))
    test = load("test", parts["test"])[0] if "test" in parts else None
    return divided(train, test, names, validation=sum(more), seed=seed, augmentation=augmentation)


def folder_shape(
    folder: str | Path, *, cache: str | Path | None = None, stream: TextIO | None = None
) -> DataShape:
    """What a folder holds, without decoding its images; raises what `ImageData.from_folder` does
    for what is no such folder."""
    folder, kept = as_path("folder", folder), cache_folder(cache)
    _, parts = _parts(folder, None)
    size, channels = _surveyed(parts, folder, kept, stream)
    names = {"train": "train", "val": "validation", "test": "test"}
    counts = {names[part]: len(each.paths) for part, each in parts.items()}
    return DataShape.of(counts, size, channels)


def _parts(folder: Path, stream: TextIO | None) -> tuple[tuple[str, ...], dict[str, _Part]]:
    """The names of the classes, and the files of "train" and of what else there is."""
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist")
    is_divided = (folder / "train").is_dir() and bool(_subfolders(folder / "train"))
    places = {"train": folder / "train" if is_divided else folder}
    if is_divided:
        places |= {name: folder / name for name in _PARTS[1:] if (folder / name).is_dir()}
    names = _subfolders(places["train"])
    if not names or (not is_divided and set(names) <= set(_PARTS)):
        raise FileNotFoundError(
            f"{folder} must hold a subfolder of images for each class, or train with these and "
            f"perhaps val and test; got {', '.join(names) or 'none'}"
        )
    parts = {}
    for part, place in places.items():
        unknown = sorted(set(_subfolders(place)) - set(names))
        if unknown:
            raise ValueError(
                f"{place} must hold classes of {places['train']} only, got {named(unknown)}"
            )
        files = [image_paths(place / name) for name in names]
        if not any(files):
            raise no_images(place)
        labels = np.repeat(np.arange(len(names)), [len(paths) for paths in files])
        if part == "train":
            check_classes(labels, names)
        beside = sum(
            path.suffix.lower() in SUFFIXES and path.name[0] != "." for path in place.iterdir()
        )
        if beside:
            say(stream, f"left out {beside} images in {place} that are in no folder of a class\n")
        parts[part] = _Part([path for paths in files for path in paths], labels)
    return tuple(names), parts


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _surveyed(parts: dict[str, _Part], folder: Path, cache: Path, stream: TextIO | None) -> Survey:
    """What the images are like, which is kept in the cache, too."""
    paths = [path for part in parts.values() for path in part.paths]
    key = cache_key(paths, folder, "classes", "survey")
    target = cache / f"{key}.json"
    try:
        size, channels = json.loads(target.read_text(encoding="utf-8"))
        if 1 <= size <= LARGEST_IMAGE and channels in (1, 3):
            return Survey(size, channels)
    except (OSError, ValueError, TypeError):
        pass
    found = survey(paths, stream)
    with contextlib.suppress(OSError):  # `cached` says so
        stored(target, lambda file: file.write(json.dumps(found).encode()))
    return found
