"""What a driven search has done, as lines of JSON in a file, from which it goes on.

The first line holds the optimizer's state at the start. Each population that is asked for is a
line with its draws, and each evaluation a line with its loss. Lines are only added, so that a
process that is killed leaves at most a last one that is torn, which does not count. The state of
the optimizer after each line is a function of the lines up to there.
"""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from asng_ext._checks import brief
from asng_ext._files import sync_folder, with_remedy

__all__ = ["Journal"]

VERSION = 1
_KEY = "asng_ext journal"
_START = json.dumps({_KEY: VERSION}).encode()[:-1] + b","
_open: set[Path] = set()
"""Journals of this process, against which it has no lock. To open one again would end its lock."""


class Journal:
    """A journal that is open, for one process at a time.

    Args:
        path: The file, which is made if there is none.

    Attributes:
        is_new: Whether there was no whole line when it was opened.

    Raises:
        BlockingIOError: If another process has it open.
        ValueError: If it is another kind of file.
        OSError: If it cannot be opened; says what to do.

    Warns:
        UserWarning: If the file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = path.resolve()
        if self._name in _open:
            self._in_use("another search of this process")
        with with_remedy(path):
            # Read and closed as this one file: a lock of this kind ends where any is closed that
            # this process has open of it. In turn no forked process keeps it.
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by close()
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self._file.close()
            self._in_use("another process")
        except OSError as error:
            warnings.warn(
                f"{path} cannot be locked ({error.strerror}): make sure that no other process "
                "uses it",
                stacklevel=4,
            )
        _open.add(self._name)
        self._file.seek(0)
        self._whole, end, torn = self._file.readall().rpartition(b"\n")
        self._size = len(self._whole) + len(end)
        self._torn = bool(torn)
        self.is_new = not end
        if self.is_new and torn[: len(_START)] != _START[: len(torn)]:
            self.close()
            self._refuse(torn)

    def _in_use(self, holder: str) -> NoReturn:
        raise BlockingIOError(
            f"journal {self.path} is in use by {holder}; wait until that ends, or choose another "
            "file"
        )

    def header(self) -> dict[str, Any]:
        """The first line (ValueError if it is none of a journal)."""
        line = self._whole.partition(b"\n")[0]
        if not line.startswith(_START):
            self._refuse(line)
        return self._parsed(1, line)

    def _refuse(self, line: bytes) -> NoReturn:
        text = line.decode("utf-8", errors="replace")
        raise ValueError(
            f"journal must be a file that a driver of this version has written, got {self.path}, "
            f"which begins with {brief(text)}"
        )

    def events(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The other lines and their numbers, as they were when it was opened."""
        for number, line in enumerate(self._whole.split(b"\n")[1:], start=2):
            yield number, self._parsed(number, line)

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            text = line.decode("utf-8", errors="replace")
            raise ValueError(
                f"journal {self.path} must hold an object of JSON in each line, got {brief(text)} "
                f"in line {number}"
            )
        return content

    def begin(self, **header: Any) -> None:
        """Writes the first line."""
        self.append({_KEY: VERSION, **header}, durable=True)
        sync_folder(self.path.parent)

    def append(self, event: dict[str, Any], *, durable: bool = False) -> None:
        """Adds a line; one that is durable survives a power cut, with all before it."""
        line = json.dumps(event, default=repr, ensure_ascii=False).encode() + b"\n"
        with with_remedy(self.path):
            if self._torn:
                self._file.truncate(self._size)
                self._torn = False
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
            if durable:
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file, for others to open."""
        self._file.close()
        _open.discard(self._name)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
