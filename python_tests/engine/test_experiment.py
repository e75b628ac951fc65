"""Where the parts of an experiment live."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import small_runs
import torch

import asng_ext as asng
from asng_ext import optimizers, tasks
from asng_ext.engine.experiment import Experiment
from asng_ext.nn import CellSupernet
from asng_ext.ops import _libraries
from asng_ext.runs.checkpoints import CheckpointMismatchError
from asng_ext.runs.config import affecting_results
from asng_ext.runs.folder import RunFolder
from asng_ext.tasks.classification import ClassificationTask


@pytest.mark.parametrize(
    ("implementation", "device", "expected"),
    [("fused", "cuda:1", "cuda:1"), ("plain", "cuda", "cpu"), ("fused", "cpu", "cpu")],
)
def test_the_optimizer_is_where_the_samples_are_wanted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    implementation: str,
    device: str,
    expected: str,
) -> None:
    task = asdict(small.TASK) | {"implementation": implementation}
    config = {"task": "classification", "seed": 3, "classification": task}
    some = Experiment(RunFolder(tmp_path), config, stream=None)
    some.device = torch.device(device)
    settings: dict[str, Any] = {}
    monkeypatch.setitem(optimizers.REGISTRY, "ASNG", lambda space, **given: settings.update(given))
    some.optimizer()
    assert settings["device"] == expected
    assert settings["seed"] == 3
    assert settings["population_size"] == some.search_config.population_size


@pytest.mark.parametrize("usable", [True, False])
def test_a_task_is_capturable_on_the_compiled_operators(
    monkeypatch: pytest.MonkeyPatch, usable: bool
) -> None:
    monkeypatch.setattr(_libraries, "cuda_available", lambda: usable)
    for implementation, expected in (("auto", usable), ("fused", True), ("plain", False)):
        task = small.task(implementation=implementation)
        task.device = torch.device("cuda")
        assert task.capturable == expected
    assert not small.task(implementation="plain").capturable
    assert type(small.task(implementation="plain").supernet()) is CellSupernet


def test_compiled_operators_that_cannot_be_used_on_the_gpu_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_libraries, "_cuda_problem", "_C_cuda was not built")
    task = small.task(implementation="fused")
    task.device = torch.device("cuda")
    with pytest.raises(RuntimeError, match="_C_cuda was not built"):
        task.supernet()


@pytest.mark.parametrize(
    ("kind", "search_only", "retrain_only"),
    [
        (
            "classification",
            {"cells", "channels", "implementation", "precision"},
            {"final_cells", "final_channels", "parameter_limit", "drop_path", "auxiliary_weight"},
        ),
        ("inpainting", {"precision"}, {"network", "base_channels"}),
    ],
)
def test_a_loop_depends_on_its_own_settings(
    kind: str, search_only: set[str], retrain_only: set[str]
) -> None:
    section = tasks.get(kind).config()
    of_search, of_retrain = (
        affecting_results(section, "search"),
        affecting_results(section, "retrain"),
    )
    assert set(of_search) - set(of_retrain) == search_only
    assert set(of_retrain) - set(of_search) == retrain_only
    of_neither = {item.name for item in fields(section) if item.metadata["runtime_only"]}
    assert {**of_search, **of_retrain} == {
        name: value for name, value in asdict(section).items() if name not in of_neither
    }


def test_other_data_have_another_fingerprint() -> None:
    data = small.data()
    fingerprint = data.fingerprint()
    assert fingerprint == small.data().fingerprint()
    assert fingerprint.startswith("121 + 50 images 8×8×1, 10 classes, ")
    for tensor in (data.train.labels, data.test.images):
        tensor[-1] += 1
        changed = data.fingerprint()
        tensor[-1] -= 1
        assert changed != fingerprint


def small_config(**search: Any) -> dict[str, Any]:
    sections = {"search": small.SEARCH, "retrain": small.RETRAIN, "classification": small.TASK}
    config: dict[str, Any] = {name: asdict(section) for name, section in sections.items()}
    config["search"] |= {"epochs": 1, "batch_size": 256, **search}
    config["retrain"] |= {"epochs": 1, "batch_size": 256}
    return {"task": "classification", "seed": 0, **config}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"optimizer": "SNG"}, {"delta": 1.0}),
        ({"optimizer": "SNG", "step_size": 0.5}, {"delta": 0.5}),
        ({"optimizer": "NaturalAdam"}, {"delta": 0.01}),
        ({"optimizer": "NaturalAdam", "step_size": 0.5}, {"delta": 0.5}),
        ({"alpha": 2.0, "population_size": 4}, {"alpha": 2.0, "population_size": 4}),
    ],
)
def test_optimizers_by_name(
    tmp_path: Path, settings: dict[str, Any], expected: dict[str, float]
) -> None:
    optimizer = Experiment(RunFolder(tmp_path), small_config(**settings), None).optimizer()
    assert type(optimizer).__name__ == settings.get("optimizer", "ASNG")
    assert {name: getattr(optimizer, name) for name in expected} == expected


def test_an_unknown_optimizer_is_named(tmp_path: Path) -> None:
    words = "optimizer must be one of ASNG, SNG, NaturalAdam.*, got 'Chess'"
    with pytest.raises(ValueError, match=words):
        Experiment(RunFolder(tmp_path), small_config(optimizer="Chess"), None)


def test_a_search_does_not_continue_with_another_optimizer(tmp_path: Path) -> None:
    experiment = Experiment.create(tmp_path / "run", small_config(optimizer="SNG"), None)
    experiment.search()
    assert Experiment.open(tmp_path / "run", stream=None).search() == experiment.architecture()
    other = {"search": {"optimizer": "NaturalAdam"}}
    with pytest.raises(ValueError, match="optimizer was 'SNG' and is 'NaturalAdam'"):
        Experiment.open(tmp_path / "run", loops=other, stream=None).search()
    state = experiment.run.load("search.pt")
    assert state is not None
    for name in ("optimizer", "step_size"):  # which earlier versions did not save
        del state["identity"][name]
    experiment.run.save("search.pt", state)
    with pytest.raises(ValueError, match="optimizer was 'ASNG' and is 'SNG'"):
        Experiment.open(tmp_path / "run", stream=None).search()


def test_an_error_of_the_task_does_not_put_back_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those that the retraining has begun with, and that it continues with."""
    Experiment.create(tmp_path / "run", small_config(), None).search()
    experiment = Experiment.open(
        tmp_path / "run", loops={"retrain": {"momentum": 0.5}}, stream=None
    )

    def fail(*arguments: Any) -> Any:
        raise ValueError("an image is broken")

    with monkeypatch.context() as patch:
        patch.setattr(experiment.task, "training_loss", fail)
        with pytest.raises(ValueError, match="an image is broken"):
            experiment.retrain()
    assert experiment.run.read_config()["retrain"]["momentum"] == 0.5
    experiment.retrain()
    with pytest.raises(CheckpointMismatchError, match=r"momentum was 0\.5 and is 0\.9"):
        Experiment.open(
            tmp_path / "run", loops={"retrain": {"momentum": 0.9}}, stream=None
        ).retrain()
    assert experiment.run.read_config()["retrain"]["momentum"] == 0.5
    for name in ("retrain.pt", "retrain.prev.pt"):  # damaged
        experiment.run.file(name).write_bytes(b"")
    with pytest.raises(CheckpointMismatchError, match="no checkpoint before it"):
        Experiment.open(
            tmp_path / "run", loops={"retrain": {"momentum": 0.9}}, stream=None
        ).retrain()
    assert experiment.run.read_config()["retrain"]["momentum"] == 0.5


