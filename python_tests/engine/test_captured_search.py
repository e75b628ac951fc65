"""The search loop with its steps captured: the same numbers as without, and what falls back."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import torch
from devices import DEVICES
from recording_graphs import Launches, RecordingGraphs, counting
from tensor_task import StackedTask, asng_in_tensors
from torch import nn

import asng_ext as asng
from asng_ext.engine.search import SearchResult, search
from asng_ext.nn import fused
from asng_ext.nn.sliceable_weight import WeightBank
from asng_ext.runs.config import RetrainConfig, SearchConfig
from asng_ext.runs.folder import RunFolder
from asng_ext.strategies.ask_tell import AskTell
from asng_ext.strategies.protocol import Parts
from asng_ext.training.cuda_graphs import WARM_UPS
from asng_ext.training.metrics import Means
from asng_ext.training.weight_optimizers import (
    make_weight_optimizer,
    restore_weight_optimizer,
    set_learning_rate,
)

pytestmark = pytest.mark.operators  # most optimizers here are in tensors

CONFIG = SearchConfig(epochs=3, learning_rate=0.3, gradient_clip=0.5)


def outcome(result: SearchResult, optimizer: Any) -> list[Any]:
    state = dict(result.supernet.state_dict())
    return [result.architecture, state, result.rows, optimizer.state_dict()]


def run_search(
    config: SearchConfig = CONFIG,
    graphs: Any = None,
    task: Any = None,
    optimizer: Any = None,
    device: str = "cpu",
    **options: Any,
) -> list[Any]:
    task = task or StackedTask(device)
    optimizer = optimizer or asng_in_tensors(task.space, device)
    options = {"stream": None, "seed": 2, **options}
    return outcome(search(task, optimizer, config, graphs=graphs, **options), optimizer)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_captured_or_not_the_numbers_are_the_same(momentum: float, device: str) -> None:
    config = replace(CONFIG, momentum=momentum)
    graphs, unused = counting(device), counting(device)
    captured = run_search(config, graphs, device=device)
    usual = run_search(replace(config, graphs=False), unused, device=device)
    assert small.equal(captured, usual)
    assert graphs.captured == 1
    assert graphs.replays == 3 * 4 - WARM_UPS
    assert unused.ran == unused.captured == 0
    assert captured[3]["generation"] == 3 * 4
    assert captured[2][-1]["train_loss"] < captured[2][0]["train_loss"]
    # The step size is read anew in every replay; a constant one ends elsewhere.
    assert captured[2][-1]["learning_rate"] < 0.1 * captured[2][0]["learning_rate"]


@pytest.fixture
def unseen_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supernet takes tensors on the CPU as it takes those on a GPU."""
    monkeypatch.setattr(
        fused, "_is_device_resident", lambda values: isinstance(values, torch.Tensor)
    )


@pytest.mark.usefixtures("unseen_samples")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.grid
def test_a_search_of_cells_is_captured(device: str, precision: str) -> None:
    """From the plans of batches to the update of the distribution."""
    # As many steps as with four times as many images.
    task = small.task(
        device=device,
        images=small.noise(31, 10),
        search_batch_size=5,
        retrain_batch_size=5,
        implementation="fused",
        precision=precision,
    )
    assert task.capturable
    graphs = counting(device)
    config = replace(small.SEARCH, epochs=2)
    captured, usual = (
        run_search(replace(config, graphs=on), graphs, task, asng_in_tensors(task.space, device))
        for on in (True, False)
    )
    assert small.equal(captured, usual)
    assert graphs.captured == 1
    assert graphs.replays == 2 * task.search_steps - WARM_UPS
    # The optimizer on the host and torch.optim.SGD do the same, to the last bits, which bfloat16
    # may round another way.
    if device == "cpu" and precision == "float32":
        host = run_search(
            config, task=task, optimizer=asng.ASNG(task.space, population_size=2, seed=7)
        )
        for row, other in zip(host[2], captured[2], strict=True):
            assert row == pytest.approx(other, rel=1e-4)


