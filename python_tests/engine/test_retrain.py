"""The retraining loop."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import torch
from torch import nn

import asng_ext as asng
from asng_ext.engine.retrain import retrain
from asng_ext.nn import CellNetwork, parameter_count
from asng_ext.runs.checkpoints import CheckpointMismatchError
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.metrics import MetricsTable


def architecture(task: Any, seed: int = 0) -> dict[str, Any]:
    return dict(asng.ASNG(task.space, population_size=2, seed=seed).ask()[0])


def test_trains_and_tests(tmp_path: Path) -> None:
    task = small.task(parameter_limit=8000)
    values = architecture(task)
    run = RunFolder.create(tmp_path / "run")
    config = replace(small.RETRAIN, epochs=25)
    network, tested = retrain(task, values, config, seed=0, run=run, stream=None)
    assert tested["accuracy"] > 0.6
    details = task.details(network)
    assert run.read_json("results.json") == {**tested, **details, "architecture": values}
    classes = details["classes"]
    assert list(classes) == list("0123456789")
    assert [each["train"] for each in classes.values()] == task.data.train.counts()
    right = sum(each["test"] * each["accuracy"] for each in classes.values())
    assert right / len(task.data.test) == pytest.approx(tested["accuracy"])
    state = run.load("network.pt")
    assert state is not None
    assert state["architecture"] == values
    again = task.network(values)
    again.load_state_dict(state["network"])
    assert task.test(again) == tested == task.test(network)


def test_resume_bit_for_bit(tmp_path: Path) -> None:
    task = small.task()
    values = architecture(task)
    whole_run = RunFolder.create(tmp_path / "whole")
    whole, tested = retrain(task, values, small.RETRAIN, seed=1, run=whole_run, stream=None)

    class StopError(Exception):
        pass

    broken = small.task()

    def stop(network: nn.Module, epoch: int, epochs: int) -> None:
        if epoch == 2:
            raise StopError
        small.task().begin_epoch(network, epoch, epochs)

    broken.begin_epoch = stop  # type: ignore[method-assign]
    run = RunFolder.create(tmp_path / "broken")
    with pytest.raises(StopError):
        retrain(broken, values, small.RETRAIN, seed=1, run=run, stream=None)
    torch.randn(5)
    resumed, again = retrain(task, values, small.RETRAIN, seed=1, run=run, stream=None)
    assert again == tested
    assert small.equal(dict(resumed.state_dict()), dict(whole.state_dict()))
    assert run.file("retrain.csv").read_bytes() == whole_run.file("retrain.csv").read_bytes()
    # Once finished, there is nothing to do but test.
    _, finished = retrain(task, values, small.RETRAIN, seed=1, run=run, stream=None)
    assert finished == tested


def test_adam_in_steps_resumes_bit_for_bit(tmp_path: Path) -> None:
    task = small.task(auxiliary_weight=0.0)
    values = architecture(task)
    config = replace(
        small.RETRAIN, epochs=4, optimizer="adam", schedule="steps", learning_rate=1e-3
    )
    whole, tested = retrain(task, values, config, seed=1, stream=None)
    run = RunFolder.create(tmp_path / "run")
    original, tests = task.test, 0

    def test_and_stop(network: nn.Module) -> dict[str, float]:
        nonlocal tests
        tests += 1
        if tests == 3:
            raise KeyboardInterrupt
        return original(network)  # type: ignore[arg-type]

    task.test = test_and_stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        retrain(task, values, config, seed=1, run=run, stream=None)
    task.test = original  # type: ignore[method-assign]
    resumed, again = retrain(task, values, config, seed=1, run=run, stream=None)
    assert again == tested
    assert small.equal(dict(resumed.state_dict()), dict(whole.state_dict()))
    rates = [row["learning_rate"] for row in MetricsTable(run.file("retrain.csv"), keep=4).rows]
    assert rates == pytest.approx([1e-3, 1e-4, 1e-4, 1e-5])


def test_another_architecture_is_not_mixed_in(tmp_path: Path) -> None:
    task = small.task()
    run = RunFolder.create(tmp_path / "run")
    config = replace(small.RETRAIN, epochs=1)
    retrain(task, architecture(task), config, seed=0, run=run, stream=None)
    with pytest.raises(ValueError, match="another architecture"):
        retrain(task, architecture(task, seed=8), config, seed=0, run=run, stream=None)
    others = {
        "final_channels was 0 and is 9": (small.task(final_channels=9), 0),
        "cutout was -1 and is 2": (small.task(cutout=2), 0),
        "drop_path was 0.2 and is 0.1": (small.task(drop_path=0.1), 0),
        "seed was 0 and is 1": (task, 1),
    }
    for words, (other, seed) in others.items():
        with pytest.raises(CheckpointMismatchError, match=words):
            retrain(other, architecture(task), config, seed=seed, run=run, stream=None)
    # The supernet's size has no influence.
    retrain(small.task(cells=4), architecture(task), config, seed=0, run=run, stream=None)


def test_a_damaged_checkpoint_costs_an_epoch_and_changes_nothing(tmp_path: Path) -> None:
    task = small.task()
    values = architecture(task)
    run = RunFolder.create(tmp_path / "run")
    config = replace(small.RETRAIN, epochs=2)
    retrain(task, values, config, seed=0, run=run, stream=None)
    names = ("retrain.csv", "results.json")
    before = {name: run.file(name).read_bytes() for name in names}
    whole = run.load("retrain.pt"), run.load("network.pt")
    run.file("retrain.pt").write_bytes(run.file("retrain.pt").read_bytes()[:-9])
    run.file("retrain.csv").write_text("somebody's own")
    with pytest.warns(UserWarning, match=r"continuing from retrain\.prev\.pt"):
        retrain(task, values, config, seed=0, run=run, stream=None)
    assert small.equal((run.load("retrain.pt"), run.load("network.pt")), whole)
    assert {name: run.file(name).read_bytes() for name in names} == before


def test_a_last_step_that_spoils_the_weights_keeps_the_checkpoint(tmp_path: Path) -> None:
    task = small.task()
    training_loss, steps = task.training_loss, 0

    def spoils(network: nn.Module, batch: Any) -> Any:
        nonlocal steps
        steps += 1
        loss, metrics = training_loss(network, batch)
        if steps == 2 * task.retrain_steps:
            # Adds 0 to the loss and NaN to the gradient.
            loss = loss + (0 * next(network.parameters())).abs().sqrt().sum()
        return loss, metrics

    task.training_loss = spoils  # type: ignore[method-assign]
    run = RunFolder.create(tmp_path / "run")
    with pytest.raises(FloatingPointError, match=r"epoch 2, .*: weight \S+ .*is not finite, grad"):
        retrain(task, architecture(task), small.RETRAIN, seed=0, run=run, stream=None)
    state = run.load("retrain.pt")
    assert state is not None
    assert state["epochs_done"] == 1
    assert not run.file("network.pt").exists()


def test_drop_path_grows_to_its_rate() -> None:
    task = small.task(drop_path=0.3)
    network = task.network(architecture(task))
    rates = []
    for epoch in range(4):
        task.begin_epoch(network, epoch, 4)
        rates.append(network.drop_path_rate)
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    task.begin_epoch(network, 0, 1)
    with pytest.raises(TypeError, match="CellNetwork"):
        task.begin_epoch(nn.Linear(1, 1), 0, 1)


def test_the_auxiliary_head_is_a_part_of_the_loss() -> None:
    values = architecture(small.task())
    batch = next(iter(small.task().train_batches(0)))
    losses = {}
    for weight in (0.0, 0.4):
        task = small.task(auxiliary_weight=weight)
        torch.manual_seed(0)
        network = task.network(values)
        losses[weight], metrics = task.training_loss(network.train(), batch)
        assert 0 <= float(metrics["accuracy"]) <= 1
        assert (network.auxiliary is None) == (weight == 0)
    assert losses[0.4] > losses[0.0]


def test_the_widest_network_within_the_limit() -> None:
    task = small.task(parameter_limit=20_000)
    values = architecture(task)
    state = torch.get_rng_state()
    summary = task.summary(values)
    assert torch.equal(torch.get_rng_state(), state)
    network = task.network(values)
    assert summary["parameters"] == parameter_count(network)
    assert summary["parameters_auxiliary"] == parameter_count(network.auxiliary)
    assert summary["parameters"] <= 20_000
    wider = replace(task.config, final_channels=summary["channels"] + 1)
    task.config = wider
    assert task.summary(values)["parameters"] > 20_000
    assert isinstance(task.network(values), CellNetwork)


def test_bfloat16() -> None:
    task = small.task()
    values = architecture(task)
    config = replace(small.RETRAIN, precision="bfloat16")
    network, tested = retrain(task, values, config, seed=0, stream=None)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    _, exact = retrain(task, values, small.RETRAIN, seed=0, stream=None)
    assert tested["loss"] != exact["loss"]
    assert tested["loss"] == pytest.approx(exact["loss"], rel=0.2)


@pytest.mark.slow
def test_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without inductor, which takes half a minute: that it compiles such networks is a test of
    theirs."""
    compiled = partial(torch.compile, backend="aot_eager")
    seen = []

    def counted(network: nn.Module) -> Any:
        seen.append(network)
        return compiled(network)

    monkeypatch.setattr(torch, "compile", counted)
    task = small.task(nodes=1, drop_path=0.0, auxiliary_weight=0.0)
    values = architecture(task)
    run = RunFolder.create(tmp_path / "run")
    config = replace(small.RETRAIN, compile=True, epochs=2)
    network, tested = retrain(task, values, config, seed=0, run=run, stream=None)
    assert seen == [network]
    _, plain = retrain(task, values, replace(config, compile=False), seed=0, stream=None)
    assert seen == [network]
    assert tested["loss"] == pytest.approx(plain["loss"], rel=0.05)
    state = run.load("network.pt")
    assert state is not None
    task.network(values).load_state_dict(state["network"])