def test_tasks_are_registered_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tasks.names() == ("classification", "inpainting")
    kind = tasks.get("classification")
    with pytest.raises(ValueError, match="there is a task 'classification' already"):
        tasks.register(kind)
    with pytest.raises(TypeError, match="kind must be a TaskKind, got 3"):
        tasks.register(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="task must be one of classification, inpainting"):
        tasks.get("chess")
    monkeypatch.setattr(tasks.registry, "_KINDS", dict(tasks.registry._KINDS))
    tasks.register(replace(kind, name="digits"))
    assert tasks.names()[-1] == "digits"
    config = small_config()
    config |= {"task": "digits", "digits": config.pop("classification")}
    architecture = Experiment.create(tmp_path / "run", config, None).search()
    assert set(architecture) == set(small.task().space)
    tasks.register(replace(kind, name="nothing", make=lambda config, **named: object()))
    with pytest.raises(TypeError, match=r"task 'nothing' must have all members of .*\.Task, "):
        Experiment(RunFolder(tmp_path), {"task": "nothing", "seed": 0}, None)


class Wanderer:
    """An optimizer of one's own, without a distribution; what it is told moves nothing."""

    capturable = False
    convergence = delta = 0.0

    def __init__(self, space: asng.SearchSpace, *, population_size: int, seed: int | None) -> None:
        self.space, self.population_size = space, population_size
        self._draws = asng.ASNG(space, population_size=population_size, seed=seed)

    def ask(self) -> asng.Samples:
        return self._draws.ask()

    def tell(self, samples: asng.Samples, losses: Any) -> None:
        pass

    def recommend(self) -> dict[str, Any]:
        return self._draws.recommend()

    def state_dict(self) -> dict[str, Any]:
        return self._draws.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self._draws.load_state_dict(state)


