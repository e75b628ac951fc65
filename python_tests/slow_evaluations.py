"""Evaluations that take their time, fail, hang or kill their process, for the tests of the driver,
and a driver to be killed: ``python slow_evaluations.py JOURNAL WORKERS``."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import asng_ext as asng

SPACE = asng.SearchSpace(
    {
        "op": asng.Categorical(["a", "b", "c"]),
        "width": asng.Integer(1, 9),
        "rate": asng.Real(1e-3, 1.0, log=True),
        **{f"name{i}": asng.Real(0.0, 1.0) for i in range(6)},  # no two samples have them in common
    }
)


def make(**settings: Any) -> asng.ASNG:
    return asng.ASNG(SPACE, **{"seed": 3, "population_size": 4, "evaluation_limit": 40, **settings})


def loss(sample: dict[str, Any]) -> float:
    return float((sample["op"] != "b") + abs(sample["width"] - 4) + sample["rate"])


def name(sample: dict[str, Any]) -> str:
    """Of a sample, for a file."""
    return hashlib.sha256(repr(sample).encode()).hexdigest()[:16]


def plain(optimizer: asng.ASNG, evaluate: Any = loss) -> list[dict[str, Any]]:
    """The loop that the driver must repeat with one worker; returns the samples."""
    found: list[dict[str, Any]] = []
    while not optimizer.should_stop():
        samples = optimizer.ask()
        optimizer.tell(samples, [evaluate(sample) for sample in samples])
        found += samples
    return found


def ended(process: int) -> bool:
    """Within some seconds."""
    for _ in range(200):
        try:
            os.kill(process, 0)
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


class InFolder:
    """Evaluations that leave a file with their process for each attempt.

    Args:
        folder: Where.
        seconds: How long each takes.
    """

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.folder = folder
        self.seconds = seconds

    def begin(self, sample: dict[str, Any]) -> int:
        """Which attempt at the sample this is, from 1."""
        attempt = 1
        while (self.folder / f"{name(sample)}-{attempt}").exists():
            attempt += 1
        (self.folder / f"{name(sample)}-{attempt}").write_text(str(os.getpid()))
        return attempt

    def attempts(self, sample: dict[str, Any]) -> int:
        return len(list(self.folder.glob(f"{name(sample)}-*")))

    def processes(self) -> set[int]:
        return {int(text) for text in (path.read_text() for path in self.folder.iterdir()) if text}

    def __call__(self, sample: dict[str, Any]) -> Any:
        self.begin(sample)
        time.sleep(self.seconds)
        return loss(sample)


class Deadly(InFolder):
    """One of "a" kills its process always, one of "c" at the first attempt."""

    def __call__(self, sample: dict[str, Any]) -> Any:
        attempt = self.begin(sample)
        if sample["op"] == "a" or (sample["op"] == "c" and attempt == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(sample)


class Hanging(InFolder):
    """One of "a" takes a minute."""

    def __call__(self, sample: dict[str, Any]) -> Any:
        self.begin(sample)
        if sample["op"] == "a":
            time.sleep(60)
        return loss(sample)


class Numbered(InFolder):
    """Tells the number of its worker."""

    def __call__(self, sample: dict[str, Any]) -> Any:
        time.sleep(0.01)
        return int(os.environ["ASNG_WORKER"])


def failing(sample: dict[str, Any]) -> Any:
    """Fails in several ways."""
    if sample["op"] == "a":
        raise NotReadableError(sample["width"], "too wide")
    if sample["width"] == 5:
        sys.exit("five")
    if sample["width"] == 4:
        return float("inf")
    return loss(sample)


class NotReadableError(Exception):
    """That pickle can write, but not read again."""

    def __init__(self, width: int, text: str) -> None:
        super().__init__(f"{width} is {text}")


def interrupted_here(journal: str, workers: str) -> None:
    folder = Path(journal).parent / "attempts"
    folder.mkdir(exist_ok=True)
    asng.drive(make(), InFolder(folder, 0.02), workers=int(workers), journal=journal)


if __name__ == "__main__":
    interrupted_here(*sys.argv[1:])
