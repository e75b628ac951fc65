"""Files that are complete at any time, and errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from asng_ext._checks import brief

__all__ = [
    "LEFTOVER",
    "as_path",
    "cache_folder",
    "read_text",
    "remove_leftovers",
    "sync_folder",
    "with_remedy",
    "write_atomically",
]

LEFTOVER = re.compile(r"\..+\.(toml|csv|txt|json|pt|png|pt2|onnx|safetensors)\.\d+\.tmp")
"""Names under which :func:`write_atomically` writes the files of a run."""

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "allow larger files",
    errno.EACCES: "change its permissions, or those of its folder",
    errno.EPERM: "change its permissions, or those of its folder",
    errno.EROFS: "make the file system writable",
    errno.EISDIR: "a file belongs there: move the folder away",
    errno.ENOTDIR: "a folder belongs above it: move the file there away",
}


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where to keep what can be made again: by default "asng-ext" in the user's cache folder."""
    if cache is not None:
        return as_path("cache", cache)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "asng-ext"


@contextlib.contextmanager
def with_remedy(path: Path) -> Iterator[None]:
    """Errors of the operating system name the file and what to do."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise OSError(error.errno, f"{error.strerror}; {remedy}", str(path)) from error


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], object], *, previous: Sequence[Path] = ()
) -> None:
    """Creates or replaces a file at once: what was there stays until all is written.

    Args:
        path: The file.
        write: Writes it.
        previous: Where to keep what was there, where to keep what was there before, and so on.

    Raises:
        OSError: If that cannot be done. Names the file, and what was there is there still.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with with_remedy(path):
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if previous and path.exists():
                for newer, older in reversed(list(pairwise(previous))):
                    if newer.exists():
                        os.replace(newer, older)
                _keep(path, previous[0])
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Removes what :func:`write_atomically` left beside a file where its process was killed."""
    prefix, suffix = f".{path.name}.", ".tmp"
    with with_remedy(path.parent):
        for entry in path.parent.iterdir():
            number = entry.name.removeprefix(prefix).removesuffix(suffix)
            if f"{prefix}{number}{suffix}" == entry.name and number.isdecimal():
                try:
                    os.kill(int(number), 0)  # only asks whether there is such a process
                except ProcessLookupError:
                    entry.unlink(missing_ok=True)
                except (OSError, OverflowError):
                    continue  # another user's, or no number of a process


def _keep(path: Path, previous: Path) -> None:
    """Makes `previous` the same file as `path`, which stays there throughout."""
    temporary = previous.with_name(f".{previous.name}.{os.getpid()}.tmp")
    try:
        try:
            os.link(path, temporary)
        except OSError:  # some file systems have no links
            shutil.copyfile(path, temporary)
        os.replace(temporary, previous)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes renamed files survive a power cut, where the file system can do that for a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def as_path(name: str, path: Any) -> Path:
    """A path; TypeError, which calls it ``name``, if it is none."""
    try:
        return Path(path)
    except TypeError:
        raise TypeError(f"{name} must be a path, got {brief(path)}") from None


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: If it is not UTF-8.
        OSError: If it cannot be read; says what to do.
    """
    try:
        with with_remedy(path):
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}") from None