@pytest.mark.usefixtures("unseen_samples")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.grid(only=True)
def test_few_launches_surround_the_cells(precision: str) -> None:
    """PyTorch's own are the sum of the gradients of the stem, which the first cell reads twice, and
    at most the losses in double precision for the optimizer."""
    task = small.task(
        images=small.noise(31, 10),
        search_batch_size=5,
        retrain_batch_size=5,
        implementation="fused",
        precision=precision,
    )
    supernet, means = task.supernet(), Means()
    sgd = make_weight_optimizer(supernet, small.SEARCH, capturable=True)
    strategy = AskTell(asng_in_tensors(task.space))
    strategy.begin(Parts(task, supernet, sgd, means))
    for pair in zip(task.weight_batches(0), task.theta_batches(0), strict=True):
        with Launches() as launches:  # once there are momentum buffers and the sums of metrics
            strategy.step(pair)
    others = [name for name in launches.names if not name.startswith("asng::")]
    assert others.count("aten::add") == 1
    assert others.count("aten::_to_copy") <= 1
    assert set(others) <= {"aten::add", "aten::_to_copy"}
    # All cells are planned at once: for both passes of the weights' step and for the other one.
    own = [name.removeprefix("asng::") for name in launches.names if name not in others]
    cells = len(supernet.cells)
    assert {name: own.count(name) for name in own if "cell" in name} == {
        "_cell_plans": 3,
        "_planned_cell": 2 * cells,
        "_cell_backward_onto": cells,
    }


def test_optimizers_on_the_host_are_not_capturable() -> None:
    space = StackedTask().space
    assert not asng.ASNG(space).capturable
    assert not asng.SNG(space).capturable
    assert asng_in_tensors(space).capturable


def test_a_captured_search_is_close_to_the_one_without_a_backend() -> None:
    """The step of the weights that can be captured is that of torch.optim.SGD."""
    config = replace(CONFIG, epochs=2)
    plain, captured = run_search(config), run_search(config, RecordingGraphs())
    for row, other in zip(plain[2], captured[2], strict=True):
        assert row == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_resume_bit_for_bit(tmp_path: Path, before: bool, after: bool, device: str) -> None:
    class StopError(Exception):
        pass

    class Stops(StackedTask):
        tests = 0

        def test_supernet(self, supernet: nn.Module, values: Mapping[str, Any]) -> Any:
            self.tests += 1
            if self.tests == 3:
                raise StopError
            return super().test_supernet(supernet, values)

    whole_run = RunFolder.create(tmp_path / "whole")
    whole = run_search(graphs=counting(device), run=whole_run, device=device)
    run = RunFolder.create(tmp_path / "broken")
    with pytest.raises(StopError):
        run_search(
            replace(CONFIG, graphs=before),
            counting(device),
            task=Stops(device),
            run=run,
            device=device,
        )
    graphs = counting(device)
    resumed = run_search(replace(CONFIG, graphs=after), graphs, run=run, device=device)
    assert graphs.replays == (4 - WARM_UPS if after else 0)
    assert small.equal(resumed, whole)
    assert run.file("search.csv").read_bytes() == whole_run.file("search.csv").read_bytes()
    assert small.equal(run.load("search.pt"), whole_run.load("search.pt"))


class NotCapturable(StackedTask):
    capturable = False


class Reads(StackedTask):
    def losses(self, supernet: Any, batch: Any, samples: Any) -> Any:
        losses, metrics = super().losses(supernet, batch, samples)
        return losses / max(1.0, float(losses.detach().max())), metrics


@pytest.mark.parametrize(
    ("task", "optimizer", "reason"),
    [
        (NotCapturable(), None, "the task, NotCapturable, works on the host"),
        (
            StackedTask(),
            asng.ASNG(StackedTask().space, population_size=2, seed=7),
            "the optimizer, ASNG, works on the",
        ),
        (Reads(), None, "it reads _local_scalar_dense"),
    ],
)
def test_what_cannot_be_captured_runs_as_usual_and_says_why(
    task: Any, optimizer: Any, reason: str
) -> None:
    graphs, stream = RecordingGraphs(), io.StringIO()
    optimizer = optimizer or asng_in_tensors(task.space)
    first = optimizer.state_dict()
    fallen_back = run_search(CONFIG, graphs, task, optimizer, stream=stream)
    assert graphs.captured == 0
    lines = [line for line in stream.getvalue().splitlines() if "CUDA graphs" in line]
    assert len(lines) == 1
    assert f"search: steps run without CUDA graphs: {reason}" in lines[0]
    silent = io.StringIO()
    off = replace(CONFIG, graphs=False)
    optimizer.load_state_dict(first)
    assert small.equal(fallen_back, run_search(off, graphs, task, optimizer, stream=silent))
    assert "CUDA" not in silent.getvalue()


