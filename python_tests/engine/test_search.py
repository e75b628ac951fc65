"""The search loop: a task of one's own, resuming, reproducibility, batch normalization."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_classification as small
import torch
from tensor_task import StackedTask
from torch import Tensor, nn

import asng_ext as asng
from asng_ext._signals import Interrupted
from asng_ext.engine.search import _learning_rate, search
from asng_ext.nn import Choice, search_space, set_architecture
from asng_ext.runs.config import SearchConfig, affecting_results
from asng_ext.runs.folder import RunFolder
from asng_ext.tasks.protocol import TaskDefaults
from asng_ext.training.divergence import Halvings
from asng_ext.training.modes import Modes
from asng_ext.training.schedules import cosine
from asng_ext.training.weight_optimizers import make_weight_optimizer


class OwnTask(TaskDefaults):
    """A user's task: choices between modules that keep running statistics, and dropout."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(64, 6, generator=generator)
        self.y = (self.x[:, 0] * self.x[:, 1] > 0).float()
        self.space = search_space(self.supernet())
        self.search_steps = 4
        self.evaluated: list[tuple[bool, int, Tensor]] = []

    def supernet(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(6, 16),
            nn.BatchNorm1d(16),
            Choice("act", {"relu": nn.ReLU(), "id": nn.Identity(), "drop": nn.Dropout(0.3)}),
            Choice("out", [nn.Linear(16, 1), nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 1))]),
        )

    def _batches(self, epoch: int, half: int) -> Iterable[tuple[Tensor, Tensor]]:
        order = torch.randperm(32, generator=torch.Generator().manual_seed(epoch)) + 32 * half
        return [(self.x[part], self.y[part]) for part in order.split(8)]

    def weight_batches(self, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        return self._batches(epoch, 0)

    def theta_batches(self, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        return self._batches(epoch, 1)

    def losses(
        self, supernet: nn.Module, batch: tuple[Tensor, Tensor], samples: asng.Samples
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.evaluated.append((torch.is_grad_enabled(), len(samples), batch[0]))
        losses = []
        for sample in samples:
            set_architecture(supernet, sample)
            out = supernet(batch[0]).squeeze(1)
            losses.append(nn.functional.binary_cross_entropy_with_logits(out, batch[1]))
        return torch.stack(losses), {}

    def test_supernet(self, supernet: nn.Module, values: Mapping[str, Any]) -> dict[str, float]:
        set_architecture(supernet, values)
        supernet.eval()
        with torch.no_grad():
            out = supernet(self.x).squeeze(1)
        supernet.train()
        return {"accuracy": float(((out > 0) == (self.y > 0.5)).float().mean())}


def test_a_task_of_ones_own() -> None:
    task = OwnTask()
    optimizer = asng.ASNG(task.space, population_size=2, seed=0)
    config = SearchConfig(epochs=60, learning_rate=0.1)
    result = search(task, optimizer, config, seed=0, stream=None)
    assert set(result.architecture) == {"act", "out"}
    assert len(result.rows) == 60
    assert result.rows[-1]["train_loss"] < 0.75 * result.rows[0]["train_loss"]
    assert result.rows[-1]["test_accuracy"] > 0.7
    assert optimizer.generation == 60 * 4


def test_steps_alternate_and_all_samples_see_one_batch() -> None:
    task = OwnTask()
    optimizer = asng.ASNG(task.space, population_size=3, seed=0)
    config = SearchConfig(epochs=1, population_size=3, test_every=0)
    search(task, optimizer, config, seed=0, stream=None)
    assert [(grad, count) for grad, count, _ in task.evaluated] == [(True, 3), (False, 3)] * 4
    for (_, _, batch), half in zip(task.evaluated, [0, 1] * 4, strict=True):
        rows = [int((task.x == row).all(dim=1).nonzero()) for row in batch]
        assert all((row >= 32) == bool(half) for row in rows)


def test_evaluating_leaves_no_trace_in_batch_norm() -> None:
    task = OwnTask()
    supernet = task.supernet().train()
    samples = asng.ASNG(task.space, population_size=2, seed=0).ask()
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    with torch.no_grad(), Modes(supernet).frozen_batch_norm():
        task.losses(supernet, next(iter(task.theta_batches(0))), samples)
    assert small.equal(before, dict(supernet.state_dict()))
    norms = [module for module in supernet.modules() if isinstance(module, nn.BatchNorm1d)]
    assert all(norm.track_running_stats for norm in norms)
    task.losses(supernet, next(iter(task.weight_batches(0))), samples)
    assert not small.equal(before, dict(supernet.state_dict()))


def test_the_batch_normalizes_while_statistics_are_frozen() -> None:
    norm = nn.BatchNorm1d(4).train()
    x = torch.randn(50, 4) * 7 + 3
    with Modes(norm).frozen_batch_norm():
        torch.testing.assert_close(norm(x).mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)


def test_a_step_trains_whatever_was_left_in_another_mode() -> None:
    class KeepsItsFirst(nn.Sequential):
        def train(self, mode: bool = True) -> KeepsItsFirst:
            super().train(mode)
            self[0].eval()
            return self

    for kind, expected in ((nn.Sequential, [True, True]), (KeepsItsFirst, [False, True])):
        model = kind(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout()))
        modes = Modes(model)
        model[1][0].eval()
        modes.train()
        assert [model[0].training, model[1][0].training] == expected
        model.eval()
        modes.train()
        assert [model[0].training, model[1][0].training] == expected


def test_unused_weights_go_on_with_momentum_and_decay() -> None:
    """A weight that was used once keeps moving while it is not sampled; others stay."""

    class TwoWays(OwnTask):
        def supernet(self) -> nn.Module:
            ways = {name: nn.Linear(6, 1, bias=False) for name in ("a", "b", "c")}
            return nn.Sequential(Choice("way", ways))

    task = TwoWays()
    optimizer = asng.ASNG(task.space, population_size=2, seed=0)
    script = iter([0, 0, 1, 1])

    class Fixed(asng.ASNG):
        def ask(self) -> asng.Samples:
            samples = super().ask()
            if self._engine.asked % 2 == 1:  # weight steps
                samples.categorical[:] = next(script)
            return samples

    task.search_steps = 4
    optimizer = Fixed(task.space, seed=0)
    weights: list[Tensor] = []

    class Watched(TwoWays):
        def losses(self, supernet: nn.Module, batch: Any, samples: asng.Samples) -> Any:
            if torch.is_grad_enabled():
                choice = supernet[0]
                weights.append(
                    torch.stack([way.weight.detach().clone() for way in choice.candidates.values()])
                )
            return super().losses(supernet, batch, samples)

    config = SearchConfig(epochs=1, test_every=0, weight_decay=0.1)
    search(Watched(), optimizer, config, seed=0, stream=None)
    moved = [(weights[i + 1] != weights[i]).flatten(1).any(dim=1).tolist() for i in range(3)]
    assert moved[0] == moved[1] == [True, False, False]
    assert moved[2] == [True, True, False]


@pytest.mark.parametrize("interrupted_after", [1, 2])
def test_resume_bit_for_bit(tmp_path: Path, interrupted_after: int) -> None:
    config = small.SEARCH
    task = small.task()
    whole_run = RunFolder.create(tmp_path / "whole")
    whole_optimizer = small.optimizer(task)
    whole = search(task, whole_optimizer, config, seed=5, run=whole_run, stream=None)

    class StopError(Exception):
        pass

    class Stops(type(task)):  # type: ignore[misc]
        def test_supernet(self, supernet: nn.Module, values: Mapping[str, Any]) -> Any:
            tested.append(1)
            if len(tested) > interrupted_after:
                raise StopError
            return super().test_supernet(supernet, values)

    tested: list[int] = []
    broken = small.task()
    broken.__class__ = Stops
    run = RunFolder.create(tmp_path / "broken")
    with pytest.raises(StopError):
        search(broken, small.optimizer(broken), config, seed=5, run=run, stream=None)
    torch.randn(7)  # whatever else happens in between
    optimizer = small.optimizer(task, seed=99)
    resumed = search(task, optimizer, config, seed=5, run=run, stream=None)

    assert resumed.architecture == whole.architecture
    assert small.equal(dict(resumed.supernet.state_dict()), dict(whole.supernet.state_dict()))
    assert optimizer.state_dict() == whole_optimizer.state_dict()
    for name in ("search.csv",):
        assert run.file(name).read_bytes() == whole_run.file(name).read_bytes()
    assert small.equal(run.load("search.pt"), whole_run.load("search.pt"))


def test_same_seed_same_search_and_the_global_generator_stays() -> None:
    results = []
    for seed in (3, 3, 4):
        task = small.task(seed)
        state = torch.get_rng_state()
        optimizer = small.optimizer(task, seed)
        result = search(task, optimizer, small.SEARCH, seed=seed, stream=None)
        assert torch.equal(torch.get_rng_state(), state)
        results.append((optimizer.state_dict(), dict(result.supernet.state_dict()), result.rows))
        torch.randn(3)
    assert small.equal(results[0], results[1])
    assert not small.equal(results[0][0], results[2][0])


def test_metrics_are_complete(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    task = small.task()
    config = replace(small.SEARCH, test_every=2)
    result = search(task, small.optimizer(task), config, seed=0, run=run, stream=None)
    with open(run.file("search.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [row["test_accuracy"] != "" for row in rows] == [False, True, True]
    for row, kept in zip(rows, result.rows, strict=True):
        for name in ("train_loss", "theta_loss", "train_accuracy", "convergence", "delta"):
            assert float(row[name]) == kept[name]
    steps = 3 * task.search_steps
    last = cosine(config.learning_rate, steps - 1, steps)
    assert result.rows[-1]["learning_rate"] == pytest.approx(last)
    assert any(run.path.glob("events/search/*"))


def test_progress_shows_what_matters() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = ("search", "train loss", "valid. accuracy", "test accuracy")
    # What does not fit into 80 columns is left out.
    for stream, words in (
        (io.StringIO(), (*shown, "convergence", "δ", "left")),
        (Terminal(), shown),
    ):
        task = small.task()
        search(task, small.optimizer(task), small.SEARCH, seed=0, stream=stream)
        lines = stream.getvalue().splitlines()
        for word in words:
            assert word in lines[-1]
    assert "\r" in stream.getvalue()


def test_divergence_is_reported(tmp_path: Path) -> None:
    class Diverges(OwnTask):
        def losses(self, supernet: nn.Module, batch: Any, samples: asng.Samples) -> Any:
            losses, metrics = super().losses(supernet, batch, samples)
            return losses * math.inf, metrics

    task = Diverges()
    run = RunFolder.create(tmp_path / "run")
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        search(
            task,
            asng.ASNG(task.space, population_size=2),
            SearchConfig(epochs=1),
            seed=0,
            run=run,
            stream=None,
        )
    assert not run.file("search.pt").exists()


def test_a_last_step_that_spoils_the_weights_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Spoils(OwnTask):
        def losses(self, supernet: nn.Module, batch: Any, samples: asng.Samples) -> Any:
            losses, metrics = super().losses(supernet, batch, samples)
            if len(self.evaluated) == 2 * 2 * self.search_steps - 1:  # last weight step of epoch 2
                # Adds 0 to the loss and NaN to the gradient.
                losses = losses + (0 * next(supernet.parameters())).abs().sqrt().sum()
            return losses, metrics

    task = Spoils()
    run = RunFolder.create(tmp_path / "run")
    config = SearchConfig(epochs=3)
    with pytest.raises(FloatingPointError, match=r"epoch 2, .*: weight \S+ .*is not finite, grad"):
        search(
            task,
            asng.ASNG(task.space, population_size=2, seed=0),
            config,
            seed=0,
            run=run,
            stream=None,
        )
    state = run.load("search.pt")
    assert state is not None
    assert state["epochs_done"] == 1
    assert all(value.isfinite().all() for value in state["supernet"].values())


def test_losses_that_are_never_finite_end_the_search() -> None:
    class Fails(OwnTask):
        failures = 0.0

        def losses(self, supernet: nn.Module, batch: Any, samples: asng.Samples) -> Any:
            losses, metrics = super().losses(supernet, batch, samples)
            if not torch.is_grad_enabled() and len(self.evaluated) / 2 <= self.failures:
                losses = losses * math.nan
            return losses, metrics

    task, config = Fails(), SearchConfig(epochs=1, test_every=0)
    task.failures = task.search_steps - 1  # some may fail
    rows = search(task, asng.ASNG(task.space, population_size=2), config, seed=0, stream=None).rows
    assert set(rows[0]) == {
        "epoch", "train_loss", "theta_loss", "convergence", "delta", "learning_rate"
    }  # fmt: skip
    task = Fails()
    task.failures = math.inf
    with pytest.raises(FloatingPointError, match=r"no loss .* epoch 1 .* is finite"):
        search(task, asng.ASNG(task.space, population_size=2), config, seed=0, stream=None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A search of 2 epochs."""
    run = RunFolder.create(tmp_path_factory.mktemp("runs") / "finished")
    task = small.task()
    search(task, small.optimizer(task), TWO_EPOCHS, seed=0, run=run, stream=None)
    return run


TWO_EPOCHS = replace(small.SEARCH, epochs=2)


@pytest.fixture
def run(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of it."""
    return RunFolder(shutil.copytree(finished.path, tmp_path / "run"))


def other_images(task: Any) -> None:
    task.data.train.images[0] += 1


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("learning_rate was 0.05 and is 0.01", {"config": {"learning_rate": 0.01}}),
        ("seed was 0 and is 1", {"seed": 1}),
        ("task_seed was 0 and is 1", {"task_seed": 1}),
        ("crop_padding was -1 and is 2", {"task": {"crop_padding": 2}}),
        ("cutout was -1 and is 3", {"task": {"cutout": 3}}),
        ("precision was 'float32' and is 'bfloat16'", {"task": {"precision": "bfloat16"}}),
        ("nodes was 2 and is 3", {"task": {"nodes": 3, "parameter_limit": 9000}}),
        ("cells was 3 and is 4", {"task": {"cells": 4}}),
        ("channels was 4 and is 5", {"task": {"channels": 5}}),
        ("data was '121 \\+ 50 images 8×8×1, 10 classes, ", {"change": other_images}),
    ],
)
def test_a_search_of_anything_else_is_refused_by_name(
    run: RunFolder, name: str, changed: dict[str, Any]
) -> None:
    task = small.task(changed.get("task_seed", 0), **changed.get("task", {}))
    changed.get("change", lambda task: None)(task)
    config = replace(TWO_EPOCHS, **changed.get("config", {}))
    before = run.file("search.pt").read_bytes()
    with pytest.raises(ValueError, match=f"begun with other settings: .*{name}"):
        search(
            task, small.optimizer(task), config, seed=changed.get("seed", 0), run=run, stream=None
        )
    assert run.file("search.pt").read_bytes() == before


def test_what_has_no_influence_may_change(run: RunFolder) -> None:
    task = small.task(final_cells=4, drop_path=0.5)
    config = replace(TWO_EPOCHS, threads=1, graphs=False)
    result = search(task, small.optimizer(task), config, seed=0, run=run, stream=None)
    assert len(result.rows) == 2


def go_on(run: RunFolder, config: SearchConfig = TWO_EPOCHS) -> Any:
    task = small.task()
    return search(task, small.optimizer(task), config, seed=0, run=run, stream=None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("sgd"), "it lacks 'sgd'"),
        (lambda state: state.pop("config", state.pop("identity")), "it lacks 'config'"),
        (lambda state: state["supernet"].popitem(), "Missing key"),
        (lambda state: state.update(supernet=3), "state_dict"),
        (lambda state: state.update(epochs_done=10**9), "epochs_done must be"),
        (lambda state: state["rows"].pop(), "rows must be 2"),
        (lambda state: state["optimizer"].update(theta=[0.5]), "theta"),
    ],
)
def test_a_checkpoint_of_another_structure_is_named(
    run: RunFolder, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    state = run.load("search.pt")
    assert state is not None
    change(state)
    run.save("search.pt", state)
    with pytest.raises(ValueError, match=rf"search\.pt does not fit this run: .*{words}"):
        go_on(run)


def test_a_damaged_checkpoint_costs_an_epoch_and_changes_nothing(run: RunFolder) -> None:
    whole = run.load("search.pt")
    table = run.file("search.csv").read_bytes()
    for damage in (b"not a checkpoint", run.file("search.pt").read_bytes()[:-9]):
        run.file("search.pt").write_bytes(damage)
        with pytest.warns(UserWarning, match=r"continuing from search\.prev\.pt"):
            go_on(run)
        assert small.equal(run.load("search.pt"), whole)
        assert run.file("search.csv").read_bytes() == table


@pytest.mark.parametrize("found", [None, b"", b"a,b\nc,d\n", b"epoch,train_loss\n7,0.1\n"])
def test_a_lost_or_foreign_table_is_written_anew(run: RunFolder, found: bytes | None) -> None:
    table = run.file("search.csv").read_bytes()
    run.file("search.csv").unlink()
    if found is not None:
        run.file("search.csv").write_bytes(found)
    assert len(go_on(run).rows) == 2
    assert run.file("search.csv").read_bytes() == table


def test_a_checkpoint_of_an_earlier_version_is_taken_with_a_warning(run: RunFolder) -> None:
    state = run.load("search.pt")
    assert state is not None
    del state["rows"], state["computed_by"]
    whole = state.pop("identity")
    state["config"] = {name: whole[name] for name in affecting_results(TWO_EPOCHS)}
    run.save("search.pt", state)
    with pytest.warns(UserWarning, match=r"does not say with which .*data.*seed.* it was made"):
        assert [row["epoch"] for row in go_on(run).rows] == [1, 2]


def test_other_threads_are_warned_of(run: RunFolder) -> None:
    run.file("search.prev.pt").replace(run.file("search.pt"))
    go_on(run, replace(TWO_EPOCHS, threads=torch.get_num_threads()))
    state = run.load("search.pt")
    assert state is not None
    assert state["computed_by"]["threads"] == torch.get_num_threads()
    run.file("search.prev.pt").replace(run.file("search.pt"))
    more = torch.get_num_threads() + 1
    words = f"threads was {more - 1} and is {more}; .* not bit for bit"
    with pytest.warns(UserWarning, match=words):
        go_on(run, replace(TWO_EPOCHS, threads=more))


def test_one_search_in_a_folder_at_a_time(run: RunFolder) -> None:
    with RunFolder(run.path).lock(), pytest.raises(BlockingIOError, match="in use by process"):
        go_on(run)


def test_a_checkpoint_is_written_before_its_line(tmp_path: Path) -> None:
    class Reads(io.StringIO):
        def write(self, text: str) -> int:
            state = run.load("search.pt")
            assert state is not None
            steps = state["epochs_done"] * small.task().search_steps
            shown.append(f"{steps}/" in text)
            return len(text)

    shown: list[bool] = []
    run = RunFolder.create(tmp_path / "run")
    task = small.task()
    search(task, small.optimizer(task), TWO_EPOCHS, seed=0, run=run, stream=Reads())
    assert shown == [True, True]


def test_the_found_architecture_beats_the_average_one() -> None:
    """On the digits, with the weights of the supernet."""
    task = small.task(channels=8)
    optimizer = small.optimizer(task)
    config = replace(small.SEARCH, epochs=60, test_every=0)
    result = search(task, optimizer, config, seed=0, stream=None)
    assert optimizer.convergence > 0.5
    found = task.test_supernet(result.supernet, result.architecture)["loss"]
    uniform = asng.ASNG(task.space, population_size=24, seed=1).ask()
    others = [task.test_supernet(result.supernet, sample)["loss"] for sample in uniform]
    assert found < np.median(others)


@pytest.mark.parametrize("name", ["weight_batches", "theta_batches"])
def test_too_few_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = OwnTask()
    batches = getattr(task, name)(0)
    monkeypatch.setattr(task, name, lambda epoch: iter(batches[:3]))
    config = SearchConfig(epochs=1, test_every=0)
    with pytest.raises(ValueError, match=f"{name} of OwnTask must give 4 batches.*got 3"):
        search(task, asng.ASNG(task.space, population_size=2, seed=0), config, seed=0, stream=None)


def test_batches_without_end_are_cut_off_after_the_steps_of_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = OwnTask()
    monkeypatch.setattr(task, "weight_batches", lambda epoch: cycle(task._batches(epoch, 0)))
    monkeypatch.setattr(task, "theta_batches", lambda epoch: cycle(task._batches(epoch, 1)))
    config = SearchConfig(epochs=2, test_every=0)
    result = search(
        task, asng.ASNG(task.space, population_size=2, seed=0), config, seed=0, stream=None
    )
    assert len(result.rows) == 2
    assert len(task.evaluated) == 2 * 2 * 4


def test_members_that_are_missing_are_named() -> None:
    class Old:
        """A task that inherits nothing."""

        space = OwnTask().space
        search_steps = 4
        supernet = OwnTask.supernet
        weight_batches = theta_batches = OwnTask._batches
        losses = OwnTask.losses

    optimizer = asng.ASNG(Old.space, population_size=2, seed=0)
    with pytest.raises(TypeError) as caught:
        search(Old(), optimizer, SearchConfig(epochs=1), seed=0, stream=None)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "task must have all members of asng_ext.tasks.protocol.SearchTask, and Old lacks "
        "capturable, capture_blocker, identity, kernel_candidates, kernels, own_generators, "
        "part_of_batch, shown_metrics, test_supernet; inherit TaskDefaults for capturable, "
        "capture_blocker, identity, kernel_candidates, kernels, own_generators, part_of_batch, "
        "shown_metrics, test_supernet"
    )
    with pytest.raises(TypeError, match=r"^optimizer must have all members of .* object lacks ask"):
        search(OwnTask(), object(), SearchConfig(epochs=1), seed=0, stream=None)  # type: ignore[arg-type]


def test_the_task_says_which_metrics_are_shown() -> None:
    class Shows(OwnTask):
        shown_metrics = {"accuracy": "hits"}  # noqa: RUF012

    for task, words in ((OwnTask(), []), (Shows(), ["test hits"])):
        stream = io.StringIO()
        optimizer = asng.ASNG(task.space, population_size=2, seed=0)
        search(task, optimizer, SearchConfig(epochs=1), seed=0, stream=stream)
        assert re.findall(r"train loss|test \w+|valid\S* \w+", stream.getvalue()) == [
            "train loss",
            *words,
        ]


def test_the_cosine_ends_at_its_floor_and_starts_again_after_twice_as_long() -> None:
    config = SearchConfig(
        epochs=150, learning_rate=0.05, learning_rate_min=5e-4, restart_epochs=10, nesterov=True
    )
    halvings = Halvings()

    def rates(config: SearchConfig, *done: int) -> list[float]:
        return [_learning_rate(config, halvings, 4, steps) for steps in done]

    starts = [4 * epochs for epochs in (0, 10, 30, 70)]
    assert rates(config, *starts) == 4 * [0.05]
    middle = 5e-4 + (0.05 - 5e-4) / 2
    assert rates(config, 20, 80, 200, 440) == pytest.approx(4 * [middle])
    assert all(5e-4 < rate < 6e-4 for rate in rates(config, 39, 119, 279, 599))
    once = replace(config, restart_epochs=0)
    assert rates(once, 0, 300, 600) == pytest.approx([0.05, middle, 5e-4])
    halvings.count = 1
    assert rates(once, 0, 600) == pytest.approx([0.025, 2.5e-4])


def test_a_step_with_nesterovs_momentum() -> None:
    model = nn.Linear(1, 1, bias=False)
    config = SearchConfig(learning_rate=0.1, momentum=0.5, weight_decay=0.0, nesterov=True)
    sgd = make_weight_optimizer(model, config, capturable=True)
    weight, velocity = float(model.weight.detach()), 0.0
    for gradient in (1.0, -2.0):
        model.weight.grad = torch.tensor([[gradient]])
        sgd.step()
        velocity = 0.5 * velocity + gradient
        weight -= 0.1 * (gradient + 0.5 * velocity)
    assert float(model.weight.detach()) == pytest.approx(weight)


def test_an_interrupted_epoch_took_as_long_as_all_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = StackedTask()
    now = 0.0

    def clock() -> float:
        return now

    losses, calls = task.losses, 0

    def slow(*given: Any) -> Any:
        nonlocal now, calls
        now += 1.0
        calls += 1
        if calls == 5:  # in the third step
            os.kill(os.getpid(), signal.SIGTERM)
        return losses(*given)

    task.losses = slow  # type: ignore[method-assign]
    monkeypatch.setattr(time, "monotonic", clock)
    run, taken = RunFolder.create(tmp_path / "run"), []

    def searched() -> None:
        optimizer = asng.ASNG(task.space, population_size=2, seed=0)
        search(
            task,
            optimizer,
            SearchConfig(epochs=2, batch_size=8),
            seed=0,
            run=run,
            stream=None,
            callback=lambda row, seconds: taken.append(seconds),
        )

    with pytest.raises(Interrupted):
        searched()
    assert (taken, calls) == ([], 6)
    searched()
    assert taken == [8.0, 8.0]  # two losses a step
