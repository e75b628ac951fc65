"""A run is a folder. Every file in it is written under another name and renamed when complete."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from asng_ext.config import dump_toml, load_toml

__all__ = ["Metrics", "RunFolder", "write_atomically"]


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Creates or replaces a file at once: what was there stays until all is written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Metrics:
    """A CSV file with one row per epoch, complete at any time.

    Args:
        path: The file. Rows that are in it already are kept.
        keep: How many of its rows to keep; those after a checkpoint are repeated by the run.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        if keep and path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                self.rows = [
                    {name: float(value) for name, value in row.items() if value != ""}
                    for row in csv.DictReader(file)
                ][:keep]

    def add(self, row: Mapping[str, float]) -> None:
        """Appends a row; columns it lacks stay empty."""
        self.rows.append(dict(row))
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
    architecture.json           the architecture found, by names
    network.pt                  weights of the retrained network
    results.json                test metrics of the retrained network
    *.png                       pictures
    events/                     TensorBoard events, if tensorboard is installed
    ==========================  ==================================================================
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: Path | str) -> RunFolder:
        """A new folder.

        Raises:
            FileExistsError: If there is something in it already.
        """
        run = cls(path)
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            raise FileExistsError(
                f"run folder {run.path} exists and is not empty; choose another, or continue the "
                "run that is in it with `asng resume`"
            )
        run.path.mkdir(parents=True, exist_ok=True)
        return run

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

    def file(self, name: str) -> Path:
        """Where the file of that name is or will be."""
        return self.path / name

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes config.toml."""
        text = dump_toml(config)
        write_atomically(self.file("config.toml"), lambda file: file.write(text.encode()))

    def read_config(self) -> dict[str, Any]:
        """Reads config.toml."""
        path = self.file("config.toml")
        return load_toml(path.read_text(encoding="utf-8"), str(path))

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
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
        return content

    def save(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes tensors and plain values with torch.save."""
        write_atomically(self.file(name), lambda file: torch.save(content, file))

    def load(self, name: str) -> dict[str, Any] | None:
        """Reads what :meth:`save` wrote, onto the CPU; None if the file is not there."""
        path = self.file(name)
        if not path.is_file():
            return None
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} is not a complete checkpoint: {error}") from error
        return dict(content)

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
