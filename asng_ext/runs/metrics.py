"""The metrics of a run: a table with a row per epoch, and TensorBoard events."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from asng_ext._files import with_remedy, write_atomically

__all__ = ["Distributions", "Events", "MetricsTable", "write_csv"]

Distributions: TypeAlias = Mapping[str, Sequence[float]]
"""Probabilities of the values of categorical variables, by name."""

_MOST_HISTOGRAMS = 256
"""Variables that have a histogram of their own: TensorBoard is slow with more."""


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
        """Writes all rows; columns that a row lacks stay empty. Without rows there is no file."""
        if self.rows:
            write_csv(self.path, self.rows)
        elif self.path.exists():
            self.path.unlink()


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Creates or replaces a CSV file; columns that a row lacks stay empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


class Events:
    """TensorBoard events, or nothing if tensorboard is not installed.

    Args:
        path: Their folder.
        after: Epochs whose events stay: those of later ones that are in the folder do not count.
            None for all.
    """

    def __init__(self, path: Path, after: int | None = None) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        begun_before = after is not None and path.is_dir() and any(path.iterdir())
        purged = after + 1 if begun_before and after is not None else None
        self._writer = SummaryWriter(str(path), purge_step=purged)

    def add(
        self, row: Mapping[str, float], distributions: Callable[[], Distributions] | None = None
    ) -> None:
        """One scalar per column but "epoch", which is the step, and one histogram per distribution,
        which are asked for only if they are written."""
        if self._writer is not None:
            step = int(row["epoch"])
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, step)
            if distributions is not None:
                self._add_distributions(distributions(), step)
            self._writer.flush()

    def _add_distributions(self, distributions: Distributions, step: int) -> None:
        if not distributions:
            return
        # One of all: as θ converges, it moves to 1.
        most = np.array([max(each) for each in distributions.values()])
        self._writer.add_histogram("theta/largest", most, step, bins=np.linspace(0, 1, 21))
        for name, probabilities in islice(distributions.items(), _MOST_HISTOGRAMS):
            places, weights = np.arange(len(probabilities)), np.array(probabilities)
            self._writer.add_histogram_raw(
                f"theta/{name}",
                min=-0.5,
                max=len(places) - 0.5,
                num=1,
                sum=float(weights @ places),
                sum_squares=float(weights @ places**2),
                bucket_limits=(places + 0.5).tolist(),
                bucket_counts=weights.tolist(),
                global_step=step,
            )

    def add_pictures(self, paths: Iterable[Path], step: int) -> None:
        """PNG files, by their names without the ending; needs matplotlib."""
        if self._writer is not None:
            from matplotlib.image import imread

            for path in paths:
                self._writer.add_image(path.stem, imread(path)[:, :, :3], step, dataformats="HWC")
            self._writer.flush()

    def add_settings(self, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """What a run was made with and what came of it, to compare runs by ("hparams")."""
        if self._writer is not None:
            plain = {n: v for n, v in settings.items() if isinstance(v, (bool, int, float, str))}
            measured = {f"hparam/test_{name}": value for name, value in results.items()}
            self._writer.add_hparams(plain, measured, run_name=".")

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()
