"""Searches by several strategies under the same budget, as in Tables 1 and 2 and Figure 2."""

from __future__ import annotations

import contextlib
import io
import math
import multiprocessing
import signal
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch

from asng_ext import tasks
from asng_ext._checks import check_integer, listed
from asng_ext._files import as_path, write_atomically
from asng_ext._signals import SIGNALS, Interrupted, interrupted_by_signals
from asng_ext._terminal import STDERR, say
from asng_ext.driver.workers import end_with_parent
from asng_ext.engine.comparison import (
    TIMES,
    RunName,
    curves_of,
    format_comparison,
    row_of,
    summary_of,
)
from asng_ext.engine.contestants import UNEQUAL, Budget, Contestant, contestant, epochs_within
from asng_ext.engine.experiment import Experiment
from asng_ext.engine.pictures import drawing
from asng_ext.engine.search import EpochCallback
from asng_ext.engine.settings import differing_settings
from asng_ext.runs.config import SearchConfig, section_from
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.metrics import write_csv
from asng_ext.strategies import get as get_strategy
from asng_ext.strategies.protocol import Strategy

__all__ = ["COMPARISON", "Comparison", "compare"]

COMPARISON = "compare.json"

_MEASURED_SECONDS = 5.0
_MEASURED_SEEDS = 3
"""Distributions of different seeds go to choices that take more or less time."""
_WARM_UP = 3  # steps, and as many are measured at least
_FEW_EPOCHS = 5


class Comparison(NamedTuple):
    """What a comparison has come to.

    Attributes:
        rows: A row for each run that is done, as in compare.csv.
        table: What compare.txt says.
        failed: Why runs of this call have failed, by what they are.
    """

    rows: list[dict[str, Any]]
    table: str
    failed: dict[RunName, str]


def compare(
    path: Path | str,
    config: Mapping[str, Any],
    strategies: Sequence[str],
    budget: Budget,
    *,
    seeds: int = 3,
    masks: Sequence[str] = (),
    processes: int = 1,
    stream: TextIO | None = STDERR,
) -> Comparison:
    """Searches, retrains and tests by each strategy and with each seed, under the same budget.

    Each is a run in a folder of its own, STRATEGY-seedN, or STRATEGY-MASK-seedN. If the folder
    holds a comparison already, what is done is kept, what was interrupted or has failed continues,
    and what is missing is added. After each run compare.csv and compare.txt are written, and
    figure2.png where matplotlib is installed.

    Of minutes, a strategy is searched for a moment with each of its first three seeds to find out
    how many epochs fit in on average; all its runs have as many, and their config.toml says so.

    Args:
        path: The folder, which must be empty, new, or of a comparison.
        config: Settings, as :class:`Experiment` takes them, but for the seed, the strategy and the
            epochs of the search.
        strategies: Names of :func:`asng_ext.engine.contestants.names`.
        budget: Of each search.
        seeds: How many, from 0.
        masks: Of inpainting, each of which is a task of its own.
        processes: How many runs go on at a time; several have a thread each.
        stream: Where a line for each run is shown; None for nowhere.

    Raises:
        ValueError, TypeError: If a setting or an argument is wrong, or the comparison in the folder
            has another budget or other settings.
        FileExistsError: If there is something else in the folder.
        BlockingIOError: If another process uses the folder.
        Interrupted: If a signal has ended it; it is a KeyboardInterrupt.

    A run that fails ends no other; :attr:`Comparison.failed` says why it has.
    """
    check_integer("seeds", seeds, 1, 10**6)
    check_integer("processes", processes, 1, 1024)
    for what, given in (("strategies", strategies), ("masks", masks)):
        found = listed(what, given, "names")
        if len(set(found)) < len(found) or (what == "strategies" and not found):
            raise ValueError(f"{what} must be different names, at least one, got {found}")
    kind = tasks.get(config.get("task"))
    # What is wrong for all is found out before anything is written.
    experiment = Experiment(RunFolder(path), {"seed": 0, **config}, None)
    settings, steps = experiment.config, experiment.task.search_steps
    contestants = [contestant(kind.name, name, steps) for name in strategies]
    for name in UNEQUAL:
        if settings["search"][name] != getattr(SearchConfig, name):
            raise ValueError(
                f"{name} must be left out of what is compared, got {settings['search'][name]!r}"
            )
    if "mask" in settings[kind.name]:
        masks = list(masks) or [settings[kind.name]["mask"]]
        for mask in masks:
            section_from(kind.config, {**settings[kind.name], "mask": mask})
    elif masks:
        raise ValueError(f"masks must be none for the task {kind.name}, got {list(masks)}")
    path = as_path("path", path)
    if not (path / COMPARISON).exists():
        RunFolder.create(path)
    with RunFolder(path).lock():
        comparison = _Folder(path, settings, budget)
        jobs = [
            _job(path, config, each, RunName(each.name, seed, mask), processes, steps)
            for seed in range(seeds)
            for mask in masks or [""]
            for each in contestants
        ]
        comparison.add([job.name for job in jobs])
        with _Workers(processes) as workers:
            _run_all(comparison, jobs, budget, workers, stream)
        return comparison.write()


