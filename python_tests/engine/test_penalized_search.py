"""Searches with limits of what the architecture may cost."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_classification as small
import small_runs
import torch
from devices import DEVICES
from recording_graphs import RecordingGraphs
from tensor_task import StackedTask, asng_in_tensors

import asng_ext as asng
from asng_ext.engine.experiment import Experiment
from asng_ext.engine.search import search
from asng_ext.nn import Latencies, parameter_count
from asng_ext.runs.checkpoints import CheckpointMismatchError
from asng_ext.runs.config import SearchConfig
from asng_ext.runs.report import report
from asng_ext.training.cuda_graphs import CudaGraphs


def settings(penalty: str, epochs: int = 2, **task: Any) -> dict[str, Any]:
    task = {"final_channels": 4, "auxiliary_weight": 0.0, **task}
    return {
        "task": "classification",
        "seed": 0,
        "search": asdict(replace(small.SEARCH, epochs=epochs, batch_size=256, penalty=penalty)),
        "retrain": asdict(replace(small.RETRAIN, epochs=1, batch_size=256)),
        "classification": asdict(replace(small.TASK, **task)),
    }


def create(path: Path, penalty: str, **options: Any) -> Experiment:
    return Experiment.create(path, settings(penalty, **options), None)


def test_limits_without_effect_change_nothing() -> None:
    """The search is the same, bit for bit; what samples cost is added to its metrics."""
    found = []
    for limits in (None, {"parameters": 1e9, "flops": 1e12}):
        task = small.task(final_channels=4)
        optimizer = small.optimizer(task)
        penalty = limits and asng.Penalty(
            {name: task.cost(name, Latencies()) for name in limits}, limits
        )
        result = search(task, optimizer, small.SEARCH, seed=0, stream=None, penalty=penalty)
        rows = [{k: v for k, v in row.items() if k.startswith("theta_")} for row in result.rows]
        same = [{k: v for k, v in row.items() if "theta_" not in k} for row in result.rows]
        found.append((dict(result.supernet.state_dict()), optimizer.state_dict(), same))
    assert small.equal(*found)
    for row in rows:
        assert row["theta_within_limits"] == 1
        assert 500 < row["theta_parameters"] < 5000
        assert row["theta_flops"] > 1000


def test_what_is_found_is_what_is_retrained_and_within_the_limits(tmp_path: Path) -> None:
    free = create(tmp_path / "free", "")
    free.search()
    parameters = free.run.read_json("architecture.json")["network"]["parameters"]
    limit = 0.8 * parameters
    experiment = create(tmp_path / "run", f"parameters={limit},flops=1e9")
    values = experiment.search()
    found = experiment.run.read_json("architecture.json")
    counted = found["costs"]["parameters"]
    assert (counted["cost"], counted["limit"]) == (found["network"]["parameters"], limit)
    state = experiment.run.load("search.pt")
    assert state is not None
    optimizer: Any = experiment.optimizer()
    optimizer.load_state_dict(state["optimizer"])
    drawn = [experiment.penalty().costs_of(optimizer.ask())["parameters"] for _ in range(500)]  # type: ignore[union-attr]
    assert counted["expected"] == pytest.approx(np.mean(drawn), rel=0.03)
    assert counted["cost"] <= limit
    assert found["costs"]["flops"]["cost"] == found["network"]["flops"]
    assert counted["cost"] == parameter_count(experiment.task.network(values))
    assert set(found["probabilities"]) == set(values)
    assert "limits:     parameters" in report(experiment.run)
    rows = (experiment.run.path / "search.csv").read_text().splitlines()
    assert {"theta_parameters", "theta_flops", "theta_within_limits"} <= set(rows[0].split(","))
    experiment.retrain()
    network = experiment.run.load("network.pt")
    assert network is not None
    names = [name for name, _ in experiment.task.network(values).named_parameters()]
    assert sum(network["network"][name].numel() for name in names) == counted["cost"]


def test_a_search_with_limits_continues_bit_for_bit(tmp_path: Path) -> None:
    whole = create(tmp_path / "whole", "parameters=1500,latency=5", epochs=3)
    # Of one table of latencies: measured again, others would come.
    latencies = Latencies(measured=whole.run.read_json("latency.json")["measured"])
    whole.search()
    assert whole.run.read_json("latency.json")["measured"] == latencies.measured
    config = settings("parameters=1500,latency=5", epochs=3)
    broken = Experiment.create(tmp_path / "broken", config, None, latencies=latencies)
    tested: list[object] = []
    test_supernet = broken.task.test_supernet

    class StopError(Exception):
        pass

    def stop(*arguments: Any) -> dict[str, float]:
        tested.append(arguments)
        if len(tested) > 1:
            raise StopError
        return test_supernet(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(broken.task, "test_supernet", stop)
        with pytest.raises(StopError):
            broken.search()
    again = Experiment.open(tmp_path / "broken", stream=None)
    again.search()
    for name in ("search.csv", "architecture.json"):
        assert again.run.file(name).read_bytes() == whole.run.file(name).read_bytes()
    assert small.equal(again.run.load("search.pt"), whole.run.load("search.pt"))

    other = {"search": {"penalty": "parameters=1400,latency=5"}}
    with pytest.raises(CheckpointMismatchError, match="penalty was 'parameters=1500,latency=5'"):
        Experiment.open(tmp_path / "broken", loops=other, stream=None).search()
    wider = {"final_channels": 5}  # what is retrained is something else
    with pytest.raises(CheckpointMismatchError, match="penalty_of was"):
        Experiment.open(tmp_path / "broken", task=wider, stream=None).search()
    measured = again.run.read_json("latency.json")
    measured["measured"] = {name: 2 * value for name, value in measured["measured"].items()}
    again.run.write_json("latency.json", measured)
    with pytest.raises(CheckpointMismatchError, match="penalty_of was"):
        Experiment.open(tmp_path / "broken", stream=None).search()
    again.run.write_json("latency.json", {"measured": {"sum": -1}})
    with pytest.raises(ValueError, match=r"latency\.json does not fit.*measured\['sum'\]"):
        Experiment.open(tmp_path / "broken", stream=None).search()


def test_a_checkpoint_of_before_there_were_limits_continues(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    experiment = small_runs.classification(tmp_path / "run")
    experiment.search()
    state = experiment.run.load("search.pt")
    assert state is not None
    for name in ("penalty", "penalty_of"):
        del state["identity"][name]
    experiment.run.save("search.pt", state)
    assert Experiment.open(tmp_path / "run", stream=None).search() == experiment.architecture()
    assert not [w for w in recwarn if "does not say" in str(w.message)]


def test_limits_that_nothing_keeps_are_warned_of(tmp_path: Path) -> None:
    experiment = create(tmp_path / "run", "parameters=1", epochs=1)
    with pytest.warns(
        UserWarning, match=r"within the limits was found.*parameters \d+ \(limit 1\)"
    ):
        experiment.search()


def test_an_inpainting_search_with_limits(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    free = small_runs.inpainting(tmp_path / "free")
    largest = free.task.summary(free.search())["parameters"]
    config = {
        **free.config,
        "search": {**free.config["search"], "penalty": f"parameters={largest}"},
    }
    experiment = Experiment.create(tmp_path / "run", config, None)
    values = experiment.search()
    found = experiment.run.read_json("architecture.json")
    assert found["costs"]["parameters"]["cost"] == found["network"]["parameters"] <= largest
    assert found["architecture"] == values
    flops = experiment.task.cost("flops", Latencies())
    samples = experiment.task.space.samples([values])
    assert flops(samples) == [found["network"]["flops"]]


@pytest.mark.operators
@pytest.mark.parametrize("device", DEVICES)
def test_limits_are_captured_with_the_step(device: str) -> None:
    table = {"act": {"relu": 1.0, "id": 2.0, "drop": 3.0}, "out": {"a": 1.0, "b": 2.0}}
    outcomes = []
    for capture in (True, False):
        task = StackedTask(device)
        optimizer = asng_in_tensors(task.space, device)
        penalty = asng.Penalty({"c": asng.CostTable.of_choices(task.space, table)}, {"c": 3.5})
        graphs: Any = RecordingGraphs() if device == "cpu" else CudaGraphs(torch.device("cuda"))
        config = SearchConfig(epochs=4, learning_rate=0.3, gradient_clip=0.5, graphs=capture)
        notes = _Notes()
        result = search(
            task,
            optimizer,
            config,
            seed=2,
            stream=notes,
            graphs=graphs,
            penalty=penalty,  # type: ignore[arg-type]
        )
        assert not [note for note in notes.lines if "without CUDA graphs" in note]
        outcomes.append((result.rows, result.architecture, optimizer.state_dict()))
    assert small.equal(*outcomes)
    rows, architecture, _ = outcomes[0]
    assert rows[0]["theta_within_limits"] < 1
    assert penalty.costs_of(task.space.samples([architecture]))["c"] <= 3.5


class _Notes:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        self.lines.append(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    ("penalty", "task", "words"),
    [
        ("parameters=1e6", {"final_channels": 0}, "parameters=1e.06: limits need final_channels"),
        ("weights=1e6", {}, "kind must be one of parameters, flops, latency, got 'weights'"),
        ("parameters", {}, "penalty must be of NAME=VALUE, each name once, got 'parameters'"),
        ("flops=1,flops=2", {}, "each name once, got 'flops=2'"),
        ("flops=many", {}, "penalty must have a number above 0 for flops, got 'many'"),
        ("flops=-1", {}, "penalty must have a number above 0 for flops, got '-1'"),
        ("flops=inf", {}, "penalty must have a number above 0 for flops, got 'inf'"),
    ],
)
def test_limits_that_make_no_sense_are_refused_before_a_folder_is_made(
    penalty: str, task: dict[str, Any], words: str, tmp_path: Path
) -> None:
    config = settings("", **task)
    config["search"]["penalty"] = penalty
    with pytest.raises(ValueError, match=words):
        Experiment.create(tmp_path / "run", config, None)
    assert not (tmp_path / "run").exists()


def test_what_a_task_does_not_count_is_named(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    config = small_runs.inpainting(tmp_path / "free").config
    for penalty, task, words in (
        (
            "latency=3",
            {},
            "penalty latency=3: kind must be parameters or flops for autoencoders, got 'latency'",
        ),
        ("flops=3", {"network": "base"}, "penalty flops=3: limits need network=found"),
    ):
        changed = {
            **config,
            "search": {**config["search"], "penalty": penalty},
            "inpainting": {**config["inpainting"], **task},
        }
        with pytest.raises(ValueError, match=words):
            Experiment.create(tmp_path / "run", changed, None)
    task = StackedTask()
    with pytest.raises(ValueError, match="costs that the task counts, got 'flops'"):
        task.cost("flops", Latencies())
    with pytest.raises(ValueError, match="penalty must be given, with the limits flops=3"):
        search(task, asng.ASNG(task.space), SearchConfig(penalty="flops=3"), seed=0, stream=None)
