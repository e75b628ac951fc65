"""What evaluates: processes of this machine, or an executor that somebody else has made."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from typing import Any, Protocol

from asng_ext._checks import brief, is_number

__all__ = [
    "NUMBER",
    "Borrowed",
    "Evaluate",
    "Outcome",
    "Processes",
    "Source",
    "Worker",
    "Workers",
    "attempt",
    "end_with_parent",
]

NUMBER = "ASNG_WORKER"
"""Variable of a worker's environment with its number: from 0, and none that a living one has."""

Evaluate = Callable[[dict[str, Any]], Any]
Outcome = tuple[float | None, str | None]
"""Of an evaluation: its loss, and why there is none. A loss of None is a wrong kind of value, which
the text shows."""


class Worker(Protocol):
    """Evaluates one sample at a time.

    Attributes:
        ready: Done once it can; fails if it never will.
    """

    ready: Future[Any]

    def evaluate(self, sample: Mapping[str, Any]) -> Future[Outcome]:
        """Starts an evaluation. The future has what :func:`attempt` returns, or fails."""

    def close(self) -> None:
        """Ends it, also in the middle of an evaluation, without waiting for anything."""


class Source(Protocol):
    """Where workers come from.

    Attributes:
        lost: What ``ready``, ``evaluate`` and its future raise if the worker has died.
    """

    lost: tuple[type[Exception], ...]

    def start(self, number: int, evaluate: Evaluate) -> Worker:
        """A new worker, which may take its time to become ready."""


class Workers(Source, Protocol):
    """A source that says how many workers there is room for."""

    def capacity(self) -> int:
        """As many, now."""


def attempt(evaluate: Evaluate, sample: Mapping[str, Any]) -> Outcome:
    """Evaluates a sample, in a worker. Errors become text: not all can be sent or read again."""
    try:
        loss = evaluate(dict(sample))
        if not is_number(loss) and hasattr(loss, "item"):  # a tensor, or an array
            loss = loss.item()
    except (Exception, SystemExit) as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        where = f"{os.path.basename(last.filename)}:{last.lineno}"
        return math.nan, f"{type(error).__name__}: {error} ({where})"
    return (float(loss), None) if is_number(loss) else (None, brief(loss))


class Processes:
    """A process of this machine for each worker.

    They are spawned, so they have no threads, locks or GPU of this process. One that dies takes no
    other with it, and all end with this process, however that ends.
    """

    lost: tuple[type[Exception], ...] = (BrokenExecutor,)

    def capacity(self) -> int:
        """As many as this process has CPUs."""
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1

    def start(self, number: int, evaluate: Evaluate) -> _Process:
        return _Process(number, evaluate)


class _Process:
    """A pool of one process, so that it is known which evaluation has killed it."""

    def __init__(self, number: int, evaluate: Evaluate) -> None:
        try:
            pickled = pickle.dumps(evaluate)
        except Exception as error:  # pickle raises errors of many kinds
            raise TypeError(
                "evaluate must be a function that other processes can import, got "
                f"{brief(evaluate)}: {error}"
            ) from None
        self._pool = ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(number,),
        )
        self.ready = self._pool.submit(_take, pickled)

    def evaluate(self, sample: Mapping[str, Any]) -> Future[Outcome]:
        return self._pool.submit(_attempt_here, sample)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None:
            process_id = self.ready.result()
            for process in multiprocessing.active_children():
                if process.pid == process_id:
                    process.kill()


def _begin(number: int) -> None:
    """Before all else in a new process."""
    os.environ[NUMBER] = str(number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver to act on
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Ends this process when the one that spawned it ends; for a thread of its own."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


_taken: Evaluate


def _take(pickled: bytes) -> int:
    """Keeps what evaluates, and returns the number of this process."""
    global _taken
    _taken = pickle.loads(pickled)
    return os.getpid()


def _attempt_here(sample: Mapping[str, Any]) -> Outcome:
    return attempt(_taken, sample)


class Borrowed:
    """An executor that the user has made and will shut down: threads, MPI, a cluster of Dask.

    Args:
        executor: The executor.
    """

    lost: tuple[type[Exception], ...] = (BrokenExecutor,)

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def start(self, number: int, evaluate: Evaluate) -> _Turn:
        return _Turn(self._executor, evaluate)


class _Turn:
    """One evaluation at a time of an executor's. What runs in it cannot be ended from outside."""

    def __init__(self, executor: Executor, evaluate: Evaluate) -> None:
        self.ready: Future[Any] = Future()
        self.ready.set_result(None)
        self._executor = executor
        self._evaluate = evaluate
        self._running: Future[Outcome] | None = None

    def evaluate(self, sample: Mapping[str, Any]) -> Future[Outcome]:
        try:
            self._running = self._executor.submit(attempt, self._evaluate, sample)
        except BrokenExecutor as error:
            raise RuntimeError(
                "executor is broken, and cannot be made anew here: a process of it was killed. "
                "Without an executor, processes that die are replaced"
            ) from error
        return self._running

    def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
