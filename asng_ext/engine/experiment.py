"""A whole experiment in a run folder: search, derive, retrain, test, draw."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from asng_ext import __version__, optimizers, strategies, tasks
from asng_ext._checks import check_one_process
from asng_ext._random import DrawsFrom
from asng_ext._terminal import STDERR
from asng_ext.distributed import ALONE, Ranks
from asng_ext.engine.architecture_file import ArchitectureFile
from asng_ext.engine.autotune import chosen_environment, tuned_variables
from asng_ext.engine.limits import costs_and_limits, make_penalty
from asng_ext.engine.optimizer import make_optimizer, read_start
from asng_ext.engine.pictures import draw_search, drawing, write_events
from asng_ext.engine.retrain import retrain
from asng_ext.engine.search import EpochCallback, search
from asng_ext.engine.settings import checked, device_named, differing_settings, flat
from asng_ext.nn import Latencies
from asng_ext.optimizers import Penalty
from asng_ext.runs.checkpoints import CheckpointMismatchError, fitting
from asng_ext.runs.config import RetrainConfig, SearchConfig
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.metrics import MetricsTable
from asng_ext.runs.report import retrain_command, warn_of_earlier_network
from asng_ext.strategies.protocol import Strategy
from asng_ext.tasks.protocol import Optimizer, Task, check_members
from asng_ext.training.precision import autocast

__all__ = ["Experiment"]

_LATENCIES = "latency.json"
_START = "init.json"


class Experiment:
    """The settings, the task and the files of a run.

    Args:
        run: The folder.
        config: All settings: "task", "seed", "device", and the sections "search", "retrain" and
            that of the task.
        stream: Where progress is shown; None for nowhere.
        ranks: The processes that run it together, see :mod:`asng_ext.distributed`: all make and
            call the same. Rank 0 alone reads and writes the folder, and shows progress.

    Raises:
        ValueError, TypeError: If a setting is unknown, of the wrong type or out of its limits, or
            this is one of several processes that torchrun has started, and there are no ``ranks``.
        RanksDifferError: If the settings are not the same on all ranks.
        FileNotFoundError: If the data are not where the settings say.
    """

    def __init__(
        self,
        run: RunFolder,
        config: Mapping[str, Any],
        stream: TextIO | None = STDERR,
        *,
        ranks: Ranks = ALONE,
    ) -> None:
        if ranks.size == 1:
            check_one_process()
        self.run = run
        self.ranks = ranks
        self.stream = stream if ranks.first else None
        ranks.check_same(flat({**config, "version": __version__}))
        self.config, sections = checked(config)
        self.search_config: SearchConfig = sections["search"]
        self.retrain_config: RetrainConfig = sections["retrain"]
        self.seed: int = self.config["seed"]
        self._check_method()
        kind = tasks.get(self.config["task"])
        kind.check(self.search_config)
        self.device = device_named(self.config["device"], ranks)
        self.task: Task = kind.make(
            sections[kind.name],
            search_batch_size=self.search_config.batch_size,
            retrain_batch_size=self.retrain_config.batch_size,
            seed=self.seed,
            device=self.device,
        )
        check_members(f"task {kind.name!r}", self.task, Task)
        self._penalty: Penalty | None = None

    def _check_method(self) -> None:
        config = self.search_config
        try:
            strategies.check(config)
        except ValueError as error:
            raise ValueError(f"settings of [search]: {error}") from None
        if config.optimizer not in optimizers.names():
            raise ValueError(
                f"settings of [search]: optimizer must be one of {', '.join(optimizers.names())}, "
                f"got {config.optimizer!r}"
            )
        if strategies.get(config.strategy).place and self.ranks.size > 1:
            raise ValueError(
                f"strategy {config.strategy} must run in one process, got {self.ranks.size} ranks"
            )

    def method(self, start: Mapping[str, Any] | None = None) -> Optimizer | Strategy:
        """What the search is done by: a new optimizer, which starts from ``start``, see
        :meth:`optimizer`, or another strategy."""
        if strategies.get(self.search_config.strategy).place:
            return strategies.make(self.task, self.search_config, seed=self.seed)
        return self.optimizer(start)

    def optimizer(self, start: Mapping[str, Any] | None = None) -> Optimizer:
        """A new optimizer, see :func:`asng_ext.engine.optimizer.make_optimizer`."""
        return make_optimizer(
            self.task, self.search_config, start, seed=self.seed, device=self.device
        )

    def _check_ranks(self, loop: str) -> None:
        """Every rank must have something to do: found out before anything is written."""
        what, most = "batch_size of retraining", self.retrain_config.batch_size
        if loop == "search":
            config = self.search_config
            what, most = (
                "population_size times batch_size",
                config.population_size * config.batch_size,
            )
        if self.ranks.size > most:
            raise ValueError(
                f"{what} must be at least {self.ranks.size}, one for each rank, got {most}"
            )

    @classmethod
    def create(
        cls,
        path: Path | str,
        config: Mapping[str, Any],
        stream: TextIO | None = STDERR,
        *,
        another_name: bool = False,
        architecture: Mapping[str, Any] | None = None,
        latencies: Latencies | None = None,
        ranks: Ranks = ALONE,
    ) -> Experiment:
        """An experiment in a new folder; nothing is written if a setting or the data are wrong.

        With ``another_name`` the folder gets a number behind its name if there is one already. With
        an ``architecture``, by names, there is nothing to search: it is ready to be retrained.
        If latency is limited, it is measured, but for what is in ``latencies``.

        Raises:
            FileExistsError, BlockingIOError: As :meth:`RunFolder.create` does.
            ValueError: If the architecture is not one of the task's space.
        """
        if not another_name:
            ranks.from_first(lambda: RunFolder.check_unused(path))  # data may take long to read
        experiment = cls(RunFolder(path), config, stream, ranks=ranks)
        experiment._check_ranks("search" if architecture is None else "retrain")
        start: dict[str, Any] = {}
        latencies = latencies or Latencies(experiment.device)
        if architecture is not None:
            experiment.task.space.encode(architecture)
        else:
            start = ranks.from_first(experiment._read_start)
            experiment.method(start)  # which settings suit the space is found out first
            experiment._penalty = make_penalty(
                experiment.task, experiment.search_config, latencies, ranks
            )

        def write() -> Path:
            experiment.run = run = RunFolder.create(
                path, experiment.config, another_name=another_name
            )
            with run.lock():
                if latencies.measured:
                    run.write_json(_LATENCIES, latencies.content())
                if start:
                    run.write_json(_START, start)
                if architecture is not None:
                    experiment.architecture_file.write(architecture, given=True)
                    if drawing(stream) is not None:
                        experiment.architecture_file.draw()
            return run.path

        experiment.run = RunFolder(ranks.from_first(write))
        return experiment

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        loops: Mapping[str, Mapping[str, Any]] | None = None,
        task: Mapping[str, Any] | None = None,
        device: str | None = None,
        stream: TextIO | None = STDERR,
        ranks: Ranks = ALONE,
    ) -> Experiment:
        """The experiment of an existing run folder.

        Args:
            path: The folder.
            loops: Settings that replace those of the sections "search" and "retrain".
            task: Settings that replace those of the task.
            device: Where to compute, if not where the run did.
            stream: Where progress is shown; None for nowhere.
            ranks: The processes that run it together.
        """
        config = ranks.from_first(lambda: RunFolder.open(path).read_config())
        given = {**(loops or {}), **({str(config.get("task")): task} if task else {})}
        for section, values in given.items():
            if isinstance(before := config.get(section, {}), Mapping):
                config[section] = {**before, **values}
        if device is not None:
            config["device"] = device
        return cls(RunFolder(path), config, stream, ranks=ranks)

    @classmethod
    def create_or_open(
        cls,
        path: Path | str,
        config: Mapping[str, Any],
        stream: TextIO | None = STDERR,
        *,
        architecture: Mapping[str, Any] | None = None,
        latencies: Latencies | None = None,
    ) -> Experiment:
        """The run that is in the folder, or a new one where there is none, as :meth:`create` makes
        it.

        Raises:
            ValueError: If results of the run depend on other settings than those given.
        """
        run = RunFolder(path)
        if not run.file("config.toml").is_file():
            return cls.create(path, config, stream, architecture=architecture, latencies=latencies)
        experiment = cls(run, config, stream)
        if differing := differing_settings(run.read_config(), config):
            raise ValueError(
                f"{path} must be a run with the settings given, but {', '.join(differing)}; "
                "choose another folder"
            )
        return experiment

    def search(
        self, resume_from: Path | str | None = None, *, callback: EpochCallback | None = None
    ) -> dict[str, Any]:
        """Searches, or continues to; returns the architecture by names.

        Writes search.csv, search.pt, architecture.json and pictures, and config.toml if settings
        have changed since.

        Args:
            resume_from: A checkpoint of this search to continue from, instead of the newest one.
            callback: See :func:`asng_ext.engine.search.search`.

        Raises:
            ValueError: If the run was begun with an architecture.
        """
        self._check_ranks("search")
        optimizer = self.method(self.ranks.from_first(self._kept_start))
        with self.ranks.held_by_first(self.run.lock), self._settings_kept():
            penalty = self.penalty()
            with chosen_environment(self.ranks.from_first(self._kernel_variables)):
                result = search(
                    self.task,
                    optimizer,
                    self.search_config,
                    seed=self.seed,
                    run=self.run,
                    stream=self.stream,
                    penalty=penalty,
                    resume_from=Path(resume_from) if resume_from is not None else None,
                    ranks=self.ranks,
                    callback=callback,
                )
            if not self.ranks.first:
                return result.architecture
            # A strategy may have no distribution, nor a user's optimizer one that could be shown.
            known = isinstance(optimizer, optimizers.Optimizer | Strategy)
            theta: Any = getattr(optimizer.theta, "categorical", ()) if known else ()  # type: ignore[union-attr]
            more = self.architecture_file.probabilities(result.architecture, theta)
            if penalty is not None and not isinstance(optimizer, Strategy):
                more["costs"] = costs_and_limits(
                    self.task.space, result.architecture, penalty, optimizer
                )
            self.architecture_file.write(result.architecture, **more)
            plots = drawing(self.stream)
            if plots is not None:
                self.architecture_file.draw()
                draw_search(plots, self.run, self.task.space, result.rows, theta)
            write_events(self.run, "search", len(result.rows), flat(self.config))
        return result.architecture

    def _kernel_variables(self) -> Mapping[str, str]:
        """Environment variables for the fastest kernels; none where they are not to be tried."""
        config = self.search_config
        if not config.autotune or strategies.get(config.strategy).place:
            return {}
        settings = {**self.config, "device": str(self.device)}
        return tuned_variables(self.task, settings, config, self.run, self.device, self.stream)

    def _kept_start(self) -> dict[str, Any]:
        """Where the search starts: what init.json holds, or the setting init names."""
        if self.architecture_file.is_given():
            raise ValueError(
                f"{self.run.path} was begun with an architecture and searches none; continue it "
                f"with `{self.run.command('retrain')}`"
            )
        return self.run.read_json(_START) if self.run.file(_START).exists() else self._read_start()

    def _read_start(self) -> dict[str, Any]:
        return read_start(self.search_config.init, self.task.space)

    def penalty(self) -> Penalty | None:
        """The limits of the settings with the costs of the task; None without limits.

        Latencies are those in latency.json; what is missing there is measured, and written.
        """
        if self._penalty is None and self.search_config.penalty:
            latencies = self.ranks.from_first(self.latencies)
            known = len(latencies.measured)
            self._penalty = make_penalty(self.task, self.search_config, latencies, self.ranks)
            if len(latencies.measured) > known and self.ranks.first:
                self.run.write_json(_LATENCIES, latencies.content())
        return self._penalty

    def latencies(self) -> Latencies:
        """What latency.json holds; nothing if it is not there.

        Raises:
            ValueError: If it is damaged.
        """
        path = self.run.file(_LATENCIES)
        if not path.exists():
            return Latencies(self.device)
        with fitting(path, "move it away to measure anew"):
            return Latencies(self.device, self.run.read_json(_LATENCIES)["measured"])

    @property
    def architecture_file(self) -> ArchitectureFile:
        """Where the architecture of the run is."""
        return ArchitectureFile(self.run, self.task, self.config["task"])

    def architecture(self) -> dict[str, Any]:
        """The architecture that was found, by names.

        Raises:
            FileNotFoundError: If the search has not finished.
            ValueError: If architecture.json is not one of this task.
        """
        return self.architecture_file.read()[1]

    @contextlib.contextmanager
    def _settings_kept(self) -> Iterator[None]:
        """What is done in this context is done with the settings that config.toml says."""
        if not self.ranks.first:
            yield
            return
        before = self.run.read_config() if self.run.file("config.toml").exists() else None
        # Written first, so that what is interrupted continues with the settings it began with.
        if before is not None and checked(before)[0] != self.config:
            self.run.write_config(self.config)
        try:
            yield
        except CheckpointMismatchError:  # nothing has been trained
            if before is not None:
                self.run.write_config(before)
            raise

    def retrain(
        self, resume_from: Path | str | None = None, *, restart: bool = False
    ) -> dict[str, float]:
        """Retrains the architecture, or continues to; returns its test metrics.

        Writes config.toml with the settings used, retrain.csv, retrain.pt, network.pt,
        results.json, the size of the network into architecture.json, and a picture.

        Args:
            resume_from: A checkpoint of this training to continue from, instead of the newest one.
            restart: Begin anew, see :func:`asng_ext.engine.retrain.retrain`.
        """
        self._check_ranks("retrain")
        with self.ranks.held_by_first(self.run.lock):
            values = self.ranks.from_first(self.architecture)
            # Those of what it replaces stay until the first checkpoint takes its place.
            with contextlib.nullcontext() if restart else self._settings_kept():
                network, tested = retrain(
                    self.task,
                    values,
                    self.retrain_config,
                    seed=self.seed,
                    run=self.run,
                    stream=self.stream,
                    resume_from=Path(resume_from) if resume_from is not None else None,
                    restart=restart,
                    begun=partial(self.run.write_config, self.config) if restart else None,
                    ranks=self.ranks,
                )
            if not self.ranks.first:
                return tested
            # Its settings may have changed since the search.
            self.architecture_file.update_network()
            rows = MetricsTable(self.run.file("retrain.csv"), keep=self.retrain_config.epochs).rows
            plots = drawing(self.stream)
            if plots is not None:
                self.architecture_file.draw()  # of other sizes, perhaps
                plots.plot_retrain(rows, self.run.file("retrain.png"))
                self.task.draw_results(network, self.run.path)
            write_events(self.run, "retrain", len(rows), flat(self.config), tested)
        return tested

    def evaluate(self) -> dict[str, float]:
        """Test metrics of the retrained network, which is built from the settings that are saved
        with it: those in config.toml may be of a retraining that has not finished.

        Raises:
            FileNotFoundError: If there is none yet.
            ValueError: If network.pt is damaged or not of this task.

        Warns:
            UserWarning: If the search has found another architecture since.
        """
        path, again = self.run.file("network.pt"), f"`{retrain_command(self.run)}`"
        try:
            state = self.run.load("network.pt")
        except ValueError as error:
            raise ValueError(f"{error}; {again} writes it anew") from None
        if state is None:
            raise FileNotFoundError(f"{path} is missing: run {again} first")
        name = self.config["task"]
        with fitting(path, f"{again} writes it anew"):
            made_with = dict(state.get("identity", {}))  # earlier versions did not save it
            if made_with.get("task", name) != name:
                raise ValueError(f"it is of a {made_with['task']} task, not {name}")
            own = {
                key: made_with[key]
                for key in self.config[name]
                if key in made_with and key != "data"  # which is where it is now
            }
            config = {**self.config, name: {**self.config[name], **own}}
        task = self.task if config == self.config else Experiment(self.run, config, None).task
        with fitting(path, f"{again} writes it anew"):
            with DrawsFrom(self.seed, "network"):
                network = task.network(state["architecture"])
            network.load_state_dict(state["network"])
        warn_of_earlier_network(self.run, state["architecture"])
        with autocast(made_with.get("precision", self.retrain_config.precision), self.device):
            return task.test(network)
