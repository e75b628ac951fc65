"""The live line of a long loop, and words to the user that never end a run."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO, cast

__all__ = ["STDERR", "Progress", "columns", "say", "tell"]


class _StandardError:
    """``sys.stderr`` as it is when it is used: it may have been replaced, or be None.

    What cannot be written is dropped.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> int:
        say(sys.stderr, text)
        return len(text)


STDERR = cast(TextIO, _StandardError())
"""Standard error, looked up when something is written."""


def say(stream: TextIO | None, text: str) -> None:
    """Writes text to a stream, as far as that is possible.

    Nothing is written to None, to a closed stream, a terminal or pipe whose other end is closed, or
    a full disk: losing sight of a run must not end it. What the encoding lacks is escaped.
    """
    try:
        if stream is not None:
            stream.write(_escaped(stream, text))
            stream.flush()
    except (AttributeError, OSError, ValueError):
        pass


def tell(text: str, end: str = "\n") -> None:
    """Prints a result on standard output.

    It is no error if it cannot be read: a closed pipe or terminal.

    Raises:
        OSError: If it cannot be written for another reason, such as a full disk.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise


def columns(stream: TextIO | None) -> int:
    """Width of the terminal that a stream writes to, 80 if it does not say; 0 if it is none."""
    try:
        if stream is None or not stream.isatty():
            return 0
    except (AttributeError, ValueError):
        return 0
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (AttributeError, OSError, ValueError):
        return 80


class Progress:
    """Shows how far a loop is, what it measures and how long it will take.

    On a terminal one line is drawn over and over; elsewhere there is a line per epoch. It never
    raises because of the stream; see :func:`say`.

    Args:
        label: What is going on.
        total: Steps in all.
        done: Steps that were done before.
        stream: Where to; None shows nothing.
        interval: Seconds between drawings of the live line.
    """

    def __init__(
        self,
        label: str,
        total: int,
        done: int = 0,
        stream: TextIO | None = STDERR,
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

    @classmethod
    def of_loop(
        cls, label: str, total: int, done: int, stream: TextIO | None, device: str
    ) -> Progress:
        """For a loop on a device of this type. To show what was measured, the host waits for it,
        unless it is the host, so the live line is drawn less often."""
        return cls(label, total, done, stream, 0.25 if device == "cpu" else 10.0)

    def left(self, done: int) -> float:
        """Seconds left, from the pace so far."""
        if done <= self.first:
            return float("nan")
        return (time.monotonic() - self.start) / (done - self.first) * (self.total - done)

    def due(self) -> bool:
        """Whether the live line should be drawn: on a terminal, once per interval.

        Ask before collecting what it shows, which may synchronize with the device.
        """
        due = time.monotonic() - self.drawn >= self.interval
        return due and columns(self.stream) > 0

    def draw(self, done: int, values: Mapping[str, float]) -> None:
        """Draws the live line over the last one; the last values are left out where the terminal
        is too narrow."""
        self.drawn = time.monotonic()
        self._write(self._fitting(done, values, keep_time=True)[: self._room()])

    def note(self, text: str) -> None:
        """Says something, in a line that stays."""
        self._write(f"{self.label}: {text}", end="\n")

    def line(self, done: int, values: Mapping[str, float]) -> None:
        """Draws a line that stays; the time left and the last values are left out where the
        terminal is too narrow."""
        self._write(self._fitting(done, values, keep_time=False), end="\n")

    def _fitting(self, done: int, values: Mapping[str, float], *, keep_time: bool) -> str:
        """The label, as many values as there is room for, and the time left."""
        shown = [f"{name} {_short(value)}" for name, value in values.items()]
        parts = [f"{self.label} {done}/{self.total}", *shown, f"{_duration(self.left(done))} left"]
        parts = [_escaped(self.stream, part) for part in parts]
        while len(line := "  ".join(parts)) > self._room() and len(parts) > 1 + keep_time:
            del parts[-1 - keep_time]
        return line

    def _room(self) -> int:
        """Characters that fit into a line."""
        # The last column stays free: some terminals begin a new line once it is written.
        width = columns(self.stream)
        return width - 1 if width else sys.maxsize

    def _write(self, line: str, end: str = "") -> None:
        """Writes over the live line, if there can be one."""
        live = columns(self.stream) > 0
        covering = line.ljust(min(self.width, self._room()))
        say(self.stream, (f"\r{covering}" if live else line) + end)
        self.width = 0 if end else len(line)


def _escaped(stream: TextIO | None, text: str) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


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
