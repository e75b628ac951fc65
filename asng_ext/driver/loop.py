"""Asks an optimizer, has samples evaluated by workers, and tells it what comes back, and when."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asng_ext._checks import brief, check_integer, check_number, check_truth_value
from asng_ext.driver.journal import Journal
from asng_ext.driver.workers import (
    Borrowed,
    Evaluate,
    Outcome,
    Processes,
    Source,
    Worker,
    Workers,
)
from asng_ext.optimizers import Optimizer
from asng_ext.space import Samples

__all__ = ["Evaluation", "drive"]

_POLL = 0.5
"""Seconds after which it is looked again whether there is room for other workers."""
_STARTS = 3
"""So many workers in a row that die before they are ready are too many."""


class Evaluation(NamedTuple):
    """One that is over.

    Attributes:
        sample: Its values by name.
        loss: Its loss, or score; NaN if it failed.
        seconds: How long it took, including what it waited for in an executor of the user's.
        failure: Why it failed; None if it did not.
    """

    sample: dict[str, Any]
    loss: float
    seconds: float
    failure: str | None


def drive(
    optimizer: Optimizer,
    evaluate: Evaluate,
    *,
    workers: int | Callable[[], int] | None = None,
    executor: Executor | Workers | None = None,
    journal: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
    retries: int = 1,
    failure_limit: int | None = 20,
    synchronous: bool = False,
    report: Callable[[Evaluation], object] | None = None,
) -> list[Evaluation]:
    """Searches until ``optimizer.should_stop()``, with several evaluations at a time.

    No worker waits for a slow one: λ evaluations that are over, in the order in which they came to
    their end, are told as a population, whichever populations their samples were drawn in. A
    sample is drawn when a worker is free for it, from the distribution of then.

    Args:
        optimizer: What is searched by, on the CPU.
        evaluate: Takes a sample, a dict, and returns its loss: a number, also as a tensor. It runs
            in a worker, whose number, from 0, is ``os.environ["ASNG_WORKER"]`` unless ``executor``
            is one of ``concurrent.futures``.
        workers: How many evaluations run at a time, or a function of no arguments that says so
            whenever asked; workers that are too many finish what they do. None is one for each CPU,
            or as many as ``executor`` has room for if that is a :class:`Workers`.
        executor: None for processes of this machine, for which ``evaluate`` must be a function of a
            module, or of a script that calls ``drive`` under ``if __name__ == "__main__":``. Or an
            executor of ``concurrent.futures``, such as Dask's, which has as many ``workers``; or
            other :class:`Workers`, such as :class:`asng_ext.integrations.ray.RayWorkers`.
        journal: A file in which all is noted, and from which the search goes on if it is there: as
            if nothing had been between, but that evaluations which were not over begin anew. The
            optimizer, of the same space and settings, then has the state that is noted.
        timeout: Seconds after which an evaluation has failed, and its worker is ended. One of
            ``concurrent.futures`` cannot be; it is waited for, and what it returns is dropped.
        retries: How often an evaluation begins anew if its worker dies, before it has failed.
        failure_limit: So many failures in a row end the search; None for never.
        synchronous: Draws a population when all of the one before are over, and tells it in the
            order in which it was drawn. The search is then that of one worker, but workers wait.
        report: Called with each evaluation that is over, in this process.

    Returns:
        All evaluations, also those noted in the journal, in the order in which they were told.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or out of its range, the journal
            is damaged or of another search, or ``evaluate`` returns no number.
        BlockingIOError: If another process uses the journal.
        RuntimeError: If ``failure_limit`` is reached, or workers cannot be started or replaced.

    Warns:
        RuntimeWarning: If an evaluation has failed, which ranks it behind all others, or begins
            anew. Says which and why.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be one of asng_ext, got {brief(optimizer)}")
    if optimizer.device != "cpu":
        raise ValueError(f'optimizer must be on device "cpu", got one on {optimizer.device!r}')
    if not callable(evaluate):
        raise TypeError(f"evaluate must be a function of a sample, got {brief(evaluate)}")
    if workers is not None and not callable(workers):
        check_integer("workers", workers, 1, 2**31)
    source = _source(executor)
    wanted = getattr(source, "capacity", None) if workers is None else workers
    if wanted is None:
        raise ValueError("workers must be given where there is an executor, got None")
    if timeout is not None:
        check_number("timeout", timeout, 0.0)
    check_integer("retries", retries, 0, 2**31)
    if failure_limit is not None:
        check_integer("failure_limit", failure_limit, 1, 2**31)
    check_truth_value("synchronous", synchronous)
    if report is not None and not callable(report):
        raise TypeError(f"report must be a function of an evaluation, got {brief(report)}")
    try:
        path = None if journal is None else Path(journal)
        if path is not None:
            path.resolve()  # an error if no file can be called so
    except (TypeError, ValueError) as error:
        raise type(error)(f"journal must be the path of a file, got {brief(journal)}") from None
    record = _Record(optimizer, bool(synchronous))
    loop = _Loop(record, evaluate, source, wanted, timeout, retries, failure_limit, report)
    if path is None:
        loop.run()
        return record.evaluations
    with Journal(path) as opened:
        record.keep(opened)
        loop.run()
    return record.evaluations


