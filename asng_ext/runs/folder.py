"""A run is a folder, used by one process at a time. Every file in it is written under another name
and renamed when complete."""

from __future__ import annotations

import contextlib
import csv
import datetime
import errno
import fcntl
import io
import json
import os
import re
import shutil
import socket
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from asng_ext.runs.config import dump_toml, load_toml

__all__ = ["Metrics", "RunFolder", "write_atomically"]

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


@contextlib.contextmanager
def _with_remedy(path: Path) -> Iterator[None]:
    """Errors of the operating system name the file and what to do."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise OSError(error.errno, f"{error.strerror}; {remedy}", str(path)) from error


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], object], *, previous: Path | None = None
) -> None:
    """Creates or replaces a file at once: what was there stays until all is written.

    Args:
        path: The file.
        write: Writes it.
        previous: Where to keep what was there.

    Raises:
        OSError: If that cannot be done. Names the file, and what was there is there still.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _with_remedy(path):
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                _keep(path, previous)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


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


def _sync_folder(folder: Path) -> None:
    """Makes renamed files survive a power cut, where the file system can do that for a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Metrics:
    """A CSV file with one row per epoch, complete at any time.

    Args:
        path: The file.
        rows: The rows that are known already: the file is made to hold just them. None for those
            in the file.
        keep: How many of the rows in the file to keep.

    Raises:
        ValueError: If the file is to be read and is no table of numbers.
    """

    def __init__(
        self, path: Path, keep: int = 0, rows: Iterable[Mapping[str, float]] | None = None
    ) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        if rows is not None:
            self.rows = [dict(row) for row in rows]
            if self.rows:
                self.write()
        elif keep and path.exists():
            self.rows = self._read()[:keep]

    def _read(self) -> list[dict[str, float]]:
        try:
            with _with_remedy(self.path), open(self.path, newline="", encoding="utf-8") as file:
                return [
                    {name: float(value) for name, value in row.items() if value != ""}
                    for row in csv.DictReader(file)
                ]
        except (ValueError, TypeError, csv.Error) as error:
            raise ValueError(f"{self.path} is not a table of metrics: {error}") from None

    def write(self) -> None:
        """Writes all rows; columns that a row lacks stay empty."""
        columns = list(dict.fromkeys(name for entry in self.rows for name in entry))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, lambda file: file.write(text.getvalue().encode()))


class RunFolder:
    """The files of one run.

    ==========================  ==================================================================
    config.toml                 every setting
    search.csv, retrain.csv     metrics per epoch
    search.pt, retrain.pt       checkpoints, to continue after an interruption
    search.prev.pt, …           the checkpoints before, should those be damaged
    architecture.json           the architecture found, by names
    network.pt                  weights of the retrained network, and the settings it was made with
    results.json                test metrics of the retrained network
    *.png                       pictures
    events/                     TensorBoard events, if tensorboard is installed
    .lock                       who is using the folder, while it is used
    ==========================  ==================================================================
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._locks = 0

    @classmethod
    def create(
        cls,
        path: Path | str,
        config: Mapping[str, Any] | None = None,
        *,
        another_name: bool = False,
    ) -> RunFolder:
        """A new folder. Of several processes that create it at once, one succeeds.

        Args:
            path: The folder, which must be empty if it exists.
            config: What config.toml is to say.
            another_name: Use a number behind the name if there is something of that name already.

        Raises:
            FileExistsError: If there is something in it already.
            BlockingIOError: If another process is creating it.
        """
        path = Path(path)
        with _with_remedy(path):
            if another_name:
                path.parent.mkdir(parents=True, exist_ok=True)
                path = _make_new(path)
            elif not path.exists():
                path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        if not path.is_dir() or run._holds_something():
            raise FileExistsError(_NOT_EMPTY.format(path))
        with run.lock():
            if run._holds_something():  # since then
                raise FileExistsError(_NOT_EMPTY.format(path))
            if config is not None:
                run.write_config(config)
        return run

    def _holds_something(self) -> bool:
        return any(
            entry.name != _LOCK and not _LEFTOVER.fullmatch(entry.name)
            for entry in self.path.iterdir()
        )

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """An existing run.

        Raises:
            FileNotFoundError: If the folder is not that of a run.
        """
        run = cls(path)
        if not run.file("config.toml").is_file():
            raise FileNotFoundError(f"{run.path} is not the folder of a run: no config.toml in it")
        return run

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else uses the folder meanwhile; may be nested.

        The lock is the operating system's (flock) on a file that says who holds it, so that it ends
        with the process, however that ends. What processes left half-written is removed.

        Raises:
            BlockingIOError: If another process, or another object of this one, uses the folder.
        """
        if self._locks == 0:
            descriptor = self._acquire()
        self._locks += 1
        try:
            yield
        finally:
            self._locks -= 1
            if self._locks == 0:
                # Removed while it is held: who opened it before looks again, see _acquire.
                with contextlib.suppress(OSError):
                    self.file(_LOCK).unlink()
                os.close(descriptor)

    def _acquire(self) -> int:
        """The open lock file."""
        path = self.file(_LOCK)
        with _with_remedy(path):
            while True:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
                    os.close(descriptor)
                    raise BlockingIOError(
                        f"run folder {self.path} is in use by {holder or 'another process'}; "
                        "wait until that ends, or choose another folder"
                    ) from None
                except OSError as error:
                    warnings.warn(
                        f"{self.path} cannot be locked ({error.strerror}): see to it that no other "
                        "process uses it",
                        stacklevel=2,
                    )
                    return descriptor
                if _is_still(path, descriptor):
                    break
                os.close(descriptor)  # its holder ended meanwhile and removed it
        now = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
        holder = f"process {os.getpid()} on {socket.gethostname()} since {now}"
        with contextlib.suppress(OSError):  # a full disk: only the words are missing
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(), 0)
        for entry in self.path.iterdir():
            if _LEFTOVER.fullmatch(entry.name):
                entry.unlink(missing_ok=True)
        return descriptor

    def file(self, name: str) -> Path:
        """Where the file of that name is or will be."""
        return self.path / name

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes config.toml."""
        text = dump_toml(config)
        write_atomically(self.file("config.toml"), lambda file: file.write(text.encode()))

    def read_config(self) -> dict[str, Any]:
        """Reads config.toml.

        Raises:
            ValueError: If it is not TOML.
        """
        path = self.file("config.toml")
        return load_toml(_text(path), str(path))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file."""
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.file(name), lambda file: file.write(text.encode()))

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a JSON file.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is not a JSON object.
        """
        path = self.file(name)
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing")
        try:
            content = json.loads(_text(path))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
        return content

    def save(self, name: str, content: Mapping[str, Any], *, keep_previous: bool = False) -> None:
        """Writes tensors and plain values with torch.save.

        Args:
            name: The file's.
            content: What to write.
            keep_previous: Whether to keep what was there, as "NAME.prev.pt".
        """

        def write(file: IO[bytes]) -> None:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # PyTorch's own, of a write that failed
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

        previous = self.file(_previous(name)) if keep_previous else None
        write_atomically(self.file(name), write, previous=previous)

    def load(self, name: str) -> dict[str, Any] | None:
        """Reads what :meth:`save` wrote, onto the CPU; None if the file is not there.

        Raises:
            ValueError: If the file is damaged: its checksums are verified.
        """
        path = self.file(name)
        if not path.exists():
            return None
        try:
            with _with_remedy(path):
                with zipfile.ZipFile(path) as archive:
                    damaged = archive.testzip()
                if damaged is not None:
                    raise ValueError(f"the checksum of {damaged} in it is wrong")
                content = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(content, dict):
                raise TypeError(f"it holds a {type(content).__name__}, not a dict")
        except (OSError, MemoryError):
            raise
        except Exception as error:  # whatever broken bytes make torch and zipfile raise
            raise ValueError(f"{path} is not a complete checkpoint: {_brief(error)}") from error
        return content

    def load_checkpoint(self, name: str) -> tuple[Path, dict[str, Any]] | None:
        """Reads a checkpoint, or, with a warning, the one before if it is damaged.

        Returns:
            The file and what it holds; None if there is none.

        Raises:
            ValueError: If both are damaged.
        """
        path, previous = self.file(name), self.file(_previous(name))
        try:
            content = self.load(name)
        except ValueError as error:
            try:
                before = self.load(previous.name)
            except ValueError:
                before = None
            if before is None:
                raise ValueError(
                    f"{error}; there is no checkpoint before it that could be used: remove "
                    f"{path} to begin anew"
                ) from None
            warnings.warn(f"{error}; going on from {previous.name}", stacklevel=2)
            os.replace(previous, path)  # or the next checkpoint would put the damaged one there
            return path, before
        return None if content is None else (path, content)

    def events(self, part: str) -> Events:
        """TensorBoard events of a part of the run."""
        return Events(self.path / "events" / part)


class Events:
    """TensorBoard events, or nothing if tensorboard is not installed."""

    def __init__(self, path: Path) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(path))

    def add(self, row: Mapping[str, float]) -> None:
        """One scalar per column but "epoch", which is the step."""
        if self._writer is not None:
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, int(row["epoch"]))
            self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()


_LOCK = ".lock"
_NOT_EMPTY = (
    "run folder {} exists and is not empty; choose another, or continue the run that is in it "
    "with `asng resume`"
)
_LEFTOVER = re.compile(r"\..+\.(toml|csv|json|pt|png)\.\d+\.tmp")
"""Names under which `write_atomically` writes the files of a run."""


def _make_new(path: Path) -> Path:
    """Makes a folder that was not there: `path`, or that with the first number that is free."""
    number, named = 1, path
    while True:
        try:
            named.mkdir()
            return named
        except FileExistsError:
            number += 1
            named = path.with_name(f"{path.name}-{number}")


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one that has the name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _text(path: Path) -> str:
    try:
        with _with_remedy(path):
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}") from None


def _previous(name: str) -> str:
    return str(Path(name).with_suffix(".prev.pt"))


def _brief(error: BaseException) -> str:
    """The first line of what an error says."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
