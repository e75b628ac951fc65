"""Runs that end within an epoch continue from there, and are what they would have been."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import torch
from choice_task import ChoiceTask
from forked import exit_status, forked
from torch import Tensor, nn

import asng_ext as asng
from asng_ext._signals import SIGNALS, Interrupted
from asng_ext.engine.retrain import retrain
from asng_ext.engine.search import search
from asng_ext.nn import Choice, search_space
from asng_ext.runs.checkpoints import CheckpointMismatchError
from asng_ext.runs.config import SearchConfig
from asng_ext.runs.folder import RunFolder

EVERY_STEP = 1e-9
"""Minutes between checkpoints."""


class Drawing(ChoiceTask):
    """A user's task: each of its batches and steps draws from PyTorch's global generators."""

    search_steps = retrain_steps = 4

    def __init__(self) -> None:
        self.x = torch.linspace(-1, 1, 96).view(16, 6)
        self.space = search_space(self.supernet())

    def supernet(self) -> nn.Module:
        ways = {"drop": nn.Dropout(0.5), "rest": nn.Identity()}
        return nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), Choice("way", ways), nn.Linear(16, 1)
        )

    def weight_batches(self, epoch: int) -> Iterator[Tensor]:
        for part in torch.randperm(16).split(4):
            yield self.x[part] + 0.01 * torch.randn(4, 6)

    theta_batches = train_batches = weight_batches

    def loss(self, network: nn.Module, batch: Tensor) -> Tensor:
        return self.training_loss(network, batch)[0]

    def training_loss(self, network: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out = network(batch)
        return (out - batch.prod(dim=1, keepdim=True)).square().mean(), {"size": out.mean()}


TASKS: dict[str, Callable[[], Any]] = {
    "cells": small.task,
    "drawing": Drawing,
    "cells on a GPU": lambda: small.task(device="cuda"),
}
ON_GPU = pytest.param("search", "cells on a GPU", marks=pytest.mark.cuda)
"""Retraining calls PyTorch's operators, which there may round otherwise each time."""
LOOPS = {"search": ("losses", small.SEARCH), "retrain": ("training_loss", small.RETRAIN)}


def run_loop(
    loop: str, task: Any, run: RunFolder, resume_from: Path | None = None, **settings: Any
) -> Any:
    """Searches or retrains, from what is in the folder; returns all that comes of it."""
    named: dict[str, Any] = {"seed": 3, "run": run, "stream": None, "resume_from": resume_from}
    optimizer = asng.ASNG(task.space, population_size=2, seed=0)
    if loop == "search":
        config = replace(small.SEARCH, **settings)
        result = search(task, optimizer, config, **named)
        return dict(result.supernet.state_dict()), result.rows, optimizer.state_dict()
    config = replace(small.RETRAIN, **settings)
    values = dict(optimizer.ask()[0])
    network, tested = retrain(task, values, config, **named)
    return dict(network.state_dict()), tested