def test_weight_banks_are_not_captured() -> None:
    """Their SGD decides on the host what to do."""

    class Bank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bank = WeightBank(1, 6, 1)
            nn.init.normal_(self.bank.weight)

        def forward(self, x: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
            return x @ self.bank.leading_slice(1, 6)[0, :, 0, 0]

    class BankTask(StackedTask):
        def supernet(self) -> nn.Module:
            return Bank()

    graphs, stream = RecordingGraphs(), io.StringIO()
    run_search(replace(CONFIG, weight_decay=0.0), graphs, BankTask(), stream=stream)
    assert graphs.ran == 0
    assert "the SGD, ActiveSGD, works on the host" in stream.getvalue()


def test_without_a_gpu_nothing_is_said() -> None:
    stream = io.StringIO()
    run_search(task=NotCapturable(), stream=stream)
    assert "CUDA" not in stream.getvalue()


@pytest.mark.parametrize(
    "config", [CONFIG, RetrainConfig(optimizer="adam", weight_decay=1e-3)], ids=["sgd", "adam"]
)
def test_a_checkpoint_of_either_optimizer_continues_with_the_other(
    config: SearchConfig | RetrainConfig,
) -> None:
    """A run may have begun on a CPU and go on on a GPU, and the other way round."""
    finals = []
    for first, second in ((False, True), (True, False), (False, False), (True, True)):
        torch.manual_seed(0)
        model = nn.Conv2d(1, 4, 3).to(memory_format=torch.channels_last)
        optimizer = make_weight_optimizer(model, config, capturable=first)
        x = torch.randn(3, 1, 5, 5)
        for step in range(6):
            if step == 3:
                state = optimizer.state_dict()
                optimizer = make_weight_optimizer(model, config, capturable=second)
                restore_weight_optimizer(optimizer, state)
                assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) == second
                assert bool(optimizer.param_groups[0]["fused"]) == second
            set_learning_rate(optimizer, 0.1 / (step + 1))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        finals.append(model.weight.detach().clone())
    for final in finals[1:]:
        torch.testing.assert_close(final, finals[0])


def test_dropped_gradients_count_as_zero_where_there_was_one() -> None:
    """As with gradients that are zeroed: momentum and weight decay go on, idle weights rest."""
    weights = []
    for capturable in (False, True):
        torch.manual_seed(0)
        model = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(3))
        config = replace(CONFIG, momentum=0.0, weight_decay=0.1)
        optimizer = make_weight_optimizer(model, config, capturable=capturable)
        start = [layer.weight.detach().clone() for layer in model]
        for used in (0, 0, 1, 1):
            optimizer.zero_grad(set_to_none=False)
            model[used](torch.ones(1, 2)).sum().backward()
            optimizer.step()
        assert torch.equal(model[2].weight, start[2])
        weights.append([layer.weight.detach().clone() for layer in model])
    for usual, other in zip(*weights, strict=True):
        torch.testing.assert_close(usual, other)


class Strict(StackedTask):
    """Makes waiting for the device an error within epochs, once everything is captured."""

    def weight_batches(self, epoch: int) -> Iterable[Any]:
        batches = list(super().weight_batches(epoch))
        if epoch:
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield from batches
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def theta_batches(self, epoch: int) -> Iterable[Any]:
        return list(super().theta_batches(epoch))


@pytest.mark.cuda
@pytest.mark.parametrize("graphs", [True, False])
def test_nothing_in_an_epoch_waits_for_the_device(graphs: bool) -> None:
    counted = counting("cuda")
    run_search(replace(CONFIG, graphs=graphs), counted, task=Strict("cuda"), device="cuda")
    assert counted.captured == int(graphs)


@pytest.mark.cuda
def test_a_step_that_waits_is_found_before_it_is_captured() -> None:
    counted, stream = counting("cuda"), io.StringIO()
    run_search(CONFIG, counted, task=Reads("cuda"), device="cuda", stream=stream)
    assert counted.captured == 0
    assert "the step synchronizes with the device (" in stream.getvalue()
