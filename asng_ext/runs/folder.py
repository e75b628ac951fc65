"""A run is a folder, used by one process at a time."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from asng_ext._files import LEFTOVER, as_path, read_text, with_remedy, write_atomically
from asng_ext.runs.config import dump_toml, load_toml
from asng_ext.runs.lock import LOCK_FILE, FolderLock

__all__ = ["RunFolder"]


class RunFolder:
    """The files of one run.

    ==========================  ==================================================================
    config.toml                 every setting
    search.csv, retrain.csv     metrics per epoch
    search.pt, retrain.pt       checkpoints, to continue after an interruption
    search.prev.pt, …           the checkpoints before, should those be damaged; search.prev2.pt and
                                so on if more are kept
    architecture.json           the architecture found, by names
    init.json                   where the search starts, if the settings say
    kernels.json                which kernels search the fastest on a GPU, of those tried
    latency.json                milliseconds of parts of networks, if their sum is limited
    network.pt                  the retrained network: weights, and all that it is built from
    results.json                test metrics of the retrained network, and its architecture
    times.json                  seconds of a run that is compared with others
    *.png                       pictures
    events/                     TensorBoard events, if tensorboard is installed
    .lock                       who is using the folder, while it is used
    ==========================  ==================================================================
    """

    def __init__(self, path: Path | str) -> None:
        self.path = as_path("path", path)
        self._lock = FolderLock(self.path)

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
        path = as_path("path", path)
        with with_remedy(path):
            if another_name:
                path.parent.mkdir(parents=True, exist_ok=True)
                path = _make_new(path)
            elif not path.exists():
                path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        cls.check_unused(path)
        with run.lock():
            cls.check_unused(path)  # since then
            if config is not None:
                run.write_config(config)
        return run

    def command(self, name: str, *options: str) -> str:
        """A command of ``asng`` on the run, such as "resume" or "retrain", for a shell."""
        return shlex.join(["asng", name, str(self.path), *options])

    @staticmethod
    def check_unused(path: Path | str) -> None:
        """Raises FileExistsError if there is something where a run is to be created."""
        path = as_path("path", path)
        if not path.exists():
            return
        if not path.is_dir():
            raise FileExistsError(f"run folder {path} is a file; choose another")
        names = (entry.name for entry in path.iterdir())
        if any(name != LOCK_FILE and not LEFTOVER.fullmatch(name) for name in names):
            words, run = "", RunFolder(path)
            if run.file("config.toml").exists():
                words = f", or continue the run that is in it with `{run.command('resume')}`"
            raise FileExistsError(
                f"run folder {path} exists and is not empty; choose another{words}"
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

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """In this context none but this object uses the folder; see :meth:`FolderLock.held`."""
        return self._lock.held()

    def user(self) -> str | None:
        """Who uses the folder now, in words; None if nobody does."""
        return self._lock.holder()

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
        return load_toml(read_text(path), str(path))

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
            content = json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
        return content

    def save(self, name: str, content: Mapping[str, Any], *, keep: int = 1) -> None:
        """Writes tensors and plain values with torch.save.

        Args:
            name: The file's.
            content: What to write.
            keep: How many to keep, with those that were there before as "NAME.prev.pt",
                "NAME.prev2.pt" and so on.
        """

        import torch  # takes seconds, and only files of tensors need it

        def write(file: IO[bytes]) -> None:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # PyTorch's own, of a write that failed
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

        previous = [self.file(_previous(name, number)) for number in range(1, keep)]
        write_atomically(self.file(name), write, previous=previous)

    def load(self, name: str) -> dict[str, Any] | None:
        """Reads what :meth:`save` wrote, onto the CPU; None if the file is not there.

        Raises:
            ValueError: If the file is damaged: its checksums are verified.
        """
        path = self.file(name)
        if not path.exists():
            return None
        import torch

        try:
            with with_remedy(path):
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
            words = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(f"{path} is not a complete checkpoint: {words}") from error
        return content

    def load_checkpoint(self, name: str, remedy: str) -> tuple[Path, dict[str, Any]] | None:
        """Reads a checkpoint, or, with a warning, the newest one before that is not damaged.

        Args:
            name: The file's.
            remedy: What to do if all are damaged, in words.

        Returns:
            The file and what it holds; None if there is none.

        Raises:
            ValueError: If all are damaged.
        """
        path = self.file(name)
        try:
            content = self.load(name)
        except ValueError as error:
            for previous in self._all_previous(name):
                try:
                    before = self.load(previous.name)
                except ValueError:
                    continue
                if before is not None:
                    warnings.warn(f"{error}; continuing from {previous.name}", stacklevel=2)
                    # Or the next checkpoint would put the damaged one there.
                    os.replace(previous, path)
                    return path, before
            raise ValueError(
                f"{error}; there is no checkpoint before it that could be used: {remedy}"
            ) from None
        return None if content is None else (path, content)

    def remove_previous(self, name: str) -> None:
        """Removes the checkpoints before one."""
        for path in self._all_previous(name):
            path.unlink(missing_ok=True)

    def _all_previous(self, name: str) -> list[Path]:
        """The checkpoints before one, newest first."""
        found = []
        pattern = re.compile(re.escape(Path(name).stem) + r"\.prev(\d*)\.pt")
        for entry in self.path.iterdir():
            if match := pattern.fullmatch(entry.name):
                found.append((int(match[1] or 1), entry))
        return [entry for _, entry in sorted(found)]


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


def _previous(name: str, number: int) -> str:
    return str(Path(name).with_suffix(f".prev{number if number > 1 else ''}.pt"))