def signaled(task: Any, loop: str, number: int, after: int) -> Any:
    """The task, in whose forward pass of that number the process gets a signal."""
    method = LOOPS[loop][0]
    original, calls = getattr(task, method), 0

    def with_signal(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after:
            os.kill(os.getpid(), number)
        return original(*arguments)

    setattr(task, method, with_signal)
    return task


@pytest.mark.parametrize(("loop", "name"), [*product(LOOPS, ("cells", "drawing")), ON_GPU])
def test_each_step_in_a_run_of_its_own(loop: str, name: str, tmp_path: Path) -> None:
    """Signals end each run after its first step, the last of epochs included."""
    whole = RunFolder.create(tmp_path / "whole")
    expected = run_loop(loop, TASKS[name](), whole)
    run = RunFolder.create(tmp_path / "in steps")
    before = [signal.getsignal(number) for number in SIGNALS]
    task = TASKS[name]()
    steps = 3 * (task.search_steps if loop == "search" else task.retrain_steps)
    for number in islice(cycle(SIGNALS), steps):
        torch.randn(3)  # whatever else happens in between
        with pytest.raises(Interrupted) as caught:
            run_loop(loop, signaled(TASKS[name](), loop, number, 1), run)
        assert caught.value.number == number
    result = run_loop(loop, task, run)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert small.equal(result, expected)
    assert small.equal(run.load(f"{loop}.pt"), whole.load(f"{loop}.pt"))
    assert run.file(f"{loop}.csv").read_bytes() == whole.file(f"{loop}.csv").read_bytes()


@pytest.mark.parametrize("loop", LOOPS)
def test_writing_changes_no_number(loop: str, tmp_path: Path) -> None:
    often, never = RunFolder.create(tmp_path / "often"), RunFolder.create(tmp_path / "never")
    saved: list[Any] = []
    save = often.save

    def counted(name: str, content: Any, **named: Any) -> None:
        saved.append(content.get("within", {}).get("steps_done"))
        save(name, content, **named)

    often.save = counted  # type: ignore[method-assign]
    a = run_loop(loop, Drawing(), often, checkpoint_minutes=EVERY_STEP)
    b = run_loop(loop, Drawing(), never, checkpoint_minutes=0.0)
    assert small.equal(a, b)
    assert saved[:12] == [1, 2, 3, None] * 3
    assert small.equal(often.load(f"{loop}.pt"), never.load(f"{loop}.pt"))


def test_what_does_not_fit_within_an_epoch_is_refused(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    with pytest.raises(Interrupted):
        run_loop("search", signaled(Drawing(), "search", signal.SIGTERM, 3), run)
    state = run.load("search.pt")
    assert state is not None
    assert (state["within"]["epochs_done"], state["within"]["steps_done"]) == (0, 2)
    assert state["rows"] == []
    # Earlier versions would take the epoch for one that has not begun.
    assert "epochs_done" not in state
    for change, words in (
        ({"steps_done": 0}, "steps_done must be at least 1"),
        ({"draws": {}}, "it lacks 'states'"),
        ({"means": 3}, "search.pt does not fit this run"),
    ):
        run.save("search.pt", {**state, "within": {**state["within"], **change}})
        with pytest.raises(CheckpointMismatchError, match=words):
            run_loop("search", Drawing(), run)
    run.save("search.pt", {**state, "within": {**state["within"], "steps_done": 9}})
    with pytest.raises(ValueError, match="as many as before, 9 or more, got 4"):
        run_loop("search", Drawing(), run)


def test_tensorboard_has_each_epoch_once(tmp_path: Path) -> None:
    """Where a process ended within an epoch, and between its events and its checkpoint."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = RunFolder.create(tmp_path / "run")
    with pytest.raises(Interrupted):
        run_loop("search", signaled(Drawing(), "search", signal.SIGTERM, 11), run)
    for epochs in (1, 2):
        ending = RunFolder(run.path)

        def end(name: str, content: Any, last: int = epochs, **named: Any) -> None:
            if content["epochs_done"] > last:
                raise MemoryError
            RunFolder.save(run, name, content, **named)

        ending.save = end  # type: ignore[method-assign]
        with pytest.raises(MemoryError):
            run_loop("search", Drawing(), ending)
    rows = run_loop("search", Drawing(), run)[1]
    events = accumulators.EventAccumulator(str(run.path / "events" / "search"))
    events.Reload()
    shown = [(each.step, each.value) for each in events.Scalars("train_loss")]
    assert shown == [(row["epoch"], pytest.approx(row["train_loss"])) for row in rows]


@pytest.mark.parametrize("loop", LOOPS)
def test_resuming_from_an_older_checkpoint(loop: str, tmp_path: Path) -> None:
    """All that are kept lead to the same end, and one that is not there changes nothing."""
    run = RunFolder.create(tmp_path / "run")
    settings = {"checkpoint_minutes": EVERY_STEP, "keep": 6}
    expected = run_loop(loop, Drawing(), run, **settings)
    last = run.load(f"{loop}.pt")
    older = [run.file(f"{loop}.prev{number}.pt") for number in ("", 2, 3, 4, 5)]
    saved = tmp_path / "saved"
    saved.mkdir()
    for number, path in enumerate(older):
        path.rename(saved / f"{number}.pt")
    for path in sorted(saved.iterdir()):
        assert not small.equal(RunFolder(saved).load(path.name), last)
        assert small.equal(run_loop(loop, Drawing(), run, path, **settings), expected)
        assert small.equal(run.load(f"{loop}.pt"), last)
    before = run.file(f"{loop}.pt").read_bytes()
    with pytest.raises(CheckpointMismatchError, match=r"resume_from must be .*nowhere\.pt"):
        run_loop(loop, Drawing(), run, tmp_path / "nowhere.pt")
    (saved / "0.pt").write_bytes(b"damaged")
    with pytest.raises(CheckpointMismatchError, match=r"0\.pt is not a complete checkpoint"):
        run_loop(loop, Drawing(), run, saved / "0.pt")
    assert run.file(f"{loop}.pt").read_bytes() == before


def test_a_diverged_step_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    class Diverges(Drawing):
        steps = 0

        def losses(self, *arguments: Any) -> Any:
            losses, metrics = super().losses(*arguments)
            self.steps += torch.is_grad_enabled()
            return losses * (float("inf") if self.steps == 3 else 1), metrics

    run = RunFolder.create(tmp_path / "run")
    with pytest.raises(FloatingPointError, match="epoch 1"):
        run_loop("search", Diverges(), run, checkpoint_minutes=EVERY_STEP)
    state = run.load("search.pt")
    assert state is not None
    assert state["within"]["steps_done"] == 2


def test_signals_that_a_user_handles_or_ignores_stay_so(tmp_path: Path) -> None:
    received = []
    own = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for number, name in ((signal.SIGUSR1, "usr1"), (signal.SIGHUP, "hup")):
            run = RunFolder.create(tmp_path / name)
            task = signaled(Drawing(), "search", number, 3)
            run_loop("search", task, run, epochs=1)
    finally:
        signal.signal(signal.SIGUSR1, own)
        signal.signal(signal.SIGHUP, ignored)
    assert received == [signal.SIGUSR1]


def test_without_a_folder_a_signal_ends_at_once() -> None:
    task = signaled(Drawing(), "search", signal.SIGINT, 3)
    optimizer = asng.ASNG(task.space, population_size=2, seed=0)
    with pytest.raises(KeyboardInterrupt) as caught:
        search(task, optimizer, SearchConfig(epochs=1), seed=0, stream=None)
    assert not isinstance(caught.value, Interrupted)


def process(
    loop: str, name: str, folder: Path, number: int, after: int, again: bool = False
) -> int:
    """The exit status of a loop in a process of its own, which is to end before the loop does."""

    def work() -> int:
        task = signaled(TASKS[name](), loop, number, after)
        if again:  # the same signal twice, in one forward pass and a later one of the same step
            task = signaled(task, loop, number, after + 1)
        run_loop(loop, task, RunFolder(folder), checkpoint_minutes=EVERY_STEP)
        return 1

    return exit_status(forked(work))


@pytest.mark.parametrize("loop", LOOPS)
def test_processes_that_are_killed_at_random_steps(loop: str, tmp_path: Path) -> None:
    whole = RunFolder.create(tmp_path / "whole")
    run_loop(loop, small.task(), whole)
    run = RunFolder.create(tmp_path / "killed")
    generator = random.Random(loop)
    for _ in range(3):
        after = generator.randint(2, 4)
        assert process(loop, "cells", run.path, signal.SIGKILL, after) == -signal.SIGKILL
    run_loop(loop, small.task(), run)
    assert small.equal(run.load(f"{loop}.pt"), whole.load(f"{loop}.pt"))
    assert run.file(f"{loop}.csv").read_bytes() == whole.file(f"{loop}.csv").read_bytes()


def test_the_same_signal_again_ends_at_once(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    status = process("search", "drawing", run.path, signal.SIGTERM, 1, again=True)
    assert status == -signal.SIGTERM
    assert not run.file("search.pt").exists()