@pytest.mark.pictures
def test_an_optimizer_of_ones_own_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optimizers.REGISTRY, "Wanderer", Wanderer)
    config = small_config(optimizer="Wanderer", population_size=3)
    experiment = Experiment.create(tmp_path / "run", config, None)
    assert experiment.optimizer().population_size == 3
    assert experiment.search() == experiment.architecture()
    assert experiment.run.read_json("architecture.json")["probabilities"] == {}
    assert not experiment.run.file("theta.png").exists()


@pytest.mark.pictures
def test_an_architecture_is_drawn_with_near_ties_and_the_sizes_of_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plots = pytest.importorskip("asng_ext.plots")
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(plots, "draw_cells", lambda *given, **named: drawn.append(named))
    some = small_runs.classification(tmp_path / "run", auxiliary_weight=0.0)
    optimizer = some.optimizer()
    monkeypatch.setattr(some, "optimizer", lambda *_: optimizer)
    some.search()
    found = some.run.read_json("architecture.json")
    ties = found["near_ties"]
    theta = optimizer.theta.categorical  # type: ignore[attr-defined]
    for (name, variable), row in zip(some.task.space.categorical.items(), theta):
        second, first = sorted(row[: len(variable.values)])[-2:]
        assert (name in ties) == (second >= first / 2)
        if name in ties:
            assert list(ties[name].values()) == [first, second]
            assert next(iter(ties[name])) == found["architecture"][name]
            assert found["probabilities"][name] == first
    assert ties
    changed = Experiment.open(some.run.path, task={"final_channels": 3}, stream=None)
    changed.retrain()
    assert [each["near_ties"] for each in drawn] == [ties] * 2
    assert drawn[0]["sizes"]["channels"] != 3
    assert drawn[1]["sizes"] == changed.run.read_json("architecture.json")["network"]
    assert drawn[1]["sizes"]["channels"] == 3
    changed.run.write_json("architecture.json", {**found, "near_ties": {"x": 3}})
    with pytest.raises(ValueError, match=r"does not fit this run: .*; remove its entry near_ties"):
        changed.retrain()


@pytest.mark.pictures
def test_a_task_need_not_take_near_ties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(
        ClassificationTask, "draw_architecture", lambda task, values, path: drawn.append(path.name)
    )
    small_runs.classification(tmp_path / "run").search()
    assert drawn == ["architecture.png"]