def _source(executor: Executor | Workers | None) -> Source:
    if executor is None:
        return Processes()
    if isinstance(executor, Executor):
        return Borrowed(executor)
    if isinstance(executor, type) or not all(
        hasattr(executor, name) for name in ("lost", "capacity", "start")
    ):
        raise TypeError(
            "executor must be None, an executor of concurrent.futures or Workers, got "
            f"{brief(executor)}"
        )
    return executor


@dataclass
class _Task:
    """An evaluation that is to be done.

    Attributes:
        number: Of the population and of the sample in it.
        sample: A population of it alone.
        deaths: How many workers have died of it.
    """

    number: tuple[int, int]
    sample: Samples
    deaths: int = 0

    @property
    def name(self) -> str:
        return "sample {1} of population {0}, ".format(*self.number) + brief(self.sample[0])


class _Record:
    """The optimizer with what was asked and what came back. The journal repeats its calls."""

    def __init__(self, optimizer: Optimizer, synchronous: bool) -> None:
        self.optimizer = optimizer
        self.evaluations: list[Evaluation] = []
        self.open: dict[tuple[int, int], _Task] = {}  # in the order in which they were drawn
        self._over: list[tuple[_Task, Evaluation]] = []  # since the last tell
        self._asked = 0
        self._synchronous = synchronous
        self._journal: Journal | None = None

    def keep(self, journal: Journal) -> None:
        """Repeats what a journal has, and adds to it from then on."""
        if journal.is_new:
            state = self.optimizer.state_dict()
            journal.begin(synchronous=self._synchronous, optimizer=state)
        else:
            before = self.optimizer.state_dict()
            try:
                self._repeat(journal)
            except BaseException:
                self.optimizer.load_state_dict(before)
                raise
        self._journal = journal

    def _repeat(self, journal: Journal) -> None:
        header = journal.header()
        try:
            self.optimizer.load_state_dict(header["optimizer"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"journal {journal.path} is of another search: {error}") from None
        if header.get("synchronous") != self._synchronous:
            raise ValueError(
                f"synchronous must be as in journal {journal.path}, which has "
                f"{header.get('synchronous')}, got {self._synchronous}"
            )
        for line, event in journal.events():
            try:
                if "draws" in event:
                    self._take(self.optimizer.ask(), *event["draws"])
                else:
                    task = self.open[event["population"], event["index"]]
                    loss = math.nan if event["loss"] is None else float(event["loss"])
                    self._end(task, loss, float(event["seconds"]), event["failure"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"journal {journal.path} is damaged in line {line}, {brief(event)}: "
                    f"{type(error).__name__}: {error}"
                ) from None

    def may_ask(self) -> bool:
        """Whether another population is within the limits, and may be drawn now."""
        optimizer = self.optimizer
        pending = len(self.open) + len(self._over)  # whole populations
        size = optimizer.population_size
        evaluations, generations = optimizer.evaluation_limit, optimizer.generation_limit
        return not (
            (self._synchronous and pending > 0)
            or (evaluations is not None and optimizer.evaluations + pending + size > evaluations)
            or (generations is not None and optimizer.generation + pending // size >= generations)
        )

    def ask(self) -> list[_Task]:
        """The tasks of another population."""
        samples = self.optimizer.ask()
        draws = samples.categorical.tolist(), samples.numerical.tolist()
        if self._journal is not None:
            self._journal.append({"population": self._asked, "draws": draws})
        return self._take(samples, *draws)

    def _take(self, samples: Samples, categorical: Any, numerical: Any) -> list[_Task]:
        """The draws are those of ``samples``, to the last digit or, on another machine, nearly."""
        drawn = np.array(categorical, np.int64), np.array(numerical, np.float64)
        shapes = samples.categorical.shape, samples.numerical.shape
        if (drawn[0].shape, drawn[1].shape) != shapes:
            raise ValueError(f"draws must have the shapes {shapes}")
        kept = Samples(samples.space, *drawn)
        tasks = [_Task((self._asked, i), kept[[i]]) for i in range(len(kept))]
        self._asked += 1
        self.open |= {task.number: task for task in tasks}
        return tasks

    def end(self, task: _Task, loss: float, seconds: float, failure: str | None) -> Evaluation:
        """Notes an evaluation, and tells the optimizer if it completes a population."""
        seconds = round(seconds, 3)
        if self._journal is not None:
            population, index = task.number
            event = {
                "population": population,
                "index": index,
                "sample": task.sample[0],
                "loss": None if math.isnan(loss) else loss,
                "seconds": seconds,
                "failure": failure,
            }
            self._journal.append(event, durable=True)
        return self._end(task, loss, seconds, failure)

    def _end(self, task: _Task, loss: float, seconds: float, failure: str | None) -> Evaluation:
        evaluation = Evaluation(task.sample[0], loss, seconds, failure)
        del self.open[task.number]
        self._over.append((task, evaluation))
        size = self.optimizer.population_size
        if len(self._over) >= size and not (self._synchronous and self.open):
            if self._synchronous:
                self._over.sort(key=lambda pair: pair[0].number)
            told, self._over = self._over[:size], self._over[size:]
            parts = [task.sample for task, _ in told]
            samples = Samples(
                self.optimizer.space,
                np.concatenate([part.categorical for part in parts]),
                np.concatenate([part.numerical for part in parts]),
            )
            self.optimizer.tell(samples, [each.loss for _, each in told])
            self.evaluations += [each for _, each in told]
        return evaluation


@dataclass
class _Slot:
    """A worker and what it does.

    Attributes:
        worker: The worker.
        future: Of its start, or of the evaluation; None if it is idle.
        task: What it evaluates; None if it starts, is idle, or what it evaluates is given up.
        since: When it began.
        closed: Whether it was told to end.
    """

    worker: Worker
    future: Future[Any] | None
    task: _Task | None = None
    since: float = 0.0
    closed: bool = False


class _Loop:
    """Keeps workers busy. A fresh one is as good as one that has done something."""

    def __init__(
        self,
        record: _Record,
        evaluate: Evaluate,
        source: Source,
        workers: int | Callable[[], int],
        timeout: float | None,
        retries: int,
        failure_limit: int | None,
        report: Callable[[Evaluation], object] | None,
    ) -> None:
        self._record = record
        self._evaluate = evaluate
        self._source = source
        self._workers = workers
        self._timeout = timeout
        self._retries = retries
        self._failure_limit = failure_limit
        self._report = report
        self._queue: deque[_Task] = deque()
        self._slots: dict[int, _Slot] = {}  # by the worker's number
        self._failures = 0  # in a row
        self._failed_starts = 0  # in a row

    def run(self) -> None:
        self._queue.extend(self._record.open.values())
        told = -1
        try:
            while True:
                # It warns whenever it is asked, so only where there is news.
                if told != self._record.optimizer.generation:
                    told = self._record.optimizer.generation
                    if self._record.optimizer.should_stop():
                        return
                self._resize()
                self._dispatch()
                self._wait()
                for number, slot in list(self._slots.items()):
                    if slot.future is None:
                        continue
                    if slot.future.done():
                        self._collect(number, slot)
                    elif slot.task is not None and time.monotonic() > self._deadline(slot):
                        self._give_up(slot)
                    if told != self._record.optimizer.generation:
                        break
        finally:
            for slot in self._slots.values():
                slot.worker.close()

    def _wanted(self) -> int:
        if not callable(self._workers):
            return self._workers
        wanted = self._workers()
        check_integer("what workers returns", wanted, 0, 2**31)
        return wanted

    def _resize(self) -> None:
        """Starts workers where there is room, and closes idle ones where there is none."""
        wanted = self._wanted()
        for number in range(wanted):
            if len(self._slots) >= wanted:
                break
            if number not in self._slots:
                worker = self._source.start(number, self._evaluate)
                self._slots[number] = _Slot(worker, worker.ready)
        for number, slot in sorted(self._slots.items(), reverse=True):
            if len(self._slots) <= wanted:
                break
            if slot.task is None and not slot.closed:
                slot.worker.close()
                del self._slots[number]

    def _dispatch(self) -> None:
        for number, slot in list(self._slots.items()):
            if slot.future is not None:
                continue
            if not self._queue and self._record.may_ask():
                self._queue.extend(self._record.ask())
            if not self._queue:
                break
            try:
                slot.future = slot.worker.evaluate(self._queue[0].sample[0])
            except self._source.lost:  # it has died while it was idle
                slot.worker.close()
                del self._slots[number]
                continue
            slot.task = self._queue.popleft()
            slot.since = time.monotonic()

    def _deadline(self, slot: _Slot) -> float:
        return math.inf if self._timeout is None else slot.since + self._timeout

    def _wait(self) -> None:
        """Until something may have happened."""
        deadlines = [self._deadline(slot) for slot in self._slots.values() if slot.task is not None]
        seconds = min([_POLL, *(max(0.0, each - time.monotonic()) for each in deadlines)])
        futures = [slot.future for slot in self._slots.values() if slot.future is not None]
        if futures:
            wait(futures, timeout=seconds, return_when=FIRST_COMPLETED)
        else:
            time.sleep(seconds)

    def _collect(self, number: int, slot: _Slot) -> None:
        """Takes what a worker has for us."""
        assert slot.future is not None
        task, seconds = slot.task, time.monotonic() - slot.since
        try:
            outcome: Outcome = slot.future.result()
        except Exception as error:
            # Of the worker rather than of what evaluates, or of what the two send each other.
            del self._slots[number]
            if slot.closed:
                return
            slot.worker.close()
            if task is None:
                self._failed_start(error)
            elif not isinstance(error, self._source.lost):
                self._end(task, math.nan, seconds, f"{type(error).__name__}: {error}")
            elif task.deaths < self._retries:
                task.deaths += 1
                self._warn(f"the worker of {task.name} has died, and the evaluation begins anew")
                self._queue.appendleft(task)
            else:
                self._end(task, math.nan, seconds, f"its worker has died: {error}")
            return
        slot.future = slot.task = None
        if slot.closed:  # too late
            del self._slots[number]
        elif task is None:
            self._failed_starts = 0
        else:
            loss, text = outcome
            if loss is None:
                raise TypeError(f"evaluate must return a number, got {text} for {task.name}")
            self._end(task, loss, seconds, text)

    def _failed_start(self, error: Exception) -> None:
        if not isinstance(error, self._source.lost):
            raise TypeError(
                "evaluate must be a function that workers can import, got "
                f"{brief(self._evaluate)}: {type(error).__name__}: {error}"
            ) from error
        self._failed_starts += 1
        if self._failed_starts >= _STARTS:
            raise RuntimeError(
                f"workers cannot be started: {_STARTS} in a row have died at once: {error} A "
                'script must call drive under `if __name__ == "__main__":`'
            ) from error

    def _give_up(self, slot: _Slot) -> None:
        task, slot.task, slot.closed = slot.task, None, True
        assert task is not None
        slot.worker.close()
        seconds = time.monotonic() - slot.since
        self._end(task, math.nan, seconds, f"it took longer than {self._timeout:g} seconds")

    def _end(self, task: _Task, loss: float, seconds: float, failure: str | None) -> None:
        if failure is None and not math.isfinite(loss):
            failure, loss = f"evaluate has returned {loss}", math.nan
        if failure is not None:
            self._warn(f"the evaluation of {task.name} has failed: {failure}")
        evaluation = self._record.end(task, loss, seconds, failure)
        if self._report is not None:
            self._report(evaluation)
        self._failures = self._failures + 1 if failure is not None else 0
        if self._failures == self._failure_limit:
            raise RuntimeError(
                f"{self._failures} evaluations in a row have failed, which is failure_limit; the "
                f"last one: {failure}"
            )

    @staticmethod
    def _warn(text: str) -> None:
        warnings.warn(text, RuntimeWarning, stacklevel=6)
