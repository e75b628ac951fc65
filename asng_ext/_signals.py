"""Signals that ask a process to end, of which loops finish their step first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Interrupted", "Stop", "asked_to_stop", "interrupted_by_signals"]

_NAMES = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT")
SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
"""Of the user, the terminal, and what runs jobs. SLURM's ``--signal`` sends SIGUSR1, say."""


class Interrupted(KeyboardInterrupt):
    """A signal has ended what was going on.

    Args:
        number: The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


class Stop:
    """Whether a signal has come.

    Attributes:
        number: Which one; None for none.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def raise_if_asked(self) -> None:
        """Interrupted if one has come."""
        if self.number is not None:
            raise Interrupted(self.number)


class _Handler:
    """What this process does about a signal, once: by the same one again it is ended at once."""

    def __init__(self, handle: Callable[[int], None]) -> None:
        self._handle = handle
        self._process = os.getpid()

    def __call__(self, number: int, frame: Any) -> None:
        if os.getpid() == self._process:
            signal.signal(number, signal.SIG_DFL)
            self._handle(number)
        elif number == signal.SIGTERM:  # of a process that was forked, by the one that did
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        # What all processes of a terminal or a job get is for the first one to act on.


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Stop]:
    """In this context signals do not end the process, but are noted, for a loop to look at.

    Signals that are ignored, as by nohup, or that a user handles are left alone, and so are all in
    a thread other than the main one.

    Raises:
        Interrupted: In the end, if one has come that was not looked at.
    """
    stop = Stop()

    def note(number: int) -> None:
        stop.number = number

    with _handling(_Handler(note)):
        yield stop
    stop.raise_if_asked()


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """In this context signals raise Interrupted, wherever they come."""

    def interrupt(number: int) -> None:
        raise Interrupted(number)

    with _handling(_Handler(interrupt)):
        yield


@contextlib.contextmanager
def _handling(handler: _Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    default = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = {n: b for n, b in before.items() if b in default or isinstance(b, _Handler)}
    try:
        for number in taken:
            signal.signal(number, handler)
        yield
    finally:
        for number, handling in taken.items():
            signal.signal(number, handling)
