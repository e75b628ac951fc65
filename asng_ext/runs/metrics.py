"""The metrics of a run: a table with a row per epoch, and TensorBoard events."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from asng_ext._files import with_remedy, write_atomically

__all__ = ["Events", "MetricsTable"]


class MetricsTable:
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
            with with_remedy(self.path), open(self.path, newline="", encoding="utf-8") as file:
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


class Events:
    """TensorBoard events, or nothing if tensorboard is not installed.

    Args:
        path: Their folder.
    """

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
