"""One process at a time uses a folder."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from asng_ext._files import LEFTOVER, with_remedy

__all__ = ["LOCK_FILE", "FolderLock"]

LOCK_FILE = ".lock"


class FolderLock:
    """The operating system's lock (flock) on a file that says who holds it, so that it ends with
    the process, however that ends.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / LOCK_FILE
        self._depth = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock meanwhile; may be nested. What processes left half-written is removed.

        Raises:
            BlockingIOError: If another process, or another object of this one, holds it.

        Warns:
            UserWarning: If the file system has no locks.
        """
        if self._depth == 0:
            descriptor = self._acquire()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                # Removed while it is held: who opened it before checks that, see _acquire.
                with contextlib.suppress(OSError):
                    self._file.unlink()
                os.close(descriptor)

    def holder(self) -> str | None:
        """Who holds the lock, in words; None if nobody does. Nothing is written."""
        try:
            descriptor = os.open(self._file, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(descriptor)
        except OSError:  # a file system without locks
            return None
        finally:
            os.close(descriptor)  # and the lock with it
        return None

    def _acquire(self) -> int:
        """The open lock file."""
        with with_remedy(self._file):
            while True:
                descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    holder = _holder(descriptor)
                    os.close(descriptor)
                    raise BlockingIOError(
                        f"run folder {self._folder} is in use by {holder}; "
                        "wait until that ends, or choose another folder"
                    ) from None
                except OSError as error:
                    warnings.warn(
                        f"{self._folder} cannot be locked ({error.strerror}): make sure that no "
                        "other process uses it",
                        stacklevel=2,
                    )
                    return descriptor
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.stat(self._file), os.fstat(descriptor)):
                        break
                os.close(descriptor)  # its holder ended meanwhile and removed it
        now = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
        holder = f"process {os.getpid()} on {socket.gethostname()} since {now}"
        with contextlib.suppress(OSError):  # a full disk: only the words are missing
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(), 0)
        for entry in self._folder.iterdir():
            if LEFTOVER.fullmatch(entry.name):
                entry.unlink(missing_ok=True)
        return descriptor


def _holder(descriptor: int) -> str:
    """What the lock file says."""
    said = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
    return said or "another process"