def _preset(config: Mapping[str, Any]) -> str:
    """The one that suits the data."""
    kind = tasks.get(config["task"])
    return kind.preset_for(str(config.get(kind.name, {}).get("data", "")))


@dataclass(frozen=True)
class _Job:
    """A run to do, whose search has so many steps an epoch."""

    path: Path
    name: RunName
    config: Mapping[str, Any]
    steps: int
    given: bool = False
    """Whether nothing is searched: the contestant says which architecture is retrained."""

    @property
    def contestant(self) -> Contestant:
        return contestant(self.config["task"], self.name.strategy, self.steps)

    @property
    def folder(self) -> Path:
        return self.path / self.name.folder


def _job(
    path: Path,
    config: Mapping[str, Any],
    of: Contestant,
    name: RunName,
    processes: int,
    steps: int,
) -> _Job:
    own = {**of.config(config), "seed": name.seed}
    # All strategies compute on the same kernels, and a search on those that it was measured with.
    own["search"] = {**own.get("search", {}), "autotune": False}
    if name.mask:
        task = own["task"]
        own[task] = {**own.get(task, {}), "mask": name.mask}
    if processes > 1:
        for loop in ("search", "retrain"):
            own[loop] = {**own.get(loop, {}), "threads": 1}
    return _Job(path, name, own, steps, of.architecture is not None)


class _Folder:
    """The files of a comparison."""

    def __init__(self, path: Path, settings: Mapping[str, Any], budget: Budget) -> None:
        self.path = path
        self._run = RunFolder(path)
        self._settings = settings
        self._budget = str(budget)
        self.epochs: dict[str, int] = {}
        self._names: list[RunName] = []
        self.failed: dict[RunName, str] = {}
        if not self._run.file(COMPARISON).exists():
            return
        content = self._run.read_json(COMPARISON)
        try:
            before, saved = content["budget"], content["config"]
            self.epochs = {str(name): int(epochs) for name, epochs in content["epochs"].items()}
            self._names = [
                RunName(strategy, seed, mask) for strategy, mask, seed in content["runs"]
            ]
            differing = differing_settings(saved, settings)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{self._run.file(COMPARISON)} is not that of a comparison: {error}"
            ) from None
        if before != self._budget:
            differing.insert(0, f"budget was {before} and is {self._budget}")
        if differing:
            raise ValueError(
                f"{path} must be a comparison with the settings given, but "
                f"{', '.join(differing)}; choose another folder"
            )

    def add(self, names: Sequence[RunName]) -> None:
        """Says what is to be run, beside what was before."""
        self._names = list(dict.fromkeys([*self._names, *names]))
        self._save()

    def set_epochs(self, strategy: str, epochs: int) -> None:
        """Says how many epochs the searches of a strategy have."""
        self.epochs[strategy] = epochs
        self._save()

    def _save(self) -> None:
        content = {
            "budget": self._budget,
            "epochs": self.epochs,
            "runs": [[name.strategy, name.mask, name.seed] for name in self._names],
            "config": self._settings,
        }
        self._run.write_json(COMPARISON, content)

    def row(self, name: RunName) -> dict[str, Any] | None:
        """What a run has come to, if it is done."""
        return row_of(self.path, name)

    def write(self) -> Comparison:
        """Writes tables and picture."""
        found = {name: self.row(name) for name in self._names}
        done = {name: row for name, row in found.items() if row is not None}
        missing = {name: self.failed.get(name, "") for name in self._names if name not in done}
        task = self._settings["task"]
        preset = _preset(self._settings)
        rows = list(done.values())
        table = format_comparison(self._settings, preset, rows, missing, self._budget) + "\n"
        write_csv(self._run.file("compare.csv"), rows)
        write_atomically(self._run.file("compare.txt"), lambda file: file.write(table.encode()))
        metric, label = "error", "test error of the supernet, %"
        if task == "inpainting":
            metric, label = "psnr", "PSNR of the supernet, dB"
        panels = curves_of(self.path, done, metric)
        plots = drawing(None)
        if plots is not None and panels:
            plots.plot_elapsed(panels, self._run.file("figure2.png"), label)
        return Comparison(rows, table, self.failed)


