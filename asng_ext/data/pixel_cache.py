"""Decoded images in a file that is mapped into memory, to be found again the next time."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asng_ext._files import with_remedy, write_atomically
from asng_ext._terminal import Progress, say

from .image_files import Reader, in_threads, named, none_readable

__all__ = ["MappedImages", "Pixels", "cache_key", "cached", "stored", "written"]

RESIDENT = 2**28
"""Bytes of a mapped file that may be resident: several are mapped at once, and together they take
no more than a GiB."""
_PAGES = 2**17
"""Bytes around an image that reading it may make resident: the system maps pages by the dozen."""


class MappedImages:
    """(N, H, W, C) uint8 in a file, mapped into memory.

    What has been read stays resident, at first; from `RESIDENT` bytes on all of it is left to the
    system's cache of files.

    images: the tensor. Writing to it changes neither the file nor what others see.
    """

    def __init__(self, file: IO[bytes], shape: tuple[int, ...]) -> None:
        size = math.prod(shape)
        self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        array = np.frombuffer(self._map, dtype=np.uint8, count=size).reshape(shape)
        self.images: Tensor = torch.from_numpy(array)
        self._read = 0

    def __len__(self) -> int:
        return len(self.images)

    def has_read(self, images: int) -> None:
        """Takes note that so many images have been read."""
        self._read += images * (math.prod(self.images.shape[1:]) + _PAGES)
        if self._read > RESIDENT:
            self.forget()

    def forget(self) -> None:
        """Leaves all to the system's cache of files."""
        self._read = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class Pixels(NamedTuple):
    """mapped: the images of those files that can be read.
    kept: (N,) bool, which of the files these are."""

    mapped: MappedImages
    kept: NDArray[np.bool_]


def cache_key(paths: Sequence[Path], folder: Path, *what: object) -> str:
    """Names what is made of the files below a folder; it begins with what stays the same when
    they change."""
    words = "/".join(map(str, (folder.resolve(), *what)))
    return f"{hashlib.sha256(words.encode()).hexdigest()[:16]}-{_fingerprint(paths, folder)}"


def cached(
    paths: Sequence[Path],
    name: str,
    key: str,
    shape: tuple[int, int, int],
    read: Callable[[], Reader],
    cache: Path,
    stream: TextIO | None,
) -> Pixels:
    """Images of files, from the cache, or decoded and then in the cache.

    A cache that cannot be written is said to be so, and a temporary file takes its place.

    Args:
        paths: The files.
        name: What they are, in a word, for progress.
        key: What `cache_key` gives.
        shape: (H, W, C) of an image.
        read: Makes what reads them.
        cache: The folder.
        stream: Where progress, and files that cannot be read, are shown.

    Raises:
        ValueError: If no file can be read.
        OSError: If there is no room for a temporary file either.
    """
    target = cache / f"{key}.pixels"
    found = _load(target, len(paths), shape)
    if found is not None:
        return found

    def write(file: IO[bytes]) -> None:
        file.write(_decode(paths, name, shape, read(), file, stream).tobytes())

    try:
        stored(target, write)
    except OSError as error:
        say(
            stream,
            "the images are kept in a temporary file and will be read again the next time: cannot "
            f"cache them: {error}\n",
        )
    else:
        found = _load(target, len(paths), shape)
    if found is not None:
        return found
    with _temporary() as file:
        write(file)
        loaded = _loaded(file, len(paths), shape)
    assert loaded is not None
    return loaded


def stored(target: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file of the cache, called by a `cache_key`, in the place of what was made of the
    files as they were before. Others than its owner cannot read it.

    Raises:
        OSError: If it cannot be written.
    """

    def write_privately(file: IO[bytes]) -> None:
        os.chmod(file.fileno(), 0o600)  # the images may be private
        write(file)

    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(target, write_privately)
    for other in target.parent.glob(f"{target.name.partition('-')[0]}-*"):
        if other != target:
            other.unlink(missing_ok=True)


def written(images: Iterable[NDArray[np.uint8]], shape: tuple[int, ...]) -> MappedImages:
    """Images that are made one after the other, (H, W, C) each, in a temporary file.

    Args:
        images: The images.
        shape: (N, H, W, C) of all.

    Raises:
        OSError: If there is no room for the file.
    """
    with _temporary() as file, with_remedy(Path(tempfile.gettempdir())):
        for image in images:
            file.write(np.ascontiguousarray(image).data)
        file.flush()
        return MappedImages(file, shape)


def _temporary() -> IO[bytes]:
    """A file without a name, which is gone once it is neither open nor mapped."""
    return tempfile.TemporaryFile(prefix="asng-ext-")


def _load(path: Path, total: int, shape: tuple[int, int, int]) -> Pixels | None:
    """What a file in the cache holds; None if it is not there, damaged or of something else."""
    try:
        with open(path, "rb") as file:
            return _loaded(file, total, shape)
    except (OSError, ValueError):
        return None


def _loaded(file: IO[bytes], total: int, shape: tuple[int, int, int]) -> Pixels | None:
    """The pixels are followed by a byte for each of the files: whether it could be read."""
    size = file.seek(0, os.SEEK_END) - total
    if size <= 0:
        return None
    file.seek(size)
    kept = np.frombuffer(file.read(total), dtype=np.uint8)
    count = int(np.count_nonzero(kept))
    if kept.max() > 1 or size != count * math.prod(shape):
        return None
    return Pixels(MappedImages(file, (count, *shape)), kept.astype(bool))


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


def _decode(
    paths: Sequence[Path],
    name: str,
    shape: tuple[int, int, int],
    read: Reader,
    file: IO[bytes],
    stream: TextIO | None,
) -> NDArray[np.uint8]:
    """Writes the pixels of the files that can be read; returns (N,), whether each was."""
    kept = np.zeros(len(paths), dtype=np.uint8)
    unreadable: list[Path] = []
    progress = Progress(f"reading {name} images", len(paths), 0, stream)
    for done, image in enumerate(in_threads(read, paths)):
        if image is None:
            unreadable.append(paths[done])
        else:
            assert image.shape == shape
            file.write(np.ascontiguousarray(image).data)
            kept[done] = 1
        if progress.due():
            progress.draw(done + 1, {"unreadable": len(unreadable)})
    progress.line(len(paths), {"unreadable": len(unreadable)})
    if len(unreadable) == len(paths):
        raise none_readable(unreadable)
    if unreadable:
        say(stream, f"left out {len(unreadable)} unreadable images: {named(unreadable)}\n")
    return kept
