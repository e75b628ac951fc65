"""What holds for all strategies: they find what is planted, continue, and say what is wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import torch
from toy_supernet import CHOICES, PLANTED, ToyTask, begun, make_step

import asng_ext as asng
from asng_ext import strategies, tasks
from asng_ext.cli.parser import make_parser
from asng_ext.cli.settings import make_config
from asng_ext.engine.experiment import Experiment
from asng_ext.engine.search import search
from asng_ext.nn import FusedCellSupernet
from asng_ext.runs.config import SearchConfig, section_from
from asng_ext.runs.folder import RunFolder
from asng_ext.training.divergence import DivergedError
from asng_ext.training.weight_optimizers import make_weight_optimizer

ON_TOY = {
    "random": "samples=2000",
    "evolution": "batches=4",
    "darts": "learning_rate=0.05",
    "darts2": "learning_rate=0.05",
    "snas": "learning_rate=0.05",
    "gdas": "learning_rate=0.03",
    "proxyless": "learning_rate=0.2,every=1,warmup=0.2",
}
"""Options with which a search of a few hundred steps suffices."""


def config(name: str, options: str | None = None, **changes: Any) -> SearchConfig:
    settings: dict[str, Any] = {"epochs": 20, "learning_rate": 0.05, "weight_decay": 0.0}
    settings |= {"strategy": name, "strategy_options": ON_TOY[name] if options is None else options}
    return SearchConfig(**(settings | changes))


def found(name: str, seed: int = 0, **named: Any) -> Any:
    # GDAS follows sampled choices alone: those that it rates must not have fitted perfectly.
    decay = 0.3 if name == "gdas" else 0.0
    task, settings = ToyTask(), config(name, weight_decay=decay, **named)
    strategy = strategies.make(task, settings, seed=seed)
    return search(task, strategy, settings, seed=seed, stream=None)


class CountingTask(ToyTask):
    """It counts the batches that are made of the data that train no weights."""

    def __init__(self, all_at_once: bool) -> None:
        super().__init__()
        self.made = 0
        self._all_at_once = all_at_once

    def theta_batches(self, epoch: int) -> Any:
        batches = self._counted(super().theta_batches(epoch))
        return list(batches) if self._all_at_once else batches

    def _counted(self, batches: Any) -> Any:
        for batch in batches:
            self.made += 1
            yield batch


@pytest.mark.parametrize(
    ("name", "options", "taken"),
    [
        ("random", {"samples": 5, "finalists": 2}, 25),
        ("evolution", {"cycles": 3, "batches": 4}, 4),
        ("evolution", {"cycles": 3, "batches": 0}, 25),
        ("enas", {"updates": 2, "samples": 3, "derive": 5}, 7),
        ("nao", {"rounds": 1, "pool": 9, "seeds": 3}, 9),
        ("nao", {"rounds": 1, "pool": 40, "seeds": 3}, 25),
    ],
)
def test_batches_are_made_as_they_are_taken(name: str, options: Any, taken: int) -> None:
    """Of an epoch of 25; what comes of it is what comes of making them all."""
    states = []
    for all_at_once in (False, True):
        task = CountingTask(all_at_once)
        strategy = begun(name, task, epochs=1, **options)
        strategy.end_epoch(0)
        assert task.made == (25 if all_at_once else taken)
        states.append((strategy.state_dict(), strategy.parts.means.read()))
    assert small.equal(*states)


@pytest.mark.parametrize("name", ON_TOY)
def test_the_planted_architecture_is_found(name: str) -> None:
    result = found(name)
    assert tuple(result.architecture.values()) == PLANTED
    first, last = result.rows[0], result.rows[-1]
    assert last["test_right"] == len(PLANTED)
    if name in ("random", "evolution"):
        assert first["convergence"] == last["convergence"] == 1 / CHOICES
    else:
        assert last["train_loss"] < first["train_loss"] / 2
        assert last["convergence"] > 1.2 / CHOICES


@pytest.mark.parametrize("name", ON_TOY)
def test_it_continues_from_each_state_as_if_it_had_not_stopped(name: str) -> None:
    task = ToyTask()
    options = dict(part.split("=") for part in ON_TOY[name].split(","))
    types = {key: type(getattr(strategies.get(name).load().Options(), key)) for key in options}
    given = {key: types[key](value) for key, value in options.items()}
    given |= {"samples": 20} if name == "random" else {}
    given |= {"cycles": 20} if name == "evolution" else {}
    batches = list(zip(task.weight_batches(0), task.theta_batches(0)))

    def go_on(strategy: Any, start: int) -> None:
        for batch in batches[start:]:
            make_step(strategy, batch)
        strategy.end_epoch(0)

    whole = begun(name, task, epochs=1, **given)
    for batch in batches[:7]:
        make_step(whole, batch)
    parts = whole.parts
    saved = (whole.state_dict(), parts.supernet.state_dict(), parts.weight_optimizer.state_dict())
    state, weights, sgd = copy.deepcopy(saved)
    other = begun(name, task, epochs=1, seed=1, **given)
    other.parts.supernet.load_state_dict(weights)
    other.parts.weight_optimizer.load_state_dict(sgd)
    other.load_state_dict(state)
    go_on(whole, 7)
    go_on(other, 7)
    assert small.equal(whole.state_dict(), other.state_dict())
    assert small.equal(whole.parts.supernet.state_dict(), other.parts.supernet.state_dict())
    assert whole.recommend() == other.recommend()


@pytest.mark.parametrize("name", ON_TOY)
def test_seeds_decide_the_search(name: str) -> None:
    task = ToyTask()
    batches = list(zip(task.weight_batches(0), task.theta_batches(0)))[:5]

    def weights(seed: int) -> Any:
        strategy = begun(name, task, seed=seed, supernet_seed=0)
        for batch in batches:
            make_step(strategy, batch)
        return strategy.parts.supernet.state_dict(), strategy.recommend()

    assert small.equal(weights(1), weights(1))
    assert not small.equal(weights(1), weights(2))


SHORT = {
    "random": "samples=3,finalists=2",
    "evolution": "population=2,tournament=1,cycles=2",
}


@pytest.mark.parametrize("name", [n for n in strategies.names() if n in ON_TOY])
def test_cells_are_searched_and_the_search_is_resumed(name: str, tmp_path: Path) -> None:
    task = small.task()
    settings = config(name, SHORT.get(name, ""), epochs=2, batch_size=20)

    def run(path: Path, **changes: Any) -> Any:
        own = section_from(SearchConfig, {**vars(settings), **changes})
        strategy = strategies.make(task, own, seed=0)
        return search(task, strategy, own, seed=0, run=RunFolder(path), stream=None)

    for folder in ("whole", "parts"):
        RunFolder.create(tmp_path / folder)
    whole = run(tmp_path / "whole")
    task.space.encode(whole.architecture)
    columns = set(whole.rows[-1])
    assert {"train_loss", "test_accuracy", "convergence", "learning_rate"} <= columns
    assert ("test_mix_accuracy" in columns) == (name in ("darts", "darts2", "snas"))

    def stop(row: dict[str, float], seconds: float) -> None:
        assert seconds > 0
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    strategy = strategies.make(task, settings, seed=0)
    parts = RunFolder(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        search(task, strategy, settings, seed=0, run=parts, stream=None, callback=stop)
    resumed = run(tmp_path / "parts")
    assert resumed.architecture == whole.architecture
    assert resumed.rows == whole.rows
    assert small.equal(resumed.supernet.state_dict(), whole.supernet.state_dict())


@pytest.mark.operators
@pytest.mark.parametrize(
    "options",
    [
        "darts:",
        "snas:",
        "gdas:",
        "proxyless:warmup=0,every=1",
        "smash:samples=2,perturbed=1,chain=1",
    ],
)
def test_compiled_operators_give_the_numbers_of_plain_pytorch(options: str) -> None:
    name, _, given = options.partition(":")
    rows = []
    for implementation in ("plain", "fused"):
        task = small.task(implementation=implementation)
        # At a low learning rate rounding does not grow.
        settings = config(name, given, epochs=2, batch_size=20, learning_rate=0.002)
        strategy = strategies.make(task, settings, seed=0)
        result = search(task, strategy, settings, seed=0, stream=None)
        assert isinstance(result.supernet, FusedCellSupernet) == (implementation == "fused")
        rows.append(result.rows)
    for plain, fused in zip(*rows, strict=True):
        assert fused == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("task", ["classification", "inpainting"])
def test_each_can_be_begun_with_its_published_settings(task: str, tmp_path: Path) -> None:
    options = {
        "classification": ["--data=digits", "--final-cells=3", "--parameter-limit=4000"],
        "inpainting": ["--data=photos"],
    }[task]

    def settings(*more: str) -> dict[str, Any]:
        args = make_parser().parse_args(["search", task, *options, *more])
        return make_config(tasks.get(task), args, None, {})

    for name in strategies.names(task):
        experiment = Experiment(RunFolder(tmp_path), settings(f"--strategy={name}"), None)
        method: Any = experiment.method()
        supernet = experiment.task.supernet()
        make_weight_optimizer(supernet, experiment.search_config)
        assert method.space is experiment.task.space
        published = strategies.get(name).published
        if task == "classification":  # what the preset does not say
            rate = published.get("learning_rate_min", 0.0)
            assert experiment.search_config.learning_rate_min == rate
            assert experiment.search_config.nesterov == published.get("nesterov", False)
        # Also below the published minimum.
        given = settings(f"--strategy={name}", "--learning-rate=0.0001")["search"]
        strategies.check(section_from(SearchConfig, given))


class TestErrors:
    def test_other_spaces(self) -> None:
        task = ToyTask()
        task.space = asng.SearchSpace({"x": asng.Real(0, 1), "y": asng.Categorical(["a", "b"])})
        with pytest.raises(ValueError, match="random is for spaces of categorical variables"):
            strategies.make(task, config("random"), seed=0)

    def test_tasks_without_mixtures(self) -> None:
        class Plain(ToyTask):
            @property
            def relaxed_losses(self) -> Any:  # type: ignore[override]
                raise AttributeError

        with pytest.raises(ValueError, match=r"darts needs a task that runs mixtures.*got Plain"):
            strategies.make(Plain(), config("darts"), seed=0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("rate=1", "strategy_options: unknown settings"),
            ("learning_rate=fast", "must have float for learning_rate, got 'fast'"),
            ("learning_rate=-1", "strategy_options: learning_rate must be above 0"),
            ("learning_rate", "strategy_options must be of NAME=VALUE"),
        ],
    )
    def test_options(self, options: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            strategies.make(ToyTask(), config("darts", options), seed=0)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("init", "run"),
            ("fixed", "x0=1"),
            ("penalty", "parameters=100"),
            ("population_size", 4),
            ("optimizer", "SNG"),
            ("margin", "catcma"),
        ],
    )
    def test_what_is_for_optimizers(self, name: str, value: Any) -> None:
        with pytest.raises(ValueError, match=f"^{name} is for .* random, got {value!r}"):
            strategies.make(ToyTask(), config("random", **{name: value}), seed=0)

    def test_what_is_for_others(self) -> None:
        with pytest.raises(ValueError, match="strategy_options must be empty for the strategy sng"):
            strategies.check(SearchConfig(strategy="sng", strategy_options="rate=1"))
        with pytest.raises(ValueError, match="optimizer must be left out for the strategy sng"):
            strategies.check(SearchConfig(strategy="sng", optimizer="NaturalAdam"))
        strategies.check(SearchConfig(strategy="sng", optimizer="SNG"))
        strategies.check(SearchConfig(optimizer="NaturalAdam", population_size=4))

    def test_names(self) -> None:
        with pytest.raises(ValueError, match=r"strategy must be one of asng, sng, .*got 'best'"):
            strategies.get("best")
        kind = strategies.get("darts")
        with pytest.raises(ValueError, match="a strategy 'darts' already"):
            strategies.register(kind)
        with pytest.raises(TypeError, match="kind must be a StrategyKind, got 3"):
            strategies.register(3)  # type: ignore[arg-type]

    def test_other_epochs(self) -> None:
        strategy = strategies.make(ToyTask(), config("random", epochs=3), seed=0)
        with pytest.raises(ValueError, match=r"must be made for 4 epochs.*got 3"):
            search(ToyTask(), strategy, config("random", epochs=4), seed=0, stream=None)

    @pytest.mark.parametrize("name", ["random", "evolution"])
    def test_a_loss_that_is_not_finite(self, name: str) -> None:
        strategy = begun(name, ToyTask())
        strategy.parts.supernet.weight.data.fill_(torch.inf)
        with pytest.raises(DivergedError, match=f"an architecture that {name} compares is"):
            strategy.choose(list(strategy.validation(0)))

    def test_several_ranks_and_penalties(self) -> None:
        task, settings = ToyTask(), config("random")
        strategy = strategies.make(task, settings, seed=0)
        penalty = asng.optimizers.Penalty({"one": lambda samples: [1.0]}, {"one": 1.0})
        with pytest.raises(ValueError, match="random must run in one process and without"):
            search(task, strategy, settings, seed=0, stream=None, penalty=penalty)