def _run_all(
    comparison: _Folder,
    jobs: Sequence[_Job],
    budget: Budget,
    workers: _Workers,
    stream: TextIO | None,
) -> None:
    """Does what is not done."""
    todo = [job for job in jobs if comparison.row(job.name) is None]
    if len(todo) < len(jobs):
        say(stream, f"{len(jobs) - len(todo)} of {len(jobs)} runs are done\n")
    measured: dict[str, dict[int, _Job]] = {}
    for job in todo:
        if not job.given and job.name.strategy not in comparison.epochs:
            of_seeds = measured.setdefault(job.name.strategy, {})
            if len(of_seeds) < _MEASURED_SEEDS:
                of_seeds.setdefault(job.name.seed, job)
    some = [job for of_seeds in measured.values() for job in of_seeds.values()]
    found: Iterable[tuple[_Job, _Outcome]]
    if budget.steps is not None:
        found = [(job, _Outcome(_Speed(0.0, 0.0))) for job in some]
    else:
        found = workers.outcomes(_speed, some)
    speeds: dict[str, list[_Speed]] = {strategy: [] for strategy in measured}
    why: dict[str, str] = {}
    for job, (speed, cause, _) in found:
        strategy = job.name.strategy
        if cause is not None:
            why[strategy] = cause
            continue
        speeds[strategy].append(speed)
        if len(speeds[strategy]) == len(measured[strategy]):
            seconds, once = map(statistics.fmean, zip(*speeds[strategy]))
            epochs = epochs_within(budget, job.steps, seconds, once)
            comparison.set_epochs(strategy, epochs)
            say(stream, f"{strategy}: {epochs:,} epochs for {budget}\n")
    done, ready = len(jobs) - len(todo), []
    for job in todo:
        if (cause := why.get(job.name.strategy)) is not None:
            done += 1
            comparison.failed[job.name] = cause
            say(stream, f"{done}/{len(jobs)} {job.name} failed: {cause}\n")
            continue
        if not job.given:
            search = {**job.config["search"], "epochs": comparison.epochs[job.name.strategy]}
            job = replace(job, config={**job.config, "search": search})
        ready.append(job)
    for job, (_, cause, _) in workers.outcomes(_run, ready):
        done += 1
        row = comparison.row(job.name)
        if cause is None and row is not None:
            words = f": {summary_of(row)}"
        else:
            comparison.failed[job.name] = cause or "its files are incomplete"
            words = f" failed: {comparison.failed[job.name]}"
        say(stream, f"{done}/{len(jobs)} {job.name}{words}\n")
        comparison.write()


# What is done for a job, in a worker where there are several


class _Times:
    """What is known of how long the parts of a run have taken, in its folder."""

    def __init__(self, experiment: Experiment) -> None:
        self._run = experiment.run
        known = self._run.read_json(TIMES) if self._run.file(TIMES).exists() else {}
        self._content: dict[str, Any] = {
            "search": [], **known, "steps_per_epoch": experiment.task.search_steps,
        }  # fmt: skip

    def note(self, row: Mapping[str, float], seconds: float) -> None:
        """Notes what an epoch took. What was noted of it before, and of later ones, was lost with
        the process that had not come to their checkpoint."""
        before = int(row["epoch"]) - 1
        known = [*self._content["search"], *[None] * before][:before]
        self._content["search"] = [*known, seconds]
        self._write()

    @contextlib.contextmanager
    def of_retraining(self) -> Iterator[None]:
        """Adds what is done in this context to the time of the retraining."""
        begun = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - begun
            self._content["retrain"] = self._content.get("retrain", 0.0) + seconds
            self._write()

    def _write(self) -> None:
        self._run.write_json(TIMES, self._content)


