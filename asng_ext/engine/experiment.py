"""A whole experiment in a run folder: search, derive, retrain, test, draw."""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from asng_ext import __version__, optimizers, strategies, tasks
from asng_ext._checks import check_integer, check_one_process
from asng_ext._random import DrawsFrom
from asng_ext._terminal import STDERR, say
from asng_ext._threads import cpu_threads
from asng_ext.costs import CostTable
from asng_ext.distributed import ALONE, Ranks
from asng_ext.engine.retrain import retrain
from asng_ext.engine.search import EpochCallback, search
from asng_ext.nn import Latencies
from asng_ext.optimizers import Penalty, Theta
from asng_ext.retrained import read_architecture
from asng_ext.runs.checkpoints import CheckpointMismatchError, fitting
from asng_ext.runs.config import (
    RetrainConfig,
    SearchConfig,
    affecting_results,
    pairs,
    section_from,
)
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.metrics import Events, MetricsTable
from asng_ext.space import Categorical, Integer, SearchSpace
from asng_ext.strategies.protocol import Strategy
from asng_ext.tasks.protocol import Optimizer, Task, check_members
from asng_ext.training.precision import autocast

__all__ = ["Experiment", "differing_settings", "drawing"]

_ARCHITECTURE = "architecture.json"
_GIVEN = "given"  # an entry of it
_SEARCH_PICTURES = ("architecture.png", "search.png", "theta.png")
_LATENCIES = "latency.json"
_START = "init.json"
_LOOPS: dict[str, type[Any]] = {"search": SearchConfig, "retrain": RetrainConfig}


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
        ranks.check_same(_flat({**config, "version": __version__}))
        self.config, sections = _checked(config)
        self.search_config: SearchConfig = sections["search"]
        self.retrain_config: RetrainConfig = sections["retrain"]
        self.seed: int = self.config["seed"]
        self._check_method()
        kind = tasks.get(self.config["task"])
        kind.check(self.search_config)
        self.device = _device(self.config["device"], ranks)
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
            experiment._penalty = experiment._make_penalty(latencies)

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
                    experiment._write_architecture(architecture, {_GIVEN: True})
                    if drawing(stream) is not None:
                        experiment._draw_architecture()
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
            names = list(self.task.space.categorical)
            chosen = self.task.space.encode(result.architecture)[0]
            likely = {name: float(row[i]) for name, row, i in zip(names, theta, chosen)}
            ties = _near_ties(self.task.space.categorical, theta)
            more: dict[str, Any] = {"probabilities": likely, "near_ties": ties}
            if penalty is not None and not isinstance(optimizer, Strategy):
                more["costs"] = self._costs_of(result.architecture, penalty, optimizer)
            self._write_architecture(result.architecture, more)
            self._draw_search(result.rows, theta)
            self._write_events("search", len(result.rows))
        return result.architecture

    def _kept_start(self) -> dict[str, Any]:
        """Where the search starts: what init.json holds, or the setting init names."""
        if self.run.file(_ARCHITECTURE).exists() and self._is_given():
            raise ValueError(
                f"{self.run.path} was begun with an architecture and searches none; continue it "
                f"with `asng retrain {self.run.path}`"
            )
        return self.run.read_json(_START) if self.run.file(_START).exists() else self._read_start()

    def penalty(self) -> Penalty | None:
        """The limits of the settings with the costs of the task; None without limits.

        Latencies are those in latency.json; what is missing there is measured, and written.
        """
        if self._penalty is None and self.search_config.penalty:
            latencies = self.ranks.from_first(self.latencies)
            known = len(latencies.measured)
            self._penalty = self._make_penalty(latencies)
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

    def _make_penalty(self, latencies: Latencies) -> Penalty | None:
        limits = self.search_config.limits()
        if not limits:
            return None
        if self.ranks.size > 1:  # all go by what rank 0 has measured
            latencies.measured.update(
                self.ranks.from_first(lambda: (self._costs(latencies), latencies.measured)[1])
            )
        return Penalty(self._costs(latencies), limits)

    def _costs(self, latencies: Latencies) -> dict[str, Any]:
        """What is limited, by name."""
        limits, costs = self.search_config.limits(), {}
        for name, limit in limits.items():
            try:
                with cpu_threads(self.search_config.threads):
                    costs[name] = self.task.cost(name, latencies)
            except ValueError as error:
                raise ValueError(f"penalty {name}={limit:g}: {error}") from error
        return costs

    def _costs_of(
        self, values: Mapping[str, Any], penalty: Penalty, optimizer: Optimizer
    ) -> dict[str, dict[str, float]]:
        """Costs and limits by name, with the expected cost of a sample if there is a table; a
        warning if a cost is above its limit."""
        costs = penalty.costs_of(self.task.space.samples([values]))
        found = {
            name: {"cost": float(costs[name][0]), "limit": limit}
            for name, limit in penalty.limits.items()
        }
        for name, cost in penalty.costs.items():
            if isinstance(cost, CostTable) and isinstance(optimizer, optimizers.Optimizer):
                found[name]["expected"] = cost.expected(optimizer.theta)
        beyond = [
            f"{name} {one['cost']:.6g} (limit {one['limit']:.6g})"
            for name, one in found.items()
            if one["cost"] > one["limit"]
        ]
        if beyond:
            warnings.warn(
                f"no architecture within the limits was found, but one of {', '.join(beyond)}; "
                "search longer, or raise the limits",
                stacklevel=3,
            )
        return found

    def _write_architecture(self, values: Mapping[str, Any], more: Mapping[str, Any]) -> None:
        self.run.write_json(
            _ARCHITECTURE,
            {
                "task": self.config["task"],
                "version": __version__,
                "architecture": dict(values),
                **more,
                "network": dict(self.task.summary(values)),
            },
        )

    def _is_given(self) -> bool:
        """Whether architecture.json is not of a search; a broken one is written anew by it."""
        try:
            return bool(self.run.read_json(_ARCHITECTURE).get(_GIVEN))
        except ValueError:
            return False

    def _read_start(self) -> dict[str, Any]:
        """What the setting init names: an "architecture" by names, or a distribution as "theta";
        nothing if it is empty."""
        text = self.search_config.init
        if not text:
            return {}
        path = Path(text)
        if not path.is_dir():
            return {"architecture": read_architecture(path)[1]["architecture"]}
        saved = RunFolder.open(path).load("search.pt")
        if saved is None:
            raise FileNotFoundError(f"init: {path} has no search.pt, and so no distribution")
        space = self.task.space
        with fitting(path / "search.pt", "choose another run as init"):
            state = saved["optimizer"]
            if difference := space.difference(state["space"]):
                raise ValueError(f"its search is of another space: {difference}")
            sizes, mean = space.sizes, np.array(state["mean"])
            rows = np.zeros((len(sizes), max(sizes, default=0)))
            rows[np.arange(rows.shape[1]) < np.array(sizes)[:, None]] = state["theta"]
            moments = [mean.tolist(), (mean**2 + state["variance"]).tolist()]
        return {"theta": {"categorical": rows.tolist(), "numerical": moments}}

    def optimizer(self, start: Mapping[str, Any] | None = None) -> Optimizer:
        """A new optimizer with those settings of the search that it takes; λ is read here, and
        nowhere else. It starts from ``start``, an "architecture" or a distribution, "theta".

        ASNG is on the GPU if the task takes samples from there; for one that looks at each sample
        on the host it is better there, too.
        """
        config = self.search_config
        wanted = strategies.get(config.strategy).optimizer or config.optimizer
        arguments = inspect.signature(optimizers.REGISTRY[wanted]).parameters
        own = [name for name in ("alpha", "delta_init") if name in arguments]

        def takes(name: str) -> bool:
            return name in arguments or any(p.kind is p.VAR_KEYWORD for p in arguments.values())

        if takes("margin"):
            own.append("margin")
        settings = {name: getattr(config, name) for name in own}
        if start and "theta" in start:
            parts = (np.array(start["theta"][name], dtype=np.float64) for name in Theta._fields)
            settings["init"] = Theta(*parts)
        elif start:
            settings["init"] = start["architecture"]
            settings["init_probability"] = config.init_probability
        if config.fixed:
            settings["fixed"] = _values(self.task.space, pairs("fixed", config.fixed))
        lacking = [name for name in ("init", "fixed") if name in settings and not takes(name)]
        if lacking:
            raise ValueError(f"settings of [search]: {wanted} takes no {lacking[0]}")
        if config.step_size:
            settings |= {n: config.step_size for n in ("delta", "step_size") if n in arguments}
        if wanted == "ASNG":  # the others live on the CPU
            on_device = self.device.type == "cuda" and self.task.capturable
            settings["device"] = str(self.device) if on_device else "cpu"
        made: Optimizer = optimizers.make(
            wanted,
            self.task.space,
            seed=self.seed,
            population_size=config.population_size,
            **settings,
        )
        return made

    def architecture(self) -> dict[str, Any]:
        """The architecture that was found, by names.

        Raises:
            FileNotFoundError: If the search has not finished.
            ValueError: If architecture.json is not one of this task.
        """
        return self._found()[1]

    def _found(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What architecture.json holds, and the architecture in it."""
        path, resume = self.run.file(_ARCHITECTURE), f"`{self.run.resume_command}`"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: the search has not finished; continue it with {resume}"
            )
        content = self.run.read_json(_ARCHITECTURE)
        values = content.get("architecture")
        if content.get("task") != self.config["task"] or not isinstance(values, dict):
            raise ValueError(
                f"{path} must hold the architecture of a {self.config['task']} task; "
                f"{resume} writes it anew"
            )
        with fitting(path, f"{resume} writes it anew"):
            self.task.space.encode(values)
        return content, values

    @contextlib.contextmanager
    def _settings_kept(self) -> Iterator[None]:
        """What is done in this context is done with the settings that config.toml says."""
        if not self.ranks.first:
            yield
            return
        before = self.run.read_config() if self.run.file("config.toml").exists() else None
        # Written first, so that what is interrupted continues with the settings it began with.
        if before is not None and _checked(before)[0] != self.config:
            self.run.write_config(self.config)
        try:
            yield
        except CheckpointMismatchError:  # nothing has been trained
            if before is not None:
                self.run.write_config(before)
            raise

    def retrain(self, resume_from: Path | str | None = None) -> dict[str, float]:
        """Retrains the architecture, or continues to; returns its test metrics.

        Writes config.toml with the settings used, retrain.csv, retrain.pt, network.pt,
        results.json, the size of the network into architecture.json, and a picture.

        Args:
            resume_from: A checkpoint of this training to continue from, instead of the newest one.
        """
        self._check_ranks("retrain")
        with self.ranks.held_by_first(self.run.lock):
            content, values = self.ranks.from_first(self._found)
            with self._settings_kept():
                network, tested = retrain(
                    self.task,
                    values,
                    self.retrain_config,
                    seed=self.seed,
                    run=self.run,
                    stream=self.stream,
                    resume_from=Path(resume_from) if resume_from is not None else None,
                    ranks=self.ranks,
                )
            if not self.ranks.first:
                return tested
            # The settings of the network may have changed since the search.
            self.run.write_json(
                _ARCHITECTURE, {**content, "network": dict(self.task.summary(values))}
            )
            rows = MetricsTable(self.run.file("retrain.csv"), keep=self.retrain_config.epochs).rows
            plots = drawing(self.stream)
            if plots is not None:
                self._draw_architecture()  # of other sizes, perhaps
                plots.plot_retrain(rows, self.run.file("retrain.png"))
                self.task.draw_results(network, self.run.path)
            self._write_events("retrain", len(rows), tested)
        return tested

    def evaluate(self) -> dict[str, float]:
        """Test metrics of the retrained network, which is built from the settings that are saved
        with it: those in config.toml may be of a retraining that has not finished.

        Raises:
            FileNotFoundError: If there is none yet.
            ValueError: If network.pt is damaged or not of this task.
        """
        path, again = self.run.file("network.pt"), f"`asng retrain {self.run.path}`"
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
        with autocast(made_with.get("precision", self.retrain_config.precision), self.device):
            return task.test(network)

    def _draw_architecture(self) -> None:
        content, values = self._found()
        draw: Any = self.task.draw_architecture
        more = {}
        if "near_ties" in inspect.signature(draw).parameters:  # some tasks do not show them
            with fitting(self.run.file(_ARCHITECTURE), "remove its entry near_ties"):
                more["near_ties"] = {
                    name: {str(value): float(p) for value, p in likely.items()}
                    for name, likely in content.get("near_ties", {}).items()
                }
        draw(values, self.run.file("architecture.png"), **more)

    def _write_events(
        self, loop: str, epochs: int, tested: Mapping[str, float] | None = None
    ) -> None:
        """Adds the pictures of a loop to its events, and the settings with the test metrics."""
        events = Events(self.run.file("events") / loop)
        if drawing(None) is not None:
            pictures = sorted(self.run.path.glob("[!.]*.png"))
            of_search = loop == "search"
            events.add_pictures(
                (each for each in pictures if (each.name in _SEARCH_PICTURES) == of_search), epochs
            )
        if tested:
            events.add_settings(_flat(self.config), tested)
        events.close()

    def _draw_search(self, rows: list[dict[str, float]], theta: Any) -> None:
        plots = drawing(self.stream)
        if plots is None:
            return
        self._draw_architecture()
        plots.plot_search(rows, self.run.file("search.png"))
        labels = {
            name: [str(value) for value in variable.values]
            for name, variable in self.task.space.items()
            if isinstance(variable, Categorical)
        }
        if labels and len(theta):
            plots.plot_theta(theta, list(labels), labels, self.run.file("theta.png"))


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of all sections, as "section.setting"."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        inside = value.items() if isinstance(value, Mapping) else ()
        flat |= {f"{name}.{key}": each for key, each in inside} or {name: value}
    return flat


def differing_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How two configs differ in what results depend on, such as "search.momentum was 0.9 and is
    0.8".

    Raises:
        ValueError, TypeError: If a setting is unknown, of the wrong type or out of its limits.
    """

    def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
        checked, sections = _checked(config)
        checked.pop("version", None)
        return _flat({**checked, **{n: affecting_results(each) for n, each in sections.items()}})

    was, is_ = decisive(before), decisive(now)
    return [
        f"{name} was {was.get(name)!r} and is {is_.get(name)!r}"
        for name in dict.fromkeys([*was, *is_])
        if was.get(name) != is_.get(name)
    ]


def _near_ties(variables: Mapping[str, Categorical], theta: Any) -> dict[str, dict[str, float]]:
    """The two most likely values of the variables where the second has half of the first's
    probability at least."""
    ties = {}
    for (name, variable), row in zip(variables.items(), theta):
        probabilities = dict(zip(map(str, variable.values), map(float, row)))
        best = sorted(probabilities, key=lambda value: -probabilities[value])[:2]
        if len(best) == 2 and probabilities[best[1]] >= probabilities[best[0]] / 2:
            ties[name] = {value: probabilities[value] for value in best}
    return ties


def _values(space: SearchSpace, texts: Mapping[str, str]) -> dict[str, Any]:
    """Values of variables that are given as texts."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        variable = space.get(name)
        if variable is None:
            raise ValueError(
                f"fixed must name variables of the space, such as "
                f"{next(iter(space))!r}, got {name!r}"
            )
        if isinstance(variable, Categorical):
            fitting_ones = [value for value in variable.values if str(value) == text]
            values[name] = fitting_ones[0] if fitting_ones else text
            continue
        try:
            values[name] = int(text) if isinstance(variable, Integer) else float(text)
        except ValueError:
            raise ValueError(f"fixed must have a number for {name!r}, got {text!r}") from None
    return values


def _checked(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config with every section complete, and its sections."""
    checked = copy.deepcopy(dict(config))
    task: Any = checked.get("task")
    kinds = {**_LOOPS, task: tasks.get(task).config}
    known = {"task", "version", "seed", "device", *kinds}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(f"unknown settings {unknown}; there are {sorted(known)}")
    check_integer("seed", checked.get("seed"), 0, 2**63)
    sections: dict[str, Any] = {}
    for name, kind in kinds.items():
        if not isinstance(checked.get(name, {}), Mapping):
            raise ValueError(f"[{name}] must be a table of settings, got {checked[name]!r}")
        try:
            sections[name] = section_from(kind, checked.get(name, {}))
        except (ValueError, TypeError) as error:
            raise type(error)(f"settings of [{name}]: {error}") from None
        checked[name] = asdict(sections[name])
    checked.setdefault("device", "cpu")
    return checked, sections


def _device(name: Any, ranks: Ranks = ALONE) -> torch.device:
    """The device of that name; where there are ranks, each has a GPU of its own."""
    device = None
    with contextlib.suppress(RuntimeError, TypeError):
        device = torch.device(name)
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f'device must be "cpu" or "cuda", got {name!r}')
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} asks for a GPU, but this PyTorch finds none")
    if device.type == "cuda" and ranks.size > 1:
        local, gpus = int(os.environ.get("LOCAL_RANK", -1)), torch.cuda.device_count()
        if ":" in str(name) or not 0 <= local < gpus:
            raise ValueError(
                f'device must be "cuda" on several ranks, and LOCAL_RANK the number of one of the '
                f"{gpus} GPUs, got {name!r} and {local} on rank {ranks.rank}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    return device


def drawing(stream: TextIO | None) -> Any:
    """The module that draws, or None, and a word about it, without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        say(stream, "no pictures: matplotlib is not installed\n")
        return None
    from asng_ext import plots

    return plots
