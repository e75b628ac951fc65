"""The command line: ``asng demo``, ``search``, ``compare``, ``resume``, ``retrain``, ``evaluate``,
``show``, ``predict``, ``export``, ``toy``."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import TextIO

from asng_ext._checks import check_one_process
from asng_ext._signals import Interrupted, interrupted_by_signals
from asng_ext._terminal import STDERR, say, tell
from asng_ext._threads import spin_briefly
from asng_ext.cli import commands
from asng_ext.cli.parser import make_parser
from asng_ext.distributed import ALONE, Ranks, RanksDifferError, joined

__all__ = ["main"]

_RENAMED = {
    ("search", "--precision"): "--search-precision",
    ("retrain", "--precision"): "--retrain-precision",
    ("toy", "--output"): "--out",
}
"""Options of earlier versions, by command."""

_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    A command continues when what it prints is not read. A search, a retraining and a comparison end
    by signals, and by closing the terminal, after their step; other commands continue without a
    terminal.
    """
    spin_briefly()  # before torch is imported
    arguments = _with_new_names(list(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # not a text file, or closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    args = argparse.Namespace(arguments=arguments)
    try:
        try:
            make_parser().parse_args(arguments, args)
        except SystemExit:
            tell("", end="")  # raises if what --help printed cannot be written
            raise
        loops = (commands.run_demo, commands.run_search, commands.run_resume, commands.run_retrain)
        has_ranks = args.run in loops
        ends_by_signals = has_ranks or args.run is commands.run_compare
        if not has_ranks:
            check_one_process()
        with (
            interrupted_by_signals() if ends_by_signals else _without_hangup(),
            joined() if has_ranks else contextlib.nullcontext(ALONE) as args.ranks,
            _spoken_by_first(args.ranks),
            _plain_warnings(),
        ):
            args.run(args)
        return 0
    except _ERRORS as error:
        ranks = getattr(args, "ranks", ALONE)
        if ranks.first or not (isinstance(error, RanksDifferError) or hasattr(error, "of_first")):
            who = "" if ranks.first else f"rank {ranks.rank}: "
            say(STDERR, f"asng: error: {who}{' '.join(str(error).split())}\n")
        return 2
    except (MemoryError, RuntimeError) as error:
        words = str(error).partition("\n")[0] or "out of memory"
        # PyTorch has no class of its own for what the CPU lacks.
        if "out of memory" not in words and "can't allocate memory" not in words:
            raise
        say(STDERR, f"asng: error: {words}; a smaller batch_size needs less\n")
        return 2
    except KeyboardInterrupt as error:
        ranks = getattr(args, "ranks", ALONE)
        if ranks.first:
            command = [*_program(ranks), *getattr(args, "resume", arguments)]
            say(STDERR, f"\nasng: interrupted; to continue: {shlex.join(command)}\n")
        return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT)
    finally:
        for stream in (sys.stdout, sys.stderr):
            _discard_unwritten(stream)


@contextlib.contextmanager
def _spoken_by_first(ranks: Ranks) -> Iterator[None]:
    """What ranks say is said once, by the first."""
    if ranks.first:
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _program(ranks: Ranks) -> list[str]:
    """What starts the command line again, on as many ranks."""
    if ranks.size == 1:
        return ["asng"]
    of_machine = os.environ.get("LOCAL_WORLD_SIZE", str(ranks.size))
    return ["torchrun", "--nproc-per-node", of_machine, "-m", "asng_ext"]


def _with_new_names(arguments: list[str]) -> list[str]:
    """The arguments with options of earlier versions called as they are now, and a note of it."""
    renamed = []
    for argument in arguments:
        old, equals, value = argument.partition("=")
        new = _RENAMED.get((arguments[0], old), old)
        if new != old:
            say(STDERR, f"asng: note: {old} of `asng {arguments[0]}` is now {new}\n")
        renamed.append(new + equals + value)
    return renamed


@contextlib.contextmanager
def _without_hangup() -> Iterator[None]:
    """Closing the terminal does not end the process."""
    if not hasattr(signal, "SIGHUP") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before or signal.SIG_DFL)


def _discard_unwritten(stream: TextIO | None) -> None:
    """What cannot be written goes nowhere, so that Python does not stumble over it at exit."""
    if stream is None or stream.closed:
        return
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings are shown without the place in the code."""

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *place, **more: say(
            STDERR, f"asng: warning: {message}\n"
        )
        yield