def _run(job: _Job) -> None:
    """Searches and retrains, or continues to."""
    architecture = None
    if job.given:
        make = job.contestant.architecture
        assert make is not None
        kind = tasks.get(job.config["task"])
        architecture = make(kind.config(**job.config[kind.name]))
    experiment = Experiment.create_or_open(job.folder, job.config, None, architecture=architecture)
    times = _Times(experiment)
    if not (
        job.given or experiment.run.file("architecture.json").exists()
    ):  # written when a search ends
        experiment.search(callback=times.note)
    with times.of_retraining():
        experiment.retrain()


class _Speed(NamedTuple):
    """Seconds that an epoch of a search takes, and what comes once, however many there are."""

    epoch: float
    once: float


def _speed(job: _Job) -> _Speed:
    """That of a search, found out by searching for a moment."""
    search = {**job.config["search"], "test_every": 0}
    kind = get_strategy(search["strategy"])
    options = filter(None, [search.get("strategy_options", ""), kind.measured_with])
    search["strategy_options"] = ",".join(options)
    config = {**job.config, "search": search}
    # What a search leaves in its folder is of no use here.
    with tempfile.TemporaryDirectory() as folder:

        def run(epochs: int) -> Experiment:
            own = {**config, "search": {**config["search"], "epochs": epochs}}
            return Experiment.create(Path(folder) / f"run{epochs}", own, None)

        # So many that no phase between them comes.
        seconds, once = _measured(run(1_000_000)), 0.0
        if kind.in_phases:
            few = run(_FEW_EPOCHS)
            if seconds < _MEASURED_SECONDS:
                once = max(0.0, _seconds_of(few) - _FEW_EPOCHS * seconds)
            else:
                once = _seconds_after_epochs(few)
        return _Speed(seconds, once)


def _seconds_of(experiment: Experiment) -> float:
    """What a whole search takes, without tests."""
    taken: list[float] = []
    experiment.search(callback=lambda row, seconds: taken.append(seconds))
    return sum(taken)


def _seconds_after_epochs(experiment: Experiment) -> float:
    """What follows the epochs of a whole search takes, found out after a few steps."""
    timed = _TimedSearch(experiment)
    steps = min(_WARM_UP, timed.steps - 1)  # no more batches are asked for than there are
    seconds = math.nan

    def begun(epoch: int) -> None:
        nonlocal seconds
        if len(timed.begins) > steps:
            seconds = sum(map(timed.seconds_after, range(experiment.search_config.epochs)))
            raise _EnoughError

    timed.search(begun)
    return seconds


class _EnoughError(Exception):
    """A search has been measured."""


