"""What is not finite is noticed and named, and a training may go on more slowly."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import torch
from choice_task import ChoiceTask
from torch import Tensor, nn

import asng_ext as asng
from asng_ext.engine.retrain import retrain
from asng_ext.engine.search import search
from asng_ext.nn import Choice, search_space
from asng_ext.runs.config import RetrainConfig, SearchConfig
from asng_ext.runs.folder import RunFolder
from asng_ext.training.divergence import DivergedError

SETTINGS: dict[str, Any] = {
    "epochs": 2, "momentum": 0.0, "weight_decay": 0.0, "gradient_clip": 1e9, "test_every": 1,
}  # fmt: skip


class Steep(ChoiceTask):
    """Weights on slopes so steep that large steps lead away from the valley, ever faster.

    Args:
        happens: Is called with the number of the step, from 0, and gives what to multiply its
            training loss by.
    """

    search_steps = retrain_steps = 20

    def __init__(self, happens: Callable[[int], float] = lambda step: 1.0) -> None:
        self.space = search_space(self.supernet())
        self.happens = happens
        self.trained = 0

    def supernet(self) -> nn.Module:
        ways = {"as it is": nn.Identity(), "pooled": nn.AvgPool1d(1)}
        network = nn.Sequential(nn.Linear(2, 2), Choice("way", ways), nn.Linear(2, 1))
        with torch.no_grad():
            for weight in network.parameters():
                weight.fill_(0.5)
        return network

    def weight_batches(self, epoch: int) -> Iterator[Tensor]:
        for _ in range(self.search_steps):
            yield torch.rand(3, 2)

    theta_batches = train_batches = weight_batches

    def losses(self, *arguments: Any) -> Any:
        result = super().losses(*arguments)
        self.trained += torch.is_grad_enabled()
        return result

    def training_loss(self, *arguments: Any) -> Any:
        result = super().training_loss(*arguments)
        self.trained += 1
        return result

    def loss(self, network: nn.Module, batch: Tensor) -> Tensor:
        factor = self.happens(self.trained) if torch.is_grad_enabled() else 1.0
        return network(batch).square().exp().mean() * factor


def run_loop(
    loop: str, task: Any, run: RunFolder | None, rate: float, stream: Any = None, **changes: Any
) -> Any:
    optimizer = asng.ASNG(task.space, population_size=2, seed=0)
    named: dict[str, Any] = {"seed": 3, "run": run, "stream": stream}
    named["resume_from"] = changes.pop("resume_from", None)
    settings = {**SETTINGS, "learning_rate": rate, **changes}
    if loop == "search":
        result = search(task, optimizer, SearchConfig(**settings), **named)
        return dict(result.supernet.state_dict()), result.rows, optimizer.state_dict()
    network, _ = retrain(task, {"way": "pooled"}, RetrainConfig(**settings), **named)
    return dict(network.state_dict()), network.training


loops = pytest.mark.parametrize("loop", ["search", "retrain"])


@loops
def test_it_is_noticed_within_some_steps_and_named(loop: str) -> None:
    """Also without a run folder; no step is trained after that."""
    for at, every, steps in (
        (33, 5, "steps 11 to 15"),
        (33, 1, "step 14"),
        (20, 7, "steps 1 to 7"),
    ):
        task = Steep(lambda step, at=at: math.nan if step == at else 1.0)  # type: ignore[misc]
        with pytest.raises(DivergedError) as caught:
            run_loop(loop, task, None, 1e-3, check_every=every)
        assert f"epoch 2, {steps}: train_loss is nan" in str(caught.value)
        assert "weight 0.weight and 3 more of 4 is not finite" in str(caught.value)
        assert task.trained <= at + every


@loops
def test_what_diverges_from_the_start_ends_as_if_begun_with_the_lower_rate(
    loop: str, tmp_path: Path
) -> None:
    diverged = {power: _diverges(loop, 2.0**power) for power in range(-12, 5)}
    # The largest that does not, below four that do.
    rate = 2.0 ** next(p for p in range(0, -13, -1) if not diverged[p])
    assert all(diverged[p] for p in diverged if 2.0**p > rate)
    plain = run_loop(loop, Steep(), None, rate)
    for count in (1, 3):
        run = RunFolder.create(tmp_path / str(count))
        said = io.StringIO()
        named: dict[str, Any] = {"on_divergence": "retry", "stream": said}
        result = run_loop(loop, Steep(), run, rate * 2**count, **named)
        assert small.equal(result, plain)
        assert said.getvalue().count("Continuing from the last checkpoint") == count
        state = run.load(f"{loop}.pt")
        assert state is not None
        assert state["halvings"] == {"count": count}
    run = RunFolder.create(tmp_path / "too high")
    with pytest.raises(DivergedError, match="epoch 1"):
        run_loop(loop, Steep(), run, rate * 2**4, on_divergence="retry")
    assert not run.file(f"{loop}.pt").exists()


def _diverges(loop: str, rate: float) -> bool:
    try:
        run_loop(loop, Steep(), None, rate)
    except DivergedError:
        return True
    return False


@loops
def test_it_continues_from_the_last_checkpoint_and_so_does_what_is_interrupted(
    loop: str, tmp_path: Path
) -> None:
    """A loss that is not finite in the second epoch, at the first try alone."""

    def task() -> Steep:
        tries = iter([math.nan])
        return Steep(lambda step: next(tries, 1.0) if step == 25 else 1.0)

    run = RunFolder.create(tmp_path / "run")
    settings: dict[str, Any] = {"epochs": 3, "keep": 9, "on_divergence": "retry"}
    expected = run_loop(loop, task(), run, 1e-3, **settings)
    last = run.load(f"{loop}.pt")
    assert last is not None
    full, half, again = (row["learning_rate"] for row in last["rows"])
    shares = [(1 + math.cos(math.pi * step / 60)) / 2 for step in (19, 39, 59)]
    assert (full, half, again) == pytest.approx(
        (1e-3 * shares[0], 5e-4 * shares[1], 5e-4 * shares[2])
    )
    # From the first checkpoint, at the full rate, it goes without what happened once.
    first = run.file(f"{loop}.prev2.pt")
    unharmed = run_loop(loop, Steep(), run, 1e-3, resume_from=first, **settings)
    assert not small.equal(unharmed[0], expected[0])
    # From the second, which was trained at the half, as before.
    run = RunFolder.create(tmp_path / "again")
    expected = run_loop(loop, task(), run, 1e-3, **settings)
    second = run.file(f"{loop}.prev.pt")
    assert small.equal(run_loop(loop, Steep(), run, 1e-3, resume_from=second, **settings), expected)


@loops
def test_a_chosen_checkpoint_is_the_one_to_retry_from(loop: str, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run_loop(loop, Steep(), run, 1e-3, epochs=3, keep=9)
    first = run.file(f"{loop}.prev2.pt")
    tries = iter([math.nan])
    task = Steep(lambda step: next(tries, 1.0) if step == 5 else 1.0)  # of epoch 2
    run_loop(loop, task, run, 1e-3, epochs=3, keep=9, resume_from=first, on_divergence="retry")
    assert task.trained == 20 + 40  # it is noticed at the end of the epoch
    state = run.load(f"{loop}.pt")
    assert state is not None
    assert state["halvings"] == {"count": 1}


@loops
def test_a_loop_may_go_on_for_more_epochs(loop: str, tmp_path: Path) -> None:
    """From the end, or from within; with the learning rates of a run of so many."""
    run = RunFolder.create(tmp_path / "run")
    run_loop(loop, Steep(), run, 1e-3, epochs=2)
    with pytest.raises(ValueError, match="epochs was 2 and is 1"):
        run_loop(loop, Steep(), run, 1e-3, epochs=1)
    with pytest.warns(UserWarning, match="is of 2 epochs and continues to 4"):
        run_loop(loop, Steep(), run, 1e-3, epochs=4)
    state = run.load(f"{loop}.pt")
    assert state is not None
    rates = [row["learning_rate"] for row in state["rows"]]
    cosines = [
        (1 + math.cos(math.pi * done / of)) / 2
        for done, of in ((19, 40), (39, 40), (59, 80), (79, 80))
    ]
    assert rates == pytest.approx([1e-3 * each for each in cosines])
    assert run.file(f"{loop}.csv").read_text().count("\n") == 5
