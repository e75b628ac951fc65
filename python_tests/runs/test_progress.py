"""The live line fits the terminal, and losing the terminal loses nothing."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import struct
import sys
import termios
from collections.abc import Iterator
from typing import TextIO

import pytest

from asng_ext._terminal import STDERR, Progress, columns, say

VALUES = {"train loss": 0.123, "valid. accuracy": 0.9, "convergence": 0.5, "δ": 0.97}


class Terminal:
    """A pseudoterminal: a stream to write to, and what has been written."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self.screen, self.other = pty.openpty()
        self.stream: TextIO = os.fdopen(self.other, "w", encoding=encoding)

    def resize(self, width: int) -> None:
        fcntl.ioctl(self.other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))

    def read(self) -> str:
        """What has been written since the last time."""
        os.write(self.other, b"\0")
        received = b""
        while not received.endswith(b"\0"):
            received += os.read(self.screen, 65536)
        return received[:-1].decode()


@contextlib.contextmanager
def terminal(width: int, encoding: str = "utf-8") -> Iterator[Terminal]:
    made = Terminal(encoding)
    made.resize(width)
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):
            made.stream.close()
        with contextlib.suppress(OSError):
            os.close(made.screen)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_live_line_fits_the_terminal(encoding: str) -> None:
    with terminal(120, encoding) as here:
        progress = Progress("search", 12345, stream=here.stream, interval=0)
        for width in (120, 80, 60, 40, 20, 5, 100):
            here.resize(width)
            assert progress.due()
            for done in (9999, 12345):
                progress.draw(done, VALUES)
            drawn = here.read().split("\r")
            assert all(len(line) < width for line in drawn)
            assert drawn[-1].startswith("search 12345/12345"[: width - 1])
            if width >= 40:
                assert drawn[-1].endswith("left")
            assert ("valid. accuracy 0.900" in drawn[-1]) == (width >= 80)
            assert ("0.970" in drawn[-1]) == (width >= 120)


def test_a_short_line_covers_a_long_one() -> None:
    with terminal(120) as here:
        progress = Progress("search", 10, stream=here.stream)
        progress.draw(1, VALUES)
        long = len(here.read().strip("\r"))
        progress.note("done")
        line = here.read().strip("\r\n")
        assert line.rstrip() == "search: done"
        assert len(line) == long


def test_the_width_of_a_terminal_that_does_not_say() -> None:
    with terminal(0) as here:
        assert columns(here.stream) == 80
    assert columns(here.stream) == 0  # closed
    assert columns(io.StringIO()) == 0
    assert columns(None) == 0


def broken_streams() -> Iterator[TextIO]:
    """A pipe that nobody reads, a full disk, a closed terminal, a closed file."""
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    with terminal(80) as here:
        os.close(here.screen)
        for stream in (os.fdopen(writer, "w"), os.fdopen(full, "w"), here.stream):
            yield stream
            with contextlib.suppress(OSError):
                stream.close()
            yield stream


def test_progress_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (None, *broken_streams()):
        monkeypatch.setattr(sys, "stderr", stream)
        for given in (stream, STDERR):
            progress = Progress("search", 10, stream=given)
            progress.due()
            progress.draw(1, VALUES)
            progress.note("something to know")
            progress.line(1, VALUES)
        STDERR.write("words")


def test_standard_error_is_looked_up_when_it_is_used() -> None:
    progress = Progress("search", 10)
    for _ in range(2):
        with contextlib.redirect_stderr(io.StringIO()) as caught:
            progress.note("here")
        assert caught.getvalue() == "search: here\n"


def test_what_an_encoding_lacks_is_escaped() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    say(stream, "δ 0.5\n")
    assert raw.getvalue() == b"\\u03b4 0.5\n"
