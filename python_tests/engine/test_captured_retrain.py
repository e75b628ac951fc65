"""The retraining loop with its steps captured: the same numbers as without, and what falls back."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import torch
from devices import DEVICES
from recording_graphs import RecordingGraphs, counting
from torch import nn

import asng_ext as asng
from asng_ext.engine.retrain import retrain
from asng_ext.runs.config import RetrainConfig
from asng_ext.runs.folder import RunFolder
from asng_ext.training.cuda_graphs import WARM_UPS

SGD = replace(small.RETRAIN, gradient_clip=0.5)
ADAM = replace(SGD, optimizer="adam", learning_rate=3e-3, weight_decay=1e-3)


def task(device: str = "cpu", **changes: Any) -> Any:
    """Three steps an epoch."""
    return small.task(device=device, images=small.noise(), **changes)


def outcome(
    config: RetrainConfig, graphs: Any, some: Any = None, **options: Any
) -> tuple[dict[str, Any], dict[str, float]]:
    some = some or task()
    values = dict(asng.ASNG(some.space, population_size=2, seed=0).ask()[0])
    options = {"seed": 1, "stream": None, **options}
    network, tested = retrain(some, values, config, graphs=graphs, **options)
    return dict(network.state_dict()), tested


@pytest.mark.parametrize(
    "config", [SGD, replace(ADAM, precision="bfloat16")], ids=["sgd", "adam in bfloat16"]
)
@pytest.mark.parametrize("device", DEVICES)
def test_captured_or_not_the_numbers_are_the_same(device: str, config: RetrainConfig) -> None:
    """With drop-path, whose rate grows, the auxiliary head, and the rate falling on a cosine."""
    some, graphs, unused = task(device), counting(device), counting(device)
    captured = outcome(config, graphs, some)
    assert small.equal(captured, outcome(replace(config, graphs=False), unused, some))
    # Once, although drop-path has no rate in the first epoch.
    assert (graphs.captured, graphs.replays) == (1, 3 * 3 - WARM_UPS)
    assert unused.ran == unused.captured == 0
    # The rate of drop-path is that of the epoch.
    other = outcome(config, counting(device), task(device, drop_path=0.3))
    assert not small.equal(captured, other)
    if device == "cpu" and config is SGD:
        for mine, plain in zip(captured[0].values(), outcome(config, None)[0].values()):
            torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("config", [SGD, ADAM], ids=["sgd", "adam"])
def test_a_captured_retraining_continues_bit_for_bit(config: RetrainConfig, tmp_path: Path) -> None:
    whole = outcome(config, RecordingGraphs())
    run = RunFolder.create(tmp_path / "run")
    broken = task()
    begin, begun = broken.begin_epoch, []

    def stop(network: nn.Module, epoch: int, epochs: int) -> None:
        if epoch == 1:
            raise KeyboardInterrupt
        begun.append(epoch)
        begin(network, epoch, epochs)

    broken.begin_epoch = stop
    with pytest.raises(KeyboardInterrupt):
        outcome(config, RecordingGraphs(), broken, run=run)
    assert begun == [0]
    graphs = RecordingGraphs()
    assert small.equal(outcome(config, graphs, run=run), whole)
    assert (graphs.captured, graphs.replays) == (1, 2 * 3 - WARM_UPS)


def reading() -> Any:
    """A task whose loss waits for the device."""
    some = task()
    training_loss = some.training_loss

    def reads(network: nn.Module, batch: Any) -> Any:
        loss, metrics = training_loss(network, batch)
        return loss * (1.0 if loss.item() else 2.0), metrics

    some.training_loss = reads
    return some


def on_the_host() -> Any:
    some = task()
    some.retrain_capturable = False
    return some


@pytest.mark.parametrize(
    ("make", "config", "reason"),
    [
        (on_the_host, SGD, "the task, ClassificationTask, is not retrain_capturable"),
        (task, replace(SGD, compile=True), "the network is compiled"),
        (reading, SGD, "it reads _local_scalar_dense"),
    ],
)
def test_what_cannot_be_captured_runs_as_usual_and_says_why(
    make: Any, config: RetrainConfig, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda network: network)
    graphs, stream = RecordingGraphs(), io.StringIO()
    fallen_back = outcome(config, graphs, make(), stream=stream)
    assert graphs.captured == 0
    (line,) = [line for line in stream.getvalue().splitlines() if "CUDA graphs" in line]
    assert f"retrain: steps run without CUDA graphs: {reason}" in line
    silent = io.StringIO()
    usual = outcome(replace(config, graphs=False), graphs, make(), stream=silent)
    assert small.equal(fallen_back, usual)
    assert "CUDA" not in silent.getvalue()
