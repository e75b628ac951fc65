"""A whole experiment in a run folder: search, derive, retrain, test, draw."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import torch

from asng_ext import __version__
from asng_ext._checks import check_integer
from asng_ext._random import DrawsFrom
from asng_ext.config import RetrainConfig, SearchConfig, section_from, section_to_dict
from asng_ext.optimizers import ASNG
from asng_ext.progress import STDERR, say
from asng_ext.retrain import CheckpointMismatchError, retrain
from asng_ext.run import Metrics, RunFolder
from asng_ext.search import search
from asng_ext.space import Categorical
from asng_ext.tasks import KINDS
from asng_ext.tasks.protocol import Task

__all__ = ["Experiment"]

_LOOPS: dict[str, type[Any]] = {"search": SearchConfig, "retrain": RetrainConfig}


class Experiment:
    """The settings, the task and the files of a run.

    Args:
        run: The folder.
        config: All settings: "task", "seed", "device", and the sections "search", "retrain" and
            that of the task.
        stream: Where progress is shown; None for nowhere.

    Raises:
        ValueError, TypeError: If a setting is unknown, of the wrong type or out of its limits.
        FileNotFoundError: If the data are not where the settings say.
    """

    def __init__(
        self, run: RunFolder, config: Mapping[str, Any], stream: TextIO | None = STDERR
    ) -> None:
        self.run = run
        self.stream = stream
        self.config = _checked(config)
        self.search_config: SearchConfig = section_from(SearchConfig, self.config["search"])
        self.retrain_config: RetrainConfig = section_from(RetrainConfig, self.config["retrain"])
        self.seed: int = self.config["seed"]
        kind = KINDS[self.config["task"]]
        kind.check(self.search_config)
        task_config = section_from(kind.config, self.config[kind.name])
        self.device = _device(self.config["device"])
        self.task: Task = kind.task(
            kind.load(task_config, self.seed),
            task_config,
            search_batch_size=self.search_config.batch_size,
            retrain_batch_size=self.retrain_config.batch_size,
            seed=self.seed,
            device=self.device,
        )

    @classmethod
    def create(
        cls, path: Path | str, config: Mapping[str, Any], stream: TextIO | None = STDERR
    ) -> Experiment:
        """An experiment in a new folder; nothing is written if a setting or the data are wrong."""
        experiment = cls(RunFolder(path), config, stream)
        experiment.run = RunFolder.create(path)
        experiment.run.write_config(experiment.config)
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
    ) -> Experiment:
        """The experiment of an existing run folder.

        Args:
            path: The folder.
            loops: Settings that replace those of the sections "search" and "retrain".
            task: Settings that replace those of the task.
            device: Where to compute, if not where the run did.
            stream: Where progress is shown; None for nowhere.
        """
        run = RunFolder.open(path)
        config = run.read_config()
        for section, values in {**(loops or {}), config.get("task", ""): task or {}}.items():
            config[section] = {**config.get(section, {}), **values}
        if device is not None:
            config["device"] = device
        return cls(run, config, stream)

    def search(self) -> dict[str, Any]:
        """Searches, or goes on searching; returns the architecture by names.

        Writes search.csv, search.pt, architecture.json and pictures.
        """
        optimizer = self.optimizer()
        result = search(
            self.task,
            optimizer,
            self.search_config,
            seed=self.seed,
            run=self.run,
            stream=self.stream,
        )
        theta = optimizer.theta.categorical
        names = list(self.task.space.categorical)
        self.run.write_json(
            "architecture.json",
            {
                "task": self.config["task"],
                "version": __version__,
                "architecture": result.architecture,
                "probabilities": {name: float(row.max()) for name, row in zip(names, theta)},
                "network": dict(self.task.summary(result.architecture)),
            },
        )
        self._draw_search(result.architecture, result.rows, theta)
        return result.architecture

    def optimizer(self) -> ASNG:
        """A new optimizer with the settings of the search.

        It is on the GPU if the task takes samples from there; for one that looks at each sample on
        the host it is better there, too.
        """
        config = self.search_config
        on_device = self.device.type == "cuda" and getattr(self.task, "capturable", False)
        return ASNG(
            self.task.space,
            population_size=config.population_size,
            alpha=config.alpha,
            delta_init=config.delta_init,
            margin=config.margin,
            seed=self.seed,
            device=str(self.device) if on_device else "cpu",
        )

    def architecture(self) -> dict[str, Any]:
        """The architecture that was found, by names.

        Raises:
            FileNotFoundError: If the search has not finished.
            ValueError: If architecture.json is not one of this task.
        """
        content = self.run.read_json("architecture.json")
        values = content.get("architecture")
        if content.get("task") != self.config["task"] or not isinstance(values, dict):
            raise ValueError(
                f"{self.run.file('architecture.json')} must hold the architecture of a "
                f"{self.config['task']} task"
            )
        self.task.space.encode(values)
        return values

    def retrain(self) -> dict[str, float]:
        """Retrains the architecture, or goes on doing so; returns its test metrics.

        Writes config.toml with the settings used, retrain.csv, retrain.pt, network.pt,
        results.json and a picture.
        """
        values = self.architecture()
        before = self.run.read_config()
        # Written first, so that an interrupted retraining goes on with the settings it began with.
        self.run.write_config(self.config)
        try:
            network, tested = retrain(
                self.task,
                values,
                self.retrain_config,
                seed=self.seed,
                run=self.run,
                stream=self.stream,
            )
        except CheckpointMismatchError:
            self.run.write_config(before)
            raise
        rows = Metrics(self.run.file("retrain.csv"), keep=self.retrain_config.epochs).rows
        plots = _plots(self.stream)
        if plots is not None:
            plots.plot_retrain(rows, self.run.file("retrain.png"))
            self.task.draw_results(network, self.run.path)
        return tested

    def evaluate(self) -> dict[str, float]:
        """Test metrics of the retrained network.

        Raises:
            FileNotFoundError: If there is none yet.
        """
        state = self.run.load("network.pt")
        if state is None:
            raise FileNotFoundError(
                f"{self.run.file('network.pt')} is missing: "
                f"run `asng retrain {self.run.path}` first"
            )
        with DrawsFrom(self.seed, "network"):
            network = self.task.network(state["architecture"])
        network.load_state_dict(state["network"])
        return self.task.test(network)

    def _draw_search(
        self, architecture: Mapping[str, Any], rows: list[dict[str, float]], theta: Any
    ) -> None:
        plots = _plots(self.stream)
        if plots is None:
            return
        self.task.draw_architecture(architecture, self.run.file("architecture.png"))
        plots.plot_search(rows, self.run.file("search.png"))
        labels = {
            name: [str(value) for value in variable.values]
            for name, variable in self.task.space.items()
            if isinstance(variable, Categorical)
        }
        if labels:
            plots.plot_theta(theta, list(labels), labels, self.run.file("theta.png"))


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every section complete."""
    checked = copy.deepcopy(dict(config))
    task = checked.get("task")
    if not isinstance(task, str) or task not in KINDS:
        raise ValueError(f"task must be one of {', '.join(KINDS)}, got {task!r}")
    sections = {**_LOOPS, task: KINDS[task].config}
    known = {"task", "version", "seed", "device", *sections}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(f"unknown settings {unknown}; there are {sorted(known)}")
    check_integer("seed", checked.get("seed"), 0, 2**63)
    for name, kind in sections.items():
        try:
            checked[name] = section_to_dict(section_from(kind, checked.get(name, {})))
        except (ValueError, TypeError) as error:
            raise type(error)(f"settings of [{name}]: {error}") from None
    checked.setdefault("device", "cpu")
    return checked


def _device(name: Any) -> torch.device:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f'device must be "cpu" or "cuda", got {name!r}') from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} asks for a GPU, but this PyTorch finds none")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f'device must be "cpu" or "cuda", got {name!r}')
    return device


def _plots(stream: TextIO | None) -> Any:
    """The module that draws, or None, and a word about it, without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        say(stream, "no pictures: matplotlib is not installed\n")
        return None
    from asng_ext import plots

    return plots