class _TimedSearch:
    """A search that is timed, of which the strategy can be asked for more.

    Attributes:
        steps: Of an epoch.
        begins: When each step has begun.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._method: Any = None
        self.steps: int = experiment.task.search_steps
        self.begins: list[float] = []

    def search(self, begun: Callable[[int], None], callback: EpochCallback | None = None) -> None:
        """Searches until it is enough: ``begun``, called with the epoch when a step begins, or
        ``callback`` raises _EnoughError."""
        experiment: Any = self._experiment
        method, batches = experiment.method, experiment.task.weight_batches

        def kept(*start: Any) -> Any:
            self._method = method(*start)
            return self._method

        def clocked(epoch: int) -> Iterator[Any]:
            for batch in batches(epoch):
                self.begins.append(self._now())
                begun(epoch)
                yield batch

        experiment.method, experiment.task.weight_batches = kept, clocked
        with contextlib.suppress(_EnoughError):
            experiment.search(callback=callback)

    def _now(self) -> float:
        """Seconds of a clock, when all that was begun is done."""
        if self._experiment.device.type == "cuda":
            torch.cuda.synchronize(self._experiment.device)
        return time.monotonic()

    def seconds_after(self, epoch: int) -> float:
        """What follows that epoch takes, in the middle of the search."""
        begun = self._now()
        if isinstance(self._method, Strategy):
            self._method.end_epoch(epoch)
        return self._now() - begun


def _measured(experiment: Experiment) -> float:
    """Seconds that an epoch of the search takes, found out by searching for a moment.

    They are those of whole epochs after the first, with all that belongs to them, or, where the
    first takes too long, those of single steps and of what follows an epoch.
    """
    timed = _TimedSearch(experiment)
    begins = timed.begins
    epochs: list[float] = []
    after = 0.0

    def note(row: Mapping[str, float], seconds: float) -> None:
        epochs.append(seconds)
        if len(epochs) > 1 and sum(epochs[1:]) >= _MEASURED_SECONDS:
            raise _EnoughError

    def begun(epoch: int) -> None:
        nonlocal after
        enough = len(begins) > 2 * _WARM_UP and not epochs
        if enough and begins[-1] - begins[_WARM_UP] >= _MEASURED_SECONDS:
            after = timed.seconds_after(epoch)
            raise _EnoughError

    timed.search(begun, note)
    if len(epochs) > 1:
        return sum(epochs[1:]) / (len(epochs) - 1)
    if epochs:
        return epochs[0]
    return timed.steps * (begins[-1] - begins[_WARM_UP]) / (len(begins) - 1 - _WARM_UP) + after


# Workers


class _Outcome(NamedTuple):
    """What a function has returned, why it has not, and what it has warned of."""

    result: Any = None
    cause: str | None = None
    warned: Sequence[str] = ()


def _attempt(function: Callable[[_Job], Any], job: _Job) -> _Outcome:
    """Calls it, and nothing is shown meanwhile."""
    result, cause = None, None
    with (
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        try:
            result = function(job)
        except Exception as error:  # one that fails must not end the others
            cause = " ".join(str(error).split())
            if not isinstance(error, (ValueError, OSError)) or not cause:
                cause = f"{type(error).__name__}: {cause}".removesuffix(": ")
    warned = dict.fromkeys(str(each.message) for each in caught if each.category is UserWarning)
    return _Outcome(result, cause, list(warned))


class _Workers:
    """Processes that do a job at a time each; one is this process itself.

    They are spawned. When they are closed, or this process ends, they end: a run after its step,
    with a checkpoint.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._workers: list[_Worker] = []

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()

    def outcomes(
        self, function: Callable[[_Job], Any], jobs: Sequence[_Job]
    ) -> Iterator[tuple[_Job, _Outcome]]:
        """Does all jobs, in turn, and gives what becomes of them as they end."""
        found = self._here(function, jobs) if self._count == 1 else self._there(function, jobs)
        for job, outcome in found:
            for words in outcome.warned:
                warnings.warn(f"{job.name}: {words}", stacklevel=2)
            yield job, outcome

    @staticmethod
    def _here(
        function: Callable[[_Job], Any], jobs: Sequence[_Job]
    ) -> Iterator[tuple[_Job, _Outcome]]:
        for job in jobs:
            yield job, _attempt(function, job)

    def _there(
        self, function: Callable[[_Job], Any], jobs: Sequence[_Job]
    ) -> Iterator[tuple[_Job, _Outcome]]:
        waiting = list(reversed(jobs))
        idle = list(self._workers)
        busy: dict[Any, tuple[_Worker, _Job]] = {}
        while waiting or busy:
            while waiting and len(busy) < self._count:
                worker = idle.pop() if idle else self._start()
                job = waiting.pop()
                worker.connection.send((function, job))
                busy[worker.connection] = worker, job
            for ready in wait(list(busy)):
                worker, job = busy.pop(ready)
                try:
                    outcome = worker.connection.recv()
                    idle.append(worker)
                except EOFError:
                    worker.process.join()
                    self._workers.remove(worker)
                    code = worker.process.exitcode
                    outcome = _Outcome(cause=f"its process has ended with status {code}")
                yield job, outcome

    def _start(self) -> _Worker:
        worker = _Worker()
        self._workers.append(worker)
        return worker


class _Worker:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, its_own = context.Pipe()
        self.process = context.Process(target=_serve, args=(its_own,))
        self.process.start()
        its_own.close()


def _serve(connection: Connection) -> None:
    """What a worker does: attempts what it is sent, and sends what becomes of it."""
    for number in SIGNALS:  # Ctrl-C and the like are for the first process, which sends SIGTERM
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    # What a signal ends outside of a loop still notes how long it took.
    with contextlib.suppress(EOFError, Interrupted), interrupted_by_signals():
        while True:
            function, job = connection.recv()
            connection.send(_attempt(function, job))
