"""The live line of a long loop."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO

__all__ = ["Progress"]


class Progress:
    """Shows how far a loop is, what it measures and how long it will take.

    On a terminal one line is drawn over and over; elsewhere there is a line per epoch.

    Args:
        label: What is going on.
        total: Steps in all.
        done: Steps that were done before.
        stream: Where to; standard error by default, None shows nothing.
        interval: Seconds between drawings of the live line.
    """

    def __init__(
        self,
        label: str,
        total: int,
        done: int = 0,
        stream: TextIO | None = sys.stderr,
        interval: float = 0.25,
    ) -> None:
        self.label = label
        self.total = total
        self.first = done
        self.stream = stream
        self.interval = interval
        self.start = time.monotonic()
        self.drawn = 0.0
        self.width = 0

    def left(self, done: int) -> float:
        """Seconds left, from the pace so far."""
        if done <= self.first:
            return float("nan")
        return (time.monotonic() - self.start) / (done - self.first) * (self.total - done)

    def due(self) -> bool:
        """Whether the live line should be drawn: on a terminal, once per interval.

        Ask before collecting what it shows, for which the host may have to wait for the device.
        """
        live = self.stream is not None and self.stream.isatty()
        return live and time.monotonic() - self.drawn >= self.interval

    def draw(self, done: int, values: Mapping[str, float]) -> None:
        """Draws the live line over the last one."""
        if self.stream is None:
            return
        self.drawn = time.monotonic()
        line = self._line(done, values)
        self.stream.write("\r" + line.ljust(self.width))
        self.stream.flush()
        self.width = len(line)

    def note(self, text: str) -> None:
        """Says something, in a line that stays."""
        if self.stream is None:
            return
        start = "\r" if self.stream.isatty() else ""
        self.stream.write(start + f"{self.label}: {text}".ljust(self.width) + "\n")
        self.stream.flush()
        self.width = 0

    def line(self, done: int, values: Mapping[str, float]) -> None:
        """Draws a line that stays."""
        if self.stream is None:
            return
        line = self._line(done, values)
        start = "\r" if self.stream.isatty() else ""
        self.stream.write(start + line.ljust(self.width) + "\n")
        self.stream.flush()
        self.width = 0

    def _line(self, done: int, values: Mapping[str, float]) -> str:
        shown = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        return f"{self.label} {done}/{self.total}  {shown}  {_duration(self.left(done))} left"


def _short(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if 1e-2 <= abs(value) < 1e4 or value == 0 else f"{value:.2e}"


def _duration(seconds: float) -> str:
    if seconds != seconds:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
